"""Layer by layer over data: what is computed, what is held, and that no budget shows in the results."""

from __future__ import annotations

import errno
import io
import warnings
from collections import Counter
from functools import partial

import numpy as np
import pytest
import torch
from networks import inputs, model
from torch import nn

from nncompress.analysis.observe import budget, layerwise, shelf
from nncompress.analysis.observe.budget import ByteBudget
from nncompress.analysis.observe.layerwise import LayerwiseRunner
from nncompress.analysis.observe.outputs import Outputs
from nncompress.data import open_data
from nncompress.errors import Told
from nncompress.ir import Model
from nncompress.passes.base import Context
from nncompress.pipeline import run
from nncompress.recipe import parse_pass


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        h = self.a(x).relu()
        return self.b(h) + h


@pytest.mark.parametrize("limit", [0, 2**30])
def test_sees_edits_of_weights_that_are_still_to_come(limit):
    module = Net().eval()
    each = Model.from_module(module, (torch.randn(2, 4),))
    batches = [(torch.randn(n, 4),) for n in (3, 5)]
    runner = LayerwiseRunner(each, batches, ByteBudget(limit))
    nodes = {n.name: n for n in each.graph.nodes}
    total = next(n for n in each.graph.nodes if n.name.startswith("add"))
    for (value,), (x,) in zip(runner.values(nodes["relu"]), batches, strict=True):
        torch.testing.assert_close(value, module.a(x).relu())
    linear = total.args[0]
    before = list(runner.preview(linear))
    assert runner.reached(nodes["relu"])
    assert not runner.reached(linear)
    with torch.no_grad():
        each.tensor("b.weight").zero_()
        module.b.weight.zero_()
    for (value,), (x,), old in zip(runner.values(total), batches, before, strict=True):
        torch.testing.assert_close(value, module(x))
        assert not torch.equal(old, module.b(module.a(x).relu()))


def test_checkpoints_hold_what_is_still_read_and_no_more_than_there_is_room_for():
    each = model("residual")
    batches = [inputs("residual", 4, seed=s) for s in range(4)]
    nodes = [n for n in each.graph.nodes if n.op == "call_function"]
    roomy, tight = ByteBudget(), ByteBudget(2 * sum(t.nbytes for t in batches[0]))
    sides = [LayerwiseRunner(each, batches, room) for room in (roomy, tight)]
    most = 0
    for i, node in enumerate(nodes):
        for (a,), (b,) in zip(*(side.values(node) for side in sides), strict=True):
            assert torch.equal(a, b)
        alive = {n for n in nodes[: i + 1] if any(u not in nodes[: i + 1] for u in n.users)}
        assert {n for n in sides[0]._points[0] if n.op != "placeholder"} == alive
        assert tight.taken <= tight.limit
        most = max(most, roomy.taken)
    assert most > tight.limit  # or nothing would have been computed again


PASSES = [
    "factorize:rank=2",
    "cluster:codebook=8",
    "quantize:mode=static",
    "quantize:rounding=adaptive",
    "prune-nodes:ratio=0.3",
    "share",
]


@pytest.mark.parametrize("text", PASSES)
def test_a_pass_gives_the_same_bits_whatever_the_budget(text, tmp_path, monkeypatch):
    each = model("residual")
    np.savez(tmp_path / "d.npz", x=inputs("residual", 96, seed=3)[0].numpy())
    data = open_data(str(tmp_path / "d.npz"), each.inputs)
    found = []
    for most, on_disk in ((0, 0), (0, 2**30), (2**30, 0)):
        monkeypatch.setattr(budget, "BUDGET", most)
        monkeypatch.setattr(layerwise, "room_for_files", partial(ByteBudget, on_disk))
        result, _ = run(each, [parse_pass(text)], Context(data=data, batch_size=16))
        found.append(result.state_dict())
    for other in found[1:]:
        assert found[0].keys() == other.keys()
        assert all(torch.equal(found[0][name], other[name]) for name in other)


def test_what_has_no_room_in_memory_is_computed_once_where_files_have_room(monkeypatch):
    each = model("residual")
    batches = [inputs("residual", 4, seed=s) for s in range(3)]
    nodes = [n for n in each.graph.nodes if n.op == "call_function"]
    computed: Counter[torch.fx.Node] = Counter()
    compute = LayerwiseRunner.compute

    def counted(self, node, env):
        computed[node] += node.op == "call_function"
        return compute(self, node, env)

    monkeypatch.setattr(LayerwiseRunner, "compute", counted)
    runner = LayerwiseRunner(each, batches, ByteBudget(0))
    for node in nodes:
        for _ in runner.values(node):
            pass
    assert max(computed.values()) == len(batches)


def _refused(*given, **options):
    raise OSError(errno.EDQUOT, "Disk quota exceeded")


class _Full(io.BytesIO):
    """Has no room but for the first few values."""

    def __init__(self, buffering: int) -> None:
        super().__init__()

    def write(self, given, /) -> int:
        return super().write(given) if self.tell() < 4000 else _refused()


@pytest.mark.parametrize(
    "failing", [{"TemporaryFile": _refused}, {"TemporaryFile": _Full}, {"disk_usage": _refused}]
)
def test_where_files_may_not_be_written_layers_are_computed_again(failing, monkeypatch):
    each = model("residual")
    batches = [inputs("residual", n, seed=n) for n in (1, 4)]
    nodes = [n for n in each.graph.nodes if n.op == "call_function"]
    roomy = LayerwiseRunner(each, batches)
    for name, stub in failing.items():
        monkeypatch.setattr(shelf, name, stub)
    tight = LayerwiseRunner(each, batches, ByteBudget(0))
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        for node in nodes:
            for (a,), (b,) in zip(roomy.values(node), tight.values(node), strict=True):
                assert torch.equal(a, b)
    (line,) = (str(each.message) for each in told if each.category is Told)
    assert "computed again" in line
    if "TemporaryFile" in failing and failing["TemporaryFile"] is not _Full:
        assert "Disk quota exceeded" in line


def test_what_memory_holds_asks_for_no_temporary_folder(monkeypatch):
    for name in ("TemporaryFile", "disk_usage", "gettempdir"):
        monkeypatch.setattr(shelf, name, _refused)
    each, batch = model("residual"), inputs("residual", 2)
    nodes = [n for n in each.graph.nodes if n.op == "call_function"]
    runner = LayerwiseRunner(each, [batch])
    assert all(len(list(runner.values(node))) == 1 for node in nodes)
    tensor = torch.ones(3)
    assert shelf.Shelf().keep(tensor)() is tensor


@pytest.mark.parametrize("limit", [0, 2**30])
def test_outputs_are_held_as_far_as_the_budget_goes(limit):
    each = model("residual")
    batches = [inputs("residual", 4, seed=s) for s in range(3)]
    budget = ByteBudget(limit)
    kept = Outputs(each, batches, budget)
    for _ in range(2):
        for (got, outputs), given in zip(kept, batches, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(got, given))
            assert all(torch.equal(a, b) for a, b in zip(outputs, each.outputs_of(*given)))
    assert bool(kept._held) == bool(limit)
    assert budget.taken <= limit
