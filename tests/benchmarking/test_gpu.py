"""Timing by events, on events that are made up; and on a GPU where there is one."""

import sys
from types import SimpleNamespace

import networks
import numpy as np
import pytest
import torch

from nncompress.benchmarking import Candidate, benchmark
from nncompress.benchmarking import gpu as gpu_module
from nncompress.benchmarking.gpu import EventClock, gpu_environment, gpu_state
from nncompress.benchmarking.measure import Measurement
from nncompress.benchmarking.sessions import clock_of
from nncompress.runtimes.cuda.on_cuda import Cuda, open_on_cuda

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


class Gpu:
    """A GPU on which work takes the time it says, some time after it was put on the stream."""

    def __init__(self) -> None:
        self.now = 0.0  # ms
        self.waited = 0

    def work(self, milliseconds: float) -> None:
        self.now += milliseconds

    def event(self, enable_timing: bool) -> SimpleNamespace:
        assert enable_timing
        event = SimpleNamespace(at=None)
        event.record = lambda stream: setattr(event, "at", self.now)
        event.synchronize = lambda: setattr(self, "waited", self.waited + 1)
        event.elapsed_time = lambda later: later.at - event.at
        return event


@pytest.fixture
def gpu(monkeypatch):
    made = Gpu()
    monkeypatch.setattr(torch.cuda, "Event", made.event)
    return made


def test_time_is_that_of_the_gpu_and_every_reading_waits(gpu):
    clock = EventClock()
    first = clock.wall()
    gpu.work(2.5)
    second = clock.wall()
    gpu.work(0.001)
    assert (first, second - first, clock.wall() - second) == (0, 2_500_000, 1_000)
    assert gpu.waited == 3


def test_the_loop_of_the_benchmark_measures_by_events(gpu):
    measurement = Measurement([lambda: gpu.work(1.0), lambda: gpu.work(3.0)], clock=EventClock())
    measurement.warm_up()
    for _ in range(5):
        measurement.round()
    assert [np.median(candidate.wall_ns) for candidate in measurement.times] == pytest.approx(
        [1e6, 3e6], rel=1e-6
    )


def test_waiting_is_in_no_interval(gpu):
    """The GPU idles while the processor waits for an event and comes back."""
    real = gpu.event

    def slow(enable_timing):
        event = real(enable_timing)
        event.synchronize = lambda: gpu.work(0.5)
        return event

    torch.cuda.Event = slow  # undone by the fixture
    clock = EventClock()
    before = clock.wall()
    gpu.work(2.0)
    assert clock.wall() - before == 2_000_000


def test_short_calls_are_repeated_until_a_launch_does_not_count(gpu):
    measurement = Measurement([lambda: gpu.work(0.01)], clock=EventClock())
    measurement.warm_up()
    before = gpu.now
    measurement.round()
    assert gpu.now - before >= 2.0
    assert measurement.times[0].wall_ns == [10_000]


class Nvml:
    """nvidia-ml-py over a GPU that is made up."""

    NVML_CLOCK_SM, NVML_CLOCK_MEM, NVML_TEMPERATURE_GPU = 1, 2, 0

    def __init__(self, reasons=0):
        self.reasons = reasons

    def __getattr__(self, name):
        return {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetHandleByIndex": lambda i: f"#{i}",
            "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
            "nvmlDeviceGetName": lambda device: f"A100 {device}",
            "nvmlSystemGetDriverVersion": lambda: "580.1",
            "nvmlDeviceGetClockInfo": lambda device, kind: {1: 1200, 2: 1593}[kind],
            "nvmlDeviceGetMaxClockInfo": lambda device, kind: 1410,
            "nvmlDeviceGetTemperature": lambda device, sensor: 61,
            "nvmlDeviceGetPowerUsage": lambda device: 250_500,
            "nvmlDeviceGetCurrentClocksThrottleReasons": lambda device: self.reasons,
        }[name]


@pytest.fixture
def visible(monkeypatch):
    """torch was shown the GPU of this number only."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    properties = SimpleNamespace(uuid="1234-56")
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda index: properties)


@pytest.mark.parametrize(
    ("reasons", "throttled"),
    [(0, False), (0x1, False), (0x2, False), (0x4, True), (0x21, True), (0x48, True)],
)
def test_the_state_is_that_of_torchs_gpu(visible, monkeypatch, reasons, throttled):
    monkeypatch.setitem(sys.modules, "pynvml", Nvml(reasons))
    assert gpu_state() == {
        "name": "A100 GPU-1234-56", "driver": "580.1", "clock": 1200, "highest_clock": 1410,
        "memory_clock": 1593, "temperature": 61, "power": 250.5, "throttled": throttled,
    }  # fmt: skip


def test_without_the_library_the_command_tells(visible, monkeypatch):
    asked = []

    def smi(command, **more):
        asked.append(command)
        line = "NVIDIA A100, 580.1, 1200, 1410, 1593, 61, 250.50, 0x0000000000000004\n"
        return SimpleNamespace(stdout=line)

    monkeypatch.setitem(sys.modules, "pynvml", None)
    monkeypatch.setattr(gpu_module.subprocess, "run", smi)
    state = gpu_state()
    said = [state[entry] for entry in ("name", "clock", "power", "throttled")]
    assert said == ["NVIDIA A100", 1200, 250.5, True]
    assert "--id=GPU-1234-56" in asked[0]
    told = gpu_environment([{"name": "A100"}, state, {"name": "A100", "throttled": False}])
    assert told["throttled"] is True  # while it worked
    assert (told["before"], told["sessions"], told["tf32"]) == ({"name": "A100"}, [state], False)

    def none(command, **more):
        raise FileNotFoundError("nvidia-smi")

    monkeypatch.setattr(gpu_module.subprocess, "run", none)
    assert gpu_state()["clocks"].startswith("unknown: nvidia-ml-py is not installed")


def test_ratios_on_a_gpu_are_by_its_clock():
    assert clock_of([Candidate("a", "a.onnx")], 1) == "cpu"
    assert clock_of([Candidate("a", "a.onnx")], 2) == "wall"
    assert clock_of([Candidate("a", "a.onnx", cuda=Cuda("onnxruntime"))], 1) == "GPU"


def test_clocks_that_nobody_tells_are_said_to_be_unknown():
    assert set(gpu_state()) in ({"clocks"}, set(gpu_state()))
    if not torch.cuda.is_available():
        assert gpu_state()["clocks"].startswith("unknown")


@needs_gpu
@pytest.mark.parametrize("mode", ["eager", "graphs", "compile"])
def test_torch_on_the_gpu_computes_the_same(mode):
    model = networks.model("residual")
    inputs = networks.inputs("residual", 4)
    (got,) = open_on_cuda(model, Cuda("torch", mode)).run(*inputs)
    np.testing.assert_allclose(got, model(*inputs).detach().numpy(), rtol=1e-3, atol=1e-4)


@needs_gpu
def test_a_benchmark_on_the_gpu():
    model = networks.model("residual")
    candidates = [Candidate(mode, model, cuda=Cuda("torch", mode)) for mode in ("eager", "graphs")]
    result = benchmark(candidates, time_budget=1.0, sessions=3)
    assert result.clock == "GPU"
    assert result.candidates[1].speedup.value > 1
    assert result.environment["gpu"]["after"]
