"""Every pass × every axis on which a model can be unlike the usual one: it works, or refuses in one line."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from laws import refusal
from records import Records
from torch import Tensor, nn

from nncompress import pipeline
from nncompress.errors import NNCompressError
from nncompress.ir import Model
from nncompress.passes import PASSES, Context

SETTINGS: dict[str, dict[str, Any]] = {
    "prune": {"sparsity": 0.5, "remove_dead": True},
    "factorize": {"energy": 0.5},
    "prune-nodes": {"ratio": 0.3},
    "reduce": {"macs": 0.7},
    "grow": {"by": 2},
    "cluster": {"codebook": 4},
}


LIKE_OPS = ("mean", "cat", "slice", "linear", "batch_norm", "topk", "view")  # as input statistics often are


class Axis(nn.Module):
    """Two layers around what is unusual: `middle` for the hidden value, `last` for the scores."""

    def __init__(self, middle: Callable[..., Any], last: Callable[..., Any]) -> None:
        super().__init__()
        self.conv, self.a, self.b = nn.Conv1d(8, 8, 3, padding=1), nn.Linear(8, 12), nn.Linear(12, 4)
        self.register_buffer("off", torch.tensor([False, True, False, False]))
        self.register_buffer("seen", torch.zeros(12))
        for position, name in enumerate(LIKE_OPS):
            self.register_buffer(name, torch.full((12,), 1 + position / 8))
        self.side = torch.tensor([1.0, 2.0, 0.5] * 4)  # neither parameter nor buffer
        self._middle, self._last = middle, last

    def forward(self, x: Tensor) -> Any:  # [N, 6, 8]
        h = torch.relu(self.a(self.conv(x.mT).mT))
        return self._last(self, self.b(self._middle(self, h)))


def _as_is(m: Axis, value: Tensor) -> Tensor:
    return value


def _view_then_inplace(m: Axis, h: Tensor) -> Tensor:
    keys = h.mT
    h.tanh_()
    return torch.softmax(h @ keys, -1) @ h


def _causal(m: Axis, h: Tensor) -> Tensor:
    mask = torch.ones(6, 6).tril() == 0
    return (h @ h.mT).masked_fill(mask, float("-inf")).softmax(-1) @ h


def _named_like_ops(m: Axis, h: Tensor) -> Tensor:
    for name in LIKE_OPS:
        h = h * getattr(m, name)
    return h


def _state(m: Axis, h: Tensor) -> Tensor:
    h = h + m.seen
    m.seen.copy_(0.5 * m.seen + h[0, 0])
    return h


class ChangesItsInput(Axis):
    def forward(self, x: Tensor) -> Any:
        return super().forward(x.sub_(0.5).mul_(2))


AXES: dict[str, tuple[Callable[..., Any], Callable[..., Any], torch.dtype]] = {
    "float16": (_as_is, _as_is, torch.float16),
    "bfloat16": (_as_is, _as_is, torch.bfloat16),
    "float64": (_as_is, _as_is, torch.float64),
    "boolean output": (_as_is, lambda m, y: (y > 0, y), torch.float32),
    "integer output": (_as_is, lambda m, y: y.argmax(-1), torch.float32),
    "buffers changed by forward": (_state, _as_is, torch.float32),
    "buffers named like ops": (_named_like_ops, _as_is, torch.float32),
    "input changed in place": (_as_is, _as_is, torch.float32),
    "output without dims": (_as_is, lambda m, y: (y, y.square().mean()), torch.float32),
    "masked scores": (_as_is, lambda m, y: y.masked_fill(m.off, float("-inf")), torch.float32),
    "infinity inside": (_causal, _as_is, torch.float32),
    "view, then in place": (_view_then_inplace, _as_is, torch.float32),
    "constant side input": (lambda m, h: h * m.side, _as_is, torch.float32),
    "empty output": (_as_is, lambda m, y: (y, y[:, :, :0]), torch.float32),
    "output twice": (_as_is, lambda m, y: (y, y), torch.float32),
}


def inputs(dtype: torch.dtype, batch: int, seed: int = 1) -> tuple[Tensor]:
    return (torch.randn(batch, 6, 8, generator=torch.Generator().manual_seed(seed)).to(dtype),)


@pytest.mark.parametrize("axis", AXES)
def test_every_pass_works_or_refuses_in_one_line(axis):
    middle, last, dtype = AXES[axis]
    torch.manual_seed(0)
    kind = ChangesItsInput if axis == "input changed in place" else Axis
    module = kind(middle, last).eval().to(dtype)
    given = Model.from_module(module, inputs(dtype, 2))
    with torch.no_grad():
        wanted = deepcopy(module)(*inputs(dtype, 3))
        wanted = wanted if isinstance(wanted, tuple) else (wanted,)
        same(given.outputs_of(*inputs(dtype, 3)), wanted)
    before = {name: value.clone() for name, value in given.state_dict().items()}
    worked = set()
    for name, pass_class in PASSES.items():
        context = Context(data=Records(inputs(dtype, 24, seed=5)), limit=16)  # type: ignore[arg-type]
        try:
            result, (step,) = pipeline.run(given, [pass_class(**SETTINGS.get(name, {}))], context)
        except NNCompressError as error:
            refusal(name, error)
            continue
        if step.changed:
            worked.add(name)
        with torch.no_grad():
            after = result.outputs_of(*inputs(dtype, 3))
        assert [(t.dtype, t.shape) for t in after] == [(t.dtype, t.shape) for t in wanted], name
        assert all(torch.equal(a.isfinite(), b.isfinite()) for a, b in zip(after, wanted)), name
    assert all(torch.equal(value, before[name]) for name, value in given.state_dict().items())
    # What looks at the stored weights alone works on every axis; 8-bit kernels want float32.
    assert worked >= {"prune", "factorize", "cluster", "grow"}
    if dtype == torch.float32:
        assert "quantize" in worked
        assert "prune-nodes" in worked or not any(t.is_floating_point() for t in wanted)


def same(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> None:
    for a, b in zip(left, right, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
