"""Where a day of work would pay: every layer's time in a target now, in int8, and at half the width.

Single layers with random weights, one sample, one thread, remembered per machine (`table`). Layers that
follow each other may take less, where the runtime fuses them, or more; the whole model is timed beside them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from nncompress.benchmarking.latency.layer_file import Chain, LayerShape, in_precision, shape_of
from nncompress.benchmarking.latency.model import ModelLatency
from nncompress.benchmarking.latency.table import LatencyTable
from nncompress.benchmarking.latency.target import computes_in, floats_in, layer_clock
from nncompress.errors import DeviceError, UsageError
from nncompress.ir import Model
from nncompress.ir.formats.qdq import is_dequantized
from nncompress.ir.graph.shapes import Shapes
from nncompress.ir.layers.weights import Layer, layers
from nncompress.progress import Progress


@dataclass(frozen=True)
class LayerForecast:
    """One layer.

    Attributes:
        name, kind, weight: as `inspect` has them.
        precision: that it is timed in now: "int8" where it takes bytes and its weight is bytes (whether the
            target has a kernel for that or not), else that in which the target computes floats by itself.
        seconds: now.
        share: of the whole model's seconds; of the sum of all layers' where that is more, since a layer by
            itself also puts what it reads and gives in another order, which between layers is left out.
        int8: seconds between layers in int8; None where it is in int8 already.
        bf16: seconds in bfloat16; None where it is in int8, or the target does not compute in that here.
        half: seconds in the same precision with half the outputs, of a depthwise one half the channels; None
            where there is no half.
    """

    name: str
    kind: str
    weight: tuple[int, ...]
    precision: str
    seconds: float
    share: float
    int8: float | None
    bf16: float | None
    half: float | None


@dataclass(frozen=True)
class Forecast:
    """All layers.

    Attributes:
        target: where.
        floats: the precision in which it computes floats by itself here.
        no_bf16: why the target does not compute in bfloat16 here; "" where it does.
        seconds: of the whole model, as it is.
        saved: of these, what all layers in int8 would save, where that is faster: in proportion, where layers
            by themselves take more than the whole.
        skipped: layer and why it was not timed.
        unkept: why all of this is measured again next time; "" where it is remembered.
    """

    target: str
    floats: str
    no_bf16: str
    seconds: float
    saved: float
    layers: tuple[LayerForecast, ...]
    skipped: tuple[tuple[str, str], ...]
    unkept: str


def forecast(model: Model, target: str, progress: Progress) -> Forecast:
    """Time the layers of a model, and the whole of it.

    Args:
        target: a name of `nncompress.targets`.

    Raises:
        UsageError: there is no such target, or single layers cannot be timed in it.
        MissingExtraError: its runtime is not installed.
        UnsupportedError: the model cannot be exported for it.
    """
    where = layer_clock(target)
    floats = computes_in(where.name)
    no_bf16 = ""
    try:
        floats_in(where, "bfloat16")
    except (UsageError, DeviceError) as error:
        no_bf16 = error.what
    with ModelLatency(model, progress, where) as latency:
        whole = latency.seconds()
    shapes, table = Shapes(model), LatencyTable(where)
    found, skipped = [], []
    every = list(layers(model))
    for done, layer in enumerate(every):
        progress.step("timing layers", done, len(every))
        shape = shape_of(layer)
        if isinstance(shape, LayerShape) and layer.weight.value().dtype.itemsize != 4:
            shape = f"its weight is {str(layer.weight.value().dtype).removeprefix('torch.')}"
        if isinstance(shape, str):
            skipped.append((layer.name, shape))
        else:
            found.append(_timed(layer, shape, shapes.of(layer.data), table, floats, not no_bf16))
    progress.step("timing layers", len(every), len(every))
    most = max(whole, sum(row.seconds for row in found))
    found = [replace(row, share=row.seconds / most) for row in found]
    saved = sum(row.seconds - min(row.seconds, row.int8) for row in found if row.int8 is not None)
    every_layer = (tuple(found), tuple(skipped))
    return Forecast(where.name, floats, no_bf16, whole, saved * whole / most, *every_layer, table.unkept)


def _timed(
    layer: Layer,
    shape: LayerShape,
    given: tuple[int, ...],
    table: LatencyTable,
    floats: str,
    bf16: bool,
) -> LayerForecast:
    integer = layer.weight.quantized and is_dequantized(layer.data)
    now: Chain = in_precision((shape,), "int8" if integer else "")
    halved, given_halved = half(now[0], given)
    others = [] if integer else [in_precision(now, each) for each in ("int8", "bfloat16")[: 1 + bf16]]
    beside = [(halved,)] if halved is not None and given_halved == given else []
    times = table.latencies(now, [*others, *beside], given)
    seconds = [times.reference * share for share in times.shares]
    narrow = seconds[-1] if beside else None
    if halved is not None and not beside:
        narrow = table.latencies((halved,), [], given_halved).reference
    return LayerForecast(
        layer.name,
        layer.kind,
        tuple(layer.weight.value().shape),
        "int8" if integer else floats,
        times.reference,
        1.0,
        None if integer else seconds[0],
        seconds[1] if bf16 and not integer else None,
        narrow,
    )


def half(layer: LayerShape, given: tuple[int, ...]) -> tuple[LayerShape | None, tuple[int, ...]]:
    """The layer with half its outputs, and the shape of what it is given: half as many channels where each
    has filters of its own. None where it cannot be halved: one output, or groups of channels."""
    groups = dict(layer.attributes).get("group", 1)
    assert isinstance(groups, int)
    if groups == 1:
        dim = 0 if layer.op == "Conv" else 1
        outputs = layer.weight[dim] // 2
        weight = (*layer.weight[:dim], outputs, *layer.weight[dim + 1 :])
        return (replace(layer, weight=weight) if outputs else None), given
    each = layer.weight[0] // groups if layer.op == "Conv" else layer.weight[1]
    if groups != given[1] or groups < 2:
        return None, given
    fewer = groups // 2
    weight = (fewer * each if layer.op == "Conv" else fewer, *layer.weight[1:])
    attributes = tuple((name, fewer if name == "group" else value) for name, value in layer.attributes)
    return replace(layer, weight=weight, attributes=attributes), (given[0], fewer, *given[2:])
