"""What holds for every test: one thread, a cache folder of its own, short measurements, the same examples.

One thread, in the processes that tests start too: sums are then added up in one order, two runs give the same
bits, and workers of pytest-xdist do not crowd each other. HYPOTHESIS_PROFILE=long looks for new examples.
"""

import gc
import os
from types import SimpleNamespace

os.environ.setdefault("OMP_NUM_THREADS", "1")

import hypothesis
import pytest
import torch
from done_once import exported_once, refreshed_once, traced_once

from nncompress.benchmarking import measure
from nncompress.benchmarking.latency import model as model_latency
from nncompress.benchmarking.latency import target as target_speed
from nncompress.benchmarking.own_process import OwnProcess
from nncompress.exporting.write import onnx as onnx_writer
from nncompress.ir import Model

torch.set_num_threads(1)
# torch's cache of fake results pays where layers repeat; small networks take 0.8 of the time without it.
torch._dynamo.config.fake_tensor_cache_enabled = False
gc.set_threshold(20_000, 20, 20)  # a trace makes objects by the ten thousand: a tenth of the time was this

# A slow example is no failure on a shared machine: `deadline` counts wall time.
hypothesis.settings.register_profile("ci", derandomize=True, deadline=None, database=None)
hypothesis.settings.register_profile("long", max_examples=2000, deadline=None)
hypothesis.settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


@pytest.fixture(scope="session", autouse=True)
def _own_cache(tmp_path_factory):
    """Latencies that a test measured beside other tests do not reach the user's cache, nor come from it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session", autouse=True)
def _done_once():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(onnx_writer, "convert", exported_once(onnx_writer.convert))
        patch.setattr(Model, "refresh", refreshed_once(Model.refresh))
        patch.setattr(Model, "from_module", traced_once(Model.from_module))
        yield


@pytest.fixture(scope="session", autouse=True)
def _short_measurements():
    """No test asserts what a measurement finds by the real clock (`scripted_machine` has one of ours)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_latency, "GLANCE", 0.02)
        patch.setattr(model_latency, "SECONDS", 0.05)
        # Nor does it wait for the garbage of all tests before it.
        patch.setattr(measure, "gc", SimpleNamespace(**{**vars(gc), "collect": lambda: 0}))
        # A process for each artifact takes seconds: `test_own_process` starts some.
        patch.setattr("nncompress.benchmarking.in_own_process", lambda *_, **how: OwnProcess(1000, 0.5))
        # Which runtime is fastest depends on the load: the one that every installation has.
        patch.setattr(target_speed, "fastest", lambda *_: "ort-cpu")
        yield
