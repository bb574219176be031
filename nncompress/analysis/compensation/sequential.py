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

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, fx

from nncompress.analysis.compensation.affine import Affine
from nncompress.analysis.compensation.cut import Cut, Fitted, without_data
from nncompress.analysis.compensation.fittable import why_not_fitted
from nncompress.analysis.compensation.rectified import ROUNDS, as_good, rectified
from nncompress.analysis.compensation.regression import Regression
from nncompress.analysis.couplings import Couplings, ZeroedReference
from nncompress.analysis.importance.choices import Indices
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
from nncompress.analysis.observe.residual import Branch
from nncompress.analysis.observe.walk import Env, Walk
from nncompress.ir import Model
from nncompress.ir.graph.inputs import count_samples
from nncompress.ir.layers.weights import Layer, layers
from nncompress.progress import Progress

POSITIONS = 64  # of a layer, drawn per sample

# The nearest weight [out, in] of the form that is wanted, from the weight, the second moments [in, in] of
# what it reads, and which of the layer's outputs its rows are.
Projection = Callable[[Tensor, Tensor, Indices], Tensor]


def compensate(
    model: Model,
    couplings: Couplings,
    cut: Cut,
    branches: Sequence[Branch],
    batches: Sequence[tuple[Tensor, ...]],
    *,
    projections: Mapping[str, Projection] | None = None,
    behind_relu: bool = False,
    seed: int = 0,
    ridge: float | None = None,
    budget: ByteBudget | None = None,
    rest: Fitted | None = None,
    only: Collection[str] = (),
    progress: Progress,
) -> Fitted:
    """Fit every layer behind the cut.

    Args:
        branches: the residual branches of `model`: their last layers fit the sums.
        batches: calibration inputs.
        projections: layer (ungrouped) -> how its weight becomes of low rank.
        behind_relu: what only ReLUs read is fitted to what is left of it behind them.
        ridge: pull towards the weights before, relative to the mean second moment of a layer's input;
            None: in each layer what is best on samples held out.
        budget: what activations that are kept may take; the rest is computed again, to the same result.
        rest: an earlier result, whose weights all layers keep but those that `only` names.
    """
    return _Walk(
        model,
        couplings,
        cut,
        branches,
        batches,
        projections or {},
        behind_relu,
        seed,
        ridge,
        budget or ByteBudget(),
        rest,
        only,
        progress,
    ).run()


def cut_walk(couplings: Couplings, cut: Cut, fitted: Fitted) -> Walk:
    """Makes of inputs what the model makes once it is cut."""
    walk = Walk(ZeroedReference(couplings, cut.units))
    walk.weights = fitted.weights
    for branch, constant in zip(cut.branches, fitted.constants, strict=True):
        walk.instead[branch.add] = _without(branch, constant)
    return walk


