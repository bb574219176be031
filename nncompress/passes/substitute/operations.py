"""The operations that stand for a K×K convolution, as chains of convolutions.

| operation           | chain                                          | MACs per output pixel              |
|---------------------|------------------------------------------------|------------------------------------|
| separable           | K×K depthwise, 1×1                             | in · (out + K²)                    |
| nonlinear-separable | K×K depthwise, batch norm, ReLU, 1×1           | in · (out + K²)                    |
| kernel-composing    | 1×K to n channels, activation, K×1             | K · n · (in + out)                 |
| stacked-3x3         | 5×5: two 3×3, 7×7: three; activations between  | 9 · (in · n + … + n · out)         |
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property
from itertools import pairwise
from math import prod

from torch import Tensor

from nncompress.analysis.weight_targets import Target
from nncompress.ir.graph.shapes import Shapes
from nncompress.ir.layers.geometry import Geometry
from nncompress.passes.substitute import initial


@dataclass(frozen=True)
class Plan:
    """One operation in the place of one target.

    Attributes:
        chain: geometry and weight shape of each convolution, in order.
        macs: of all layers of the target, for one sample.
        weights: computes the initial weights.
    """

    target: Target
    operation: str
    chain: tuple[tuple[Geometry, tuple[int, ...]], ...]
    macs: int
    weights: Callable[[], list[Tensor]]

    @property
    def parameters(self) -> int:
        return sum(prod(shape) for _, shape in self.chain)

    @cached_property
    def error(self) -> float:
        """Of the weight's squares, the share that the initial weights, multiplied out, are off by."""
        weight, parts = self.target.weight.value().double(), self.weights()
        composed = initial.dense(parts) if "separable" in self.operation else initial.compose(parts)
        return float((weight - composed).square().sum() / weight.square().sum().clamp_min(1e-300))


def make_plan(
    target: Target, operation: str, shapes: Shapes, channels: int | None, ratio: float, seed: int
) -> Plan | str:
    """The plan, or why there is none.

    Args:
        channels: between the convolutions of kernel-composing and stacked-3x3; None takes as many as keep the
            MACs at `ratio` of the layer's own.
    """
    place = target.geometry
    if place is None:
        return "not a convolution"
    if place.transposed:
        return "a transposed convolution"
    if place.groups > 1:
        return "grouped"
    if place.pointwise:
        return "1×1"
    weight = target.weight.value()

    def made(n: int) -> Plan:
        chain = _chain(operation, place, tuple(weight.shape), n)
        return Plan(target, operation, tuple(chain), _macs(target, shapes, chain), weights(n))

    def weights(n: int) -> Callable[[], list[Tensor]]:
        if operation == "kernel-composing":
            return cache(lambda: list(initial.kernel_composing(weight, n)))
        if operation == "stacked-3x3":
            return cache(lambda: initial.stacked(weight, n, seed))
        return cache(lambda: list(initial.separable(weight)))

    if operation in ("separable", "nonlinear-separable"):
        return made(0)
    if operation == "kernel-composing" and (place.dims != 2 or min(place.kernel) == 1):
        return f"its kernel is {'×'.join(map(str, place.kernel))}"
    if operation == "stacked-3x3" and place.kernel not in ((5, 5), (7, 7)):
        return f"its kernel is {'×'.join(map(str, place.kernel))}, not 5×5 or 7×7"
    if channels is not None:
        return made(channels)
    low, high = 1, max(weight.shape[:2]) * max(place.kernel)
    while low < high:  # the most channels that keep to the ratio
        middle = (low + high + 1) // 2
        low, high = (middle, high) if made(middle).macs <= ratio * target.macs else (low, middle - 1)
    return made(low)


def _chain(
    operation: str, place: Geometry, shape: tuple[int, ...], channels: int
) -> list[tuple[Geometry, tuple[int, ...]]]:
    outputs, inputs, *kernel = shape
    if operation == "kernel-composing":
        height, width = kernel
        return [
            (place.along(1), (channels, inputs, 1, width)),
            (place.along(0), (outputs, channels, height, 1)),
        ]
    if operation == "stacked-3x3":
        return _stack(place, inputs, outputs, channels)
    ones = (1,) * place.dims
    return [
        (replace(place, groups=inputs), (inputs, 1, *kernel)),
        (replace(place.one_by_one(), groups=1), (outputs, inputs, *ones)),
    ]


def _stack(
    place: Geometry, inputs: int, outputs: int, channels: int
) -> list[tuple[Geometry, tuple[int, ...]]]:
    """The padding of a "same" convolution is spread over the stack; the stride comes last."""
    count = (place.kernel[0] - 1) // 2
    same = tuple(p == d * count for p, d in zip(place.padding, place.dilation))
    widths = [inputs, *[channels] * (count - 1), outputs]
    chain: list[tuple[Geometry, tuple[int, ...]]] = []
    for number, (a, b) in enumerate(pairwise(widths)):
        padding = tuple(
            d if spread else p if number == 0 else 0
            for d, p, spread in zip(place.dilation, place.padding, same)
        )
        stride = place.stride if number == count - 1 else (1, 1)
        geometry = replace(place, kernel=(3, 3), stride=stride, padding=padding)
        chain.append((geometry, (b, a, 3, 3)))
    return chain


def _macs(target: Target, shapes: Shapes, chain: list[tuple[Geometry, tuple[int, ...]]]) -> int:
    total = 0
    for layer in target.layers:
        size = shapes.of(layer.data)[-chain[0][0].dims :]
        batch = prod(shapes.of(layer.node)[: -chain[0][0].dims - 1])
        for place, shape in chain:
            size = tuple(
                (n + 2 * p - d * (k - 1) - 1) // s + 1
                for n, p, d, k, s in zip(size, place.padding, place.dilation, place.kernel, place.stride)
            )
            total += batch * prod(size) * prod(shape)
    return total
