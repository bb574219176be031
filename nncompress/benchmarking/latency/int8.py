"""What int8 costs and saves in a target: layers in both precisions, and the conversions between them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import fx

from nncompress.analysis.int8_cut import Times
from nncompress.benchmarking.latency.forecast import half
from nncompress.benchmarking.latency.layer_file import LayerShape, in_precision, shape_of
from nncompress.benchmarking.latency.table import LatencyTable
from nncompress.errors import NNCompressError
from nncompress.ir import Model
from nncompress.ir.graph.shapes import Shapes
from nncompress.ir.layers.weights import Layer
from nncompress.progress import Progress
from nncompress.targets import Target

QUANTIZE = (LayerShape("QuantizeLinear", ()),)
DEQUANTIZE = (LayerShape("DequantizeLinear", (), precision="int8"),)


@dataclass(frozen=True)
class Int8Times:
    """Seconds for one sample and one thread.

    Attributes:
        layers: of those that could be timed, by name.
        untimed: the others, and why.
        unkept: why all of this is measured again next time; "" where it is remembered.
    """

    layers: dict[str, Times]
    untimed: dict[str, str]
    _timed: dict[str, Layer]
    _shapes: Shapes
    _table: LatencyTable

    def halved(self, name: str) -> Times | None:
        """Of a layer that could be timed with half its outputs, of a depthwise one half its channels; None
        where there is no half, or that cannot be timed."""
        layer = self._timed[name]
        shape = shape_of(layer)
        assert not isinstance(shape, str)
        narrow, given = half(shape, self._shapes.of(layer.data))
        try:
            return None if narrow is None else _times(narrow, given, self._table)
        except NNCompressError:
            return None

    def conversion(self, value: fx.Node) -> Times:
        """Of a value to bytes and back."""
        found = self._table.latencies(QUANTIZE, [DEQUANTIZE], self._shapes.of(value))
        return Times(found.reference * found.shares[0], found.reference)

    @property
    def unkept(self) -> str:
        return self._table.unkept


def int8_times(model: Model, layers: Sequence[Layer], where: Target, progress: Progress) -> Int8Times:
    """Time float layers as the target computes them by itself, and between bytes.

    Args:
        where: from `layer_clock`.
    """
    shapes, table = Shapes(model), LatencyTable(where)
    found, untimed = {}, {}
    for done, layer in enumerate(layers):
        progress.step(f"timing layers in {where.runtime_name}", done, len(layers))
        shape = shape_of(layer)
        if isinstance(shape, str):
            untimed[layer.name] = shape
            continue
        found[layer.name] = _times(shape, shapes.of(layer.data), table)
    progress.step(f"timing layers in {where.runtime_name}", len(layers), len(layers))
    timed = {layer.name: layer for layer in layers if layer.name in found}
    return Int8Times(found, untimed, timed, shapes, table)


def _times(shape: LayerShape, given: tuple[int, ...], table: LatencyTable) -> Times:
    floats = (shape,)
    times = table.latencies(floats, [in_precision(floats, "int8")], given)
    return Times(times.reference, times.reference * times.shares[0])
