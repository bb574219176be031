"""The proof of a removal: the original with the units' consumer weights at zero computes the same.

`ZeroedReference` runs the *original* graph and never the resized one. Wherever units are consumed (the
contracted dim of a convolution, linear, matmul) it sets the consumer's weights to zero at the removed
indices; where a norm runs over removed indices it normalises over the survivors.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from nncompress.analysis.couplings.groups import Couplings, Removal
from nncompress.analysis.couplings.value import EXAMPLE_BATCH, arguments
from nncompress.errors import VerificationError
from nncompress.ir import Model
from nncompress.ir.edit.resize import Kept, take
from nncompress.ir.graph.ops import op_name
from nncompress.ir.graph.verify import in_double


class ZeroedReference(fx.Interpreter):
    """Runs the original model as if the removed units gave nothing to anyone.

    Labels are traced at `EXAMPLE_BATCH`; a dim that merges batch and heads repeats them for other batches.
    """

    def __init__(self, couplings: Couplings, removal: Removal) -> None:
        super().__init__(couplings.model.graph_module)
        self._survivors = couplings.survivors(removal)
        self._trace = couplings.trace

    def run_node(self, n: fx.Node) -> Any:
        replaced = {}
        for operand, dims in self._trace.contractions.get(n, ()):
            kept = {d: m for d, m in self._survivors.of(operand).items() if d in dims}
            if kept:
                replaced[operand] = self.env[operand]
                self.env[operand] = self.env[operand] * _mask(kept, self.env[operand])
        normed = self._trace.survivor_norms.get(n, ())
        partial = any(d in self._survivors.of(n.all_input_nodes[0]) for d in normed)
        result = self._over_survivors(n) if partial else super().run_node(n)
        self.env.update(replaced)
        return result

    def _over_survivors(self, node: fx.Node) -> Any:
        source, dims = node.all_input_nodes[0], self._trace.survivor_norms[node]
        whole, kept = self.env[source], self._survivors.of(source)
        if op_name(node).endswith("_norm"):
            a = {k: self.env[v] if isinstance(v, fx.Node) else v for k, v in arguments(node).items()}
            return norm_over(op_name(node), a, _mask(kept, whole))
        self.env[source] = surviving(whole, {d: mask for d, mask in kept.items() if d in dims})
        result = super().run_node(node)
        self.env[source] = whole
        return self._in_place(node, dims[0], result) if op_name(node).startswith("avg_pool") else result

    def _in_place(self, node: fx.Node, dim: int, result: Tensor) -> Tensor:
        """What an op made of the survivors, each at its place in a result that is 0 elsewhere."""
        kept = self._survivors.of(node)[dim]
        shape = [*result.shape[:dim], len(kept), *result.shape[dim + 1 :]]
        return result.new_zeros(shape).index_copy(dim, torch.from_numpy(np.flatnonzero(kept)), result)


def surviving(value: Tensor, kept: Kept) -> Tensor:
    """The part of a value that stays; a dim that merges batch and heads repeats with the batch."""
    return take(value, {dim: np.resize(mask, value.shape[dim]) for dim, mask in kept.items()})


def _mask(kept: Kept, like: Tensor) -> Tensor:
    mask = torch.ones([1] * like.dim(), dtype=like.dtype)
    for dim, keep in kept.items():
        shape = [1] * like.dim()
        shape[dim] = -1
        keep = np.resize(keep, like.shape[dim])  # a dim that merges batch and heads repeats with the batch
        mask = mask * torch.from_numpy(keep).to(like.dtype).reshape(shape)
    return mask


def norm_over(kind: str, a: dict[str, Any], mask: Tensor) -> Tensor:
    """layer_norm, rms_norm or group_norm with statistics over the positions where `mask` is 1."""
    x, w, b = a["input"], a.get("weight"), a.get("bias")
    shape = x.shape
    if kind == "group_norm":
        mask = mask.expand(1, *shape[1:]).reshape(1, a["num_groups"], -1)
        x = x.reshape(shape[0], a["num_groups"], -1)
        dims = [2]
        channels = [1, -1] + [1] * (len(shape) - 2)
        w, b = (None if v is None else v.reshape(channels) for v in (w, b))
    else:
        dims = list(range(x.dim() - len(a["normalized_shape"]), x.dim()))
        mask = mask.expand(*[1] * dims[0], *shape[dims[0] :])
    count = mask.sum(dims, keepdim=True).clamp_min(1)  # a whole group may be gone
    if kind != "rms_norm":
        x = x - (x * mask).sum(dims, keepdim=True) / count
    eps = a["eps"] if a["eps"] is not None else torch.finfo(x.dtype).eps
    x = x * torch.rsqrt((x * x * mask).sum(dims, keepdim=True) / count + eps)
    x = x.reshape(shape)
    x = x if w is None else x * w
    return x if b is None else x + b


class Widened(fx.Interpreter):
    """Runs a graph in `precision` that computes in a narrower one, whose rounding would hide a mistake."""

    precision = torch.float32

    def run_node(self, n: fx.Node) -> Any:
        return fx.node.map_aggregate(super().run_node(n), self._widened)

    def _widened(self, value: Any) -> Any:
        narrow = (
            isinstance(value, Tensor)
            and value.dtype in (torch.float16, torch.bfloat16, torch.float32)
            and value.element_size() < self.precision.itemsize
        )
        return value.to(self.precision) if narrow else value


class WidenedReference(Widened, ZeroedReference):
    """The reference in `precision`."""


@dataclass(frozen=True)
class Proof:
    """How far the pruned model is from the reference.

    Attributes:
        error: largest difference of any output, relative to that output's largest magnitude.
        effect: the same between original and reference: 0 means that the removed units never mattered.
    """

    error: float
    effect: float


def prove(
    couplings: Couplings,
    removal: Removal,
    pruned: Model,
    *,
    seed: int = 0,
    precision: torch.dtype = torch.float32,
) -> Proof:
    """Compare the pruned model with the zeroed original on random inputs, run in `precision`."""
    inputs = couplings.model.example_inputs(EXAMPLE_BATCH, seed)
    results = []
    for graph in (
        WidenedReference(couplings, removal),
        Widened(couplings.model.graph_module),
        Widened(pruned.graph_module),
    ):
        graph.precision = precision
        with torch.no_grad(), torch.random.fork_rng(devices=()):
            torch.manual_seed(seed)  # a model that draws noise draws the same
            results.append(graph.run(*(value.clone() for value in inputs)))  # which the model may change
    wanted, original, got = results
    error = float("inf") if _more_nan(wanted, original) else distance(got, wanted)
    return Proof(error, distance(original, wanted))


def _more_nan(values: tuple[Tensor, ...], than: tuple[Tensor, ...]) -> bool:
    """Too little is left to compute with: an unbiased variance of one survivor is NaN."""
    return any(bool((a.isnan() & ~b.isnan()).any()) for a, b in zip(values, than, strict=True))


def distance(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> float:
    """The largest difference of any output, relative to the largest magnitude of the right one.

    Infinities and NaN (masked scores) are no difference where both have the same.
    """
    worst = 0.0
    for a, b in zip(left, right, strict=True):
        if a.shape != b.shape:
            return float("inf")
        if not b.numel():
            continue
        a, b = in_double(a.detach()), in_double(b.detach())
        finite = a.isfinite() & b.isfinite()
        if not (finite | (a == b) | (a.isnan() & b.isnan())).all():
            return float("inf")
        if finite.any():
            scale = max(float(b[finite].abs().max()), 1e-12)
            worst = max(worst, float((a - b)[finite].abs().max()) / scale)
    return worst


TOLERANCE = 2e-4  # float32, relative to the largest output; deep nets without training reach 1e-5


def check(couplings: Couplings, removal: Removal, pruned: Model, *, tolerance: float = TOLERANCE) -> Proof:
    """Prove it or refuse.

    Raises:
        VerificationError: pruned model and reference disagree.
    """
    proof = prove(couplings, removal, pruned)
    if tolerance < proof.error < 1:  # rounding that the model amplifies? in float64 only a mistake is left
        with contextlib.suppress(RuntimeError):  # an op that has no kernel in float64
            proof = prove(couplings, removal, pruned, precision=torch.float64)
    if not proof.error <= tolerance:
        raise VerificationError(
            "the pruned model does not compute what the original computes without the removed nodes",
            got=f"relative difference {proof.error:.2g}",
            expected=f"at most {tolerance:.2g}",
            remedy="this is a defect: please report the model's architecture",
        )
    return proof
