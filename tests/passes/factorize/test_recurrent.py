"""Factors of what fused recurrent layers multiply their inputs by."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

import nncompress
from nncompress.ir.edit.recurrent.inputs import absorb_inputs, expose_inputs, inputs_as_layers
from nncompress.ir.layers.recurrent import recurrent_layers

LAYERS = {
    "lstm": (nn.LSTM, {}),
    "two layers of gru": (nn.GRU, {"num_layers": 2, "dropout": 0.1}),
    "both directions": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "rnn": (nn.RNN, {"nonlinearity": "relu"}),
    "projected": (nn.LSTM, {"proj_size": 6}),
}
SIZE, UNITS, RANK = 32, 20, 3


class Net(nn.Module):
    def __init__(self, kind):
        super().__init__()
        layer, options = LAYERS[kind]
        self.rnn = layer(SIZE, UNITS, batch_first=True, **options)
        width = options.get("proj_size", UNITS) * (2 if options.get("bidirectional") else 1)
        self.out = nn.Linear(width, 4)

    def forward(self, x):
        return self.out(self.rnn(x)[0])


def built(kind, rank=None):
    """With input matrices of this rank, the same inputs for both directions."""
    torch.manual_seed(3)
    net = Net(kind).eval()
    if rank is not None:
        shared = {}
        for name, weight in net.rnn.named_parameters():
            if name.startswith("weight_ih"):
                into = shared.setdefault(name.removesuffix("_reverse"), torch.randn(rank, weight.shape[1]))
                weight.data = torch.randn(weight.shape[0], rank) @ into / 10
    return net


@pytest.mark.parametrize("kind", LAYERS)
def test_matrices_of_low_rank_are_replaced_without_loss(kind, tmp_path):
    net, x = built(kind, RANK), torch.randn(5, 7, SIZE)
    model = nncompress.load(net, input=f"Bx7x{SIZE}")
    small = nncompress.compress(model, ["factorize:relative=0.0001,exclude=out"])
    before, after = (sum(p.numel() for p in each.parameters()) for each in (net, small.to_module()))
    saved = [p.numel() for name, p in net.rnn.named_parameters() if name.startswith("weight_ih")]
    assert before - after > 0.5 * sum(saved)
    expected = net(x).detach()
    torch.testing.assert_close(small.to_module()(x), expected, rtol=1e-3, atol=1e-3)
    names = [layer.name for layer in recurrent_layers(small)]
    assert names == ["rnn", "rnn#2"][: getattr(net.rnn, "num_layers", 1)]
    if kind != "both directions":
        return
    nncompress.export(small, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-3)


def test_with_data_the_outputs_err_less():
    net = built("lstm")
    x = torch.randn(64, 7, SIZE) * torch.logspace(0, -2, SIZE)
    model = nncompress.load(net, input=f"Bx7x{SIZE}")
    errors = []
    for data in (None, x):
        small = nncompress.compress(model, ["factorize:ratio=0.4,exclude=out"], data=data).to_module()
        errors.append(float((small(x) - net(x)).norm() / net(x).norm()))
    assert errors[1] < 0.7 * errors[0]


@pytest.mark.parametrize("kind", LAYERS)
def test_exposed_and_absorbed_again_nothing_changes(kind):
    net, x = built(kind), torch.randn(5, 7, SIZE)
    model = nncompress.load(net, input=f"Bx7x{SIZE}")
    exposed, left = expose_inputs(model)
    assert (len(exposed), left) == (net.rnn.num_layers, {})
    torch.testing.assert_close(model(x), net(x).detach())
    absorb_inputs(model, exposed)
    torch.testing.assert_close(model(x), net(x).detach())
    kept = {name: tuple(p.shape) for name, p in net.named_parameters()}
    assert {name: tuple(p.shape) for name, p in model.to_module().named_parameters()} == kept


def test_what_stays_is_named_with_the_reason(tmp_path, capsys, monkeypatch):
    from nncompress.cli.app import run

    monkeypatch.chdir(tmp_path)
    nncompress.export(nncompress.load(built("lstm"), input=f"Bx7x{SIZE}"), "m.pt2")
    assert run(["factorize", "m.pt2", "--ratio", "0.5", "-o", "a.pt2"]) == 0
    said = " ".join("".join(capsys.readouterr()).split())
    assert "rnn.input_l0" in said
    assert "rnn.weight_hh" in said
    assert "prune-nodes takes units" in said
    assert run(["factorize", "m.pt2", "--ratio", "0.5", "--exclude", "rnn", "-o", "b.pt2"]) == 0
    assert "rnn.input_l0" not in "".join(capsys.readouterr())


def share_directions(rnn):
    rnn.weight_ih_l0_reverse = rnn.weight_ih_l0


def share_biases(rnn):
    rnn.bias_hh_l0 = rnn.bias_ih_l0


def share_layers(rnn):
    rnn.bias_ih_l1_reverse = rnn.bias_ih_l0_reverse


@pytest.mark.parametrize("share", [share_directions, share_biases, share_layers])
def test_tensors_shared_within_one_node_stay_with_the_reason(share):
    net = built("both directions")
    share(net.rnn)
    model, x = nncompress.load(net, input=f"Bx7x{SIZE}"), torch.randn(5, 7, SIZE)
    exposed, left = expose_inputs(model)
    assert (exposed, left) == ([], {"rnn": "its weights are shared: they are read more than once"})
    small = nncompress.compress(model, ["factorize:ratio=0.5,exclude=out"])
    torch.testing.assert_close(small.to_module()(x), net(x).detach())


def test_work_that_fails_leaves_the_layers_whole():
    model = nncompress.load(built("lstm"), input=f"Bx7x{SIZE}")
    names = set(model.state_dict())
    with pytest.raises(KeyError), inputs_as_layers(model):
        raise KeyError
    assert set(model.state_dict()) == names
