"""`cluster`: few distinct values per weight, so that a file can store indices of few bits.

The thesis rounded weights to two decimals (Çallı 2017 §2.2.3) and could not store the indices in fewer bits.
Here a codebook is found by exact one-dimensional k-means, and every file that is written holds codebooks and
indices of 1, 2, 4 or 8 bits (`nncompress.ir.formats.packed`). Within the model the weights stay ordinary
floats, so any other pass may follow.

With data, what counts is the error of a layer's output. Its k-means weighs each weight's squared error by the
curvature (Choi et al. 2017, "Towards the limit of network quantization"), and rounding compensates: what one
weight's rounding does to the output is made up for by those not yet rounded
(`nncompress.analysis.rounding.gptq`).
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatch
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

from nncompress.errors import ModelFileError, UsageError, VerificationError
from nncompress.passes.base import BY_DEFAULT, Change, Context, Pass, need_data, option

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from nncompress.analysis.observe.seen_inputs import SeenInputs
    from nncompress.ir import Model
    from nncompress.ir.layers.weights import Layer
    from nncompress.passes.cluster.codebooks import Codebooks

AMOUNTS = ("relative", "decimals", "codebook")
SIZES = (2, 4, 16, 256)  # of a codebook: indices of 1, 2, 4 and 8 bits


@dataclass(frozen=True)
class Cluster(Pass):
    """Replace weights by the nearest entries of a codebook; zeros stay zero.

    One of `relative`, `decimals` and `codebook` decides how many. With data, errors of the layers' outputs
    are kept small instead of errors of the weights.
    """

    name = "cluster"
    summary = "few distinct values per weight, stored as codebook and indices of 1 to 8 bits"
    example = "nncompress cluster model.pt2 --codebook 16 --data calibration.npz"
    amounts = AMOUNTS
    more = "--codebook 16, best with --data"

    relative: float | None = option(
        None,
        above=0,
        below=1,
        help="the fewest of 2, 4, 16 or 256 values that lose at most this share of a weight's squares "
        f"{BY_DEFAULT}",
    )
    decimals: int | None = option(None, least=0, most=6, help="round to this many decimals (the thesis: 2)")
    codebook: int | None = option(
        None, least=2, most=256, metavar="K", help="K values per codebook, by exact k-means"
    )
    per: Literal["tensor", "channel"] = option("tensor", help="a codebook for each weight, or output channel")
    weighting: Literal["none", "inputs", "fisher"] | None = option(
        None,
        help="how k-means weighs errors: all alike, by input second moments, or by the Fisher diagonal "
        "[default: inputs with --data, else none]",
    )
    compensate: bool = option(
        True, help="with --data: the rounding of a weight is made up for by those not yet rounded"
    )
    exclude: tuple[str, ...] = option(
        (), metavar="PATTERN", help="layers to leave alone, e.g. 'head*' (repeatable)"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self.refuse_several(AMOUNTS, "how many values there are")
        if self.decimals is not None and (self.per != "tensor" or self.weighting not in (None, "none")):
            raise UsageError(
                "cluster: --decimals has no codebook",
                got="--per channel" if self.per != "tensor" else f"--weighting {self.weighting}",
                remedy="leave it out, or give --codebook K instead",
            )

    def requires(self, model: Model, context: Context) -> None:
        chosen = self._chosen(model)
        if not chosen:
            raise UsageError(
                "cluster: no weight to cluster",
                got="no convolution, linear layer or stored matrix",
                remedy="nncompress inspect shows the layers",
            )
        for pattern in self.exclude:
            if not any(fnmatch(layer.name, pattern) for layer in chosen):
                raise UsageError(
                    f"cluster: --exclude {pattern} names no layer",
                    expected=", ".join(layer.name for layer in chosen[:5]) + (", …" if chosen[5:] else ""),
                )
        for layer in chosen:
            if not layer.weight.value().isfinite().all():
                raise ModelFileError(f"cluster: the weight of {layer.name} has NaN or infinite values")
        if self.weighting in ("inputs", "fisher"):
            need_data(context, "cluster", f"--weighting {self.weighting} is measured on it")

    def apply(self, model: Model, context: Context) -> list[Change]:
        from nncompress.analysis.observe.enough import too_few

        chosen = self._chosen(model)
        seen = self._inputs(model, context)
        curvature = self._curvature(model, chosen, context)
        changes = []
        for done, layer in enumerate(chosen):
            context.progress.step("clustering", done, len(chosen))
            reason = self._reason_to_leave(layer)
            if reason:
                changes.append(Change(layer.name, f"left: {reason}", applied=False))
            else:
                changes.append(self._cluster(layer, seen, curvature.get(layer.weight.name)))
        context.progress.step("clustering", len(chosen), len(chosen))
        if seen is not None and self.compensate:
            context.warn(too_few(self.name, seen.rows))
        if applied := [change.numbers for change in changes if change.applied]:
            from nncompress.passes.cluster.entropy import times

            before, packed, coded, least = (
                sum(numbers[key] for numbers in applied)
                for key in ("bytes_before", "bytes_after", "bytes_coded", "entropy_bytes")
            )
            context.notes.append(
                f"files hold these weights in {packed:,} bytes{times(packed, least)} instead of {before:,}, "
                f"with --storage entropy in {coded:,}{times(coded, least)}; "
                f"entropy of the indices: {least:,.0f}"
            )
        return changes

    def _chosen(self, model: Model) -> list[Layer]:
        """The first reader of every stored weight, in graph order."""
        from nncompress.ir.layers.weights import layers

        first: dict[int, Layer] = {}
        for layer in layers(model):
            first.setdefault(id(model.tensor(layer.weight.name)), layer)
        return list(first.values())

    def _inputs(self, model: Model, context: Context) -> SeenInputs | None:
        if context.data is None or not (self.compensate or self.weighting in (None, "inputs")):
            return None
        from nncompress.analysis.observe.seen_inputs import SeenInputs

        batches = context.data.input_batches(context.batch_size, context.limit)
        return SeenInputs(model, batches, context.seed)

    def _curvature(self, model: Model, chosen: list[Layer], context: Context) -> dict[str, Tensor]:
        if self.weighting != "fisher":
            return {}
        from nncompress.analysis.curvature.diagonal import fisher_diagonal
        from nncompress.analysis.curvature.ridge import with_ridge
        from nncompress.analysis.observe.seen_inputs import UNSEEN

        found = fisher_diagonal(
            model,
            [layer.weight.name for layer in chosen if not self._reason_to_leave(layer)],
            need_data(context, "cluster", "--weighting fisher is measured on it"),
            limit=context.limit,
            seed=context.seed,
            progress=context.progress,
        )
        return {
            name: with_ridge(value.flatten(), UNSEEN).reshape(value.shape) for name, value in found.items()
        }

    def _reason_to_leave(self, layer: Layer) -> str:
        from nncompress.ir.formats.packed import distinct_values

        if any(fnmatch(layer.name, pattern) for pattern in self.exclude):
            return "excluded"
        if layer.weight.quantized:
            return "its weight is quantized already"
        weight = layer.weight.value()
        if not weight.dtype.is_floating_point or not weight.numel():
            return f"its weight is {weight.dtype}"
        present = distinct_values(weight)
        if self.codebook is not None and present is not None and len(present) <= self.codebook:
            return f"it has only {len(present)} values"
        if self.decimals is not None and bool((weight.round(decimals=self.decimals) == weight).all()):
            return "rounding does not change it"
        return ""

    def _cluster(self, layer: Layer, seen: SeenInputs | None, curvature: Tensor | None) -> Change:
        from torch import uint8

        from nncompress.ir.formats.deflate import encode
        from nncompress.ir.formats.packed import smallest
        from nncompress.passes.cluster.entropy import entropy_bytes

        weight = layer.weight.value().clone()
        clustered = self._rounded(layer, weight, seen, curvature)
        if isinstance(clustered, str):
            return Change(layer.name, f"left: {clustered}", applied=False)
        size = weight.numel() * weight.element_size()
        parts = (smallest(clustered) or {"dense": clustered}).values()
        stored = [part.flatten().view(uint8).numpy().tobytes() for part in parts]  # numpy has no bfloat16
        channels = self._channels(layer, weight)
        packed, coded = sum(map(len, stored)), sum(min(len(data), len(encode(data))) for data in stored)
        if packed >= size and self.share_lost is not None:
            return Change(layer.name, "left: a file would hold it in no fewer bytes", applied=False)
        layer.weight.assign(clustered)
        numbers: dict[str, Any] = {
            "bytes_before": size,
            "bytes_after": packed,
            "bytes_coded": coded,
            "entropy_bytes": entropy_bytes(clustered, channels),
            "mse": float((clustered - weight).double().square().mean()),
        }
        what = f"{self._what(clustered)}, {size:,} → {packed:,} bytes, coded {coded:,}"
        return Change(layer.name, f"{what}, entropy {numbers['entropy_bytes']:,.0f}", numbers)

    def _rounded(
        self, layer: Layer, weight: Tensor, seen: SeenInputs | None, curvature: Tensor | None
    ) -> Tensor | str:
        """The weight with allowed values only, in its own dtype; or why it is left as it is.

        Pruned connections (zeros) stay zero.
        """
        import torch

        from nncompress.analysis.rounding.gptq import round_compensated
        from nncompress.passes.cluster.positions import Positions

        channels = self._channels(layer, weight)
        positions = Positions.of(layer) if seen is not None else None
        moments = None if seen is None or positions is None else seen.second_moments(layer)
        importance = curvature
        if moments is not None and positions is not None and self.weighting in (None, "inputs"):
            diagonal = moments if moments.dim() == 2 else moments.diagonal(dim1=1, dim2=2)
            importance = torch.empty(weight.numel(), dtype=torch.float64)
            importance[positions.index] = diagonal[:, None, :].expand(positions.index.shape)
            importance = importance.reshape(weight.shape)
        books = None if self.decimals is not None else self._books(weight, channels, importance)
        if isinstance(books, str):
            return books

        def allowed(values: Tensor, at: Tensor) -> Tensor:
            """The nearest allowed values for the weights at these flat positions."""
            if books is None:
                found = torch.round(values.double(), decimals=self.decimals or 0)
            else:
                found = books.nearest(values, channels.flatten()[at])
            return torch.where(weight.flatten()[at] == 0, 0.0, found)

        if moments is None or positions is None or moments.dim() == 2 or not self.compensate:
            everywhere = torch.arange(weight.numel()).reshape(weight.shape)
            return allowed(weight, everywhere).to(weight.dtype)
        flat = weight.flatten().to(torch.float64)
        for index, moment in zip(positions.index, moments):
            columns = partial(_at_columns, allowed, index)
            flat[index] = round_compensated(weight.flatten()[index], moment, columns)
        return flat.reshape(weight.shape).to(weight.dtype)

    def _books(self, weight: Tensor, channels: Tensor, importance: Tensor | None) -> Codebooks | str:
        """The codebooks asked for, or the smallest that lose little enough; or why there are none."""
        from nncompress.ir.formats.packed import distinct_values
        from nncompress.passes.cluster.codebooks import Codebooks

        if self.codebook is not None:
            return Codebooks.fit(weight, channels, self.codebook, importance)
        present = distinct_values(weight)
        most = SIZES[-1] if present is None else len(present) - 1
        energy, lost = float(weight.double().square().sum()), float("inf")
        for size in (size for size in SIZES if size <= most):
            books = Codebooks.fit(weight, channels, size, importance)
            error = (books.nearest(weight, channels) - weight.double()).masked_fill(weight == 0, 0)
            lost = float(error.square().sum()) / (energy or 1.0)
            if lost <= (self.share_lost or 0.0):
                return books
        if present is not None:
            return f"it has only {len(present)} values"
        return f"{SIZES[-1]} values would lose {lost:.2%} of its squares"

    def _channels(self, layer: Layer, weight: Tensor) -> Tensor:
        """Which codebook each weight has, int64 of its shape: all the same, or its output channel's."""
        import torch

        if self.per == "tensor" or weight.dim() < 2:
            return torch.zeros(weight.shape, dtype=torch.int64)
        axis = layer.roles.outputs % weight.dim()
        spread = [-1 if dim == axis else 1 for dim in range(weight.dim())]
        return torch.arange(weight.shape[axis]).reshape(spread).expand(weight.shape)

    def _what(self, clustered: Tensor) -> str:
        from nncompress.ir.formats.packed import distinct_values

        if self.per == "channel" and self.codebook is not None:
            return f"{self.codebook} per channel"
        values = distinct_values(clustered)
        if values is None:
            return "more than 256 values"
        return f"{len(values)} value{'s' if len(values) > 1 else ''}"

    def ensures(self, model: Model, changes: list[Change]) -> None:
        from nncompress.ir.layers.weights import layers
        from nncompress.passes.cluster.entropy import counts_of

        if self.decimals is not None:
            return
        allowed = self.codebook or SIZES[-1]
        by_name = {layer.name: layer for layer in layers(model)}
        for change in changes:
            if not change.applied:
                continue
            layer = by_name[change.where]
            weight = layer.weight.value()
            most = int(counts_of(weight, self._channels(layer, weight))[0].bincount().max())
            if most > allowed:
                raise VerificationError(f"{change.where} has {most} values", expected=f"{allowed}")


def _at_columns(
    allowed: Callable[[Tensor, Tensor], Tensor], index: Tensor, values: Tensor, j: Tensor
) -> Tensor:
    """What is allowed for values of one column of a matrix whose numbers stand at `index` [out, in]."""
    return allowed(values, index[:, j])
