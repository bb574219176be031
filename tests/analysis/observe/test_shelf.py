"""What is over the budget comes back from a file."""

from __future__ import annotations

import os

import pytest
import torch

from nncompress.analysis.observe.budget import ByteBudget
from nncompress.analysis.observe.shelf import Shelf
from nncompress.errors import OutputError


def test_gives_the_same_bits_in_any_order():
    budget = ByteBudget(1000)
    shelf = Shelf(budget)
    tensors = [torch.randn(n, 7, dtype=torch.float64) for n in (5, 20, 9, 30)]
    kept = [shelf.keep(tensor) for tensor in tensors]
    assert budget.taken == tensors[0].nbytes + tensors[2].nbytes  # what there was room for
    for i in (3, 0, 1, 2, 1, 3):
        assert torch.equal(kept[i](), tensors[i])
    assert kept[1]() is not kept[1]()


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
def test_says_where_there_is_no_room():
    shelf = Shelf(ByteBudget(0))
    with (
        open("/dev/full", "r+b", buffering=0) as shelf._file,
        pytest.raises(OutputError, match="no room for"),
    ):
        shelf.keep(torch.ones(10000))
