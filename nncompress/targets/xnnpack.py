"""ExecuTorch with its XNNPACK delegate: phones, and this CPU for checks (docs/runtimes.md)."""

from nncompress.targets.base import Target

TARGET = Target(
    name="xnnpack",
    title="ExecuTorch, XNNPACK",
    device="mobile",
    runtime="executorch",
    suffixes=(".pte",),
    extra="mobile",
    activations="signed 8 bits, one scale and zero point per tensor; of linear layers whose output is float, "
    "per row and call",
    weights="signed 8 bits, a scale per output channel, zero point 0",
    floats="float32",
    compiler="the delegate takes whole partitions, the rest goes to slower kernels; `export` says which",
    clock="CPU time of the calling thread, interleaved",
    notes=("measured on this CPU: ratios on a phone differ",),
)
