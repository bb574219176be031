"""A 1×1, a K×K and a 1×1 convolution in the place of a K×K one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nncompress.analysis.curvature.metric import Metric
from nncompress.analysis.lowrank.tucker import TuckerDecomposition
from nncompress.ir.layers.geometry import Geometry
from nncompress.passes.factors.forms.base import Ranks, Stage
from nncompress.passes.factors.forms.convolution import ConvolutionForm


class TuckerForm(ConvolutionForm):
    """W [o, i/g, K…] per group: 1×1 to r₁ channels, K×K to r₂ channels, 1×1."""

    name = "tucker"

    def decompose_group(self, group: int, metric: Metric | None) -> Any:
        return TuckerDecomposition(self.group_weight(group), metric)

    def group_errors(self, part: Any) -> dict[Ranks, float]:
        return part.errors()

    def assemble(self, parts: Sequence[Any], ranks: Ranks) -> list[Tensor]:
        first, core, last = (torch.cat(t) for t in zip(*(part.factors(ranks) for part in parts)))
        return [self.ones(first), core, self.ones(last)]

    def compose(self, weights: Sequence[Tensor]) -> Tensor:
        p, c, q = (w.to(torch.float64).flatten(2).unflatten(0, (self.groups, -1)) for w in weights)
        return torch.einsum("gai,gbak,gob->goik", p[..., 0], c, q[..., 0]).reshape(self.weight.shape)

    def chain(self) -> list[Geometry]:
        return [self.place.one_by_one(), self.place, self.place.one_by_one()]

    def stages(self, ranks: Ranks) -> list[Stage]:
        outputs, inputs, *kernel = self.weight.shape
        (first, second), ones = ranks, (1,) * self.place.dims
        return [
            Stage((self.groups * first, inputs, *ones), self.positions("in")),
            Stage((self.groups * second, first, *kernel), self.positions("out")),
            Stage((outputs, second, *ones), self.positions("out")),
        ]

    @property
    def full_ranks(self) -> Ranks:
        return (self.weight.shape[1], self.weight.shape[0] // self.groups)
