"""The matrices that are rounded by groups: where they are read, and where what became of them goes."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from nncompress.ir import Model
from nncompress.ir.formats.groups import Groups, store_groups
from nncompress.ir.layers.weights import Layer
from nncompress.passes.quantize.equalization.norm_scales import NormScales


class Matrices:
    """Those of a model in memory.

    Attributes:
        weights: what stands in for the model's own in a walk; None: nothing.
        turned: a matrix that is stored inputs first may be stored outputs first instead.
    """

    weights: Mapping[str, Tensor] | None = None
    turned = True

    def __init__(self, model: Model) -> None:
        self._model = model
        self._rounded: dict[str, tuple[Tensor, Groups]] = {}

    def value(self, layer: Layer) -> Tensor:
        """The matrix of a layer, float32 [out, in]."""
        return layer.weight.value()

    def known(self, name: str) -> Tensor | None:
        """What the matrix was rounded to by an earlier run; None where it has to be rounded."""
        return None

    def assign(self, layer: Layer, value: Tensor, scales: Tensor | None) -> None:
        """What comes after the layer sees this value of its matrix, with its inputs divided by `scales`."""
        layer.weight.assign(value if scales is None else value / scales)

    def keep(self, name: str, codes: Tensor, groups: Groups) -> None:
        """The matrix is to be stored so."""
        self._rounded[name] = codes, groups

    def begin(self, names: Collection[str]) -> None:
        """These are gone through, in this order."""

    def passed(self, name: str, what: str, norms: NormScales) -> None:
        """The matrix is done with: `what` was done to it, or why nothing."""

    def store(self, norms: NormScales) -> None:
        """All are done with: store the matrices that were rounded, and the norms' vectors."""
        for name, vector in norms.vectors().items():
            self._model.tensor(name).detach().copy_(vector)
        for name, (codes, groups) in self._rounded.items():
            store_groups(self._model, name, codes, groups)
