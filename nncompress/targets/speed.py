"""How fast the targets of this processor are, as it was measured last: kept per machine and versions.

It is measured in `nncompress.benchmarking.latency.target`; to read it takes no runtime.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from nncompress.devices import machine
from nncompress.extras import module_version
from nncompress.files.remembered import Remembered
from nncompress.targets import OURS, Target


@dataclass(frozen=True)
class Speed:
    """Of one target, for one network.

    Attributes:
        computes_in: the precision in which it computes floats here unless it is told otherwise.
        seconds_in: of one run, by precision.
    """

    computes_in: str
    seconds_in: Mapping[str, float]

    @property
    def seconds(self) -> float:
        """Of one run in floats, as it computes them by itself."""
        return self.seconds_in[self.computes_in]

    def least(self, *ends_in: str | None) -> float:
        """Of one run in the fastest of these precisions that there are; None, as no precision, is floats."""
        asked = (each or self.computes_in for each in ends_in or (None,))
        return min(self.seconds_in.get(each, math.inf) for each in asked)


def row(target: Target, speed: Speed | None) -> dict[str, Any]:
    """As a user reads it; None: it was not timed."""
    return {
        "name": target.name,
        "title": target.title,
        "computes_in": speed and speed.computes_in,
        "seconds": speed and speed.seconds,
        "seconds_in": dict(speed.seconds_in) if speed else {},
    }


def timeable() -> list[Target]:
    """Those of ours that are installed and run `.onnx` files on this processor: the others' times are not
    comparable, and those of other packages run where they are named."""
    return [t for t in OURS if t.device == "cpu" and ".onnx" in t.suffixes and t.installed]


def remembered(there: Sequence[Target]) -> dict[str, Speed]:
    """By name; nothing where these were not measured on this machine."""
    return from_json(_file(there).read().get("speeds"), there)


def remember(there: Sequence[Target], found: Mapping[str, Speed]) -> None:
    """For the next process."""
    _file(there).write({"speeds": to_json(found)})


def to_json(found: Mapping[str, Speed]) -> dict[str, Any]:
    """By name."""
    return {name: asdict(each) for name, each in found.items()}


def from_json(kept: Any, there: Sequence[Target]) -> dict[str, Speed]:
    """What `to_json` gave of these targets; nothing where it is anything else."""
    if not isinstance(kept, dict) or set(kept) != {t.name for t in there}:
        return {}
    found = {name: _speed(each) for name, each in kept.items()}
    return {name: each for name, each in found.items() if each} if all(found.values()) else {}


def _file(there: Sequence[Target]) -> Remembered:
    versions = {t.name: module_version(t.runtime) for t in there}
    return Remembered("target-speed", {"machine": machine(), "runtimes": versions})


def _speed(kept: Any) -> Speed | None:
    """None where the file was not written by us."""
    seconds = kept.get("seconds_in") if isinstance(kept, dict) else None
    if not isinstance(seconds, dict) or "int8" not in seconds:
        return None
    whole = all(isinstance(value, float) and 0 < value < 1e6 for value in seconds.values())
    own = kept.get("computes_in")
    return Speed(own, seconds) if whole and isinstance(own, str) and own in seconds else None
