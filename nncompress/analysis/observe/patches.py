"""The vectors that a layer multiplies its weight with: rows of a matrix X, so that the layer is X Wᵀ + b."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from math import prod

import torch
from torch import Tensor
from torch.nn import functional as F

from nncompress.ir.layers.geometry import Geometry, geometry
from nncompress.ir.layers.weights import Layer

AT_ONCE = 1 << 18  # values whose places, 8 bytes each, are computed at a time


def draw_positions(
    layer: Layer, output: Tensor, limit: int | None, generator: torch.Generator | None = None
) -> Tensor | None:
    """At most `limit` of the positions of a layer's output, without replacement; None where that is all."""
    count = output.numel() // output.shape[layer.channel_dim]
    if limit is None or limit >= count:
        return None
    return torch.randperm(count, generator=generator)[:limit].to(output.device)


def samples_of(layer: Layer, output: Tensor, samples: int, positions: Tensor | None = None) -> Tensor:
    """Which of a batch's `samples` each row of `output_rows` is of: int64 [positions]."""
    count = output.numel() // output.shape[layer.channel_dim]
    return (torch.arange(count) if positions is None else positions.cpu()) * samples // count


def output_rows(layer: Layer, value: Tensor, positions: Tensor | None = None) -> Tensor:
    """A layer's output [..., out, ...] as rows [groups, positions, out/groups] that go with `input_rows`."""
    rows = value.movedim(layer.channel_dim, -1).flatten(0, -2)
    rows = rows if positions is None else rows[positions]
    return rows.reshape(len(rows), layer.groups, -1).transpose(0, 1)


def input_rows(
    layer: Layer,
    value: Tensor,
    limit: int | None = None,
    generator: torch.Generator | None = None,
    positions: Tensor | None = None,
) -> Tensor:
    """What the layer sees of its input `value`, one row per output position.

    | layer                  | rows                                                             |
    |------------------------|------------------------------------------------------------------|
    | linear, matrix product | [groups = 1, positions, in]                                      |
    | convolution            | [groups, positions, in/groups · K…]: its patches, zeros padded   |
    | transposed convolution | [groups, positions, in/groups]: its input pixels                 |

    Args:
        limit: draw this many positions, without replacement, instead of taking all.
        positions: take these instead (see `draw_positions`).
    """

    def draw(count: int) -> Tensor:
        if positions is not None:
            return positions
        if limit is None or limit >= count:
            return torch.arange(count, device=value.device)
        return torch.randperm(count, generator=generator)[:limit].to(value.device)

    if layer.roles.groups is None:
        rows = value.reshape(-1, value.shape[-1])
        return rows[draw(len(rows))].unsqueeze(0)
    place = geometry(layer)
    if place is None:
        raise ValueError(f"{layer.name}: uneven padding")
    if value.dim() == place.dims + 1:
        value = value.unsqueeze(0)
    if place.transposed:
        pixels = value.movedim(1, -1).reshape(-1, value.shape[1])
        pixels = pixels[draw(len(pixels))]
        return pixels.reshape(len(pixels), place.groups, -1).transpose(0, 1)
    return _patches(_padded(value, place), place, draw)


def filter_rows(layer: Layer, value: Tensor, positions: Tensor | None = None) -> Tensor:
    """One row per output position, as `input_rows`, of transposed convolutions too.

    A transposed convolution is an ordinary one, with its filters turned round, of an input with zeros between
    its pixels (Dumoulin and Visin 2016, "A guide to convolution arithmetic for deep learning", §4.6): rows
    [groups, positions, in/groups · K…] go with `Layer.matrix`.
    """
    place = geometry(layer) if layer.roles.groups is not None else None
    if place is None or not place.transposed:
        return input_rows(layer, value, positions=positions)
    sizes = [(size - 1) * step + 1 for size, step in zip(value.shape[2:], place.stride)]
    spread = value.new_zeros(*value.shape[:2], *sizes)
    every = tuple(slice(None, None, step) for step in place.stride)
    spread[(slice(None), slice(None), *every)] = value
    edges = [d * (k - 1) - p for d, k, p in zip(place.dilation, place.kernel, place.padding)]
    pads = [(e, e + more) for e, more in zip(edges, place.output_padding)]
    spread = F.pad(spread, [p for pair in reversed(pads) for p in pair])
    ordinary = replace(place, stride=(1,) * place.dims, transposed=False)
    return _patches(spread, ordinary, lambda count: torch.arange(count) if positions is None else positions)


def _padded(value: Tensor, place: Geometry) -> Tensor:
    return F.pad(value, [p for pad in reversed(place.padding) for p in (pad, pad)])


def _patches(padded: Tensor, place: Geometry, draw: Callable[[int], Tensor]) -> Tensor:
    """padded [n, c, size…] -> [groups, positions, c/groups · K…], channels first as in the weight."""
    images, channels, *sizes = padded.shape
    spans = [d * (k - 1) + 1 for d, k in zip(place.dilation, place.kernel)]
    counts = [(size - span) // step + 1 for size, span, step in zip(sizes, spans, place.stride)]
    drawn = draw(images * prod(counts))
    steps = [prod(sizes[i + 1 :]) for i in range(len(sizes))]  # distance of neighbours along each dim
    starts = torch.zeros_like(drawn)
    rest = drawn
    for count, stride, step in reversed(list(zip(counts, place.stride, steps))):
        starts += rest % count * (stride * step)
        rest = rest // count
    starts += rest * (channels * prod(sizes))
    offsets = torch.arange(channels, device=padded.device) * prod(sizes)
    for kernel, dilation, step in zip(place.kernel, place.dilation, steps):
        offsets = (
            offsets[:, None] + torch.arange(kernel, device=padded.device) * (dilation * step)
        ).flatten()
    values, rows = padded.reshape(-1), padded.new_empty(len(drawn), len(offsets))
    most = max(1, AT_ONCE // len(offsets))
    for first in range(0, len(drawn), most):
        rows[first : first + most] = values[starts[first : first + most, None] + offsets]
    return rows.reshape(len(drawn), place.groups, -1).transpose(0, 1)
