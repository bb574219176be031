"""Graphs without in-place ops compute what eager code with in-place ops computes."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from nncompress import exporting
from nncompress.errors import UnsupportedError
from nncompress.ir import Model
from nncompress.ir.graph.normal_form.functionalize import is_write
from nncompress.ir.graph.ops import op_name
from nncompress.ir.graph.state import changed_tensors
from nncompress.loading import load_model, load_module

F = nn.functional

VIEWS = {
    "mT": lambda t: t.mT,
    "T": lambda t: t.permute(*range(t.dim() - 1, -1, -1)),
    "mH": lambda t: t.mH,
    "adjoint": lambda t: t.adjoint(),
    "swapdims": lambda t: t.swapdims(0, -1),
    "swapaxes": lambda t: t.swapaxes(-1, 1),
    "moveaxis": lambda t: t.moveaxis(0, -1),
    "movedim": lambda t: t.movedim((0, 1), (1, 2)),
    "ravel": lambda t: t.ravel(),
    "flatten": lambda t: t.flatten(1),
    "unfold": lambda t: t.unfold(1, 2, 2),
    "broadcast_to": lambda t: t.broadcast_to(t.shape),
    "wider": lambda t: t[None].expand(2, *t.shape),
    "reshape_as": lambda t: t.reshape_as(t),
    "view_as": lambda t: t.flatten(1).view_as(t),
    "view": lambda t: t.view(len(t), -1),
    "reshape": lambda t: t.reshape(len(t), 2, -1),
    "real": lambda t: t.real,
    "imag": lambda t: torch.view_as_complex(t.unflatten(-1, (-1, 2))).imag,
    "view_as_real": lambda t: torch.view_as_real(torch.view_as_complex(t.unflatten(-1, (-1, 2)))),
    "conj": lambda t: torch.view_as_complex(t.unflatten(-1, (-1, 2))).conj().real,
    "diagonal": lambda t: t.diagonal(0, 1, -1),
    "tensor_split": lambda t: t.tensor_split(2, 1)[1],
    "hsplit": lambda t: t.hsplit(2)[0],
    "dsplit": lambda t: t.dsplit((1, 3))[1],
    "split": lambda t: t.split((1, t.shape[1] - 1), 1)[1],
    "unbind": lambda t: t.unbind(1)[1],
    "chunk": lambda t: t.chunk(3, -1)[1],
    "narrow": lambda t: t.narrow(1, 1, 2),
    "slice": lambda t: t[:, 1:],
    "step": lambda t: t[..., ::2],
    "select": lambda t: t[:, -1],
    "squeeze": lambda t: t[:, :1].squeeze(1),
    "unsqueeze": lambda t: t.unsqueeze(1),
    "to": lambda t: t.to(t.dtype),
    "contiguous": lambda t: t.contiguous(),
    "dropout": lambda t: F.dropout(t, 0.5, False),
    "detach": lambda t: t.detach(),
    "type_as": lambda t: t.type_as(t),
    "expand_as": lambda t: t.expand_as(t),
    "atleast": lambda t: torch.atleast_3d(t),
    "broadcast_tensors": lambda t: torch.broadcast_tensors(t, t[:, :1])[0],
    "positive": lambda t: +t,
    "einsum": lambda t: torch.einsum("i...j->j...i", t),
    "pad": lambda t: F.pad(t, (0, 0)),
    "clone": lambda t: t.clone(),
    "squeeze_": lambda t: t[:, :1].squeeze_(1),
    "t_": lambda t: t[:, 0].t_(),
    "twice": lambda t: t * 2,
}
WRITES = {
    "relu_": lambda t, o: torch.relu_(t),
    "add_": lambda t, o: t.add_(0.5),
    "mul_": lambda t, o: t.mul_(o),
    "sub_": lambda t, o: t.sub_(o.mean()),
    "copy_": lambda t, o: t.copy_(o),
    "fill_": lambda t, o: t.fill_(0.25),
    "zero_": lambda t, o: t[..., 1:].zero_(),
    "masked_fill_": lambda t, o: t.masked_fill_(t > 0.3, -1.0),
    "index_put_": lambda t, o: t.index_put_((torch.tensor([0, 1]),), torch.tensor(2.0)),
    "assign": lambda t, o: t[:, 1:].copy_(t[:, :-1].clone()),
    "clamp_": lambda t, o: t.clamp_(-0.5, 0.5),
    "lt_": lambda t, o: t.lt_(0.1),
    "unsqueeze_": lambda t, o: t.unsqueeze_(1),
    "transpose_": lambda t, o: t.transpose_(0, 1),
    "out": lambda t, o: torch.add(t.detach().clone(), 1.0, out=t),
    "dropout_": lambda t, o: F.dropout(t, 0.5, False, True),
    "setitem": lambda t, o: t.__setitem__((slice(None), 0), 3.0),
    "index_fill_": lambda t, o: t.index_fill_(1, torch.tensor([0]), 0.1),
    "addcmul_": lambda t, o: t.addcmul_(o, o),
    "set_": lambda t, o: t.set_(o),
    "data": lambda t, o: setattr(t, "data", o * 2),
    "fill_tensor": lambda t, o: t.fill_(o.sum()),
}
OPS = [*VIEWS, *WRITES]
STEPS = st.lists(
    st.tuples(st.sampled_from(OPS), st.integers(0, 5), st.integers(0, 5)), min_size=2, max_size=9
)


class Program(nn.Module):
    """Steps over a growing pool of tensors; those that do not fit their tensor are left out."""

    def __init__(self, steps: list[tuple[str, int, int]], source: str) -> None:
        super().__init__()
        self.register_buffer("kept", torch.linspace(-1, 1, 24).reshape(4, 6))
        self.steps, self.source = steps, source
        self.steps = [step for at, step in enumerate(steps) if self._fits(at)]

    def _fits(self, at: int) -> bool:
        fitting = getattr(self, "_fitting", [])
        for batch in (2, 3):
            trial = copy.copy(self)
            trial.__dict__ |= {"steps": [*fitting, self.steps[at]], "_buffers": {"kept": self.kept.clone()}}
            try:
                trial(example(batch))
            except (RuntimeError, IndexError, ValueError):
                return False
        self._fitting = [*fitting, self.steps[at]]
        return True

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        pool = {"input": [x], "value": [x * 1], "buffer": [x * 1, self.kept]}[self.source]
        for name, which, other in self.steps:
            tensor = pool[which % len(pool)]
            if name in VIEWS:
                pool.append(VIEWS[name](tensor))
            else:
                WRITES[name](tensor, pool[other % len(pool)])
        return tuple(each + 0 for each in pool)


def example(batch: int) -> Tensor:
    return torch.randn(batch, 4, 6, generator=torch.Generator().manual_seed(batch))


def check(net: Program) -> None:
    try:
        model = Model.from_module(copy.deepcopy(net), (example(2),))
    except UnsupportedError:
        assume(False)
    assert [node.name for node in model.graph.nodes if is_write(node)] == []
    assert all("val" in node.meta for node in model.graph.nodes if node.users)
    for batch in (2, 3) if "batch" in model.dynamic else (2,):
        fresh, x = copy.deepcopy(net), example(batch)
        want = fresh(x.clone())
        got = model.outputs_of(x)
        assert torch.equal(x, example(batch))  # the caller's tensor
        for a, b in zip(want, got, strict=True):
            torch.testing.assert_close(b, a, rtol=1e-6, atol=1e-6)
        if "kept" in model.state_dict():
            assert torch.equal(model.tensor("kept"), net.kept)
        assert ("kept" in changed_tensors(model.graph)) >= (not torch.equal(fresh.kept, net.kept))


@settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
@given(STEPS, st.sampled_from(["input", "value", "buffer"]))
def test_any_sequence_of_views_and_writes(steps: list[tuple[str, int, int]], source: str) -> None:
    check(Program(steps, source))


@pytest.mark.parametrize("views", [list(VIEWS)[at : at + 5] for at in range(0, len(VIEWS), 5)], ids="-".join)
def test_a_view_sees_a_later_write_to_its_base_and_the_base_one_to_its_view(views: list[str]) -> None:
    made = [(view, 0, 0) for view in views]
    written = [("mul_", at + 1, at + 1) for at in range(len(views))]
    check(Program([*made, ("masked_fill_", 0, 0), *written, *made, ("relu_", 0, 0)], "value"))


def test_a_view_whose_elements_overlap_sees_a_later_write() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            windows = (base := x * 1).unfold(-1, 3, 1)
            base.relu_()
            return windows + 0

    x = torch.randn(3, 8)
    torch.testing.assert_close(Model.from_module(Net(), (x[:2],))(x), Net()(x))


def test_what_changes_when_a_model_runs_is_written_only_by_the_program_that_leaves() -> None:
    class Counter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.count += 1
            return x.sub_(self.count) * 2

    x = torch.randn(3, 4)
    model = Model.from_module(Counter(), (x[:2].clone(),))
    model.refresh()
    before = x.clone()
    for _ in range(2):
        torch.testing.assert_close(model(x), (x - 1) * 2)
    assert torch.equal(x, before)
    assert model.tensor("count") == 0
    assert changed_tensors(model.graph) == ["count"]
    program = model.exported_program().module(check_guards=False)
    program(x)
    torch.testing.assert_close(program(x)[0], (x - 2) * 2)


def test_stored_tensors_that_share_memory_and_change_are_refused_by_name() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("whole", torch.ones(4))
            self.register_buffer("part", self.whole[:2])

        def forward(self, x: Tensor) -> Tensor:
            self.part += 1
            return x * self.whole

    with pytest.raises(UnsupportedError, match="whole"):
        Model.from_module(Net(), (torch.randn(2, 4),))


def test_an_op_may_write_to_one_tensor_and_return_another() -> None:
    """RReLU in evaluation mode: what is handed over as noise is no result."""

    class Slopes(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            noise = torch.ones_like(x)
            h = torch.ops.aten.rrelu_with_noise(nn.functional.rrelu_(x - 1), noise, 0.1, 0.3)
            return nn.functional.rrelu(h + noise)

    x = torch.randn(5, 4)
    model = Model.from_module(Slopes(), (x,))
    again = Model.from_exported(model.exported_program())
    for made in (model, again):
        torch.testing.assert_close(made(x), Slopes()(x))
        assert not any("rrelu" in str(node.target) for node in made.graph.nodes)


def test_two_writes_of_one_operator_to_the_same_memory_are_loaded_or_refused() -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            both = torch.zeros_like(x[0])
            made = torch.ops.aten._native_batch_norm_legit.default(x, None, None, both, both, True, 0.1, 1e-5)
            return made[0]

    x = torch.randn(6, 4)
    torch.testing.assert_close(Model.from_module(Net(), (x,))(x), Net()(x))


@pytest.mark.parametrize("flat", [False, True])
def test_a_layer_that_is_overwritten_is_not_kept_for_its_size(tmp_path: Path, flat: bool) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.dead, self.head = nn.Linear(4, 4), nn.Linear(2 if flat else 4, 3)
            self.register_buffer("start", torch.ones(self.head.in_features))

        def forward(self, x: Tensor) -> Tensor:
            h = self.dead(x)
            h = h.reshape(-1, 2) if flat else h
            h.copy_(self.start)
            return self.head(h).reshape(len(x), -1) + x.sum(1, keepdim=True)

    net, x = Net().eval(), torch.randn(5, 4)
    model = Model.from_module(net, (x,))
    assert flat or "dead.weight" not in model.state_dict()  # twice the batch is no input's size
    exporting.write(model, tmp_path / "m.pt2")
    torch.testing.assert_close(load_model(tmp_path / "m.pt2")(x), net(x))


@pytest.mark.parametrize(
    "forward",
    [
        lambda h: (k := torch.empty(0), k.set_(h), k.relu_())[1],
        lambda h: (k := h.clone(), w := k[:, 0], k.set_(h), k.relu_(), w.zero_())[0] + w[:, None],
        lambda h: (k := h.clone(), setattr(k, "data", h), k.relu_(), setattr(h, "data", h[:, :1]))[0] + h,
        lambda h: (k := h.clone(), setattr(k, "data", k[:, 1:].exp()))[0],
        lambda h: (k := (+h).contiguous(), setattr(k, "data", h.exp()), h.neg_())[2] + k,
    ],
    ids=["set", "window-on-what-it-was", "data", "data-of-another-shape", "handed-back"],
)
def test_a_tensor_that_is_given_other_memory(forward) -> None:
    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            h = x * 2
            return forward(h) + h.sum()

    x = torch.randn(3, 4)
    torch.testing.assert_close(Model.from_module(Net(), (x[:2],))(x), Net()(x))


@pytest.mark.parametrize(
    "handed_back",
    [
        lambda t: +t,
        lambda t: t.contiguous(),
        lambda t: t.float(),
        lambda t: nn.functional.dropout(t, 0.5, False),
    ],
    ids=["plus", "contiguous", "to", "dropout"],
)
@pytest.mark.parametrize("give", [lambda t, new: t.set_(new), lambda t, new: setattr(t, "data", new)])
def test_so_is_one_that_an_op_hands_back(handed_back, give) -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            give(handed_back(self.calls), self.calls + 1)
            return x + self.calls

    with pytest.raises(UnsupportedError, match="gives calls other memory"):
        load_module(Net(), input_shapes="1x3")


def test_a_stored_tensor_that_is_given_other_memory_is_refused() -> None:
    class Net(nn.Module):
        def __init__(self, whole: bool) -> None:
            super().__init__()
            self.whole = whole
            self.weight = nn.Parameter(torch.randn(3, 4))
            self.register_buffer("kept", torch.zeros(3))

        def forward(self, x: Tensor) -> Tensor:
            if self.whole:
                self.weight.data = self.weight.data.clamp(-0.1, 0.1)
            else:
                self.kept.set_(x[0, :3] * 2)
            return nn.functional.linear(x, self.weight) + self.kept

    for whole, reason in ((True, r"not with their \.data"), (False, "gives kept other memory")):
        net = Net(whole)
        before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
        with pytest.raises(UnsupportedError, match=reason):
            load_module(net, input_shapes="1x4")
        assert all(torch.equal(net.state_dict()[name], before[name]) for name in before)


def test_a_composite_view_that_is_written_to_is_taken_apart_in_a_file_too(tmp_path):
    """Where sizes are free, and the file has forgotten that they are more than 1."""

    class Swapped(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = nn.Linear(8, 8)

        def forward(self, x):
            h = self.a(x) * 1
            h.swapdims(0, 1).relu_()
            return h

    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(Swapped().eval(), (torch.randn(4, 8),), dynamic_shapes=(batch,))
    torch.export.save(program, tmp_path / "m.pt2")
    model = load_model(tmp_path / "m.pt2")
    assert "swapdims" not in map(op_name, model.graph.nodes)
