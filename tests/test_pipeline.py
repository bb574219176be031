import json
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from networks import built_once
from records import Records
from torch import nn
from torch.nn.utils import prune

import nncompress
from nncompress import pipeline
from nncompress.data.dataset import Dataset
from nncompress.data.fit import fit_inputs
from nncompress.data.source import ArraySource
from nncompress.errors import UsageError, VerificationError
from nncompress.ir import Model
from nncompress.options import option
from nncompress.passes import PASSES, Change, Context, Pass
from nncompress.passes.cluster.options import Cluster
from nncompress.passes.factorize.options import Factorize
from nncompress.passes.prune.options import Prune
from nncompress.passes.prune_nodes.options import PruneNodes
from nncompress.passes.share.options import Share
from nncompress.recipe import parse_pass


def make_module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval()


@built_once
def make() -> Model:
    return Model.from_module(make_module(), (torch.randn(2, 6),))


@dataclass(frozen=True)
class Poison(Pass):
    name = "poison"
    summary = "writes NaN"

    def apply(self, model, context):
        model.tensor("0.weight").data.fill_(float("nan"))
        return [Change("0", "poisoned")]


@dataclass(frozen=True)
class Idle(Pass):
    name = "idle"
    summary = "scribbles, then says it changed nothing"

    def apply(self, model, context):
        model.tensor("0.weight").data.fill_(7.0)
        return [Change("0", "left", applied=False)]


def test_records_history_cost_and_drift():
    model = make()
    result, steps = pipeline.run(model, [Prune(sparsity=0.5), Prune(sparsity=0.75)], Context())
    assert [r["pass"] for r in result.history] == ["prune", "prune"]
    assert result.history[1]["settings"] == {"sparsity": 0.75}
    assert steps[1].after.nonzero < steps[0].after.nonzero < steps[0].before.nonzero
    x = torch.randn(50, 6)
    assert not torch.equal(result(x), model(x))
    assert steps[0].drift[0].relative > 0


def test_the_given_model_is_not_changed():
    model = make()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    pipeline.run(model, [Prune(threshold=100.0)], Context())
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert model.history == []


def test_a_bad_result_is_refused():
    with pytest.raises(VerificationError, match="poison: output 'output' has NaN"):
        pipeline.run(make(), [Poison()], Context())


def test_no_applied_change_means_the_same_model():
    model = make()
    result, steps = pipeline.run(model, [Idle()], Context())
    assert result is model
    assert not steps[0].changed
    assert result.history == []


def test_a_model_that_is_already_broken_is_named():
    model = make()
    model.tensor("2.bias").data.fill_(float("inf"))
    with pytest.raises(VerificationError, match="as loaded"):
        pipeline.run(model, [Prune()], Context())


def test_recurrent_layers_are_listed_as_left_by_a_pass_that_does_not_change_them():
    class Recurrent(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.rnn, self.out = torch.nn.GRU(4, 6, batch_first=True), torch.nn.Linear(6, 2)

        def forward(self, x):
            return self.out(self.rnn(x)[0][:, -1])

    each = Model.from_module(Recurrent().eval(), (torch.randn(2, 5, 4),))
    steps = pipeline.run(each, [Share(), Factorize(err=0.5), PruneNodes(ratio=0.3)], Context())[1]
    left = [[(c.where, c.what) for c in step.changes if not c.applied] for step in steps]
    assert left[0][-1] == ("rnn", "skipped: a recurrent layer, whose op takes its matrices whole")
    assert [where for where, _ in left[1]] == ["rnn.weight_hh"]  # once, and by what stays of it
    assert left[2] == []


@dataclass(frozen=True)
class Wreck(Pass):
    name = "wreck"
    summary = "writes noise over one layer and a little over another"

    def apply(self, model, context):
        for layer, share in (("0", 0.01), ("2", 3.0)):
            weight = model.tensor(f"{layer}.weight").data
            weight += share * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1))
        return [Change("0", "a little"), Change("2", "a lot")]


