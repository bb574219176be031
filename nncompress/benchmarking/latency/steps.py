"""The widths at which a target's kernels get faster, measured on this machine.

Kernels work on blocks of channels: latency over width is a staircase, and a width just above a step costs as
much as the one at its end. How long a step is depends on the runtime, the processor and the precision: 8, 16,
sometimes 4, or none. It is measured on one layer of each op, by its number of outputs, and remembered.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import lcm

from nncompress.benchmarking.latency.layer_file import LayerShape, in_precision
from nncompress.benchmarking.latency.table import LatencyTable
from nncompress.ir.graph.ops import PRODUCTS
from nncompress.ir.layers.weights import Layer

WIDTH = 64
STEPS = (4, 8, 16, 32)  # a clock does not tell one of 2 from none; one of 64 would be many a whole layer
FLAT = 0.985  # of the time at the end of a step is taken half a step below it, or more
CONVOLUTION = LayerShape("Conv", (WIDTH, WIDTH, 3, 3), (("pads", (1, 1, 1, 1)),)), (1, WIDTH, 14, 14)
PRODUCT = LayerShape("MatMul", (WIDTH, WIDTH)), (1, 32, WIDTH)


class Steps:
    """Of a target.

    Args:
        table: of its latencies.
        precision: in which layers run, as in `LayerShape`.
    """

    def __init__(self, table: LatencyTable, precision: str = "") -> None:
        self._table, self._precision = table, precision
        self._known: dict[bool, int] = {}

    def of(self, layers: Iterable[Layer]) -> int:
        """The number of which widths are multiples that end a step of all these convolutions and products."""
        kinds = {layer.kind in PRODUCTS for layer in layers if layer.kind != "embedding"}
        return lcm(*(self.of_kind(product=product) for product in kinds))

    def of_kind(self, *, product: bool) -> int:
        """Of matrix products, or of convolutions: one of STEPS, or 1 for none."""
        if product not in self._known:
            self._known[product] = self._measured(*(PRODUCT if product else CONVOLUTION))
        return self._known[product]

    def _measured(self, layer: LayerShape, shape: tuple[int, ...]) -> int:
        reference, *narrow = (
            in_precision((_with_outputs(layer, WIDTH - step // 2),), self._precision) for step in (0, *STEPS)
        )
        found = 1
        for step, share in zip(STEPS, self._table.latencies(reference, narrow, shape).shares):
            if share < FLAT:
                break
            found = step
        return found


def _with_outputs(layer: LayerShape, count: int) -> LayerShape:
    weight = (count, *layer.weight[1:]) if layer.op == "Conv" else (*layer.weight[:-1], count)
    return replace(layer, weight=weight)
