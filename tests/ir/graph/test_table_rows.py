"""How many positions a model has, and what is said of longer samples."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nncompress import api
from nncompress.cli.app import run
from nncompress.errors import DataError, ExitCode
from nncompress.ir.graph.table_rows import most_positions

D = 8


class LookedUp(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place, self.head = nn.Embedding(9, D), nn.Embedding(6, D), nn.Linear(D, 9)

    def forward(self, ids):
        return self.head(self.embed(ids) + self.place(torch.arange(ids.shape[1])[None]))


class Sliced(LookedUp):
    def forward(self, ids):
        return self.head(self.embed(ids) + self.place.weight[: ids.shape[1]])


def exported(network: nn.Module, path) -> str:
    batch, length = torch.export.Dim("batch"), torch.export.Dim("length", min=2, max=6)
    example = (torch.randint(0, 9, (2, 4)),)
    program = torch.export.export(network.eval(), example, dynamic_shapes=({0: batch, 1: length},))
    torch.export.save(program, path)
    return str(path)


@pytest.mark.parametrize("network", [LookedUp, Sliced])
def test_samples_longer_than_its_positions_are_refused_in_words(network, tmp_path, capsys) -> None:
    model = api.load(exported(network(), tmp_path / "m.pt2"))
    (found,) = most_positions(model).values()
    assert found == (6, "place.weight")
    api.dataset(torch.randint(0, 9, (8, 6)), model)
    with pytest.raises(DataError, match="more positions than the model") as told:
        api.dataset(torch.randint(0, 9, (8, 7)), model)
    assert "at most 6" in told.value.expected


def test_as_it_is_typed(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    exported(LookedUp(), tmp_path / "m.pt2")
    np.savez("long.npz", x=np.random.default_rng(0).integers(0, 9, (8, 7)))
    assert run(["eval", "m.pt2", "--data", "long.npz", "--metric", "perplexity"]) == ExitCode.DATA
    assert "cut the samples to 6" in capsys.readouterr().err
    assert run(["bench", "m.pt2", "--tokens", "7"]) == ExitCode.USAGE
    assert "--tokens 6" in capsys.readouterr().err
