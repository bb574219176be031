"""Where what is timed is timed: `--target`, or the runtime that is fastest here."""

import json
from typing import ClassVar

import pytest
import torch
from scripted_machine import script
from torch import nn

from nncompress import extras, pipeline
from nncompress.analysis.cost import cost
from nncompress.benchmarking.latency import layer as layer_latency
from nncompress.benchmarking.latency import target as target_speed
from nncompress.benchmarking.latency.layer import measure
from nncompress.benchmarking.latency.layer_file import LayerShape
from nncompress.benchmarking.latency.model import ModelLatency
from nncompress.benchmarking.latency.target import fastest  # before it is replaced for all tests
from nncompress.cli.app import run
from nncompress.errors import DeviceError, UsageError
from nncompress.files import remembered as kept_measurements
from nncompress.ir import Model
from nncompress.passes import Context, Factorize, Grow, PruneNodes
from nncompress.progress import NullProgress
from nncompress.results import Estimate
from nncompress.runtimes import open_artifact
from nncompress.targets import TARGETS
from nncompress.targets.speed import Speed, remembered, timeable


@pytest.fixture(scope="module")
def net() -> Model:
    torch.manual_seed(1)
    layers = (nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3), nn.ReLU(), nn.Flatten())
    return Model.from_module(
        nn.Sequential(*layers, nn.Linear(64 * 16, 10)).eval(), (torch.randn(2, 3, 8, 8),)
    )


class Clocked:
    """In place of `ModelLatency`: time goes with the parameters, in steps, and has a part that stays."""

    steps: ClassVar[dict[str, int]] = {"ort-cpu": 8, "openvino": 16}

    seen: ClassVar[list[str]] = []

    def __init__(self, original, progress, target, **ending):
        self.seen.append(target.name)
        self.before = self.time(original)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    @staticmethod
    def time(model):
        return 3000 + cost(model).parameters // 1000 * 1000

    def seconds(self):
        return self.before * 1e-6

    def share(self, other):
        value = self.time(other) / self.before
        return Estimate(value, value, value)


