"""Timing by events, on events that are made up; and on a GPU where there is one."""

from types import SimpleNamespace

import networks
import numpy as np
import pytest
import torch

from nncompress.bench import Arm, benchmark
from nncompress.bench.gpu import EventClock, gpu_state
from nncompress.bench.measure import Measurement
from nncompress.bench.sessions import clock_of
from nncompress.runtimes.on_cuda import Cuda, open_on_cuda

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
    assert [np.median(arm.wall_ns) for arm in measurement.times] == pytest.approx([1e6, 3e6], rel=1e-6)


def test_ratios_on_a_gpu_are_by_its_clock():
    assert clock_of([Arm("a", "a.onnx")], 1) == "cpu"
    assert clock_of([Arm("a", "a.onnx")], 2) == "wall"
    assert clock_of([Arm("a", "a.onnx", cuda=Cuda("onnxruntime"))], 1) == "GPU"


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
    arms = [Arm(mode, model, cuda=Cuda("torch", mode)) for mode in ("eager", "graphs")]
    result = benchmark(arms, time_budget=1.0, sessions=3)
    assert result.clock == "GPU"
    assert result.arms[1].speedup.value > 1
    assert result.environment["gpu"]["after"]
