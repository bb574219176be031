"""`prune`: zero the connections whose weight is small.

The thesis (Çallı 2017, §2.1.1 and §3.3.4) gives every weight matrix a threshold of its own, from its mean and
variance. Ours is K times the root mean square about zero, sqrt(mean² + std²): for the usual zero-mean matrix
that is K standard deviations, and a matrix of nearly constant weights is not wiped out by its own mean.
Zeros cost nothing to store compressed and lower the rank that `factorize` finds; dense kernels do not run
faster for them. For that, remove what became dead (`--remove-dead`), or use `prune-nodes`. An N:M pattern is
what sparse tensor cores read: with data, the weights that stay make up for the others
(`nncompress.analysis.rounding.sparsegpt`).
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Literal

from nncompress.errors import ModelFileError, UsageError, VerificationError
from nncompress.passes.base import BY_DEFAULT, Change, Context, Pass, option

if TYPE_CHECKING:
    from torch import Tensor

    from nncompress.analysis.observe.seen_inputs import SeenInputs
    from nncompress.ir import Model
    from nncompress.ir.layers.weights import Layer

AMOUNTS = ("relative", "std", "threshold", "sparsity", "pattern")


@dataclass(frozen=True)
class Prune(Pass):
    """Zero small weights of convolutions, linear layers and stored matrix products.

    One of `relative`, `std`, `threshold`, `sparsity` and `pattern` decides which.
    With `pattern` and --data, the weights that stay make up for those that go.
    """

    name = "prune"
    summary = "zero small weights: by threshold, to a sparsity, or in an N:M pattern"
    example = "nncompress prune model.pt --std 0.5"
    amounts = AMOUNTS
    more = "--std 0.5, or --sparsity 0.5"

    relative: float | None = option(
        None,
        above=0,
        below=1,
        help=f"zero the smallest of each matrix, up to this share of its squares {BY_DEFAULT}",
    )
    std: float | None = option(None, above=0, help="zero |w| < K·sqrt(mean²+std²) of its own matrix")
    threshold: float | None = option(None, above=0, help="zero |w| < this, in every matrix")
    sparsity: float | None = option(
        None, least=0, below=1, help="zero this share of the weights, smallest first"
    )
    scope: Literal["global", "layer"] = option(
        "global", help="--sparsity over the whole model, or in each layer"
    )
    pattern: str | None = option(None, metavar="N:M", help="keep the N largest of every M inputs, e.g. 2:4")
    exclude: tuple[str, ...] = option(
        (), metavar="PATTERN", help="layers to leave alone, e.g. 'head*' (repeatable)"
    )
    remove_dead: bool = option(False, help="then remove nodes that became dead; the function stays the same")

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in AMOUNTS if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(
                "prune: give one way to choose the weights", got=" and ".join(f"--{k}" for k in given)
            )
        if self.pattern is not None:
            _parse_pattern(self.pattern)

    def requires(self, model: Model, context: Context) -> None:
        chosen = list(self._chosen(model))
        if not chosen:
            raise UsageError(
                "prune: no layer to prune",
                got="no convolution, linear layer or stored matrix"
                + (" left by --exclude" if self.exclude else ""),
                remedy="nncompress inspect shows the layers",
            )
        for layer in chosen:
            if not layer.weight.value().isfinite().all():
                raise ModelFileError(f"prune: the weight of {layer.name} has NaN or infinite values")

    def apply(self, model: Model, context: Context) -> list[Change]:
        from nncompress.analysis.observe.enough import too_few

        chosen = list(self._chosen(model))
        kept = self._kept_of_all(chosen) if self.sparsity is not None and self.scope == "global" else {}
        seen = self._seen(model, context)
        changes = []
        for done, layer in enumerate(chosen):
            context.progress.step("pruning connections", done, len(chosen))
            if not layer.weight.value().numel():
                changes.append(Change(layer.name, "left: its weight is empty", applied=False))
                continue
            if self.pattern is not None:
                changes.append(_patterned(model, layer, *_parse_pattern(self.pattern), seen))
            else:
                changes.append(self._prune(layer, kept.get(layer.name)))
        if seen is not None:
            context.warn(too_few(self.name, seen.rows))
        if self.remove_dead:
            from nncompress.passes.prune.dead_nodes import remove_dead_nodes

            changes += remove_dead_nodes(model)
        return changes

    def _seen(self, model: Model, context: Context) -> SeenInputs | None:
        """What the layers multiply, from which weights make up for what a pattern takes."""
        if self.pattern is None or context.data is None:
            return None
        from nncompress.analysis.observe.seen_inputs import SeenInputs

        return SeenInputs(model, context.data.input_batches(context.batch_size, context.limit), context.seed)

    def ensures(self, model: Model, changes: list[Change]) -> None:
        if self.pattern is not None and not self.remove_dead:
            self._ensure_pattern(model, {change.where for change in changes if change.applied})
        if self.sparsity is None or self.remove_dead:
            return
        weights = [layer.weight.value() for layer in self._chosen(model)]
        zeros, total = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
        if zeros < int(self.sparsity * total) - len(weights):
            raise VerificationError(
                "prune: the sparsity asked for was not reached", got=f"{zeros} of {total}"
            )

    def _ensure_pattern(self, model: Model, pruned: set[str]) -> None:
        n, m = _parse_pattern(str(self.pattern))
        for layer in self._chosen(model):
            rows = layer.weight.value().movedim(layer.roles.inputs, -1)
            if layer.name in pruned and int((rows.unflatten(-1, (-1, m)) != 0).sum(-1).max()) > n:
                raise VerificationError(f"prune: {layer.name} is not {self.pattern}")

    def _chosen(self, model: Model) -> list[Layer]:
        from nncompress.ir.layers.weights import layers

        seen: set[int] = set()
        chosen = []
        for layer in layers(model):
            tensor = model.tensor(layer.weight.name)
            if layer.kind == "embedding" or tensor.dim() < 2 or id(tensor) in seen:
                continue
            if any(fnmatch(layer.name, pattern) for pattern in self.exclude):
                continue
            seen.add(id(tensor))
            chosen.append(layer)
        return chosen

    def _prune(self, layer: Layer, keep: Tensor | None) -> Change:
        """Zero what `keep` says, or where it is None what this layer's own weights decide."""
        import torch

        weight = layer.weight.value()
        numbers: dict[str, float] = {}
        if keep is not None:
            pass
        elif self.sparsity is not None:
            keep = _all_but_smallest(weight.abs().flatten(), self.sparsity).reshape(weight.shape)
        else:
            bound = self._threshold(weight)
            numbers["threshold"] = bound
            keep = weight.abs() >= bound
        return _assigned(layer, torch.where(keep, weight, torch.zeros_like(weight)), numbers)

    def _threshold(self, weight: Tensor) -> float:
        """Below which a weight of this matrix is zeroed."""
        if self.threshold is not None:
            return self.threshold
        if self.std is not None:
            return self.std * float(weight.double().square().mean().sqrt())
        ordered = weight.double().abs().flatten().sort().values
        lost = ordered.square().cumsum(0)
        going = int((lost <= (self.share_lost or 0.0) * lost[-1]).sum())
        return float(ordered[going]) if going < len(ordered) else 0.0

    def _kept_of_all(self, chosen: list[Layer]) -> dict[str, Tensor]:
        """By layer, which weights stay when all of the chosen layers compete."""
        import torch

        assert self.sparsity is not None
        weights = [layer.weight.value() for layer in chosen]
        keep = _all_but_smallest(torch.cat([w.abs().flatten() for w in weights]), self.sparsity)
        parts = keep.split([w.numel() for w in weights])
        return {layer.name: part.reshape(w.shape) for layer, part, w in zip(chosen, parts, weights)}


