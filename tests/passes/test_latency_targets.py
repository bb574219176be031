"""Where what is timed is timed: `--target`, or the runtime that is fastest here."""

import json

import pytest
import torch
from scripted_machine import script
from torch import nn

from nncompress import pipeline
from nncompress.analysis.cost import cost
from nncompress.bench import target_speed
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.passes import Context, Factorize, PruneNodes


@pytest.fixture(scope="module")
def net() -> Model:
    torch.manual_seed(1)
    module = nn.Sequential(
        *(
            nn.Conv2d(3, 32, 3),
            nn.ReLU(),
            nn.Conv2d(32, 64, 3),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 16, 10),
        )
    )
    return Model.from_module(module.eval(), (torch.randn(2, 3, 8, 8),))


@pytest.fixture
def opened(monkeypatch) -> list[str]:
    """The runtimes in which something was timed; a byte of a file takes 5 µs, so that few rounds are run."""
    seen = []

    def cost_of(arm, runner):
        seen.append(runner.name.split()[0])
        return 5000.0 * (runner.file_size or 0)

    script(monkeypatch, cost_of)
    return seen


@pytest.mark.parametrize(("target", "runtime"), [("ort-cpu", "ONNX"), ("openvino", "OpenVINO")])
def test_widths_for_a_latency_are_measured_where_the_model_will_run(net, opened, target, runtime):
    context = Context(target=target)
    small, (step,) = pipeline.run(net, [PruneNodes(latency=0.6)], context, timing=False)
    (reached,) = [c for c in step.changes if c.where == "latency"]
    assert set(opened) == {runtime}
    assert reached.numbers["target"] == target
    assert 0.4 < reached.numbers["latency_share_measured"] <= 0.612
    assert cost(small).parameters < 0.65 * cost(net).parameters  # bytes are what this machine's time is
    widths = [len(small.state_dict()[name]) for name in ("0.weight", "2.weight")]
    assert all(width % 8 == 0 for width in widths)


def test_a_latency_out_of_reach_says_what_is_within(net, opened):
    with pytest.raises(UsageError, match=r"cannot reach 0\.1% of the model's latency") as caught:
        pipeline.run(net, [PruneNodes(latency=0.001)], Context(target="ort-cpu"), timing=False)
    assert "at least" in caught.value.expected


def test_layers_are_timed_in_the_target(net, opened):
    _, (step,) = pipeline.run(net, [Factorize(latency=0.8)], Context(target="openvino"), timing=False)
    assert set(opened) == {"OpenVINO"}
    assert any(change.applied for change in step.changes)
    with pytest.raises(UsageError, match="single layers cannot be timed in xnnpack"):
        pipeline.run(net, [Factorize(latency=0.8)], Context(target="xnnpack"), timing=False)


@pytest.mark.parametrize("name", ["tensorrt", "ort-cuda"])
def test_what_does_not_run_on_this_processor_times_nothing(name):
    with pytest.raises(UsageError, match="cannot be measured here") as caught:
        target_speed.clocked(name)
    assert "openvino" in caught.value.expected


def test_the_fastest_is_measured_once_and_remembered(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    slow = {"ort-cpu": 3e8, "openvino": 1e8}
    script(monkeypatch, lambda arm, _: slow[arm.name])
    target_speed.speeds.cache_clear()
    first = target_speed.speeds()
    (file,) = (tmp_path / "nncompress").glob("target-speed-*.json")
    assert json.loads(file.read_text())["seconds"] == first
    assert first == pytest.approx({"ort-cpu": 0.3, "openvino": 0.1}, rel=0.05)
    target_speed.speeds.cache_clear()
    monkeypatch.setattr(target_speed, "_measured", None)  # not again
    assert target_speed.speeds() == first
    target_speed.speeds.cache_clear()
