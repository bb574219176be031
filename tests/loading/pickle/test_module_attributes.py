"""Pickled layers are made anew from their attributes: every class comes back, no attribute lies."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from nncompress.errors import ModelFileError, UnsafeFileError
from nncompress.loading.pickle.module_attributes import is_composite
from nncompress.loading.pickle.module_records import TORCH_NN
from nncompress.loading.pickle.read import read_pickle

_ARGUMENTS = [
    (),
    (4,),
    (4, 2),
    (4, 4, 3),
    (2, 1.0),
    ((2, 2),),
    (3, (1, 1)),
    (4, 2, 3),
    (2, 4),
    ((4, 4), (2, 2)),
]
_REFERENCES = {"_parameters", "_buffers", "_modules", "_flat_weights", "_flat_weight_refs"}


def layers() -> list[nn.Module]:
    """One of every class that a constructor makes."""
    made = []
    for kind in TORCH_NN.values():
        for arguments in _ARGUMENTS if not is_composite(kind) and "_" not in kind.__name__ else ():
            try:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    made.append(kind(*arguments).eval())
                break
            except (TypeError, ValueError, IndexError, NotImplementedError):
                continue
    made += [nn.RNN(3, 2, nonlinearity="relu"), nn.LSTM(3, 4, 2, proj_size=2, bidirectional=True, bias=False)]
    made += [nn.MultiheadAttention(4, 2, kdim=3, add_bias_kv=True, bias=True), nn.PairwiseDistance(3.0)]
    made += [nn.Conv2d(4, 4, 3, padding="same", groups=2, bias=False), nn.Embedding(4, 2, padding_idx=-1)]
    made += [nn.BatchNorm2d(3, affine=False, track_running_stats=False), nn.LayerNorm((2, 3), bias=False)]
    return made


def test_every_layer_comes_back(tmp_path):
    made = layers()
    assert len(made) > 120
    for layer in made:
        torch.save(layer, tmp_path / "layer.pt")
        back = read_pickle(tmp_path / "layer.pt")
        assert repr(back) == repr(layer)
        assert back.state_dict().keys() == layer.state_dict().keys()
        assert all(torch.equal(back.state_dict()[k], v) for k, v in layer.state_dict().items()), layer
        ours, theirs = ({k: v for k, v in m.__dict__.items() if k not in _REFERENCES} for m in (back, layer))
        assert str(sorted(ours.items())) == str(sorted(theirs.items()))


def test_recurrent_layer_reads_the_weights_it_was_given(tmp_path):
    layer, x = nn.LSTM(3, 4, batch_first=True), torch.randn(2, 5, 3)
    torch.save(layer, tmp_path / "layer.pt")
    assert torch.equal(read_pickle(tmp_path / "layer.pt")(x)[0], layer(x)[0])


def test_attribute_that_a_user_set_is_kept(tmp_path):
    layer = nn.Linear(3, 2)
    layer.block_index = 7
    torch.save(layer, tmp_path / "layer.pt")
    assert read_pickle(tmp_path / "layer.pt").block_index == 7


def test_a_module_that_was_scripted_before_it_was_saved_comes_back(tmp_path):
    layer = nn.Linear(3, 2)
    torch.jit.script(layer)
    torch.save(layer, tmp_path / "layer.pt")
    assert torch.equal(read_pickle(tmp_path / "layer.pt").weight, layer.weight)


@pytest.mark.parametrize(
    ("layer", "attributes"),
    [
        (nn.LSTM(3, 4), {"hidden_size": 10**6}),
        (nn.LSTM(3, 4), {"num_layers": 10**9}),
        (nn.LSTM(3, 4), {"proj_size": 3}),
        (nn.GRU(3, 4), {"bidirectional": True}),
        (nn.LSTMCell(3, 4), {"hidden_size": 5}),
        (nn.Linear(3, 2), {"out_features": 5}),
        (nn.Linear(3, 2), {"in_features": "x"}),
        (nn.Linear(3, 2), {"in_features": 2**40}),
        (nn.Linear(3, 2), {"in_features": True}),
        (nn.Conv2d(4, 4, 3), {"groups": 2}),
        (nn.Conv2d(4, 4, 3), {"padding": "x"}),
        (nn.Conv2d(4, 4, 3), {"_reversed_padding_repeated_twice": [9, 9, 9, 9]}),
        (nn.Conv2d(4, 4, 3), {"transposed": True}),
        (nn.Conv2d(4, 4, 3), {"kernel_size": (3, 2**40)}),
        (nn.BatchNorm2d(4), {"num_features": 10**6}),
        (nn.BatchNorm2d(4), {"track_running_stats": False}),
        (nn.Embedding(4, 2), {"padding_idx": 10**6}),
        (nn.Embedding(4, 2), {"num_embeddings": 8}),
        (nn.MultiheadAttention(4, 2), {"num_heads": 3}),
        (nn.MultiheadAttention(4, 2), {"embed_dim": 8}),
        (nn.MultiheadAttention(4, 2), {"head_dim": 8}),
        (nn.GroupNorm(2, 4), {"num_groups": 3}),
        (nn.LayerNorm(4), {"normalized_shape": (2, 2)}),
        (nn.ZeroPad2d(1), {"padding": (2**40, 0, 0, 0)}),
        (nn.Dropout(0.5), {"p": float("nan")}),
        (nn.Upsample(scale_factor=2), {"scale_factor": float("nan")}),
        (nn.Flatten(), {"start_dim": "x"}),
        (nn.PReLU(), {"num_parameters": 9}),
        (nn.ParameterList([torch.zeros(2)]), {"_size": 10**9}),
        (nn.Sigmoid(), {"__class__": 3}),
        (nn.ReLU(), {"forward": 3}),
        (nn.LSTMCell(3, 4), {"weight_ih": "x"}),
        (nn.Linear(3, 2), {"weight": 3}),
        (nn.BatchNorm2d(4), {"running_var": {}}),
        (nn.Sequential(nn.ReLU()), {"0": "x"}),
        (nn.ReLU(), {"named_modules": "x"}),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else type(value).__name__,
)
def test_attribute_that_does_not_belong_to_the_weights_is_refused(layer, attributes, tmp_path):
    layer.__dict__.update(attributes)
    torch.save(layer, tmp_path / "layer.pt")
    with pytest.raises((ModelFileError, UnsafeFileError), match=r"layer\.pt") as refused:
        read_pickle(tmp_path / "layer.pt")
    assert len(str(refused.value)) < 1000


def test_deep_nesting_is_refused(tmp_path):
    module: nn.Module = nn.ReLU()
    for _ in range(80):
        module = nn.Sequential(module)
    torch.save(module, tmp_path / "deep.pt")
    with pytest.raises(UnsafeFileError, match="nested more than 64 deep"):
        read_pickle(tmp_path / "deep.pt")


def test_lists_that_double_are_refused(tmp_path):
    layer, value = nn.ReLU(), [1]
    for _ in range(40):
        value = [value, value]
    layer.note = value
    torch.save(layer, tmp_path / "laughs.pt")
    with pytest.raises(UnsafeFileError, match="more values than"):
        read_pickle(tmp_path / "laughs.pt")