def _parse_pattern(pattern: str) -> tuple[int, int]:
    try:
        n, m = (int(part) for part in pattern.split(":"))
    except ValueError:
        n = m = 0
    if not 0 < n < m:
        raise UsageError("prune: --pattern is not N:M with 0 < N < M", got=pattern, expected="e.g. 2:4")
    return n, m


def _assigned(layer: Layer, value: Tensor, numbers: dict[str, float], how: str = "") -> Change:
    """Store the weight that is left, and say how much of it is zero."""
    before = layer.weight.value()
    zeros_before, zeros, total = int((before == 0).sum()), int((value == 0).sum()), value.numel()
    changed = zeros > zeros_before
    if changed:
        layer.weight.assign(value)
    numbers |= {"zeros_before": zeros_before, "zeros": zeros, "of": total}
    return Change(layer.name, f"{zeros / total:.1%} of {total} weights are zero{how}", numbers, changed)


def _patterned(model: Model, layer: Layer, n: int, m: int, seen: SeenInputs | None) -> Change:
    """Keep n of every m neighbouring inputs, at each place of a kernel, as sparse tensor cores read them."""
    from nncompress.analysis.compensation.sequential import why_not_fitted

    weight = layer.weight.value()
    inputs = weight.shape[layer.roles.inputs]
    if inputs % m:
        return Change(layer.name, f"left: {inputs} inputs are no multiple of {m}", applied=False)
    if seen is None or "transpose" in layer.kind or why_not_fitted(model, layer) is not None:
        return _assigned(layer, _largest_of(weight, layer.roles.inputs, n, m), {})
    second = seen.second_moments(layer)
    return _assigned(layer, _compensated(layer, weight, second, n, m), {}, ", the others make up for it")


