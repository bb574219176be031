"""Timing on the GPU, and what the GPU was doing meanwhile."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from nncompress.runtimes.cuda.on_cuda import stream

IDLE = 0x1  # not throttled, only not at work
CHOSEN = 0x2 | 0x100  # clocks that somebody set: lower than they could be, and constant
# what nvidia-smi calls them, in the order of `State`
QUERY = (
    "name,driver_version,clocks.sm,clocks.max.sm,clocks.mem,temperature.gpu,power.draw,"
    "clocks_throttle_reasons.active"
)
ENTRIES = ("name", "driver", "clock", "highest_clock", "memory_clock", "temperature", "power")


class EventClock:
    """Time on the GPU, by events on the stream that the work goes to.

    Work is put on a stream and runs later, so the processor's clocks say nothing of it. Reading this clock
    records an event, waits until the GPU has come to it, and adds up the time since the one before, which is
    recorded after that wait: so what waiting takes is in no interval.
    `cpu` is the calling thread's time: what launching cost.
    """

    # Before the first launch arrives the GPU waits for some microseconds; calls in a row overlap theirs with
    # the work before.
    shortest_sample_ns = 2_000_000

    def __init__(self, stream: Any = None) -> None:
        self._stream = stream
        self._last: Any = None
        self._elapsed = 0.0  # ns; summed up, as one long interval would lose digits

    def wall(self) -> int:
        event = self._record()
        event.synchronize()
        if self._last is not None:
            self._elapsed += self._last.elapsed_time(event) * 1e6  # from ms
        self._last = self._record()
        return round(self._elapsed)

    def cpu(self) -> int:
        return time.thread_time_ns()

    def _record(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        return event


def event_clock() -> EventClock:
    """For the stream of `nncompress.runtimes.cuda.on_cuda`."""
    return EventClock(stream())


def gpu_state() -> dict[str, Any]:
    """Of the GPU that torch uses: name, driver, clocks (MHz), temperature (°C), power (W), and throttling.

    By nvidia-ml-py, else by `nvidia-smi`; {"clocks": "unknown: …"} where neither says anything.
    """
    try:
        return _by_library()
    except ImportError:
        pass
    except Exception as problem:  # NVMLError, of which each driver supports another part
        return {"clocks": f"unknown: {problem}"}
    try:
        return _by_command()
    except (OSError, subprocess.SubprocessError, ValueError) as problem:
        return {"clocks": f"unknown: nvidia-ml-py is not installed, and nvidia-smi: {problem}"}


def _by_library() -> dict[str, Any]:
    import pynvml

    device = _handle(pynvml)
    return {
        "name": pynvml.nvmlDeviceGetName(device),
        "driver": pynvml.nvmlSystemGetDriverVersion(),
        "clock": pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_SM),
        "highest_clock": pynvml.nvmlDeviceGetMaxClockInfo(device, pynvml.NVML_CLOCK_SM),
        "memory_clock": pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_MEM),
        "temperature": pynvml.nvmlDeviceGetTemperature(device, pynvml.NVML_TEMPERATURE_GPU),
        "power": pynvml.nvmlDeviceGetPowerUsage(device) / 1000,
        "throttled": _is_throttled(pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(device)),
    }


@cache
def _handle(pynvml: Any) -> Any:
    """NVML counts all GPUs, torch only those that it was shown: they meet in the GPU's own number."""
    pynvml.nvmlInit()
    identity = _uuid()
    if identity is None:
        return pynvml.nvmlDeviceGetHandleByIndex(0)
    return pynvml.nvmlDeviceGetHandleByUUID(identity)


def _uuid() -> str | None:
    """ "GPU-…" of the first GPU that torch sees."""
    if not torch.cuda.is_available():
        return None
    text = str(getattr(torch.cuda.get_device_properties(0), "uuid", ""))
    return f"GPU-{text}" if text else None


def _by_command() -> dict[str, Any]:
    command = ["nvidia-smi", f"--query-gpu={QUERY}", "--format=csv,noheader,nounits", f"--id={_uuid() or 0}"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True)
    *values, reasons = (part.strip() for part in done.stdout.strip().split(","))
    read: dict[str, Any] = dict(zip(ENTRIES, values, strict=True))
    for entry in ENTRIES[2:]:
        read[entry] = float(read[entry])
    return {**read, "throttled": _is_throttled(int(reasons, 16))}


def _is_throttled(reasons: int) -> bool:
    """For heat or power; what `nvmlDeviceGetCurrentClocksThrottleReasons` gives is a set of bits."""
    return bool(reasons & ~(IDLE | CHOSEN))


def gpu_environment(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """What a result tells of the GPU.

    Args:
        states: before, at the end of each session while the GPU was still warm, and after.
    """
    return {
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if torch.cuda.is_available() else None,
        "tf32": False,  # see `nncompress.runtimes.cuda.on_cuda`
        "before": states[0],
        "sessions": list(states[1:-1]),
        "after": states[-1],
        "throttled": any(state.get("throttled") for state in states[1:-1]),
    }


def waiting(call: Any) -> Any:
    """`call` that returns when the GPU is done."""

    def done() -> None:
        call()
        torch.cuda.synchronize()

    return done
