"""Layers left in float where int8 takes longer in the target, by the clock of this machine.

What layers and conversions take comes from the machine's table of latencies, one by one; which of them stay
in float is decided for all at once (`nncompress.analysis.int8_cut`). A runtime fuses layers that stand next
to each other, so the whole model is then timed: in floats, all in int8, and with these layers in float.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from nncompress.analysis.int8_cut import Int8Cut, Times
from nncompress.benchmarking.latency.int8 import Int8Times, int8_times
from nncompress.benchmarking.latency.model import ModelLatency
from nncompress.benchmarking.latency.target import layer_clock
from nncompress.errors import MissingExtraError, NNCompressError, UsageError
from nncompress.ir import Model
from nncompress.ir.factors import Product
from nncompress.ir.layers.weights import Layer
from nncompress.passes.base import Context
from nncompress.passes.quantize.choose import choose, integer_layers
from nncompress.passes.quantize.equalization.condition import condition
from nncompress.passes.quantize.prepare import prepare
from nncompress.passes.quantize.round import Left
from nncompress.progress import Progress
from nncompress.results import Estimate
from nncompress.runtimes.on_openvino import by_itself
from nncompress.targets import Target

UNCHANGED = Estimate(1.0, 1.0, 1.0)


def slow_in_int8(
    model: Model,
    integer: Sequence[Layer],
    products: Sequence[Product],
    mode: str,
    rounded: Callable[[Left], Model],
    context: Context,
) -> Left:
    """The layers and products of activations to leave in float, for the speed of `context.target`. What was
    measured is in the notes.

    Args:
        model: in floats.
        integer: its layers whose activations would be rounded.
        products: of activations, that would be rounded.
        rounded: a copy of it in int8 without these layers.
    """
    if not integer and not products:
        return {}
    where = _clock(mode, context)
    if where is None:
        return {}
    times = int8_times(model, integer, where, context.progress)
    cut = Int8Cut(model, integer, times.conversion, float_results=where.float_results)
    names, _ = cut.least(times.layers)
    _tell_what_is_unknown(times, where, context)
    left = {name: _why(times.layers.get(name)) for name in sorted(names)}
    return _fastest(model, rounded, left, products, len(integer), where, context)


@dataclass(frozen=True)
class TimedLayers:
    """The layers that `quantize` would round, by the times of single ones.

    Attributes:
        names: of all of them, in graph order.
        times: of those that could be timed.
        cut: which of them to run in int8.
    """

    names: tuple[str, ...]
    times: Int8Times
    cut: Int8Cut

    def slower(self) -> tuple[str, ...]:
        """Those that `quantize` had better leave in float."""
        return tuple(sorted(self.cut.least(self.times.layers)[0]))


def timed_layers(model: Model, where: Target, progress: Progress) -> TimedLayers:
    """Of a model in floats.

    Args:
        where: from `layer_clock`.
    """
    copied = model.copy()
    prepare(copied, include_head=False)
    condition(copied, "static", (), False, Context())
    integer = integer_layers(choose(copied, ())[0], "static")
    times = int8_times(copied, integer, where, progress)
    cut = Int8Cut(copied, integer, times.conversion, float_results=where.float_results)
    return TimedLayers(tuple(layer.name for layer in integer), times, cut)


def _clock(mode: str, context: Context) -> Target | None:
    """Where layers are timed; None, said in a note, where they cannot be."""
    told = f"every layer is rounded, whether that is faster in {context.target} or not"
    if mode != "static":
        context.notes.append(f"{told}: layers are timed for --mode static")
        return None
    try:
        return layer_clock(context.target)
    except (UsageError, MissingExtraError) as error:
        context.notes.append(f"{told}: {error.what}")
        return None


def _tell_what_is_unknown(times: Int8Times, where: Target, context: Context) -> None:
    if times.untimed:
        name, why = next(iter(times.untimed.items()))
        others = len(times.untimed) - 1
        several = f" and {others} more" if others else ""
        context.notes.append(
            f"not timed in {where.runtime_name}, so as its neighbours: {name} ({why}){several}"
        )
    if times.unkept:
        context.notes.append(f"the times of layers are not kept: {times.unkept}")


def _why(times: Times | None) -> str:
    if times is None:
        return "left in float, as its neighbours"
    share = times.int8 / times.floats
    more = "" if share >= 1 else ", and the rounding around it more than that saves"
    return f"left in float: int8 takes {share:.2f}x there{more}"


def _fastest(
    original: Model,
    rounded: Callable[[Left], Model],
    left: Left,
    products: Sequence[Product],
    count: int,
    where: Target,
    context: Context,
) -> Left:
    """`left`, or nothing where the whole model is no faster for it. Says what was measured.

    Args:
        left: layers that are slower in int8 by themselves, and why they stay in float.
        products: of activations, that would be rounded.
        count: of the layers that could run in int8.
    """
    name, floats = where.runtime_name, by_itself() if where.name == "openvino" else "float32"
    none_left = bool(left) and len(left) == count  # that would run in int8
    apart = {product.name: f"left in {floats}: the model is faster so" for product in products}
    try:
        with ModelLatency(original, context.progress, where) as clock:
            whole = clock.glance(rounded({}))
            mixed = UNCHANGED if none_left else clock.glance(rounded(left)) if left else whole
            chosen, best = (left, mixed) if left and mixed.value < whole.value else ({}, whole)
            plain = clock.glance(rounded({**chosen, **apart})) if apart and best is not UNCHANGED else best
    except NNCompressError as error:
        context.notes.append(f"the whole model was not timed in {name}: {error.what}")
        return {**left, **apart} if none_left else left
    told = f"in {name} here the model takes {_text(whole)} of its time in {floats} with every layer in int8"
    if chosen:
        told += "" if none_left else f", {_text(mixed)} with {len(left)} of {count} in float"
    elif left:
        told += f"; with {len(left)} of {count} in float {_text(mixed)}, so none is"
    left = chosen
    if best is UNCHANGED:
        left = {**left, **apart}
    elif apart:
        told += f"; with its products of activations in {floats} {_text(plain)}"
        if plain.high < best.low:  # they are a few per cent of it, which a glance does not tell apart
            left, best = {**left, **apart}, plain
            told += ", so they are"
    if best.value >= 1:
        surely = (whole if best is UNCHANGED else best).low > 1
        told += (
            f". Plain {floats} is {'faster there' if surely else 'as fast there, as far as this tells'}: "
            f"nncompress export MODEL -o FILE.onnx --target {where.name}, without quantize"
        )
    if left:
        told += ". --every-layer rounds all, for the size of the file"
    context.notes.append(told)
    return left


def _text(share: Estimate) -> str:
    return f"{share.value:.2f} [{share.low:.2f}, {share.high:.2f}]"
