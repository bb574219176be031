"""Quantities as people type them: durations, shares, lists of counts."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

from nncompress.errors import UsageError

_SECONDS = {"ms": 1e-3, "s": 1.0, "": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_BYTES = {"b": 1.0, "": 1.0, "kb": 1e3, "mb": 1e6, "gb": 1e9}
_WITH_UNIT = re.compile(r"(\d+\.?\d*|\.\d+)\s*([a-z%]*)")
_PERCENT = re.compile(r"(\d+\.?\d*|\.\d+)\s*(%?)")


def seconds(text: str, option: str) -> float:
    """ "10s", "500ms", "2m", "90" -> seconds.

    Raises:
        UsageError: naming the option; also for zero.
    """
    return _positive(_SECONDS, text, f"{option} is no duration", "10s, 500ms, 2m, 1h, or seconds")


def fraction(text: str, option: str) -> float:
    """ "1%", "0.01" -> 0.01.

    Raises:
        UsageError: naming the option.
    """
    match = _PERCENT.fullmatch(text.strip())
    value = float(match[1]) / (100 if match[2] else 1) if match else math.nan
    if not 0 <= value < 1:
        raise UsageError(f"{option} is no share", got=text, expected="1% or 0.01, below 100%")
    return value


def counts(text: str, option: str) -> tuple[int, ...]:
    """ "1,8,32" -> (1, 8, 32), each once and in the order given.

    Raises:
        UsageError: naming the option.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(re.fullmatch(r"\d{1,9}", part) and int(part) > 0 for part in parts):
        raise UsageError(f"{option} is no list of counts", got=text, expected="8, or 1,8,32")
    return tuple(dict.fromkeys(int(part) for part in parts))


def bytes_(text: str, option: str) -> float:
    """ "1MB", "300 kB", "5000" -> bytes, in powers of 1000.

    Raises:
        UsageError: naming the option; also for zero.
    """
    return _positive(_BYTES, text, f"{option} is no size", "300kB, 1.5MB, bytes, or 30%")


def size(text: str, option: str, whole: float) -> float:
    """As `bytes_`, or "30%" of `whole`.

    Raises:
        UsageError: naming the option; also for zero.
    """
    if not text.strip().endswith("%"):
        return bytes_(text, option)
    return whole * _positive({"%": 0.01}, text, f"{option} is no share", "30%, or 300kB")


def _positive(units: Mapping[str, float], text: str, wrong: str, expected: str) -> float:
    """The number times its unit.

    Raises:
        UsageError: it is none, or zero, or the unit is unknown.
    """
    match = _WITH_UNIT.fullmatch(text.strip().lower())
    value = float(match[1]) * units.get(match[2], math.nan) if match else math.nan
    if not value > 0:
        raise UsageError(wrong, got=text, expected=expected)
    return value