def test_outputs_that_moved_far_are_a_warning_that_names_the_layers_and_their_flag():
    (step,) = pipeline.run(make(), [Wreck()], Context())[1]
    (warning,) = step.warnings
    assert "more than 25%" in warning
    assert warning.index("2 moves them") < warning.index("0 moves them")
    assert "--exclude 2 --exclude 0" in warning
    assert step.to_json()["warnings"] == [warning]
    assert pipeline.run(make(), [Prune(sparsity=0.1)], Context())[1][0].warnings == []


@dataclass(frozen=True)
class Noise(Pass):
    name = "noise"
    summary = "moves the outputs by `scale` times the root of `relative`"
    amounts = ("relative",)
    more = "--relative 0.5"

    relative: float | None = option(None, help="how much")
    scale: float = option(1.0, help="how far that goes")

    def apply(self, model, context):
        context.notes.append(f"tried {self.share_lost:g}")
        with torch.no_grad():
            for name in ("2.weight", "2.bias"):
                model.tensor(name).mul_(1 + self.scale * self.share_lost**0.5)
        return [Change("2", "louder")]


@pytest.mark.parametrize("data", [None, Records((torch.randn(40, 6),))])
@pytest.mark.parametrize(("scale", "taken"), [(1, 1e-3), (3, 1e-4), (10, 1e-5), (30, None)])
def test_where_nobody_says_how_much_the_outputs_stay_near(scale, taken, data):
    model = make()
    result, (step,) = pipeline.run(model, [Noise(scale=scale)], Context(data=data))
    if taken is None:
        assert result is model
        assert [(c.what, c.applied) for c in step.changes] == [(pipeline.LEFT, False)]
        assert "--relative 0.5" in step.notes[-1]
        assert step.drift[0].relative == 0
    else:
        assert step.settings["relative"] == taken == result.history[0]["settings"]["relative"]
        assert step.notes[0] == f"tried {taken:g}"
        assert 0 < step.drift[0].relative <= 0.05
    assert step.warnings == []
    refused = [e for e in (1e-3, 1e-4, 1e-5) if scale * e**0.5 > 0.05]
    assert all(f"{e:g} would have moved" in step.notes[-2 if taken is None else -1] for e in refused)
    asked = pipeline.run(model, [Noise(scale=scale, relative=1e-3)], Context(data=data))[1][0]
    assert asked.drift[0].relative == pytest.approx(scale * 1e-3**0.5, rel=1e-4)


def test_in_a_pipeline_each_default_is_bound_by_what_it_does_itself():
    steps = pipeline.run(make(), [Noise(relative=0.04), Noise(), Noise()], Context())[1]
    assert [step.settings["relative"] for step in steps] == [0.04, 1e-3, 1e-3]
    assert steps[2].drift[0].relative > 0.25
    assert "2" in steps[2].warnings[0]


@pytest.mark.parametrize("name", [name for name in PASSES if name not in ("grow", "quantize", "reduce")])
@pytest.mark.parametrize("data", [None, Records((torch.randn(40, 3, 8, 8),))])
def test_no_default_moves_the_outputs_of_any_network_far(name, data):
    """Weights that are large, small, of few or of outlying values: whose size says nothing."""
    torch.manual_seed(0)
    for scale, spread in ((100.0, 0.0), (0.01, 0.0), (1.0, 2.0)):
        net = nn.Sequential(*[p for _ in range(6) for p in (nn.Conv2d(3, 3, 3, padding=1), nn.PReLU())])
        with torch.no_grad():
            for each in net[::2]:
                each.weight.mul_(scale * (spread * torch.randn(each.weight.shape)).exp())
        model = Model.from_module(net.eval(), (torch.randn(2, 3, 8, 8),))
        (step,) = pipeline.run(model, [PASSES[name]()], Context(data=data))[1]
        assert step.drift[0].relative <= 0.05