@pytest.mark.parametrize("target", ["ort-cpu", "openvino"])
def test_widths_for_a_latency_are_measured_where_the_model_will_run(net, monkeypatch, tmp_path, target):
    monkeypatch.setattr("nncompress.passes.prune_nodes.latency_budget.ModelLatency", Clocked)
    monkeypatch.setattr(kept_measurements, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(layer_latency, "MOST_ROUNDS", 10)
    step = Clocked.steps[target]
    script(monkeypatch, chain_cost=lambda chain, _: 1e5 * -(-chain[0].weight[0] // step))
    Clocked.seen.clear()
    context = Context(target=target)
    small, (done,) = pipeline.run(net, [PruneNodes(latency=0.6)], context, timing=False)
    (reached,) = [c for c in done.changes if c.where == "latency"]
    assert Clocked.seen == [target]
    assert reached.numbers["target"] == target
    measured = Clocked.time(small) / Clocked.time(net)
    assert reached.numbers["latency_share_measured"] == pytest.approx(measured, abs=1e-4)
    assert 0.45 < measured <= 0.6 * 1.02
    widths = [len(small.state_dict()[name]) for name in ("0.weight", "2.weight")]
    assert all(width % step == 0 for width in widths)
    assert f"widths in multiples of {step}, the steps of its kernels' latency" in reached.what
    with pytest.raises(UsageError, match=r"cannot reach 1% of the model's latency") as caught:
        pipeline.run(net, [PruneNodes(latency=0.01)], context, timing=False)
    assert "at least" in caught.value.expected


def test_a_model_is_timed_in_the_runtime_of_its_target(monkeypatch):
    seen = []

    def cost_of(arm, runner):
        seen.append(runner.name.split()[0])
        return 1e8

    script(monkeypatch, cost_of)
    model = Model.from_module(nn.Linear(4, 3).eval(), (torch.randn(2, 4),))
    with ModelLatency(model, NullProgress(), TARGETS["openvino"]) as clock:
        assert clock.seconds() == pytest.approx(0.1, rel=0.05)
    assert set(seen) == {"OpenVINO"}


def test_layers_are_timed_in_the_runtime_of_the_target(monkeypatch, net):
    opened = []

    def opening(path, threads, *, runtime, precision):
        opened.append(runtime)
        return open_artifact(path, threads, runtime=runtime, precision=precision)

    script(monkeypatch)
    monkeypatch.setattr(layer_latency, "open_artifact", opening)
    layer = (LayerShape("MatMul", (256, 256)),)
    measure(layer, [layer], (1, 256), TARGETS["openvino"])
    assert set(opened) == {"openvino"}
    with pytest.raises(UsageError, match="single layers cannot be timed in xnnpack"):
        Factorize(latency=0.8).apply(net, Context(target="xnnpack"))


@pytest.fixture
def untimed(monkeypatch, tmp_path):
    """Nothing was timed on this machine before; what a test measures is `medians`."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    target_speed.speeds.cache_clear()
    yield tmp_path / "nncompress"
    target_speed.speeds.cache_clear()


def scripted(arms, shape):
    seconds = {("ort-cpu", "float32"): 0.3, ("ort-cpu", "int8"): 0.1, ("openvino", "int8"): 0.15}
    return [seconds.get((each.name, chain[0].precision), 0.2) for chain, each in arms]


def no_openvino(monkeypatch):
    def imported(runtime):
        if runtime == "openvino":
            raise ImportError("libtbb.so.12: cannot open shared object file")

    monkeypatch.setattr(target_speed, "import_module", imported)


def test_a_runtime_that_cannot_be_imported_is_not_the_fastest(untimed, monkeypatch):
    no_openvino(monkeypatch)
    monkeypatch.setattr(target_speed, "medians", None)  # one needs no measurement to be the fastest
    assert fastest() == "ort-cpu"
    monkeypatch.setattr(target_speed, "medians", scripted)
    assert set(target_speed.speeds()) == {"ort-cpu"}


def test_a_runtime_that_fails_while_it_is_timed_is_named(untimed, monkeypatch, capsys):
    def failing(*_):
        raise DeviceError("openvino cannot run network.onnx", got="no such kernel")

    monkeypatch.setattr(target_speed, "medians", failing)
    assert run(["targets", "--json"]) == 0
    assert fastest() == "ort-cpu"
    told = capsys.readouterr()
    assert told.err.count("openvino cannot run network.onnx: no such kernel") == 1
    assert {each["seconds"] for each in json.loads(told.out)["targets"]} == {None}


def test_targets_says_of_an_installed_runtime_that_does_not_load_why_and_what_mends_it(
    untimed, monkeypatch, capsys
):
    no_openvino(monkeypatch)
    monkeypatch.setattr(extras, "installed", lambda extra: True)
    monkeypatch.setattr(target_speed, "medians", scripted)
    assert run(["targets", "--json"]) == 0
    found = {each["name"]: each for each in json.loads(capsys.readouterr().out)["targets"]}
    assert found["openvino"]["fault"] == "libtbb.so.12: cannot open shared object file"
    assert found["openvino"]["command"] == "pip install --force-reinstall openvino"
    assert found["ort-cpu"]["fault"] is found["ort-cpu"]["command"] is None


def test_targets_says_what_each_takes_in_each_precision(untimed, monkeypatch, capsys):
    monkeypatch.setattr(target_speed, "medians", scripted)
    assert run(["targets"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "ONNX Runtime, CPU 300 ms" in said
    assert "fastest here: ONNX Runtime, CPU, in int8" in said
    assert f"floats: OpenVINO, CPU, which computes them in {target_speed.computes_in('openvino')}" in said


def test_a_precision_that_a_runtime_lacks_is_offered_where_it_is():
    with pytest.raises(UsageError) as caught:
        target_speed.floats_in(TARGETS["ort-cpu"], "bfloat16")
    assert caught.value.remedy == "--target openvino, or leave --for out"


def test_ctrl_c_while_runtimes_are_timed_is_an_interrupt(untimed, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(target_speed, "medians", interrupted)
    with pytest.raises(KeyboardInterrupt):
        target_speed.speeds()
    assert not list(untimed.rglob("target-speed-*"))


@pytest.mark.parametrize("name", ["tensorrt", "ort-cuda"])
def test_what_does_not_run_on_this_processor_times_nothing(name):
    with pytest.raises(UsageError, match="cannot be measured here") as caught:
        target_speed.clocked(name)
    assert "openvino" in caught.value.expected


@pytest.mark.parametrize("each", [PruneNodes(latency=0.7), Factorize(latency=0.7), Grow(latency=1.5)])
@pytest.mark.parametrize(
    ("asked", "said"),
    [
        ({"target": "tensorrt"}, "cannot be measured here"),
        ({"target": "ort-cpu", "ends_in": "bfloat16"}, "ONNX Runtime computes floats in float32"),
    ],
)
def test_a_clock_that_is_not_here_is_refused_before_any_work(net, monkeypatch, each, asked, said):
    monkeypatch.setattr(type(each), "apply", lambda *_: pytest.fail("worked first"))
    for work in (pipeline.run, pipeline.check):
        with pytest.raises(UsageError, match=said):
            work(net, [each], Context(**asked))


def test_factorize_asks_for_the_clock_of_layers_before_any_work(net, monkeypatch):
    monkeypatch.setattr(Factorize, "apply", lambda *_: pytest.fail("worked first"))
    with pytest.raises(UsageError, match="single layers cannot be timed in xnnpack"):
        pipeline.check(net, [Factorize(latency=0.8)], Context(target="xnnpack"))


def test_the_fastest_is_measured_once_and_remembered(untimed, monkeypatch):
    monkeypatch.setattr(target_speed, "medians", scripted)
    first = target_speed.speeds()
    assert first["ort-cpu"] == Speed("float32", {"float32": 0.3, "int8": 0.1})
    assert first["openvino"].seconds == 0.2
    assert fastest() == "openvino"
    target_speed.speeds.cache_clear()
    monkeypatch.setattr(target_speed, "medians", None)  # not again
    assert target_speed.speeds() == first == remembered(timeable())


def test_the_fastest_is_that_of_the_precision_in_which_the_result_runs(untimed, monkeypatch):
    monkeypatch.setattr(target_speed, "medians", scripted)
    monkeypatch.setattr(target_speed, "fastest", fastest)
    for ends_in, expected in {(): "openvino", ("int8",): "ort-cpu", ("int8", None): "ort-cpu"}.items():
        assert fastest(*ends_in) == expected
        assert target_speed.clocked(None, *ends_in).name == target_speed.layer_clock(None, *ends_in).name
    assert target_speed.clocked(None, "int8").name == "ort-cpu"
    assert target_speed.clocked(None, "float32").name == "openvino"


@pytest.mark.parametrize("kept", ["[]", '{"openvino": 1}', '{"ort-cpu": {}, "openvino": {}}', "NaN"])
def test_times_that_a_stranger_wrote_are_not_believed(untimed, monkeypatch, kept):
    monkeypatch.setattr(target_speed, "medians", scripted)
    first = target_speed.speeds()
    (file,) = untimed.glob("target-speed-*.json")
    file.write_text(f'{{"speeds": {kept}}}')
    assert remembered(timeable()) == {}
    target_speed.speeds.cache_clear()
    assert target_speed.speeds() == first
