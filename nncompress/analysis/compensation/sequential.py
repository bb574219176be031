"""Layer by layer, in order: fit each layer's weights so that the cut model follows the original.

Layer ℓ reads x' from the model as it has become (everything before ℓ cut and fitted already), and its target
comes from the original: t ≈ W x' + b in least squares. So errors of earlier layers are corrected where they
arrive instead of adding up (asymmetric reconstruction: Zhang et al. 2016, "Accelerating Very Deep
Convolutional Networks", §3.3; He et al. 2017, "Channel Pruning", §3.3). The last layer of a residual branch
y = x + F(x) fits what is missing to the original's *sum*: t = y − x'.

A layer that is to be of low rank gets, of all weights of that rank, the one nearest to the least-squares
solution in what the layer computes: reduced-rank regression (Izenman 1975, "Reduced-rank regression for the
multivariate linear model"), on inputs that have lost nodes and ranks alike.

Nothing is resized here. The removed units' columns are zero, and the graph is the original's: the weights
that come out go into it, and cutting the zeros away changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from nncompress.analysis.compensation.affine import Affine
from nncompress.analysis.compensation.regression import Regression
from nncompress.analysis.couplings import Couplings, ZeroedReference
from nncompress.analysis.importance.choices import Indices
from nncompress.analysis.importance.consumer_moments import LARGEST
from nncompress.analysis.observe.budget import ByteBudget
from nncompress.analysis.observe.enough import Rows
from nncompress.analysis.observe.layerwise import LayerwiseRunner
from nncompress.analysis.observe.moments import with_ridge
from nncompress.analysis.observe.patches import (
    draw_positions,
    filter_rows,
    output_rows,
    samples_of,
)
from nncompress.analysis.observe.residual import Branch, sums_over_channels
from nncompress.analysis.observe.walk import Env
from nncompress.ir import Model
from nncompress.ir.graph.inputs import count_samples
from nncompress.ir.layers.geometry import geometry
from nncompress.ir.layers.weights import Layer, layers, readers
from nncompress.progress import Progress

POSITIONS = 64  # of a layer, drawn per sample

# The nearest weight [out, in] of the form that is wanted, from the weight, the second moments [in, in] of
# what it reads, and which of the layer's outputs its rows are.
Projection = Callable[[Tensor, Tensor, Indices], Tensor]


@dataclass(frozen=True)
class Cut:
    """What is to be removed.

    Attributes:
        units: group -> units.
        reads, writes: layer -> channels that it no longer reads, or writes.
        branches: the residual branches that are left out.
    """

    units: Mapping[str, Sequence[int]] = field(default_factory=dict)
    reads: Mapping[str, Sequence[int]] = field(default_factory=dict)
    writes: Mapping[str, Sequence[int]] = field(default_factory=dict)
    branches: Sequence[Branch] = ()

    def __bool__(self) -> bool:
        return bool(self.units or self.reads or self.writes or self.branches)


@dataclass(frozen=True)
class Fitted:
    """The weights that the cut asks for, at the size before.

    Attributes:
        weights: stored tensor -> its new value.
        constants: per branch that is left out, `[channels]` to add in its place; None for nothing.
        layers: of the layers that were fitted, from how many rows.
        left: layer -> why it was not, though what it reads has changed.
    """

    weights: dict[str, Tensor]
    constants: list[Tensor | None]
    layers: Sequence[Rows] = ()
    left: Mapping[str, str] = field(default_factory=dict)


def without_data(model: Model, cut: Cut) -> Fitted:
    """Nothing compensates: what is not read counts zero, and what is not written is zero."""
    weights: dict[str, Tensor] = {}
    for layer in layers(model):
        if layer.name in cut.reads:
            value = weights.get(layer.weight.name, layer.weight.value()).clone()
            _zero(value, layer.roles.inputs, cut.reads[layer.name])
            weights[layer.weight.name] = value
        if layer.name in cut.writes:
            affine = Affine(model, layer)
            for name in _written(affine):
                value = weights.get(name, model.tensor(name).detach()).clone()
                dim = layer.roles.outputs if name == layer.weight.name else 0
                _zero(value, dim, cut.writes[layer.name])
                weights[name] = value
    return Fitted(weights, [None] * len(cut.branches))


def _written(affine: Affine) -> list[str]:
    bias = affine.layer.bias
    if affine.norm is not None:
        return [affine.layer.weight.name, affine.norm.weight, affine.norm.bias]
    return [affine.layer.weight.name, *([bias.name] if bias else [])]


def _zero(value: Tensor, dim: int, indices: Sequence[int]) -> None:
    value.index_fill_(dim, torch.tensor(list(indices), dtype=torch.long), 0)


def compensate(
    model: Model,
    couplings: Couplings,
    cut: Cut,
    branches: Sequence[Branch],
    batches: Sequence[tuple[Tensor, ...]],
    *,
    projections: Mapping[str, Projection] | None = None,
    seed: int = 0,
    ridge: float | None = None,
    budget: ByteBudget | None = None,
    progress: Progress,
) -> Fitted:
    """Fit every layer behind the cut.

    Args:
        branches: the residual branches of `model`: their last layers fit the sums.
        batches: calibration inputs.
        projections: layer (ungrouped) -> how its weight becomes of low rank.
        ridge: pull towards the weights before, relative to the mean second moment of a layer's input;
            None: in each layer what is best on samples held out.
        budget: what activations that are kept may take; the rest is computed again, to the same result.
    """
    return _Walk(
        model,
        couplings,
        cut,
        branches,
        batches,
        projections or {},
        seed,
        ridge,
        budget or ByteBudget(),
        progress,
    ).run()


class _Walk:
    def __init__(
        self,
        model: Model,
        couplings: Couplings,
        cut: Cut,
        branches: Sequence[Branch],
        batches: Sequence[tuple[Tensor, ...]],
        projections: Mapping[str, Projection],
        seed: int,
        ridge: float | None,
        budget: ByteBudget,
        progress: Progress,
    ) -> None:
        self._model, self._cut, self._ridge, self._progress = model, cut, ridge, progress
        self._projections = projections
        self._survivors = couplings.survivors(cut.units)
        self._original = LayerwiseRunner(model, batches, budget)
        self._now = LayerwiseRunner(ZeroedReference(couplings, cut.units), batches, budget)
        self._now.weights = {**self._now.weights, **without_data(model, cut).weights}
        self._generator = torch.Generator().manual_seed(seed)
        self._samples = [count_samples(model.inputs, batch) for batch in batches]
        self._sums = {b.writer.node: b for b in branches if b.writer is not None}
        self._dropped = {b.add: number for number, b in enumerate(cut.branches)}
        self._skipped = {layer.name for b in cut.branches for layer in b.layers}
        self._constants: list[Tensor | None] = [None] * len(cut.branches)
        self._rows: list[Rows] = []
        self._all = [layer for layer in layers(model) if layer.name not in self._skipped]
        self._changed = self._reached()
        reasons = {n.name: why_not_fitted(model, n) for n in self._all if n.node in self._changed}
        self._left = {name: reason for name, reason in reasons.items() if reason}
        self._affines = {
            layer.node: Affine(model, layer)
            for layer in self._all
            if layer.node in self._changed and layer.name not in self._left
        }
        self._pending = set(self._affines)
        ends = [affine.end for affine in self._affines.values()]
        self._original.hold([*ends, *(b.add for b in self._sums.values()), *self._dropped])

    def run(self) -> Fitted:
        """Walk the layers in graph order."""
        for done, (node, affine) in enumerate(self._affines.items()):
            self._progress.step("compensating", done, len(self._affines))
            self._leave_out(before=node)
            self._fit(affine)
            self._pending.discard(node)
        self._leave_out(before=None)
        self._progress.step("compensating", len(self._affines), len(self._affines))
        return Fitted(dict(self._now.weights), self._constants, self._rows, self._left)

    def _reached(self) -> set[fx.Node]:
        """The nodes whose value the cut can change."""
        changed: set[fx.Node] = set(self._dropped)
        touched = {*self._cut.reads, *self._cut.writes, *self._projections}
        reading = {layer.node for layer in self._all if layer.name in touched}
        for node in self._model.graph.nodes:
            sources = [n for n in node.all_input_nodes if n.op != "get_attr"]
            if node in reading or any(n in changed or self._survivors.of(n) for n in sources):
                changed.add(node)
        return changed

    # -- branches that are left out ------------------------------------------------------------------------

    def _leave_out(self, before: fx.Node | None) -> None:
        """Set the constants of the left-out branches that stand before a node in the graph."""
        order = {node: i for i, node in enumerate(self._model.graph.nodes)}
        for add, number in self._dropped.items():
            late = before is not None and order[add] > order[before]
            if late or self._constants[number] is not None:
                continue
            branch = self._cut.branches[number]
            sums, shortcuts = self._original.values(add), self._now.values(branch.shortcut)
            self._original.release([add])
            dim = branch.layers[-1].channel_dim
            total, count = torch.zeros(1, dtype=torch.float64), 0
            for (y,), (x,) in zip(sums, shortcuts, strict=True):
                missing = (y - x).movedim(dim, -1).flatten(0, -2)
                total, count = total + missing.double().sum(0), count + len(missing)
            constant = (total / count).to(y.dtype)
            self._constants[number] = constant
            shape = [1] * y.dim()
            shape[dim] = -1
            self._now.instead[add] = partial(_shifted, branch.shortcut, constant.reshape(shape))

    # -- one layer -----------------------------------------------------------------------------------------

    def _fit(self, affine: Affine) -> None:
        layer = affine.layer
        regression = Regression(centred=affine.intercept)
        seen = 0
        for (read, target), samples in zip(self._examples(affine), self._samples, strict=True):
            positions = draw_positions(layer, target, POSITIONS * samples, self._generator)
            rows = filter_rows(layer, read, positions)
            numbers = seen + samples_of(layer, target, samples, positions)
            regression.add(rows, output_rows(layer, target, positions), numbers)
            seen += samples
        start = affine.matrix().reshape(layer.groups, -1, rows.shape[2])
        columns = self._columns(layer, rows.shape[2])
        matrix, offset = regression.solve(start, columns, ridge=self._ridge)
        if layer.name in self._projections:
            matrix = self._projected(affine, matrix, columns, regression)
            offset = regression.offset(matrix)
        self._rows.append(Rows(layer.name, regression.count, len(columns), seen))
        gone = list(self._cut.writes.get(layer.name, ()))
        flat = matrix.reshape(-1, matrix.shape[2])
        flat[gone] = 0
        shift = None
        if offset is not None:
            shift = offset.flatten()
            shift[gone] = regression.target_mean.flatten()[gone]
        self._now.weights = {
            **self._now.weights,
            **affine.stored(flat, shift, regression.mean, regression.second),
        }

    def _projected(self, affine: Affine, matrix: Tensor, columns: Indices, regression: Regression) -> Tensor:
        """The weight [1, out, in] of the wanted form that is nearest to the solution, among what stays."""
        layer = affine.layer
        stays = np.ones(matrix.shape[1], bool)
        left = self._survivors.tensors.get(layer.weight.name, {}).get(layer.roles.outputs)
        if left is not None:
            stays &= left
        stays[list(self._cut.writes.get(layer.name, ()))] = False
        rows = np.flatnonzero(stays)
        scale = affine.scale()[rows][:, None]  # the norm does not count: it stands behind the factors
        second = with_ridge(regression.second[0][np.ix_(columns, columns)], regression.ridge or 0.0)
        found = self._projections[layer.name](matrix[0][np.ix_(rows, columns)] / scale, second, rows)
        near = torch.zeros_like(matrix)
        near[0][np.ix_(rows, columns)] = scale * found
        return near

    def _examples(self, affine: Affine) -> Iterator[tuple[Tensor, Tensor]]:
        """Per batch: what the layer reads now, and what it (with its norm) ought to give."""
        data, end = affine.layer.data, affine.end
        branch = self._sums.get(affine.layer.node)
        done = [end] + ([branch.add] if branch else [])
        if branch is not None and branch.value is end and self._ready(branch.shortcut):
            now, wanted = self._now.values(data, branch.shortcut), self._original.values(branch.add)
            self._original.release(done)
            return ((read, y - x) for (read, x), (y,) in zip(now, wanted, strict=True))
        now, wanted = self._now.values(data), self._original.values(end)
        self._original.release(done)
        return ((read, y) for (read,), (y,) in zip(now, wanted, strict=True))

    def _ready(self, node: fx.Node) -> bool:
        """The node's value does not wait for a layer that is still to be fitted."""
        waiting, seen = [node], {node}
        while waiting:
            last = waiting.pop()
            if self._now.reached(last):
                continue
            if last in self._pending:
                return False
            fresh = [n for n in last.all_input_nodes if n not in seen]
            seen.update(fresh)
            waiting += fresh
        return True

    def _columns(self, layer: Layer, width: int) -> Indices:
        """The columns of the weight matrix that stay, of those in one group: what stays in any of them."""
        size = layer.weight.value().shape[layer.roles.inputs]
        stays: NDArray[np.bool_] = np.ones(size, bool)
        gone = self._survivors.tensors.get(layer.weight.name, {}).get(layer.roles.inputs)
        if gone is not None:
            stays &= gone
        stays[list(self._cut.reads.get(layer.name, ()))] = False
        if "transpose" in layer.kind:  # its input dim counts the channels of all groups
            stays = np.any(stays.reshape(layer.groups, -1), axis=0)
        return np.flatnonzero(np.repeat(stays, width // len(stays)))


def _shifted(source: fx.Node, constant: Tensor, env: Env) -> Tensor:
    return env[source] + constant


def why_not_fitted(model: Model, layer: Layer) -> str | None:
    """What keeps a layer as it is, or None: it is linear in rows of its input, its weight is its own, and it
    has few enough columns."""
    weight = layer.weight.value()
    convolution = layer.roles.groups is not None
    if layer.weight.quantized or not weight.is_floating_point():
        return "its weight is quantized"
    if layer.kind in ("embedding", "matmul") or (layer.kind == "addmm" and layer.node.kwargs):
        return f"least squares are not written for {layer.kind}"
    if weight.dim() < 2 or (not convolution and not sums_over_channels(layer)):
        return "it is no matrix product"
    if convolution and geometry(layer) is None:
        return "its padding is uneven"
    for each in (layer.weight, layer.bias):
        if each is not None and sum(len(n.users) for n in readers(model, each.name)) > 1:
            return f"{each.name} serves several layers, whose inputs depend on it: no closed form"
    if layer.bias is not None and not layer.bias.finite:
        return f"{layer.bias.name} holds infinite values"
    if layer.matrix(weight).shape[1] > LARGEST:
        return f"more than {LARGEST} weights per output"
    return None