@dataclass(frozen=True)
class Memorize(Pass):
    name = "memorize"
    summary = "makes a model that is right on what it saw, and wrong elsewhere"

    def apply(self, model, context):
        seen = torch.cat([batch.inputs[0] for batch in context.data.batches(64)])
        context.notes.append(str(sorted(seen[:, 0].tolist())))
        return [Change("0", "left", applied=False)]


def test_no_pass_sees_the_samples_that_its_drift_is_measured_on():
    model, x = make(), np.arange(40.0, dtype=np.float32)[:, None].repeat(6, 1)
    source = ArraySource({"x": x}, None, origin="here")
    data = Dataset("here", source, fit_inputs(source.fields, None, None, asked=False, origin="here"))
    steps = pipeline.run(model, [Memorize(), Memorize()], Context(data=data))[1]
    assert steps[0].notes == steps[1].notes
    assert (steps[0].samples.count, str(steps[0].samples)) == (8, "on 8 held-out samples")
    measured = {v for (inputs,) in steps[0].samples.batches for v in inputs[:, 0].tolist()}
    assert len(measured) == 8
    assert not measured & set(json.loads(steps[0].notes[0]))


RECIPE = ("cluster:codebook=4", "prune:pattern=2:4", "factorize:rank=4", "prune-nodes:ratio=0.25", "quantize")


def test_every_pass_of_a_pipeline_reports_how_far_it_is_on_samples_it_was_not_fitted_to():
    """Those held out live where the others are zero: no fit is right there, and the figure says so."""
    torch.manual_seed(0)
    layers = [nn.Linear(16, outputs, bias=False) for outputs in (16, 16, 4)]
    net = nn.Sequential(layers[0], nn.ReLU(), layers[1], nn.ReLU(), layers[2]).eval()
    model = Model.from_module(net, (torch.zeros(2, 16),))
    x = np.zeros((100, 16), np.float32)
    x[:, 0] = np.arange(100)  # tells one from another
    data = nncompress.dataset(x, model)
    held = torch.cat([batch.inputs[0] for batch in data.split()[1].batches(64)])[:, 0].long()
    fitted = torch.tensor(sorted(set(range(100)) - set(held.tolist())))
    x[:, 0] = 1
    generator = np.random.default_rng(0)
    x[fitted, 1:8] = generator.standard_normal((len(fitted), 7))
    x[held, 8:] = generator.standard_normal((len(held), 8))
    data = nncompress.dataset(x, model)
    found = []
    pipeline.run(
        model,
        [parse_pass(text) for text in RECIPE],
        Context(data=data),
        done=lambda step, now: found.append((step, *(away(now, net, x[rows]) for rows in (held, fitted)))),
    )
    assert [step.name for step, _, _ in found] == [text.split(":")[0] for text in RECIPE]
    for step, unseen, seen in found:
        assert str(step.samples) == f"on {len(held)} held-out samples"
        assert step.drift[0].relative == pytest.approx(unseen, rel=1e-3), step.name
        assert abs(unseen - seen) > 0.005 * unseen, step.name
    assert max(unseen / seen for _, unseen, seen in found) > 1.2  # as fitted, it would have looked better


def away(now, net, x):
    x = torch.as_tensor(x)
    with torch.no_grad():
        return float((now(x) - net(x)).norm() / net(x).norm())


def test_a_weight_that_the_graph_computes_is_seen_by_every_pass():
    torch.manual_seed(0)
    first = torch.nn.utils.parametrizations.weight_norm(nn.Linear(6, 16))
    second = nn.Linear(16, 3)
    prune.l1_unstructured(second, "weight", 0.5)
    model = Model.from_module(nn.Sequential(first, nn.ReLU(), second).eval(), (torch.randn(2, 6),))
    for each in (Prune(sparsity=0.75), Factorize(rank=1), Cluster(codebook=2)):
        (step,) = pipeline.run(model, [each], Context())[1]
        assert {c.where for c in step.changes if c.applied} == {"0", "2"}, each
        assert "weights that the graph computed are stored as what they were: 0, 2" in step.notes
        assert step.drift[0].relative > 0


