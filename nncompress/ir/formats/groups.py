"""Weights of 4 bits by groups: `size` neighbouring inputs of an output share a scale, and maybe a zero point.

    stored int8 [out, in] in −8 … 7 -> dequantize_per_channel_group(scales [out, in / size]) -> linear

w = (code − zero point) · scale, computed in float32 as the runtimes' kernels do, so the graph means the same
bits everywhere. A scale of few weights follows an outlier, which a scale per output spreads over all. All 16
codes are used: a symmetric grid reaches one step further on the side where its largest weight lies, and the
sign of the scale says which. Zero stays zero.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nncompress.ir.edit import nodes as edit
from nncompress.ir.formats.qdq import ops
from nncompress.ir.graph.model import Model
from nncompress.ir.layers.weights import readers

LOW, HIGH = -8, 7
_BLOCK = 2**17  # weights that are computed with at a time, in float64: that stays in the cache
SHARES = tuple(0.5 + 0.025 * step for step in range(25))  # up to 1.1


@dataclass(frozen=True)
class Groups:
    """The grids of a weight [out, in].

    Attributes:
        size: weights of a row that share a grid.
        scales: float32 [out, in / size].
        zeros: int8 [out, in / size]; None where they are all 0.
    """

    size: int
    scales: Tensor
    zeros: Tensor | None

    @classmethod
    def fit(
        cls,
        weight: Tensor,
        size: int,
        *,
        asymmetric: bool = False,
        importance: Tensor | None = None,
        shares: Sequence[float] = SHARES,
    ) -> Groups:
        """The grids on which rounding to the nearest has the least squared error, of those tried.

        Args:
            weight: [out, in], `in` a multiple of `size`.
            importance: how much the squared error of each input's weights counts, [in].
            shares: those tried, of the scale that covers all of a group.
        """
        counts = None if importance is None else importance.double().reshape(-1, size)
        height = _height(weight)
        fitted = [
            _fitted(rows.double().reshape(len(rows), -1, size), counts, asymmetric, shares)
            for rows in weight.detach().split(height)
        ]
        scales, zeros = (torch.cat(each) for each in zip(*fitted, strict=True))
        return cls(size, scales, zeros.to(torch.int8) if asymmetric else None)

    def split(self, height: int) -> Iterator[Groups]:
        """The grids of every `height` rows."""
        for start in range(0, len(self.scales), height):
            part = slice(start, start + height)
            yield Groups(self.size, self.scales[part], None if self.zeros is None else self.zeros[part])

    def nearest(self, values: Tensor, column: Tensor | int) -> Tensor:
        """What may stand in the place of `values` [out] of one input, in their dtype."""
        group = int(column) // self.size
        return _rounded(values, self.scales[:, group], 0.0 if self.zeros is None else self.zeros[:, group])

    def codes(self, weight: Tensor) -> Tensor:
        """int8 [out, in]: the nearest codes."""
        weight = weight.detach()
        codes = torch.empty(weight.shape, dtype=torch.int8)
        height = _height(weight)
        for start in range(0, len(weight), height):
            part = slice(start, start + height)
            rows = weight[part].double().reshape(-1, self.scales.shape[1], self.size)
            found = rows.div_(self.scales[part].double()[..., None]).round_()
            if self.zeros is not None:
                found.add_(self.zeros[part].double()[..., None])
            codes[part] = found.clamp_(LOW, HIGH).flatten(1)
        return codes

    def values(self, codes: Tensor) -> Tensor:
        """float32 [out, in]: what the codes mean, to the bit."""
        rows = codes.reshape(*self.scales.shape, self.size)
        zeros = 0 if self.zeros is None else self.zeros[..., None]
        return ((rows - zeros) * self.scales[..., None]).reshape(codes.shape)


def _height(weight: Tensor) -> int:
    """Rows that are computed with at a time."""
    return max(1, _BLOCK // max(1, weight.shape[1]))


def _fitted(
    rows: Tensor, counts: Tensor | None, asymmetric: bool, shares: Sequence[float]
) -> tuple[Tensor, Tensor]:
    """(scales, zero points) of the best grids of weights [out, groups, size]; see `Groups.fit`."""
    full, zeros = _covering(rows, asymmetric)
    best, least = full.float(), torch.full_like(full, torch.inf)
    kept = zeros
    low = rows.amin(-1).clamp_max(0) if asymmetric else None
    for share in shares:
        scales = (full * share).float()
        if low is not None:
            zeros = _zero_point(low * share, scales)
        error = _rounded(rows, scales[..., None], zeros[..., None] if asymmetric else 0.0)
        error = error.sub_(rows).square_()
        lost = (error if counts is None else error.mul_(counts)).sum(-1)
        better = lost < least
        best, kept = torch.where(better, scales, best), torch.where(better, zeros, kept)
        least = torch.minimum(lost, least)
    return best, kept


def _covering(rows: Tensor, asymmetric: bool) -> tuple[Tensor, Tensor]:
    """(scales, zero points), float64 [out, groups], of grids that reach every weight of their group."""
    tiny = float(torch.finfo(torch.float32).tiny)
    if asymmetric:
        low, high = rows.amin(-1).clamp_max(0), rows.amax(-1).clamp_min(0)
        scales = (high - low) / (HIGH - LOW)
        scales = torch.where(scales > tiny, scales, 1.0)
        return scales, _zero_point(low, scales)
    peak = rows.gather(-1, rows.abs().argmax(-1, keepdim=True)).squeeze(-1)
    scales = torch.where(peak.abs() > -LOW * tiny, peak / LOW, 1.0)
    return scales, torch.zeros_like(scales)


def _zero_point(low: Tensor, scales: Tensor) -> Tensor:
    return (LOW - torch.round(low / scales.double())).clamp(LOW, HIGH)


def _rounded(values: Tensor, scales: Tensor, zeros: Tensor | float) -> Tensor:
    scales = scales.to(values.dtype)
    codes = torch.div(values, scales).round_()
    if isinstance(zeros, float) and not zeros:
        return codes.clamp_(LOW, HIGH).mul_(scales)
    return codes.add_(zeros).clamp_(LOW, HIGH).sub_(zeros).mul_(scales)


def stored_by_groups(model: Model) -> set[str]:
    """The names of all codes, scales and zero points."""
    grouped = [n for n in model.graph.nodes if n.target is ops.dequantize_per_channel_group.default]
    return {str(source.target) for node in grouped for source in node.all_input_nodes}


def store_groups(model: Model, name: str, codes: Tensor, groups: Groups) -> None:
    """Replace the float weight `name` [out, in], for all its readers, by `codes` on `groups`."""
    nodes = readers(model, name)
    first = nodes[0]  # in graph order, so before every reader
    names = [
        edit.add_tensor(model, f"{name}_int4", codes, trainable=False),
        edit.add_tensor(model, f"{name}_scale", groups.scales, trainable=False),
    ]
    if groups.zeros is not None:
        names.append(edit.add_tensor(model, f"{name}_zero", groups.zeros, trainable=False))
    stored, scales, *zeros = (edit.read_tensor(model, each, first) for each in names)
    bounds = (LOW, HIGH, torch.int8, groups.size, torch.float32)
    with edit.inserting_before(first) as call:
        zero = zeros[0] if zeros else None
        value = call(ops.dequantize_per_channel_group.default, stored, scales, zero, *bounds)
    for node in nodes:
        edit.replace_node(node, value)
