"""ONNX Runtime on NVIDIA GPUs."""

from nncompress.targets.base import Target

TARGET = Target(
    name="ort-cuda",
    title="ONNX Runtime, CUDA",
    device="cuda",
    runtime="onnxruntime",
    suffixes=(".onnx",),
    extra="cuda",
    activations="computed in float32",
    weights="computed in float32",
    floats="float32, or float16 where the file has it",
    compiler="no integer kernels: quantize and dequantize nodes are computed; `bench` names what falls to "
    "the processor",
    clock="events on the GPU's stream",
    notes=("int8 saves bytes and no time: float16 is the fast form (quantize --mode float16)",),
)
