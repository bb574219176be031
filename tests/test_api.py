"""The face of the package: a module in memory goes in, comes out, trains in a loop of its own, returns."""

from __future__ import annotations

import copy
import io
from importlib.resources import files

import pytest
import torch
from networks import NETWORKS, model
from torch import nn

import nncompress
from nncompress.errors import DataError


class Classifier(nn.Module):
    """A recurrent one: its flags are three kinds, a batch norm's, dropout's, and the LSTM's own."""

    def __init__(self) -> None:
        super().__init__()
        self.features = nn.Sequential(nn.Conv1d(3, 16, 3, padding=1), nn.BatchNorm1d(16), nn.ReLU())
        self.lstm = nn.LSTM(16, 12, num_layers=2, dropout=0.5, batch_first=True)
        self.dropout = nn.Dropout(0.5)
        self.head = nn.Linear(12, 4)

    def forward(self, x):
        found, _ = self.lstm(self.features(x).transpose(1, 2))
        return self.head(self.dropout(found[:, -1]))


def records(count=48, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 3, 10, generator=generator)
    return x, x.mean((1, 2)).gt(0).long() + 2 * x[:, 0].mean(1).gt(0).long()


@pytest.fixture
def classifier():
    torch.manual_seed(0)
    return Classifier()


def test_a_module_is_compressed_and_stays_as_it_is(classifier):
    before = copy.deepcopy(classifier.state_dict())
    smaller = nncompress.compress(classifier, "factorize:rank=4", data=records())
    assert classifier.training
    assert all(torch.equal(before[name], value) for name, value in classifier.state_dict().items())
    assert [record["pass"] for record in smaller.history] == ["factorize"]


@pytest.mark.parametrize(
    "given",
    [
        lambda x, y: x,
        lambda x, y: x.numpy(),
        lambda x, y: (x, y),
        lambda x, y: (x.numpy(), None),
        lambda x, y: torch.utils.data.TensorDataset(x, y),
        lambda x, y: torch.utils.data.DataLoader(
            torch.utils.data.TensorDataset(x, y), batch_size=7, shuffle=True
        ),
        lambda x, y: [(x[:20], y[:20]), (x[20:], y[20:])],
        lambda x, y: ((x[i : i + 8], y[i : i + 8]) for i in range(0, 48, 8)),  # only once
        lambda x, y: lambda: ((x[i : i + 8],) for i in range(0, 48, 8)),
    ],
)
def test_data_in_memory(classifier, given):
    x, y = records()
    loaded = nncompress.load(nn.Conv1d(3, 2, 3), input=x[:1])
    dataset = nncompress.dataset(given(x, y), loaded)
    for _ in range(2):  # every pass over it gives all records
        seen = torch.cat([batch.inputs[0] for batch in dataset.batches(16)])
        assert torch.equal(seen.flatten(1).sum(1).sort().values, x.flatten(1).sum(1).sort().values)


def test_an_iterator_too_large_to_keep_is_refused(classifier, monkeypatch):
    monkeypatch.setattr("nncompress.data.python.MOST_KEPT", 1000)
    with pytest.raises(DataError, match="only once"):
        nncompress.compress(classifier, "quantize", data=iter([records()]))


@pytest.mark.parametrize("name", NETWORKS)
def test_out_as_a_module_and_in_again(name):
    given = model(name)
    given.history.append({"pass": "prune"})
    module = given.to_module()
    x = given.example_inputs(3)
    expected = given.outputs_of(*x)
    held = io.BytesIO()
    torch.save(module, held)
    held.seek(0)
    again = nncompress.load(module)
    for each in (module, copy.deepcopy(module), torch.load(held, weights_only=False), again):
        outputs = each(*x)
        assert all(map(torch.equal, outputs if isinstance(outputs, tuple) else (outputs,), expected))
    assert (again.inputs, again.outputs, again.history) == (given.inputs, given.outputs, given.history)
    assert again.state_dict().keys() == module.state_dict().keys() == given.state_dict().keys()


def test_the_face_is_typed_and_complete():
    assert files(nncompress).joinpath("py.typed").is_file()
    for name in nncompress.__all__:
        assert getattr(nncompress, name).__doc__
    assert set(nncompress.__all__) <= set(dir(nncompress))
