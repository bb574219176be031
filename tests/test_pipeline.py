from dataclasses import dataclass

import pytest
import torch
from torch import nn

from nncompress import pipeline
from nncompress.errors import VerificationError
from nncompress.ir import Model
from nncompress.passes import Change, Context, Pass
from nncompress.passes.prune import Prune
from nncompress.passes.prune_nodes import PruneNodes


def make() -> Model:
    torch.manual_seed(0)
    return Model.from_module(
        nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).eval(), (torch.randn(2, 6),)
    )


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
    steps = pipeline.run(each, [Prune(sparsity=0.5), PruneNodes(ratio=0.3)], Context())[1]
    left = [[(c.where, c.what) for c in step.changes if not c.applied] for step in steps]
    assert left == [[("rnn", "left: a recurrent layer")], []]
