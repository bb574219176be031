"""Numbers of channels for which ONNX Runtime has its fast int8 convolutions.

Its depthwise kernels go through 16 channels at a time, and take twice as long where a channel is left over;
its direct kernels read 4 channels at a time, and elsewhere patches are copied byte by byte. So values between
convolutions get zero channels up to the next such number, which no one else sees:

    conv (40 outputs), relu, depthwise (40), conv (40 inputs)  ->  48 everywhere between the two

An image gets its fourth channel as padding. A 1×1 convolution of each channel alone (a batch norm that could
not be folded) becomes a diagonal matrix where that is faster, which may also add channels. The bounds were
measured alone, on one thread (`benchmarks/int8/channels.py`).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from nncompress.exporting.lower.onnxruntime.edit import CLAMPS, array, insert, producer, store

DEPTHWISE = 16
DENSE = 4
MOST_DIAGONAL = 48  # channels up to which a diagonal matrix takes less time than a depthwise kernel
MOST_DIAGONAL_ODD = 96  # … where there are channels left over
MOST_PADDED = 8  # channels of an input: beyond, the copy costs more than it saves


def lower_channels(graph: ir.Graph) -> int:
    """Rewrite in place, how many activations and convolutions; the values stay the same."""
    count = 0
    between = _values(graph)
    for values in _chains(between):
        channels = values[0].channels
        step = DEPTHWISE if any(_depthwise(conv) for value in values for conv in value.readers) else DENSE
        if channels % step and all(value.source is not None for value in values):
            _widen(graph, values, -channels % step)
            count += len(values)
    for value in _values(graph):
        if value.source is None and value.channels % DENSE and value.channels <= MOST_PADDED:
            _pad(graph, value)
            count += 1
    for node in list(graph):
        if node.op_type == "Conv" and _pointwise(node) and _diagonal_pays(node):
            _make_diagonal(graph, node)
            count += 1
    return count


@dataclass(frozen=True)
class _Value:
    """Rounded activations that only convolutions read.

    Attributes:
        source: the int8 convolution that alone computes it; None for anything else.
        path: what carries its channels, from the convolution's result on.
        rounded: the node that rounds it.
    """

    source: ir.Node | None
    path: tuple[ir.Value, ...]
    rounded: ir.Node
    readers: tuple[ir.Node, ...]
    channels: int


def _values(graph: ir.Graph) -> list[_Value]:
    found = []
    for node in graph:
        if node.op_type != "QuantizeLinear" or node.outputs[0].is_graph_output():
            continue
        shape = node.outputs[0].shape
        dequantized = [use.node for use in node.outputs[0].uses()]
        readers = [use for each in dequantized for output in each.outputs for use in output.uses()]
        outputs = [node.outputs[0], *(each.outputs[0] for each in dequantized)]
        plain = all(each.op_type == "DequantizeLinear" for each in dequantized)
        if not plain or not readers or any(value.is_graph_output() for value in outputs[1:]):
            continue
        if shape is None or len(shape) < 3 or not isinstance(shape[1], int):
            continue
        if any(use.idx != 0 or not _integer(use.node) for use in readers):
            continue
        source, path = _source(node)
        convs = tuple(dict.fromkeys(use.node for use in readers))
        found.append(_Value(source, (*path, *outputs), node, convs, shape[1]))
    return found


def _source(quantize: ir.Node) -> tuple[ir.Node | None, list[ir.Value]]:
    path: list[ir.Value] = []
    value = quantize.inputs[0]
    while value is not None and len(list(value.uses())) == 1 and not value.is_graph_output():
        path.insert(0, value)
        node = value.producer()
        if node is None or node.op_type not in (*CLAMPS, "Conv"):
            break
        if node.op_type == "Conv":
            return (node, path) if _integer(node) else (None, [])
        value = node.inputs[0]
    return None, []


def _chains(values: list[_Value]) -> list[list[_Value]]:
    """Values that have to have equally many channels: those before and behind a depthwise convolution."""
    behind = {id(value.source): value for value in values if value.source is not None}
    chains: list[list[_Value]] = []
    seen: set[int] = set()
    for first in values:
        if id(first) in seen or (first.source is not None and _depthwise(first.source)):
            continue
        chain, complete = [first], True
        for value in chain:
            for conv in value.readers:
                if _depthwise(conv):
                    following = behind.get(id(conv))
                    complete = complete and following is not None
                    chain += [following] if following is not None else []
        seen.update(id(value) for value in chain)
        if complete:
            chains.append(chain)
    return chains


def _integer(conv: ir.Node) -> bool:
    """A convolution of stored int8 weights that are its own, dense or depthwise."""
    kernel = producer(conv.inputs[1], "DequantizeLinear") if conv.op_type == "Conv" else None
    weight = array(kernel.inputs[0]) if kernel is not None else None
    if kernel is None or weight is None or weight.dtype != np.int8 or len(list(kernel.outputs[0].uses())) > 1:
        return False
    if any(np.any(zero) for zero in [array(each) for each in kernel.inputs[2:]]):
        return False
    if len(conv.inputs) > 2 and conv.inputs[2] is not None and array(conv.inputs[2]) is None:
        return False
    groups = _groups(conv)
    return groups == 1 or (groups == weight.shape[0] and weight.shape[1] == 1)


def _groups(conv: ir.Node) -> int:
    return conv.attributes["group"].as_int() if "group" in conv.attributes else 1


def _weight(conv: ir.Node) -> np.ndarray:
    stored = array(conv.inputs[1].producer().inputs[0])  # type: ignore[union-attr]
    assert stored is not None
    return stored


def _pointwise(conv: ir.Node) -> bool:
    """One weight per channel: what can be a diagonal matrix."""
    if not _integer(conv) or _groups(conv) == 1:
        return False
    strides = conv.attributes["strides"].as_ints() if "strides" in conv.attributes else [1]
    pads = conv.attributes["pads"].as_ints() if "pads" in conv.attributes else [0]
    return prod(_weight(conv).shape[1:]) == 1 and max(strides) == 1 and not any(pads)


def _diagonal_pays(conv: ir.Node) -> bool:
    channels = len(_weight(conv))
    return channels <= (MOST_DIAGONAL_ODD if channels % DEPTHWISE else MOST_DIAGONAL)


def _depthwise(conv: ir.Node) -> bool:
    """It has as many outputs as inputs, whatever their number. A diagonal matrix has not."""
    return _groups(conv) > 1 and not (_pointwise(conv) and _diagonal_pays(conv))


def _widen(graph: ir.Graph, values: list[_Value], more: int) -> None:
    sources = {id(value.source): value.source for value in values}
    readers = {id(conv): conv for value in values for conv in value.readers}
    for conv in sources.values():
        assert conv is not None
        if _pointwise(conv) and not _depthwise(conv):
            _make_diagonal(graph, conv)
        _extend(graph, conv, more, outputs=True)
    for key, conv in readers.items():
        if key not in sources or _groups(conv) == 1:
            if _pointwise(conv) and not _depthwise(conv):
                _make_diagonal(graph, conv)
            _extend(graph, conv, more, outputs=False)
    for each in {id(each): each for value in values for each in value.path}.values():
        _resize(each, more)


def _extend(graph: ir.Graph, conv: ir.Node, more: int, *, outputs: bool) -> None:
    """Zero weights for further outputs or inputs."""
    kernel = conv.inputs[1].producer()  # type: ignore[union-attr]
    assert kernel is not None
    stored, scale = _weight(conv), array(kernel.inputs[1])
    assert scale is not None
    widths = [(0, 0)] * stored.ndim
    widths[0 if outputs else 1] = (0, more)
    if outputs and scale.ndim == 1:
        scale = np.concatenate([scale, np.full(more, scale[-1], scale.dtype)])
    _store_weight(graph, conv, np.pad(stored, widths), scale)
    bias = array(conv.inputs[2]) if len(conv.inputs) > 2 else None
    if outputs and bias is not None:
        conv.replace_input_with(2, store(graph, f"{conv.inputs[2].name}_wide", np.pad(bias, (0, more))))  # type: ignore[union-attr]
    if outputs and _groups(conv) > 1:
        conv.attributes["group"] = ir.AttrInt64("group", _groups(conv) + more)


def _make_diagonal(graph: ir.Graph, conv: ir.Node) -> None:
    stored = _weight(conv)
    scale = array(conv.inputs[1].producer().inputs[1])  # type: ignore[union-attr]
    assert scale is not None
    square = np.diag(stored.reshape(-1)).reshape(len(stored), len(stored), *stored.shape[2:])
    _store_weight(graph, conv, square, scale)
    conv.attributes.pop("group", None)


def _store_weight(graph: ir.Graph, conv: ir.Node, stored: np.ndarray, scale: np.ndarray) -> None:
    kernel = conv.inputs[1].producer()  # type: ignore[union-attr]
    assert kernel is not None
    name = kernel.inputs[0].name  # type: ignore[union-attr]
    inputs = [
        store(graph, f"{name}_wide", np.ascontiguousarray(stored)),
        store(graph, f"{kernel.inputs[1].name}_wide", scale),  # type: ignore[union-attr]
        store(graph, f"{name}_wide_zero", np.zeros(scale.shape, np.int8)),
    ]
    node = ir.node("DequantizeLinear", inputs, {"axis": 0} if scale.ndim else {})
    conv.replace_input_with(1, insert(graph, conv, node))


def _resize(value: ir.Value, more: int) -> None:
    assert value.shape is not None
    sizes = list(value.shape)
    sizes[1] = int(sizes[1]) + more  # type: ignore[arg-type]
    value.shape = ir.Shape(sizes)


def _pad(graph: ir.Graph, value: _Value) -> None:
    """Zero channels behind those of the model's input, before dense convolutions that gather patches."""
    if any(_groups(conv) > 1 or prod(_weight(conv).shape[2:]) == 1 for conv in value.readers):
        return
    rounded = value.rounded.outputs[0]
    assert rounded.shape is not None
    more, rank = -value.channels % DENSE, len(rounded.shape)
    pads = np.zeros(2 * rank, np.int64)
    pads[rank + 1] = more
    zero = value.rounded.inputs[2]
    uses = list(rounded.uses())
    inputs = [rounded, store(graph, f"{rounded.name}_pads", pads), zero]
    padded = insert(graph, uses[0].node, ir.node("Pad", inputs, {"mode": "constant"}), rounded)
    padded.shape = ir.Shape(list(rounded.shape))
    _resize(padded, more)
    for use in uses:
        use.node.replace_input_with(use.idx, padded)
        _resize(use.node.outputs[0], more)
    for conv in value.readers:
        _extend(graph, conv, more, outputs=False)
