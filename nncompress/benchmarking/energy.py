"""Energy per call, where the machine counts it.

| source        | counter                                                | counts                     |
|---------------|--------------------------------------------------------|----------------------------|
| "CPU package" | RAPL, `/sys/class/powercap/intel-rapl:N/energy_uj`     | all cores and their caches |
| "GPU"         | NVML, `nvmlDeviceGetTotalEnergyConsumption`            | the whole board            |
Neither knows whose work it was: idle power and other programs are in it. The counters advance once in about
a millisecond, so a candidate runs in blocks of `BLOCK_S`, and the candidates take turns.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Protocol

from nncompress.benchmarking.measure import Call

POWERCAP = Path("/sys/class/powercap")
BLOCK_S = 0.5
BLOCKS = 3  # per candidate


class Meter(Protocol):
    """A counter of energy."""

    source: str

    def joules(self) -> float:
        """Since some fixed moment."""


class Rapl:
    """All packages of the machine; their counters wrap around after minutes."""

    source = "CPU package"

    def __init__(self, packages: Sequence[Path]) -> None:
        self._packages = packages
        self._span = [int((path / "max_energy_range_uj").read_text()) for path in packages]
        self._last = [self._read(path) for path in packages]
        self._total = 0

    def joules(self) -> float:
        for i, path in enumerate(self._packages):
            now = self._read(path)
            step = now - self._last[i]
            self._total += step if step >= 0 else step + self._span[i]
            self._last[i] = now
        return self._total / 1e6

    @staticmethod
    def _read(path: Path) -> int:
        return int((path / "energy_uj").read_text())


class Nvml:
    """All NVIDIA GPUs of the machine, through the driver's own library.

    Raises:
        OSError: there is no driver, no GPU, or none that counts energy (older than Volta).
    """

    source = "GPU"

    def __init__(self) -> None:
        self._nvml = ctypes.CDLL("libnvidia-ml.so.1")
        self._call("nvmlInit_v2")
        count = ctypes.c_uint()
        self._call("nvmlDeviceGetCount_v2", ctypes.byref(count))
        self._devices = [ctypes.c_void_p() for _ in range(count.value)]
        for i, device in enumerate(self._devices):
            self._call("nvmlDeviceGetHandleByIndex_v2", ctypes.c_uint(i), ctypes.byref(device))
        if not self._devices:
            raise OSError("NVML knows no GPU")
        self.joules()

    def joules(self) -> float:
        millijoules = ctypes.c_ulonglong()
        total = 0
        for device in self._devices:
            self._call("nvmlDeviceGetTotalEnergyConsumption", device, ctypes.byref(millijoules))
            total += millijoules.value
        return total / 1e3

    def _call(self, function: str, *arguments: object) -> None:
        status = getattr(self._nvml, function)(*arguments)
        if status != 0:
            raise OSError(f"{function} failed with status {status}")


def meters(*, gpu: bool, powercap: Path = POWERCAP) -> tuple[list[Meter], str]:
    """What can be read here, and a sentence on it.

    Args:
        gpu: also look for GPUs; for candidates that run there.
    """
    found: list[Meter] = []
    missing = []
    packages = [
        path
        for path in sorted(powercap.glob("intel-rapl:*"))
        if path.name.count(":") == 1 and _text(path / "name").startswith("package")
    ]
    try:
        if packages:
            found.append(Rapl(packages))
        else:
            missing.append(f"no RAPL counter under {powercap}")
    except (OSError, ValueError):
        missing.append(f"the RAPL counters under {powercap} can be read by root only")
    if gpu:
        try:
            found.append(Nvml())
        except (OSError, AttributeError) as problem:
            missing.append(f"no energy counter of a GPU ({problem})")
    if not found:
        return [], f"not reported here: {'; '.join(missing)}"
    return found, f"{' and '.join(meter.source for meter in found)}, idle power and other programs included"


def energy_per_call(
    calls: Sequence[Call],
    counters: Sequence[Meter],
    *,
    block_s: float = BLOCK_S,
    blocks: int = BLOCKS,
) -> list[dict[str, float]]:
    """Joules per call of every candidate, by source.

    Args:
        calls: one per candidate; each runs `blocks` times for `block_s` seconds, in turns.
    """
    spent = [dict.fromkeys((m.source for m in counters), 0.0) for _ in calls]
    made = [0] * len(calls)
    for _ in range(blocks):
        for i, call in enumerate(calls):
            before = [meter.joules() for meter in counters]
            end = time.perf_counter() + block_s
            while True:
                call()
                made[i] += 1
                if time.perf_counter() >= end:
                    break
            for meter, start in zip(counters, before):
                spent[i][meter.source] += meter.joules() - start
    return [{source: joules / made[i] for source, joules in each.items()} for i, each in enumerate(spent)]


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
