"""A layer and the batch norm behind it as one affine map, read and written."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

from nncompress.analysis.observe.residual import norm_of
from nncompress.ir import Model
from nncompress.ir.layers.weights import Layer, argument, readers


@dataclass(frozen=True)
class Norm:
    """A batch norm with all four vectors, which nobody else reads.

    Attributes:
        weight, bias, mean, variance: names of the stored vectors.
    """

    node: fx.Node
    weight: str
    bias: str
    mean: str
    variance: str
    eps: float

    def deviation(self, model: Model) -> Tensor:
        return (model.tensor(self.variance).detach().double() + self.eps).sqrt()


def own_norm(model: Model, layer: Layer) -> Norm | None:
    """The batch norm that can be rewritten together with the layer, or None."""
    node = norm_of(layer)
    if node is None or argument(node, 5) is True:
        return None
    vectors = [argument(node, position) for position in range(1, 5)]
    names = [str(v.target) for v in vectors if isinstance(v, fx.Node) and v.op == "get_attr"]
    if len(names) < 4 or any(_uses(model, name) > 1 for name in names):
        return None
    weight, bias, mean, variance = names
    return Norm(node, weight, bias, mean, variance, float(argument(node, 7, 1e-5)))  # type: ignore[arg-type]


def _uses(model: Model, name: str) -> int:
    return sum(len(n.users) for n in readers(model, name))


class Affine:
    """t = W x + b for a layer with its norm, if it has one of its own.

    Attributes:
        end: the node whose value is t.
        intercept: b can be set.
    """

    def __init__(self, model: Model, layer: Layer) -> None:
        self.layer, self._model = layer, model
        self.norm = own_norm(model, layer)
        self.end = self.norm.node if self.norm else layer.node
        self.intercept = self.norm is not None or layer.bias is not None

    @property
    def dim(self) -> int:
        return self.layer.channel_dim

    def vectors(self) -> list[str]:
        """The stored vectors with one value per output channel."""
        own = [self.layer.bias.name] if self.layer.bias is not None else []
        norm = self.norm
        return own + ([norm.weight, norm.bias, norm.mean, norm.variance] if norm else [])

    def scale(self) -> Tensor:
        """What the norm multiplies each channel with: [out]; where that is next to nothing, or no norm, 1."""
        if self.norm is None:
            return torch.ones(len(self.layer.matrix()), dtype=torch.float64)
        scale = self._model.tensor(self.norm.weight).detach().double() / self.norm.deviation(self._model)
        return torch.where(scale.abs() > 1e-4 * scale.abs().max().clamp(min=1e-12), scale, 1.0)

    def matrix(self) -> Tensor:
        """W: [out, in/groups · K…], float64, for rows as `filter_rows` gives them."""
        weight = self.layer.matrix().double()
        if self.norm is None:
            return weight
        own = self._model.tensor(self.norm.weight).detach().double() / self.norm.deviation(self._model)
        return weight * own[:, None]

    def offset(self) -> Tensor:
        """b: [out], float64."""
        bias = torch.zeros(len(self.layer.matrix()), dtype=torch.float64)
        if self.layer.bias is not None:
            bias = self.layer.bias.value().double()
        if self.norm is None:
            return bias
        own = self._model.tensor(self.norm.weight).detach().double() / self.norm.deviation(self._model)
        mean = self._model.tensor(self.norm.mean).detach().double()
        return (bias - mean) * own + self._model.tensor(self.norm.bias).detach().double()

    def stored(
        self,
        matrix: Tensor,
        offset: Tensor | None,
        mean: Tensor | None = None,
        second: Tensor | None = None,
        columns: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """The stored tensors that make t = `matrix` x + `offset`, by name.

        Args:
            mean, second: E[x] [groups, d] and covariance [groups, d, d] of x: given them, the norm's running
                statistics become those of the layer's new output, so that training starts where inference is.
            columns: which ones of W `matrix` holds, and x these are of; the others are zero. None: all.
        """
        layer = self.layer
        old = layer.weight.value()

        def as_weight(value: Tensor) -> Tensor:
            if columns is not None:
                value = value.new_zeros(layer.matrix().shape).index_copy_(1, columns, value)
            return layer.from_matrix(value).to(old.dtype).contiguous()

        if self.norm is None:
            found = {layer.weight.name: as_weight(matrix)}
            if layer.bias is not None and offset is not None:
                found[layer.bias.name] = offset.to(layer.bias.value().dtype)
            return found
        assert offset is not None
        raw = matrix / self.scale()[:, None]
        deviation = self.norm.deviation(self._model)
        centre = torch.zeros_like(offset)
        variance = deviation.square() - self.norm.eps
        if mean is not None and second is not None:
            grouped = raw.unflatten(0, (len(mean), -1))
            centre = (grouped @ mean[:, :, None]).flatten()
            variance = torch.einsum("god,gde,goe->go", grouped, second, grouped).flatten().clamp(min=0)
            deviation = (variance + self.norm.eps).sqrt()
        silent = ~raw.any(1)
        scale = torch.where(silent, 0.0, self.scale() * deviation)
        shift = offset + (matrix * self._repeat(mean, len(matrix))).sum(1) if mean is not None else offset
        bias = torch.zeros_like(offset) if layer.bias is None else layer.bias.value().double()
        dtype = layer.weight.value().dtype
        return {
            layer.weight.name: as_weight(raw),
            self.norm.weight: scale.to(dtype),
            self.norm.bias: shift.to(dtype),
            self.norm.mean: (centre + bias).to(dtype),
            self.norm.variance: torch.where(silent, 1.0, variance).to(dtype),
        }

    @staticmethod
    def _repeat(mean: Tensor, outputs: int) -> Tensor:
        """[groups, d] -> [out, d]."""
        return mean.repeat_interleave(outputs // len(mean), 0)
