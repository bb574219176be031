"""Which target is fastest on this machine: one small network, timed in each, and remembered.

What passes that choose by the clock measure in where the user names no target. The network is a stack of
3×3 convolutions, in floats and in int8. Passes go by the floats as each target computes them by itself: one
that takes fewer bits for them gains by that here as it does for the user.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Mapping, Sequence
from functools import cache
from importlib import import_module

from nncompress import extras
from nncompress.benchmarking.latency.layer import medians
from nncompress.benchmarking.latency.layer_file import LayerShape, in_precision
from nncompress.errors import NNCompressError, Told, UsageError
from nncompress.runtimes import RUNTIMES
from nncompress.runtimes.on_openvino import by_itself, need_precision, precisions
from nncompress.targets import TARGETS, Target, target
from nncompress.targets.speed import Speed, remember, remembered, timeable, to_json

WIDTH, SIZE, DEPTH = 64, 28, 6  # channels, pixels, layers: a few ms, as one stage of a small classifier
NETWORK = (LayerShape("Conv", (WIDTH, WIDTH, 3, 3), (("pads", (1, 1, 1, 1)),)),) * DEPTH


def clocked(name: str | None, *ends_in: str | None) -> Target:
    """The target that latencies are measured in: the named one, or the fastest one here.

    Args:
        ends_in: the precisions that the result may run in, see `fastest`.

    Raises:
        UsageError: there is no such target, or nothing here runs its files on this processor.
        MissingExtraError: its runtime is not installed.
    """
    if name is None:
        return TARGETS[fastest(*ends_in)]
    chosen = target(name)
    if not chosen.runtime or chosen.device == "cuda":
        raise UsageError(
            f"latencies for {name} cannot be measured here",
            expected=", ".join(t.name for t in TARGETS.usable() if t.runtime and t.device != "cuda"),
            remedy="name one of these, or leave --target out; a pass has budgets without a clock (--macs), "
            f"and export --target {name} writes the result",
        )
    chosen.need()
    return chosen


def layer_clock(name: str | None, *ends_in: str | None) -> Target:
    """As `clocked`, for single layers: these are written as `.onnx` files.

    Raises:
        UsageError: also where the target does not read these.
    """
    chosen = clocked(name, *ends_in)
    if ".onnx" not in chosen.suffixes:
        raise UsageError(
            f"single layers cannot be timed in {chosen.name}",
            expected=", ".join(t.name for t in TARGETS.usable() if t.device == "cpu" and t.runtime),
            remedy="choose by another measure (--macs, --relative), or by a target of this processor",
        )
    return chosen


def floats_in(where: Target, precision: str | None) -> str | None:
    """The precision to ask its runtime for; None for one that it has by itself, or int8.

    Raises:
        UsageError: it computes floats in float32 alone.
        DeviceError: this processor does not compute in it.
    """
    asked = None if precision == "int8" else precision
    if asked is None or not RUNTIMES[where.runtime].precisions:
        if asked == "bfloat16":
            others = [t.name for t in TARGETS.usable() if t.runtime and RUNTIMES[t.runtime].precisions]
            raise UsageError(
                f"{where.runtime_name} computes floats in float32",
                got="--for bf16",
                remedy=f"--target {' or '.join(others)}, or leave --for out",
            )
        return None
    if where.runtime == "openvino":
        need_precision(asked)
    return asked


def fastest(*ends_in: str | None) -> str:
    """The name of the target that takes the least time.

    Args:
        ends_in: in any of these precisions; None among them, as where there are none, is floats, as each
            computes them by itself.
    """
    there = [t.name for t in _there()] or ["ort-cpu"]
    measured = speeds() if len(there) > 1 else {}
    return min(there, key=lambda name: measured[name].least(*ends_in) if measured else 0.0)


def computes_in(name: str) -> str:
    """The precision in which a target of ours computes floats here unless it is told otherwise."""
    return by_itself() if name == "openvino" else "float32"


@cache
def speeds() -> Mapping[str, Speed]:
    """Of each target that can be timed here, measured once per machine and versions; none where one fails."""
    try:
        return timed(_there())
    except NNCompressError as error:
        warnings.warn(f"no runtime is timed, as one fails: {_said(error)}", Told, stacklevel=2)
        return {}


def timed(there: Sequence[Target]) -> dict[str, Speed]:
    """Of each of these.

    Raises:
        NNCompressError: one fails.
    """
    found = remembered(there)
    if not found:
        found = _measured(there)
        remember(there, found)
    return found


def broken() -> dict[str, str]:
    """Targets that would be timed if their runtimes, which are installed, could be imported, and why not."""
    return {t.name: why for t in timeable() if (why := _fault(t))}


def _there() -> list[Target]:
    return [t for t in timeable() if not _fault(t)]


def _fault(candidate: Target) -> str:
    """Why its runtime cannot be imported; "" where it can."""
    try:
        import_module(candidate.runtime)
    except extras.LACKING as error:  # half an installation, a library that is missing
        return str(error) or type(error).__name__
    return ""


def _measured(there: Sequence[Target]) -> dict[str, Speed]:
    arms = [(in_precision(NETWORK, precision), each) for each in there for precision in _precisions(each)]
    seconds = medians(arms, (1, WIDTH, SIZE, SIZE))
    took = dict(zip([(each.name, chain[0].precision) for chain, each in arms], seconds))
    return {
        each.name: Speed(computes_in(each.name), {p: took[each.name, p] for p in _precisions(each)})
        for each in there
    }


def _precisions(each: Target) -> tuple[str, ...]:
    return (*(precisions() if RUNTIMES[each.runtime].precisions else ("float32",)), "int8")


def _said(error: NNCompressError) -> str:
    return f"{error.what}: {error.got}" if error.got else error.what


def main() -> None:
    """The process of its own in which `doctor` has targets timed: their names in, their speeds on stdout."""
    there = [TARGETS[name] for name in sys.argv[1:]]
    try:
        found = timed(there)
    except NNCompressError as error:
        sys.exit(_said(error))
    print(json.dumps(to_json(found)))


if __name__ == "__main__":
    main()
