"""What is timed is timed in the precision that the pipeline ends in: `--for`, or what comes after."""

from pathlib import Path

import pytest
import torch
from records import images
from torch import nn

from nncompress import export, pipeline
from nncompress.analysis.distance.precision import precision_of
from nncompress.benchmarking.latency.layer import Latencies
from nncompress.benchmarking.latency.steps import Steps
from nncompress.benchmarking.latency.target import floats_in
from nncompress.cli import main
from nncompress.cli.work.passes.run_passes import _command
from nncompress.data import open_data
from nncompress.errors import DeviceError, UsageError
from nncompress.files import remembered
from nncompress.ir import Model
from nncompress.passes import Context, Factorize, Grow, PruneNodes, Quantize
from nncompress.results import Estimate
from nncompress.targets import TARGETS

BUDGETS = "nncompress.passes.{}.latency_budget.ModelLatency"


@pytest.fixture(scope="module")
def net() -> Model:
    torch.manual_seed(1)
    layers = (nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 32, 3), nn.ReLU(), nn.Flatten())
    return Model.from_module(nn.Sequential(*layers, nn.Linear(512, 10)).eval(), (torch.randn(2, 3, 8, 8),))


@pytest.fixture
def timed(monkeypatch):
    """The precision of every model that is timed; it goes by its bytes."""
    seen = []

    class Clocked:
        def __init__(self, original, progress, target, *, precision, finish):
            self.target, self.precision, self.finish = target, precision, finish
            self.before = self._time(original)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def _time(self, model):
            model = model if self.finish is None else self.finish(model)
            seen.append("int8" if precision_of(model) == "int8" else self.precision)
            return sum(t.numel() * t.element_size() for t in model.state_dict().values())

        def seconds(self):
            return self.before * 1e-9

        def share(self, other):
            value = self._time(other) / self.before
            return Estimate(value, value, value)

    for name in ("prune_nodes", "factorize"):
        monkeypatch.setattr(BUDGETS.format(name), Clocked)
    monkeypatch.setattr("nncompress.passes.grow.apply.ModelLatency", Clocked)
    monkeypatch.setattr(Steps, "of", lambda *_: 8)
    return seen


DATA = images(16, None)


def run(net, *passes, **context):
    return pipeline.run(net, passes, Context(target="ort-cpu", **context), timing=False)


def test_before_quantize_int8_is_timed_and_that_is_said(net, timed):
    _, (step, _) = run(net, PruneNodes(latency=0.6), Quantize(keep=("0",), every_layer=True), data=DATA)
    assert set(timed) == {"int8"}
    assert any("timed in int8, as quantize comes after it" in note for note in step.notes)
    assert any("measured in ONNX Runtime in int8" in change.what for change in step.changes)


def test_what_the_user_says_goes_before_what_follows(net, timed):
    _, (step, _) = run(net, PruneNodes(latency=0.6), Quantize(every_layer=True), data=DATA, ends_in="float32")
    assert set(timed) == {"float32"}
    assert not any("timed in" in note for note in step.notes)


@pytest.mark.parametrize(("ends_in", "said"), [("int8", " in int8"), ("float32", " in float32")])
def test_what_grows_is_timed_in_that_precision_too(net, timed, ends_in, said):
    _, (step,) = run(net, Grow(latency=1.3), ends_in=ends_in, data=DATA)
    assert set(timed) == {ends_in}
    assert any(f"measured in ONNX Runtime{said}" in note for note in step.notes)


@pytest.mark.parametrize("later", [(), (Quantize(mode="weights"),)])
def test_where_nothing_rounds_activations_the_model_is_timed_as_it_is(net, timed, later):
    run(net, PruneNodes(latency=0.6), *later)
    assert set(timed) == {None}


def test_int8_without_data_is_refused(net, timed):
    with pytest.raises(UsageError, match="needs ranges of activations") as refused:
        run(net, PruneNodes(latency=0.6), ends_in="int8")
    assert "--data" in refused.value.remedy
    assert not timed


@pytest.mark.parametrize(("ends_in", "precision"), [("int8", "int8"), (None, "")])
def test_layers_are_timed_in_that_precision_too(net, monkeypatch, tmp_path, ends_in, precision):
    seen = set()

    def measure(reference, chains, shape, target, seed=0):
        seen.update(layer.precision for chain in (reference, *chains) for layer in chain)
        return Latencies(1e-3, (0.5,) * len(chains))

    monkeypatch.setattr(remembered, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr("nncompress.benchmarking.latency.table.measure", measure)
    monkeypatch.setattr("nncompress.passes.factorize.latency.measure", measure)
    run(net, Factorize(ratio=0.7, faster=True), data=DATA, ends_in=ends_in)
    assert seen == {precision}


def test_a_precision_that_is_not_computed_in_is_refused(monkeypatch):
    with pytest.raises(UsageError, match="ONNX Runtime computes floats in float32"):
        floats_in(TARGETS["ort-cpu"], "bfloat16")
    monkeypatch.setattr("nncompress.runtimes.on_openvino.precisions", lambda: ("float32",))
    with pytest.raises(DeviceError, match="OpenVINO does not compute in bfloat16"):
        floats_in(TARGETS["openvino"], "bfloat16")
    assert floats_in(TARGETS["openvino"], "float32") == "float32"
    assert floats_in(TARGETS["openvino"], "int8") is None


@pytest.mark.parametrize(
    "command",
    ["prune {} --sparsity 0.5 --for int8", "prune-nodes {} --macs 0.7 --for int8", "grow {} --for bf16"],
)
def test_for_is_refused_where_nothing_is_timed(net, tmp_path, capsys, command):
    export(net, tmp_path / "m.pt2")
    with pytest.raises(SystemExit) as ended:
        main(command.format(tmp_path / "m.pt2").split())
    assert ended.value.code == 2
    assert "leave --for out" in " ".join(capsys.readouterr().err.split())


def test_the_command_that_makes_a_result_again_says_it():
    given = {"data": "train.npz", "target": None, "for_": "bf16"}
    command = _command(Path("m.pt2"), Path("o.pt2"), given)
    assert command.endswith("--recipe recipe.toml --data train.npz --for bf16 -o o.pt2")


def test_a_model_of_a_fixed_batch_is_timed_with_a_whole_one(timed):
    layers = (nn.Flatten(), nn.Linear(192, 64), nn.ReLU(), nn.Linear(64, 10))
    fixed = Model.from_module(nn.Sequential(*layers).eval(), (torch.randn(16, 3, 8, 8),), dynamic_batch=False)
    run(fixed, PruneNodes(latency=0.7), Quantize(), data=open_data(torch.randn(64, 3, 8, 8), fixed.inputs))
    assert set(timed) == {"int8"}
