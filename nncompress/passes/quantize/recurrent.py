"""Fused recurrent layers: their matrices in int8, each gate's unit with a scale of its own.

ONNX Runtime has one int8 kernel for them, for LSTMs, that rounds their inputs and states to the range of each
step. So the input of an LSTM is rounded to its own range where that kernel is meant to run; of a GRU it stays
as it is, since that would only cost.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatch

from torch import Tensor

from nncompress.ir import Model
from nncompress.ir.edit.recurrent.inputs import one_node_each
from nncompress.ir.formats.qdq import insert_dynamic, round_weight, store_int8
from nncompress.ir.layers.recurrent import RecurrentLayer, recurrent_layers
from nncompress.ir.layers.weights import Layer, Weight
from nncompress.passes.base import Change

WITH_INT8_KERNEL = "lstm"


def one_layer_each(model: Model, keep: Collection[str]) -> None:
    """Nodes of several layers as one node a layer, in place; calls `model.refresh()` if there was one.

    What each hands on is then seen, and can be rounded as the kernel rounds it. Those that stay in float as a
    whole stay one node.
    """
    layers = (layer for layer in recurrent_layers(model) if layer.kind == WITH_INT8_KERNEL)
    one_node_each(model, [layer for layer in layers if not _matches(layer, keep)])


def choose_recurrent(model: Model, keep: Collection[str]) -> tuple[list[RecurrentLayer], list[Change]]:
    """Those to quantize, and a record of each that is skipped with the reason."""
    chosen, left = [], []
    found = list(recurrent_layers(model))
    kept = {  # also by others that read the same
        weight.name for layer in found for weight in layer.matrices if _matches(layer, keep)
    }
    for layer in found:
        if _matches(layer, keep) or any(weight.name in kept for weight in layer.matrices):
            left.append(Change(layer.name, "left in float by --keep", applied=False))
        elif not layer.matrices:
            left.append(Change(layer.name, "skipped: its weights are computed", applied=False))
        elif all(each.quantized for each in layer.matrices):
            left.append(Change(layer.name, "skipped: quantized already", applied=False))
        else:
            chosen.append(layer)
    return chosen, left


def _matches(layer: RecurrentLayer, patterns: Collection[str]) -> bool:
    names = layer.name, layer.name.partition("#")[0]  # one of several layers of a module
    return any(fnmatch(name, pattern) for pattern in patterns for name in names)


def weights_of(chosen: Sequence[Layer], recurrent: Sequence[RecurrentLayer]) -> list[Weight]:
    """Of both, those that are rounded."""
    return [layer.weight for layer in chosen] + [each for layer in recurrent for each in layer.matrices]


def without_groups(layers: Sequence[RecurrentLayer]) -> list[Change]:
    """What --group-size makes of them: nothing."""
    what = "skipped: a recurrent layer, whose weights have no groups"
    return [Change(layer.name, what, applied=False) for layer in layers]


def bytes_saved(layers: Sequence[RecurrentLayer]) -> int:
    """By rounding them to 8 bits."""
    values = {weight.name: weight.value() for layer in layers for weight in layer.matrices}
    return sum(3 * value.numel() - 4 * len(value) for value in values.values())


def for_the_kernel(mode: str, target: str | None, bits: int) -> bool:
    """Are LSTMs meant for the int8 kernel? With --mode static only where the target has it."""
    asked = target == "ort-cpu" or (target is None and mode == "dynamic")
    return asked and mode in ("dynamic", "static") and bits > 4  # fewer are stored as int4


def round_recurrent(
    model: Model, chosen: Sequence[RecurrentLayer], bits: Mapping[str, int], *, integers: bool
) -> list[Change]:
    """Quantize `chosen`; the model still has to be refreshed.

    Args:
        bits: of weights, by name, that have others than 8.
        integers: for the int8 kernel: inputs of LSTMs are rounded to the range of each call, too.
    """
    changes = []
    done: set[str] = set()
    for layer in chosen:
        before = after = 0
        each = bits.get(layer.matrices[0].name, 8)
        for weight in layer.matrices:
            if weight.quantized or weight.name in done:  # read by a layer before it
                continue
            value = weight.value()
            stored, scales = round_weight(value, 0, each)
            before += 4 * value.numel()
            after += stored.numel() * (4 if each <= 4 else 8) // 8 + 4 * scales.numel()
            store_int8(model, weight.name, stored, scales, 0, each)
            done.add(weight.name)
        what = "int8 weights" if each == 8 else f"weights of {each} bits"
        if integers and layer.kind == WITH_INT8_KERNEL and not layer.projects:
            insert_dynamic(layer.data, [layer.node])
            what += ", inputs on the range of each call"
        else:
            what += ", float arithmetic"
        changes.append(Change(layer.name, what, {"bits": each, "bytes_before": before, "bytes": after}))
    return changes


def rounded_weights(layer: RecurrentLayer, bits: Mapping[str, int]) -> dict[str, Tensor]:
    """Its matrices as they would be, by name."""
    found = {}
    for weight in layer.matrices:
        stored, scales = round_weight(weight.value(), 0, bits.get(weight.name, 8))
        found[weight.name] = stored * scales[:, None]
    return found


def by_first_matrix(layers: Sequence[RecurrentLayer]) -> dict[str, list[RecurrentLayer]]:
    """The layers that share weights, by the name of one."""
    shared: dict[str, list[RecurrentLayer]] = {}
    for layer in layers:
        shared.setdefault(layer.matrices[0].name, []).append(layer)
    return shared
