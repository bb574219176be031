"""Timing on the GPU, and what the GPU was doing meanwhile."""

from __future__ import annotations

import time
from typing import Any

import torch


class EventClock:
    """Time on the GPU, by events on the stream that the work goes to.

    Work is put on a stream and runs later, so the processor's clocks say nothing of it. Reading this clock
    records an event, waits until the GPU has come to it, and adds up the time since the one before.
    `cpu` is the calling thread's time: what launching cost.
    """

    def __init__(self, stream: Any = None) -> None:
        self._stream = stream
        self._last: Any = None
        self._elapsed = 0.0  # ns; summed up, as one long interval would lose digits

    def wall(self) -> int:
        event = torch.cuda.Event(enable_timing=True)
        event.record(self._stream)
        event.synchronize()
        if self._last is not None:
            self._elapsed += self._last.elapsed_time(event) * 1e6  # from ms
        self._last = event
        return round(self._elapsed)

    def cpu(self) -> int:
        return time.thread_time_ns()


def event_clock() -> EventClock:
    """For the stream of `nncompress.runtimes.on_cuda`."""
    from nncompress.runtimes.on_cuda import stream

    return EventClock(stream())


def gpu_state() -> dict[str, Any]:
    """Name, driver, clocks (MHz), temperature (°C) and power (W) of the first GPU, by nvidia-ml-py.

    {"clocks": "unknown: …"} where that is not installed, or the driver does not say.
    """
    try:
        import pynvml

        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByIndex(0)
        reasons = pynvml.nvmlDeviceGetCurrentClocksThrottleReasons(device)
        return {
            "name": pynvml.nvmlDeviceGetName(device),
            "driver": pynvml.nvmlSystemGetDriverVersion(),
            "clock": pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_SM),
            "highest_clock": pynvml.nvmlDeviceGetMaxClockInfo(device, pynvml.NVML_CLOCK_SM),
            "memory_clock": pynvml.nvmlDeviceGetClockInfo(device, pynvml.NVML_CLOCK_MEM),
            "temperature": pynvml.nvmlDeviceGetTemperature(device, pynvml.NVML_TEMPERATURE_GPU),
            "power": pynvml.nvmlDeviceGetPowerUsage(device) / 1000,
            "throttled": bool(reasons & ~pynvml.nvmlClocksThrottleReasonGpuIdle),
        }
    except ImportError:
        return {"clocks": "unknown: nvidia-ml-py is not installed"}
    except Exception as problem:  # NVMLError, of which each driver supports another part
        return {"clocks": f"unknown: {problem}"}


def waiting(call: Any) -> Any:
    """`call` that returns when the GPU is done."""

    def done() -> None:
        call()
        torch.cuda.synchronize()

    return done
