"""OpenVINO on the CPU.

Source: OpenVINO's documentation, "Precision control", "Low precision transformations"; the notes were
measured.
"""

from nncompress.targets.base import Target

TARGET = Target(
    name="openvino",
    title="OpenVINO, CPU",
    device="cpu",
    runtime="openvino",
    suffixes=(".onnx", ".xml"),
    extra="openvino",
    activations="unsigned 8 bits, one scale and zero point per tensor",
    weights="signed 8 bits, a scale per output channel, zero point 0 and no other",
    floats="bfloat16 where the CPU has AMX or AVX512-BF16, else float32",
    compiler="its low precision transformations move dequantization behind the op; `export` and "
    "`bench --profile` say which layers, asked of the compiled graph",
    clock="CPU time of the calling thread, one stream, interleaved",
    float_results=True,
    products=True,
    rewrites=("matrices", "biases"),
    notes=(
        "the baseline that costs nothing is the float model as it comes: bfloat16 on AMX or AVX512-BF16",
        "quantize --target openvino rounds less than others need: elsewhere its layers may run in float",
        "weights with a zero point other than 0 run in float",
        "dynamic int8 of linear layers runs in float",
    ),
)
