"""Passes that look at weights alone, on the matrices of fused recurrent layers."""

import pytest
import torch
from torch import nn

import nncompress
from nncompress import pipeline
from nncompress.analysis.distance.contributions import contributions
from nncompress.errors import UsageError
from nncompress.ir.layers.recurrent import recurrent_layers
from nncompress.passes import Cluster, Context, Prune

KINDS = [(nn.LSTM, {"proj_size": 4}), (nn.GRU, {"num_layers": 2}), (nn.RNN, {"bidirectional": True})]
STEPS = [Prune(sparsity=0.5, scope="layer"), Prune(pattern="2:4"), Cluster(codebook=4)]


class Recurrent(nn.Module):
    def __init__(self, kind, settings):
        super().__init__()
        self.rnn = kind(8, 12, batch_first=True, **settings)
        size = self.rnn(torch.zeros(1, 1, 8))[0].shape[-1]
        self.out = nn.Linear(size, 4)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


def made(kind=nn.LSTM, settings=None):
    torch.manual_seed(0)
    return nncompress.load(Recurrent(kind, settings or {}).eval(), input="Bx6x8")


@pytest.mark.parametrize(("kind", "settings"), KINDS)
@pytest.mark.parametrize("step", STEPS, ids=["prune", "pattern", "cluster"])
def test_every_matrix_is_changed_and_files_hold_it(tmp_path, kind, settings, step):
    model = made(kind, settings)
    changed, (told,) = pipeline.run(model, [step], Context())
    (layer,) = recurrent_layers(changed)
    names = [each.name for each in layer.matrices]
    assert {*names} <= {change.where for change in told.changes if change.applied}
    for each in layer.matrices:
        value = each.value()
        if step.name == "cluster":
            assert len(value.unique()) <= 4
        elif value.shape[1] % 4 == 0:
            assert (value == 0).float().mean() == pytest.approx(0.5, abs=0.05)
    x = torch.randn(3, 6, 8)
    for name in ("m.onnx", "m.pt2"):
        nncompress.export(changed, tmp_path / name)
        again = nncompress.load(tmp_path / name).outputs_of(x)[0]
        torch.testing.assert_close(again, changed.outputs_of(x)[0], rtol=1e-4, atol=1e-5)


def test_data_weigh_the_other_layers_and_leave_these_to_their_own_numbers():
    model = made()
    _, (told,) = pipeline.run(
        model,
        [Cluster(codebook=4)],
        Context(data=nncompress.api.opening.dataset(torch.randn(16, 6, 8), model)),
    )
    assert {"rnn.weight_ih_l0", "rnn.weight_hh_l0", "out"} == {c.where for c in told.changes if c.applied}


@pytest.mark.parametrize("step", [Prune, Cluster])
def test_one_is_left_by_its_own_name_or_that_of_its_layer(step):
    for pattern, left in (("rnn", 2), ("*_hh_*", 1)):
        model = made()
        changed = pipeline.run(model, [step(exclude=(pattern,))], Context())[0]
        before, after = (
            {each.name: each.value() for each in next(recurrent_layers(m)).matrices} for m in (model, changed)
        )
        assert sum(torch.equal(before[name], after[name]) for name in before) == left
    with pytest.raises(UsageError, match="names no layer"):
        pipeline.run(made(), [step(exclude=("*_xx_*",))], Context())


def test_what_moves_the_outputs_is_told_by_layer():
    model = made()
    pruned, (told,) = pipeline.run(model, [Prune(sparsity=0.9, exclude=("out",))], Context())
    effects = contributions(model, pruned, [change.where for change in told.changes], model.example_inputs())
    assert effects["rnn"] > 0
