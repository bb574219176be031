"""TensorRT: files only; nothing here runs it.

Source: NVIDIA's TensorRT developer guide, "Working with quantized types": symmetric, signed, zero point 0;
strong typing; by default outputs of weighted operations are not quantized, the residual input of a sum is.
NVIDIA's guide to a fast YOLOv7 after training with quantization (yolo_deepstream): what a concatenation reads
and gives has one scale, also behind max pools; otherwise values are converted around it.
"""

from nncompress.targets.base import Target

TARGET = Target(
    name="tensorrt",
    title="TensorRT",
    device="cuda",
    runtime="",
    suffixes=(".onnx",),
    extra="",
    activations="signed 8 bits, one scale per tensor, zero point 0",
    weights="signed 8 bits, a scale per output channel, zero point 0",
    floats="float16 in an int8 file, else as the model has it: build it strongly typed",
    compiler="fuses dequantize, op, quantize; not told here",
    clock="not measured here: trtexec",
    float_results=True,
    symmetric=True,
    fused_sums=True,
    joined_concats=True,
    rewrites=("float16",),
    notes=("its files are checked for their form, and for their values in ONNX Runtime on the CPU",),
)