class _Walk:
    def __init__(
        self,
        model: Model,
        couplings: Couplings,
        cut: Cut,
        branches: Sequence[Branch],
        batches: Sequence[tuple[Tensor, ...]],
        projections: Mapping[str, Projection],
        behind_relu: bool,
        seed: int,
        ridge: float | None,
        budget: ByteBudget,
        rest: Fitted | None,
        only: Collection[str],
        progress: Progress,
    ) -> None:
        self._model, self._cut, self._ridge, self._progress = model, cut, ridge, progress
        self._projections, self._behind_relu = projections, behind_relu
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
        self._usual: float | None = None  # the pull of the layer before: the next one's is about the same
        self._all = [layer for layer in layers(model) if layer.name not in self._skipped]
        self._changed = self._reached()
        reasons = {n.name: why_not_fitted(model, n) for n in self._all if n.node in self._changed}
        self._left = {name: reason for name, reason in reasons.items() if reason}
        self._affines = {
            layer.node: Affine(model, layer)
            for layer in self._all
            if layer.node in self._changed and layer.name not in self._left
        }
        if rest is not None:
            self._keep(rest, only)
        self._pending = set(self._affines)
        ends = [affine.end for affine in self._affines.values()]
        sums = [branch.add for node, branch in self._sums.items() if node in self._affines]
        self._original.hold([*ends, *sums, *self._dropped])

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

    def _keep(self, rest: Fitted, only: Collection[str]) -> None:
        """All layers but some have weights that were fitted before."""
        anew = {node: each for node, each in self._affines.items() if each.layer.name in only}
        named = {name for each in anew.values() for name in (each.layer.weight.name, *each.vectors())}
        kept = {name: value for name, value in rest.weights.items() if name not in named}
        self._now.weights = {**self._now.weights, **kept}
        self._affines = anew

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
            self._now.instead[add] = _without(branch, constant)

    # -- one layer -----------------------------------------------------------------------------------------

    def _fit(self, affine: Affine) -> None:
        layer, start = affine.layer, affine.matrix()
        columns = torch.from_numpy(self._columns(layer, start.shape[1]))
        start = start[:, columns].unflatten(0, (layer.groups, -1))
        rounds = ROUNDS if self._behind_relu and affine.intercept and rectified(self._followed(affine)) else 0
        regression, drawn, seen = Regression(centred=affine.intercept), [], 0
        examples = self._examples(affine, last=not rounds)
        for (read, wanted, beside), samples in zip(examples, self._samples, strict=True):
            drawn.append(draw_positions(layer, wanted, POSITIONS * samples, self._generator))
            rows = filter_rows(layer, read, drawn[-1])[..., columns]
            numbers = seen + samples_of(layer, wanted, samples, drawn[-1])
            regression.add(rows, output_rows(layer, wanted - beside, drawn[-1]), numbers)
            seen += samples
        matrix, offset = self._solved(affine, start, regression)
        means = regression.target_mean.flatten()
        for left in reversed(range(rounds)):
            assert offset is not None
            regression.aim(self._as_good(affine, drawn, columns, matrix, offset, last=not left))
            matrix, offset = self._solved(affine, start, regression)
        self._rows.append(Rows(layer.name, regression.count, len(columns), seen))
        gone = list(self._cut.writes.get(layer.name, ()))
        flat = matrix.flatten(0, 1)
        flat[gone] = 0
        shift = None
        if offset is not None:
            shift = offset.flatten()
            shift[gone] = means[gone]
        self._now.weights = {
            **self._now.weights,
            **affine.stored(flat, shift, regression.mean, regression.second, columns),
        }

    def _solved(self, affine: Affine, start: Tensor, regression: Regression) -> tuple[Tensor, Tensor | None]:
        """W [groups, out, in], of the form that is wanted, and b; with the pull that was found at first."""
        ridge = self._ridge if regression.ridge is None else regression.ridge
        matrix, offset = regression.solve(start, ridge=ridge, usual=self._usual)
        self._usual = regression.ridge
        if affine.layer.name in self._projections:
            matrix = self._projected(affine, matrix, regression)
            offset = regression.offset(matrix)
        return matrix, offset

    def _as_good(
        self,
        affine: Affine,
        drawn: Sequence[Tensor | None],
        columns: Tensor,
        matrix: Tensor,
        offset: Tensor,
        *,
        last: bool,
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """The rows as they were drawn, and the nearest targets that are as good behind a ReLU."""
        layer = affine.layer
        for (read, wanted, beside), positions in zip(self._examples(affine, last=last), drawn, strict=True):
            rows = filter_rows(layer, read, positions)[..., columns]
            found = rows @ matrix.mT.to(rows.dtype) + offset[:, None].to(rows.dtype)
            added = output_rows(layer, beside.expand_as(wanted), positions)
            yield rows, as_good(output_rows(layer, wanted, positions), found + added) - added

    def _projected(self, affine: Affine, matrix: Tensor, regression: Regression) -> Tensor:
        """The weight [1, out, in] of the wanted form that is nearest to the solution, among what stays."""
        layer = affine.layer
        stays = np.ones(matrix.shape[1], bool)
        left = self._survivors.tensors.get(layer.weight.name, {}).get(layer.roles.outputs)
        if left is not None:
            stays &= left
        stays[list(self._cut.writes.get(layer.name, ()))] = False
        rows = np.flatnonzero(stays)
        scale = affine.scale()[rows][:, None]  # the norm does not count: it stands behind the factors
        second = with_ridge(regression.second[0], regression.ridge or 0.0)
        near = torch.zeros_like(matrix)
        near[0, rows] = scale * self._projections[layer.name](matrix[0, rows] / scale, second, rows)
        return near

    def _followed(self, affine: Affine) -> fx.Node:
        """Whose value the layer is fitted to: its own, or the sum that it is the last to contribute to."""
        branch = self._sums.get(affine.layer.node)
        summed = branch is not None and branch.value is affine.end and self._ready(branch.shortcut)
        return branch.add if branch is not None and summed else affine.end

    def _examples(self, affine: Affine, *, last: bool) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Per batch: what the layer reads now, what is wanted, and what is there without the layer (with its
        norm).

        Args:
            last: nobody asks for them again.
        """
        data, end = affine.layer.data, affine.end
        branch, followed = self._sums.get(affine.layer.node), self._followed(affine)
        beside = [branch.shortcut] if branch is not None and followed is branch.add else []
        now, wanted = self._now.values(data, *beside), self._original.values(followed)
        if last:
            self._original.release([end] + ([branch.add] if branch else []))
        for (read, *there), (value,) in zip(now, wanted, strict=True):
            yield read, value, there[0] if there else value.new_zeros(())

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


def _without(branch: Branch, constant: Tensor | None) -> Callable[[Env], Tensor]:
    """What a residual sum is without the branch."""

    def left(env: Env) -> Tensor:
        value: Tensor = env[branch.shortcut]
        if constant is None:
            return value
        shape = [1] * value.dim()
        shape[branch.layers[-1].channel_dim] = -1
        return value + constant.reshape(shape)

    return left
