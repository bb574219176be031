"""A K×1 and a 1×K convolution in the place of a K×K one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nncompress.analysis.curvature.metric import Metric
from nncompress.analysis.lowrank.spatial import SpatialDecomposition
from nncompress.ir.layers.geometry import Geometry
from nncompress.passes.factors.forms.base import Ranks, Stage
from nncompress.passes.factors.forms.convolution import ConvolutionForm


class SpatialForm(ConvolutionForm):
    """W [o, i/g, K, L] per group: K×1 to r channels, then 1×L."""

    name = "spatial"

    def decompose_group(self, group: int, metric: Metric | None) -> Any:
        unit = self.cost((1,), "macs") or self.cost((1,), "parameters")
        pays = (self.target.macs or self.weight.numel()) // unit
        return SpatialDecomposition(self.group_weight(group), metric, max(1, pays))

    def group_errors(self, part: Any) -> dict[Ranks, float]:
        return {(rank,): float(e) for rank, e in enumerate(part.errors(), 1)}

    def assemble(self, parts: Sequence[Any], ranks: Ranks) -> list[Tensor]:
        verticals, horizontals = zip(*(part.factors(ranks[0]) for part in parts))
        return [torch.cat(verticals).unsqueeze(3), torch.cat(horizontals).unsqueeze(2)]

    def compose(self, weights: Sequence[Tensor]) -> Tensor:
        first, second = (w.to(torch.float64).unflatten(0, (self.groups, -1)) for w in weights)
        return torch.einsum("grikm,gornl->goikl", first, second).reshape(self.weight.shape)

    def chain(self) -> list[Geometry]:
        return [self.place.along(0), self.place.along(1)]

    def stages(self, ranks: Ranks) -> list[Stage]:
        outputs, inputs, height, width = self.weight.shape
        return [
            Stage((self.groups * ranks[0], inputs, height, 1), self.positions("out", "in")),
            Stage((outputs, ranks[0], 1, width), self.positions("out", "out")),
        ]

    @property
    def full_ranks(self) -> Ranks:
        outputs, inputs, height, width = self.weight.shape
        return (min(inputs * height, outputs // self.groups * width),)
