"""`cluster`: few distinct values per weight, so that an exported file can store indices of few bits.

The thesis rounded weights to two decimals (Çallı 2017 §2.2.3) and could not store the indices in fewer bits.
Here a codebook per weight is found by exact one-dimensional k-means, and every file that is written
(`.pt2`, `.onnx`) holds a codebook and indices of 1, 2, 4 or 8 bits (`nncompress.ir.codebook`). Within the
model the weights stay ordinary floats, so any other pass may follow.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING

from nncompress.errors import ModelFileError, UsageError, VerificationError
from nncompress.passes.base import Change, Context, Pass, option

if TYPE_CHECKING:
    from torch import Tensor

    from nncompress.ir import Model
    from nncompress.ir.weights import Layer


@dataclass(frozen=True)
class Cluster(Pass):
    """Replace the weights of a layer by the nearest entries of a codebook of its own; zeros stay zero.

    One of `decimals` and `codebook` decides; with neither given, codebook = 16.
    """

    name = "cluster"
    summary = "few distinct values per weight, stored as codebook and indices of 1 to 8 bits"
    example = "nncompress cluster model.pt2 --codebook 16"

    decimals: int | None = option(None, least=0, most=6, help="round to this many decimals (the thesis: 2)")
    codebook: int | None = option(
        None, least=2, most=256, metavar="K", help="K values per weight, by exact k-means [default: 16]"
    )
    exclude: tuple[str, ...] = option(
        (), metavar="PATTERN", help="layers to leave alone, e.g. 'head*' (repeatable)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.decimals is not None and self.codebook is not None:
            raise UsageError("cluster: give one of --decimals and --codebook", got="both")
        if self.decimals is None and self.codebook is None:
            object.__setattr__(self, "codebook", 16)

    def requires(self, model: Model, context: Context) -> None:
        from nncompress.ir.weights import layers

        found = list(layers(model))
        if not found:
            raise UsageError(
                "cluster: no weight to cluster",
                got="no convolution, linear layer or stored matrix",
                remedy="nncompress inspect shows the layers",
            )
        for layer in found:
            if not layer.weight.value().isfinite().all():
                raise ModelFileError(f"cluster: the weight of {layer.name} has NaN or infinite values")

    def apply(self, model: Model, context: Context) -> list[Change]:
        from nncompress.ir.weights import layers

        chosen = {id(model.tensor(each.weight.name)): each for each in reversed(list(layers(model)))}
        ordered = list(reversed(chosen.values()))
        changes = []
        for done, layer in enumerate(ordered):
            context.progress.step("clustering", done, len(ordered))
            changes.append(self._cluster(layer))
        context.progress.step("clustering", len(ordered), len(ordered))
        return changes

    def _cluster(self, layer: Layer) -> Change:
        from nncompress.ir.codebook import distinct_values, packed_bytes

        if any(fnmatch(layer.name, pattern) for pattern in self.exclude):
            return Change(layer.name, "left: excluded", applied=False)
        if layer.weight.quantized:
            return Change(layer.name, "left: its weight is quantized already", applied=False)
        weight = layer.weight.value()
        if not weight.dtype.is_floating_point or not weight.numel():
            return Change(layer.name, f"left: its weight is {weight.dtype}", applied=False)
        present = distinct_values(weight)
        if self.codebook is not None and present is not None and len(present) <= self.codebook:
            return Change(layer.name, f"left: it has only {len(present)} values", applied=False)
        clustered = self._values(weight)
        if bool((clustered == weight).all()):
            return Change(layer.name, "left: rounding does not change it", applied=False)
        mse = float((clustered - weight).double().square().mean())
        layer.weight.assign(clustered)
        values = distinct_values(clustered)
        size = weight.numel() * weight.element_size()
        numbers = {
            "bytes_before": size,
            "bytes_after": size if values is None else min(size, packed_bytes(clustered, len(values))),
            "entropy_bytes": _entropy_bytes(clustered),
            "mse": mse,
        }
        count = "more than 256" if values is None else str(len(values))
        return Change(layer.name, f"{count} values", numbers)

    def _values(self, weight: Tensor) -> Tensor:
        """Every weight's nearest allowed value; exact zeros (pruned connections) stay zero."""
        import numpy as np
        import torch

        from nncompress.analysis.kmeans import codebook, nearest

        if self.decimals is not None:
            return torch.round(weight, decimals=self.decimals)
        assert self.codebook is not None
        flat = weight.detach().to(torch.float64).flatten().numpy()
        zero = flat == 0
        size = self.codebook - 1 if zero.any() else self.codebook  # zero has an entry of its own
        # Entries are rounded to the weight's precision first, so that each is one value when stored.
        book = torch.from_numpy(codebook(flat[~zero], size)).to(weight.dtype).to(torch.float64).numpy()
        result = np.where(zero, 0.0, book[nearest(flat, book)])
        return torch.from_numpy(result).to(weight.dtype).reshape(weight.shape)

    def ensures(self, model: Model, changes: list[Change]) -> None:
        from nncompress.ir.codebook import distinct_values
        from nncompress.ir.weights import layers

        if self.codebook is None:
            return
        by_name = {layer.name: layer for layer in layers(model)}
        for change in changes:
            if change.applied:
                values = distinct_values(by_name[change.where].weight.value())
                if values is None or len(values) > self.codebook:
                    raise VerificationError(f"{change.where} has more than {self.codebook} values")


def _entropy_bytes(weight: Tensor) -> float:
    """What no coding of the single values can go below: the entropy of their distribution."""
    import torch

    counts = torch.unique(weight.flatten(), return_counts=True)[1].double()
    shares = counts / counts.sum()
    return float(-(shares * shares.log2()).sum() * counts.sum() / 8)
