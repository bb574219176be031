"""What every op of an ONNX graph computes, in ATen calls. Imported, they register."""

from nncompress.loading.onnx.rules import (  # noqa: F401
    control,
    convolution,
    dynamic,
    fourier,
    indexing,
    movement,
    norms,
    pointwise,
    products,
    quantized,
    recurrent,
    reductions,
    resize,
)
