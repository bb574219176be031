"""`prune`: zero the connections whose weight is small.

The thesis (Çallı 2017, §2.1.1 and §3.3.4) gives every weight matrix a threshold of its own, from its mean and
variance. Ours is K times the root mean square about zero, sqrt(mean² + std²): for the usual zero-mean matrix
that is K standard deviations, and a matrix of nearly constant weights is not wiped out by its own mean.
Zeros cost nothing to store compressed and lower the rank that `factorize` finds; dense kernels do not run
faster for them. For that, remove what became dead (`--remove-dead`), or use `prune-nodes`.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Literal

from nncompress.errors import ModelFileError, UsageError, VerificationError
from nncompress.passes.base import Change, Context, Pass, option

if TYPE_CHECKING:
    from torch import Tensor

    from nncompress.ir import Model
    from nncompress.ir.weights import Layer


@dataclass(frozen=True)
class Prune(Pass):
    """Zero small weights of convolutions, linear layers and stored matrix products.

    Exactly one of `std`, `threshold`, `sparsity`, `pattern` decides which. With none given, std = 0.5.
    """

    name = "prune"
    summary = "zero small weights: by threshold, to a sparsity, or in an N:M pattern"
    example = "nncompress prune model.pt --std 0.5"

    std: float | None = option(
        None, above=0, help="zero |w| < K·sqrt(mean²+std²) of its own matrix [default: 0.5]"
    )
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
        given = [k for k in ("std", "threshold", "sparsity", "pattern") if getattr(self, k) is not None]
        if len(given) > 1:
            raise UsageError(
                "prune: give one way to choose the weights", got=" and ".join(f"--{k}" for k in given)
            )
        if not given:
            object.__setattr__(self, "std", 0.5)
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
        chosen = list(self._chosen(model))
        kept = self._kept_of_all(chosen) if self.sparsity is not None and self.scope == "global" else {}
        changes = []
        for done, layer in enumerate(chosen):
            context.progress.step("pruning connections", done, len(chosen))
            changes.append(self._prune(layer, kept.get(layer.name)))
        if self.remove_dead:
            from nncompress.passes.dead_nodes import remove_dead_nodes

            changes += remove_dead_nodes(model)
        return changes

    def ensures(self, model: Model, changes: list[Change]) -> None:
        if self.sparsity is None or self.remove_dead:
            return
        weights = [layer.weight.value() for layer in self._chosen(model)]
        zeros, total = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
        if zeros < int(self.sparsity * total) - len(weights):
            raise VerificationError(
                "prune: the sparsity asked for was not reached", got=f"{zeros} of {total}"
            )

    def _chosen(self, model: Model) -> list[Layer]:
        from nncompress.ir.weights import layers

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
        elif self.pattern is not None:
            n, m = _parse_pattern(self.pattern)
            if weight.shape[layer.roles.inputs] % m:
                inputs = weight.shape[layer.roles.inputs]
                return Change(layer.name, f"left: {inputs} inputs are no multiple of {m}", applied=False)
            keep = _pattern_mask(weight, layer.roles.inputs, n, m)
        elif self.sparsity is not None:
            keep = _all_but_smallest(weight.abs().flatten(), self.sparsity).reshape(weight.shape)
        else:
            bound = self.threshold
            if bound is None:
                assert self.std is not None
                bound = self.std * float(weight.double().square().mean().sqrt())
            numbers["threshold"] = bound
            keep = weight.abs() >= bound
        before = int((weight == 0).sum())
        zeroed = int(((weight != 0) & ~keep).sum())
        if zeroed:
            layer.weight.assign(torch.where(keep, weight, torch.zeros_like(weight)))
        numbers |= {"zeros_before": before, "zeros": before + zeroed, "of": weight.numel()}
        share = (before + zeroed) / weight.numel()
        return Change(layer.name, f"{share:.1%} of {weight.numel()} weights are zero", numbers, bool(zeroed))

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


def _pattern_mask(weight: Tensor, dim: int, n: int, m: int) -> Tensor:
    """True for the n largest magnitudes of every m neighbours along `dim`, as sparse tensor cores read."""
    import torch

    moved = weight.movedim(dim, -1)
    groups = moved.abs().reshape(*moved.shape[:-1], -1, m)
    keep = torch.zeros_like(groups, dtype=torch.bool).scatter_(-1, groups.topk(n, -1).indices, True)
    return keep.reshape(moved.shape).movedim(-1, dim)


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
