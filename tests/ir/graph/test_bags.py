"""Embedding bags whose offsets are values become ops that check every index, with the same result."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from torch import Tensor, nn

import nncompress
from nncompress.errors import ModelFileError
from nncompress.exporting import write_pt2
from nncompress.ir import Model
from nncompress.loading import load_model


class Bags(nn.Module):
    def __init__(self, **options: object) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(10, 4, **options)

    def forward(self, rows: Tensor, offsets: Tensor, *weights: Tensor) -> Tensor:
        return self.bag(rows, offsets, *weights)


@pytest.mark.parametrize(
    ("mode", "last", "padding"),
    [*product(("sum", "mean", "max"), (False, True), (None, 3)), ("weighted", False, -1)],
)
def test_bags_of_any_length_are_what_they_were(mode: str, last: bool, padding: int | None) -> None:
    generator = torch.Generator().manual_seed(len(mode) + 2 * last)
    weighted = mode == "weighted"
    net = Bags(mode="sum" if weighted else mode, include_last_offset=last, padding_idx=padding).eval()
    nn.init.normal_(net.bag.weight, generator=generator)  # the row of the padding as well
    rows = torch.tensor([3, 1, 9, 3, 3, 0, 5])
    offsets = torch.tensor([0, 2, 2, 3, 5, 7] if last else [0, 2, 2, 3, 5])  # one is empty, one holds padding
    weights = (torch.randn(7, generator=generator),) if weighted else ()
    model = Model.from_module(net, (rows, offsets, *weights))
    assert not [node for node in model.graph.nodes if "embedding_bag" in node.name]
    rows = rows[torch.randperm(7, generator=generator)]
    with torch.no_grad():
        torch.testing.assert_close(model(rows, offsets, *weights), net(rows, offsets, *weights))


def test_a_model_with_such_bags_is_written_and_read(tmp_path) -> None:
    net, given = Bags().eval(), (torch.tensor([1, 2, 3]), torch.tensor([0, 2]))
    write_pt2(Model.from_module(net, given), tmp_path / "m.pt2")
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "m.pt2")(*given), net(*given))


def test_a_file_that_torch_wrote_of_such_bags_is_refused_with_what_loads(tmp_path) -> None:
    net, given = Bags().eval(), (torch.tensor([1, 2, 3]), torch.tensor([0, 2]))
    torch.export.save(torch.export.export(net, given), tmp_path / "m.pt2")
    with pytest.raises(ModelFileError, match="cannot run here") as caught:
        load_model(tmp_path / "m.pt2")
    assert "\n" not in caught.value.got
    assert "nncompress.load(module, input=(ids, offsets))" in caught.value.remedy
    model = nncompress.load(net, input=given)  # as that says
    with torch.no_grad():
        torch.testing.assert_close(model(*given), net(*given))
