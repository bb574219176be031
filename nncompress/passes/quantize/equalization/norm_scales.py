"""Inputs that matter more get finer steps: a scale per input, taken back in the norm that makes it.

A product W x behind a layer norm (or RMS norm) is (W s)(x / s), and 1 / s goes into the norm's own
weights: the same function. But the grid of a group is then set by what is large in W s, so that inputs
with a large s are rounded on relatively finer steps (Lin et al. 2024, "AWQ", eq. 4 and 5: s is a power of
the input's mean size). The power is the one of those tried with which rounding to the nearest errs least
in the outputs of all products that read the norm.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence

import torch
from torch import Tensor, fx

from nncompress.ir import Model
from nncompress.ir.formats.groups import Groups
from nncompress.ir.graph.ops import COPIES, DROPOUTS, RESHAPES, op_name
from nncompress.ir.layers.weights import Layer
from nncompress.passes.invariance.sources import norm_vectors

POWERS = (0.0, 0.1, 0.2, 0.3, 0.4, 0.5)  # of the second moment; half of AWQ's, of the mean size
KEEPS = COPIES | RESHAPES | DROPOUTS  # the order of values
ROWS = 256  # outputs of a matrix, spread evenly, that the power is judged on


class NormScales:
    """The scales of the inputs of products, found when the first product behind a norm is rounded.

    Args:
        products: all linear layers that are rounded.
        value: what reads the matrix of one.
    """

    def __init__(
        self,
        model: Model,
        products: Collection[Layer],
        value: Callable[[Layer], Tensor],
        size: int,
        *,
        asymmetric: bool,
    ) -> None:
        self._model, self._value, self._size, self._asymmetric = model, value, size, asymmetric
        self._behind = dict(_behind_norms(model, products))
        self._found: dict[fx.Node, Tensor] = {}

    def of(self, layer: Layer, second: Tensor) -> Tensor | None:
        """s, float64 [in]; None where no norm is before it, or scales do not help.

        Args:
            second: E[x xᵀ] of what it multiplies, float64 [in, in].
        """
        norm = next((norm for norm, readers in self._behind.items() if layer.node in readers), None)
        if norm is None:
            return None
        if norm not in self._found:
            self._found[norm] = self._best(list(self._behind[norm].values()), second)
        scales = self._found[norm]
        return None if bool((scales == 1).all()) else scales

    def vectors(self) -> dict[str, Tensor]:
        """By name, the norms' vectors divided by the scales that were found, of those so far."""
        found = {}
        for norm, scales in self._found.items():
            if bool((scales == 1).all()):
                continue
            for name in norm_vectors(self._model, norm) or ():
                tensor = self._model.tensor(name).detach()
                found[name] = (tensor.double() / scales).to(tensor.dtype)
        return found

    def open_vectors(self) -> set[str]:
        """Names of those of norms whose scales are still to be found."""
        left = self._behind.keys() - self._found.keys()
        return {name for norm in left for name in norm_vectors(self._model, norm) or ()}

    def _best(self, readers: Sequence[Layer], second: Tensor) -> Tensor:
        weights = [_spread(self._value(layer)) for layer in readers]
        sizes = second.diagonal().clamp_min(1e-12 * float(second.diagonal().mean()) + 1e-300)
        best, least = torch.ones_like(sizes), float("inf")
        for power in POWERS:
            scales = sizes.pow(power)
            scales = scales / (scales.max() * scales.min()).sqrt()
            lost = sum(self._lost(weight, scales, second) for weight in weights)
            if lost < least:
                best, least = scales, lost
        return best

    def _lost(self, weight: Tensor, scales: Tensor, second: Tensor) -> float:
        """tr(Δ H Δᵀ) of rounding the scaled weight to the nearest."""
        weight = weight.double()
        scaled = weight * scales
        importance = second.diagonal() / scales.square()
        groups = Groups.fit(
            scaled, self._size, asymmetric=self._asymmetric, importance=importance, shares=(1.0,)
        )
        error = groups.values(groups.codes(scaled)).double() / scales - weight
        return float(((error @ second) * error).sum())


def _spread(weight: Tensor) -> Tensor:
    return weight[torch.linspace(0, len(weight) - 1, min(len(weight), ROWS)).round().long()]


def _behind_norms(
    model: Model, products: Collection[Layer]
) -> Iterator[tuple[fx.Node, dict[fx.Node, Layer]]]:
    """Norms that nothing but such products reads, and these."""
    by_node = {layer.node: layer for layer in products}
    for node in model.graph.nodes:
        if node.op == "call_function" and norm_vectors(model, node):
            readers = _readers(node, by_node)
            if readers:
                yield node, readers


def _readers(node: fx.Node, products: dict[fx.Node, Layer]) -> dict[fx.Node, Layer] | None:
    found: dict[fx.Node, Layer] = {}
    width = node.meta["val"].shape[-1]
    for user in node.users:
        if user in products and products[user].data is node:
            found[user] = products[user]
        elif op_name(user) in KEEPS and user.args[0] is node and user.meta["val"].shape[-1:] == (width,):
            further = _readers(user, products)
            if further is None:
                return None
            found |= further
        else:
            return None
    return found