def _largest_of(weight: Tensor, dim: int, n: int, m: int) -> Tensor:
    """The n largest magnitudes of every m neighbours along `dim`, the others zero."""
    import torch

    from nncompress.analysis.rounding.sparsegpt import largest

    groups = weight.movedim(dim, -1).unflatten(-1, (-1, m))
    kept = torch.where(largest(groups.abs(), n), groups, torch.zeros_like(groups))
    return kept.flatten(-2).movedim(-1, dim)


def _compensated(layer: Layer, weight: Tensor, second: Tensor, n: int, m: int) -> Tensor:
    """The weight that gives the least error of the layer's output on what it was seen to multiply."""
    import torch

    from nncompress.analysis.observe.patches import as_filters, from_filters
    from nncompress.analysis.rounding.sparsegpt import pruned

    filters = as_filters(layer, weight)  # [outputs, inputs of a group, K…]
    outputs, inputs = filters.shape[:2]
    # The inputs last, so that neighbours stand side by side; the moments have them first.
    matrix = filters.reshape(outputs, inputs, -1).transpose(1, 2).flatten(1)
    order = torch.arange(matrix.shape[1]).reshape(inputs, -1).T.flatten()
    second = second[:, order[:, None], order]
    left = torch.cat([pruned(part, h, n, m) for part, h in zip(matrix.chunk(len(second)), second)])
    left = left.reshape(outputs, -1, inputs).transpose(1, 2).reshape(filters.shape)
    return from_filters(layer, left.to(weight.dtype))


def _all_but_smallest(magnitudes: Tensor, share: float) -> Tensor:
    """False for exactly this share of the magnitudes [n], rounded down, smallest first.

    Where several tie at the cut (an int8 or codebook weight has few values), those that go are spread evenly.
    """
    import torch

    count = int(share * magnitudes.numel())
    if not count:
        return torch.ones_like(magnitudes, dtype=torch.bool)
    cutoff = magnitudes.kthvalue(count).values
    keep = magnitudes >= cutoff
    ties = torch.nonzero(magnitudes == cutoff).flatten()
    going = count - int((~keep).sum())
    keep[ties[torch.arange(going) * len(ties) // going]] = False
    return keep
