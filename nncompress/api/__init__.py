"""The Python interface; the command line is a thin face of it.

    import nncompress

    model = nncompress.load("model.pt2")  # or the nn.Module itself
    smaller = nncompress.compress(model, ["prune:std=0.5", "factorize:err=1e-3", "quantize"], data="val.npz")
    nncompress.export(smaller, "smaller.onnx")
    module = smaller.to_module()  # to train it in a loop of your own

`data` is everywhere what `--data` takes, or an object in memory: a tensor or array, `(x, y)`, a `Dataset` or
`DataLoader` of torch, any iterable of batches, or a function that returns one of these.
"""

from nncompress.api.compression import as_passes, compress, export, inspect
from nncompress.api.measurement import bench, evaluate
from nncompress.api.opening import dataset, load
from nncompress.ir import Model

__all__ = [
    "Model",
    "as_passes",
    "bench",
    "compress",
    "dataset",
    "evaluate",
    "export",
    "inspect",
    "load",
]
