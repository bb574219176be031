"""The machine and the versions a measurement was made with."""

from __future__ import annotations

import os
import platform
from pathlib import Path
from typing import Any

from nncompress.devices import machine, processor
from nncompress.extras import version
from nncompress.memory import installed

PACKAGES = ("nncompress", "torch", "numpy", "onnx", "onnxruntime", "executorch")


def environment() -> dict[str, Any]:
    """What can be read of the machine without privileges; what cannot is None."""
    cpu = processor()
    return {
        **machine(),
        "cores_usable": cpu.cores,
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
