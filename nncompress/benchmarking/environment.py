"""The machine and the versions a measurement was made with."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from nncompress.devices import processor
from nncompress.extras import version
from nncompress.memory import installed

PACKAGES = ("nncompress", "torch", "numpy", "onnx", "onnxruntime", "executorch")
# The vector instructions that decide how fast float and int8 kernels are.
INSTRUCTION_SETS = (
    *("sse4_2", "avx", "fma", "avx2", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "avx512_bf16"),
    *("avx512_fp16", "amx_tile", "amx_int8", "amx_bf16", "neon", "asimd", "asimddp", "i8mm", "bf16", "sve"),
)


def environment() -> dict[str, Any]:
    """What can be read of the machine without privileges; what cannot is None."""
    cpu = processor()
    return {
        "cpu": cpu.name,
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
        "cores_usable": cpu.cores,
        "instruction_sets": [name for name in INSTRUCTION_SETS if name in cpu.flags],
        "virtual_machine": "hypervisor" in cpu.flags if cpu.flags else None,
        "governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "load_average": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "memory": installed(),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "versions": {name: found for name in PACKAGES if (found := version(name))},
    }


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text().strip()
    except OSError:
        return None
