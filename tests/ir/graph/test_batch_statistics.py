"""Batch norms that a source runs in training mode normalise by the batch; no run changes what is stored."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import nncompress


class Frozen(nn.Module):
    """Its batch norm stays in training mode, whatever the network is told."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def train(self, mode: bool = True) -> Frozen:
        super().train(mode)
        self.norm.train()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.conv(x)).relu().mean((2, 3)))


@pytest.mark.parametrize("source", ["module", "exported", "decomposed"])
def test_the_batch_is_normalised_and_nothing_is_stored_anew(source: str, tmp_path: Path) -> None:
    net, x = Frozen().eval(), torch.randn(2, 3, 6, 6)
    notices: list[str] = []
    if source == "module":
        model = nncompress.load(net, input=x, notice=notices.append)
    else:
        program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
        program = program.run_decompositions() if source == "decomposed" else program
        torch.export.save(program, tmp_path / "m.pt2")
        model = nncompress.load(tmp_path / "m.pt2", notice=notices.append)
    assert any("norm normalises by the statistics of each batch" in notice for notice in notices)
    fresh = torch.randn(5, 3, 6, 6)
    with torch.no_grad():
        first = model(fresh)
        torch.testing.assert_close(first, net(fresh))
        assert torch.equal(model(fresh), first)
    nncompress.export(model, tmp_path / "again.pt2")
    assert not [name for name in model.state_dict() if "running" in name or "tracked" in name]
