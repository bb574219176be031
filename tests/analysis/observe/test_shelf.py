"""What is over the budget comes back from a file."""

from __future__ import annotations

import os

import pytest
import torch

from nncompress.analysis.observe import shelf as shelves
from nncompress.analysis.observe.budget import ByteBudget
from nncompress.analysis.observe.shelf import Shelf, Slot
from nncompress.errors import OutputError, Told


def test_gives_the_same_bits_in_any_order():
    budget = ByteBudget(1000)
    shelf = Shelf(budget)
    tensors = [torch.randn(n, 7, dtype=torch.float64) for n in (5, 20, 9, 30)]
    assert Shelf(ByteBudget(0)).keep(torch.tensor(3.0))().shape == ()
    kept = [shelf.keep(tensor) for tensor in tensors]
    assert budget.taken == tensors[0].nbytes + tensors[2].nbytes  # what there was room for
    for i in (3, 0, 1, 2, 1, 3):
        assert torch.equal(kept[i](), tensors[i])
    assert kept[1]() is not kept[1]()
    del shelf
    assert torch.equal(kept[3](), tensors[3])


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no full device here")
def test_memory_holds_what_files_have_no_room_for(monkeypatch):
    monkeypatch.setattr(shelves, "most_bytes", lambda: 100_000)
    shelf, tensors = Shelf(ByteBudget(0)), [torch.randn(10_000), torch.randn(10_000)]
    with open("/dev/full", "r+b", buffering=0) as shelf._file:
        with pytest.warns(Told, match=r"No space left on device; .* of memory instead") as told:
            kept = [shelf.keep(tensor) for tensor in tensors]
        assert len(told) == 1
        assert all(torch.equal(read(), tensor) for read, tensor in zip(kept, tensors))
        with pytest.raises(OutputError, match="no room for"):
            shelf.keep(torch.randn(10_000))


def test_shelves_beside_each_other_share_one_budget():
    budget = ByteBudget(1000)
    lasting, tensor = Shelf(budget), torch.randn(100)
    passing = Shelf(beside=lasting)
    kept = [passing.keep(tensor), lasting.keep(tensor), lasting.keep(tensor + 1)]
    assert budget.taken == 2 * tensor.nbytes
    assert torch.equal(kept[2](), tensor + 1)  # of a file
    del kept[0]
    assert budget.taken == tensor.nbytes
    assert passing.keep(tensor)() is tensor


def test_a_slot_holds_the_last_value_in_memory_or_at_one_place_of_the_file():
    budget = ByteBudget(500)
    shelf, tensors = Shelf(budget), [torch.randn(100, dtype=torch.float64) for _ in range(4)]
    held, filed, plain = Slot(Shelf(ByteBudget(10_000))), Slot(shelf), Slot()
    for slot in (held, filed, plain):
        assert slot.value is None
    for tensor in tensors:
        for slot in (held, filed, plain):
            slot.value = tensor
            assert torch.equal(slot.value, tensor)
    assert held.value is plain.value is tensors[-1]
    assert shelf._file.seek(0, 2) == tensors[0].nbytes
    beside = Slot(shelf)
    beside.value = tensors[0]
    assert torch.equal(filed.value, tensors[-1])
    assert torch.equal(beside.value, tensors[0])