class Answers(nn.Module):
    """Scores of which some are masked out, the class, whether it is sure, and one number for all."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 5)
        self.register_buffer("off", torch.tensor([False, False, True, False, False]))

    def forward(self, x):
        scores = self.b(torch.relu(self.a(x))).masked_fill(self.off, float("-inf"))
        return scores, scores.argmax(-1), scores[:, 0] > 0, scores[:, 0].mean()


@pytest.mark.parametrize("data", [None, Records((torch.randn(40, 8),))])
@pytest.mark.parametrize("name", [name for name in PASSES if name != "quantize"])
def test_infinite_integer_boolean_and_single_outputs(name, data):
    torch.manual_seed(0)
    model = Model.from_module(Answers().eval(), (torch.randn(2, 8),))
    options = {
        "grow": {"by": 2},
        "factorize": {"macs": 0.7},
        "prune-nodes": {"ratio": 0.3},
        "cluster": {"codebook": 4},
        "prune": {"sparsity": 0.3},
        "reduce": {"macs": 0.7},
    }.get(name, {})
    if name == "reduce" and data is None:
        with pytest.raises(UsageError, match="reduce"):
            pipeline.run(model, [PASSES[name](**options)], Context())
        return
    (step,) = pipeline.run(model, [PASSES[name](**options)], Context(data=data))[1]
    assert step.changed or name in ("substitute", "share")
    assert [row.misplaced for row in step.drift] == [0, 0, 0, 0]
    assert [row.counted for row in step.drift] == [False, True, True, False]


def test_a_model_that_answers_with_a_class_is_judged_by_what_it_chooses_from():
    class Class(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(8, 32), nn.Linear(32, 5)

        def forward(self, x):
            return self.b(torch.relu(self.a(x))).argmax(-1)

    model = Model.from_module(Class().eval(), (torch.randn(2, 8),))
    data = Records((torch.randn(40, 8),))
    for context in (Context(data=data), Context()):
        assert pipeline.run(model, [PruneNodes(ratio=0.3)], context)[1][0].changed


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["prune", "cluster", "factorize", "grow", "prune-nodes"])
def test_passes_change_models_of_other_precisions(name, dtype):
    model = Model.from_module(make_module().to(dtype), (torch.randn(2, 6).to(dtype),))
    options = {"grow": {"by": 2}, "factorize": {"rank": 1}, "prune-nodes": {"ratio": 0.3}}.get(name, {})
    data = None if dtype.itemsize == 2 and name == "prune-nodes" else Records((torch.randn(40, 6).to(dtype),))
    (step,) = pipeline.run(model, [PASSES[name](**options)], Context(data=data))[1]
    assert step.changed


@pytest.mark.parametrize("name", ["prune", "cluster", "factorize", "prune-nodes", "reduce", "quantize"])
def test_an_empty_weight_is_left_alone(name):
    class Empty(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.none, self.b = nn.Linear(6, 8), nn.Linear(6, 0), nn.Linear(8, 3)
            self.of_none = nn.Linear(0, 3, bias=False)

        def forward(self, x):
            return self.b(torch.cat([torch.relu(self.a(x)), self.none(x)], 1)) + self.of_none(x[:, :0])

    options = {"prune-nodes": {"ratio": 0.3}, "reduce": {"macs": 0.8}}.get(name, {})
    model = Model.from_module(Empty().eval(), (torch.randn(2, 6),))
    (step,) = pipeline.run(model, [PASSES[name](**options)], Context(data=Records((torch.randn(40, 6),))))[1]
    assert all(not change.applied for change in step.changes if change.where in ("none", "of_none"))
