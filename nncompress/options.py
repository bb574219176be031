"""Options declared once: the fields of a frozen dataclass are flags, recipe keys and recorded settings.

@dataclass(frozen=True)
class Cluster(Options):
    name = "cluster"
    values: int = option(32, least=2, help="different values per layer")

Cluster(values="16").values   # 16: texts of a command line or a recipe are converted and checked
Cluster(values=1)             # UsageError: cluster: --values is out of range ...
"""

from __future__ import annotations

import math
import operator
import types
import typing
from collections.abc import Callable, Iterable
from dataclasses import MISSING, Field, dataclass, field, fields
from fnmatch import fnmatch
from pathlib import Path
from typing import Any, ClassVar, Literal

from nncompress.errors import UsageError


def option(
    default: Any = MISSING,
    *,
    help: str,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    below: float | None = None,
    metavar: str | None = None,
    choices: Callable[[], tuple[str, ...]] | None = None,
    papers: bool = False,
) -> Any:
    """Declare an option with its help text and its bounds (exclusive `above`/`below`, else inclusive).

    The type comes from the field's annotation: `bool`, `int`, `float`, `str`, a `Literal[...]` of strings,
    or `tuple[str, ...]` (a repeatable flag), each optionally `| None`. `choices` are those of a `str` that
    other packages may add to, asked when they are needed. What serves the `papers`' experiments only has a
    heading of its own in the help, out of the way of everyday use.
    """
    bounds = {"above": above, "least": least, "most": most, "below": below}
    said = {"help": help, "bounds": bounds, "metavar": metavar, "choices": choices, "papers": papers}
    return field(default=default, metadata=said)


@dataclass(frozen=True)
class Options:
    """Base of every set of options: checks types and bounds on construction.

    Raises:
        UsageError: an option is of the wrong type, out of bounds, or not one of its choices.
    """

    name: ClassVar[str]

    def __post_init__(self) -> None:
        hints = _hints(type(self))
        for f in fields(self):
            value = _checked(self.name, f, hints[f.name], getattr(self, f.name))
            object.__setattr__(self, f.name, value)

    def refuse_several(self, names: Iterable[str], what: str) -> None:
        """Of options that each say `what`, at most one may be given.

        Raises:
            UsageError: several are.
        """
        given = [flag_of(name) for name in names if getattr(self, name) is not None]
        if len(given) > 1:
            raise UsageError(
                f"{self.name}: these options each say {what}",
                got=" and ".join(given),
                expected="one of them",
            )

    def settings(self) -> dict[str, Any]:
        """The options that differ from their default: what a recipe would have to say."""
        values = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value != f.default:
                values[key_of(f.name)] = list(value) if isinstance(value, tuple) else value
        return values


def key_of(field_name: str) -> str:
    """The option's name in recipes and records; a field called after a keyword of Python ends in "_"."""
    return field_name.removesuffix("_")


def flag_of(field_name: str) -> str:
    """ "first_blocks" -> "--first-blocks"."""
    return f"--{key_of(field_name).replace('_', '-')}"


def option_types(declared: type[Options]) -> dict[str, tuple[type, tuple[str, ...] | None, bool]]:
    """Per option: its plain type (bool, int, float, str, tuple), choices if a Literal, if it may be None."""
    hints = _hints(declared)
    return {f.name: _type_of(f, hints[f.name]) for f in fields(declared)}


def _type_of(f: Field[Any], hint: Any) -> tuple[type, tuple[str, ...] | None, bool]:
    kind, choices, optional = _unwrap(hint)
    asked = f.metadata.get("choices")
    return kind, asked() if asked else choices, optional


def _hints(declared: type) -> dict[str, Any]:
    if declared not in _known_hints:
        hints = typing.get_type_hints(declared)
        _known_hints[declared] = {f.name: hints[f.name] for f in fields(declared)}
    return _known_hints[declared]


_known_hints: dict[type, dict[str, Any]] = {}  # evaluating annotations takes milliseconds


def _unwrap(hint: Any) -> tuple[type, tuple[str, ...] | None, bool]:
    optional = False
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        arguments = [a for a in typing.get_args(hint) if a is not type(None)]
        optional, hint = True, arguments[0]
    if typing.get_origin(hint) is Literal:
        return str, typing.get_args(hint), optional
    if typing.get_origin(hint) is tuple:
        return tuple, None, optional
    return hint, None, optional


_A = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "a text",
    tuple: "a list of texts",
}


def _checked(name: str, f: Field[Any], hint: Any, value: Any) -> Any:
    kind, choices, optional = _type_of(f, hint)
    where = f"{name}: {flag_of(f.name)}"
    if value is None and optional:
        return None
    convert: dict[type, Callable[[Any], Any]] = {
        bool: _to_bool,
        int: _to_int,
        float: _to_float,
        str: _to_text,
        tuple: _to_tuple,
    }
    try:
        value = convert[kind](value)
    except (TypeError, ValueError, OverflowError):
        raise UsageError(f"{where} is not {_A[kind]}", got=shown(value)) from None
    if choices is not None and value not in choices:
        raise UsageError(f"{where} has no such choice", got=shown(value), expected=", ".join(choices))
    bounds = f.metadata.get("bounds", {})
    if kind in (int, float):
        _check_bounds(where, value, bounds)
    return value


def check_whole(what: str, value: object, least: int = 1) -> None:
    """Refuse what is no whole number, or too small a one, of arguments in Python.

    Raises:
        UsageError: it is.
    """
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise UsageError(f"{what} is not {_A[int]}", got=shown(value))
    if operator.index(value) < least:
        raise UsageError(f"{what} must be at least {least}", got=str(value))


def shown(value: Any) -> str:
    """`value` as a message quotes it: not more than a line."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}…"


def _check_bounds(where: str, value: float, bounds: dict[str, float | None]) -> None:
    tests = {
        "above": ("more than", lambda v, b: v > b),
        "least": ("at least", lambda v, b: v >= b),
        "most": ("at most", lambda v, b: v <= b),
        "below": ("less than", lambda v, b: v < b),
    }
    if not math.isfinite(value):
        raise UsageError(f"{where} is not a finite number", got=f"{value}")
    wanted = [f"{tests[k][0]} {b:g}" for k, b in bounds.items() if b is not None]
    if any(b is not None and not tests[k][1](value, b) for k, b in bounds.items()):
        raise UsageError(f"{where} is out of range", got=f"{value:g}", expected=" and ".join(wanted))


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str) and value.lower() in ("true", "yes", "1", "false", "no", "0"):
        return value.lower() in ("true", "yes", "1")
    raise ValueError


def _to_int(value: Any) -> int:
    if isinstance(value, bool) or (isinstance(value, float) and not value.is_integer()):
        raise ValueError
    value = int(value)
    if not -(2**63) <= value < 2**63:
        raise ValueError
    return value


def _to_float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _to_text(value: Any) -> str:
    if not isinstance(value, str | int | float | Path):
        raise TypeError
    return str(value)


def _to_tuple(value: Any) -> tuple[str, ...]:
    if isinstance(value, dict):  # a table of a recipe
        return tuple(f"{key}={_to_text(item)}" for key, item in value.items())
    return tuple(value.split("+")) if isinstance(value, str) else tuple(map(_to_text, value))


def shares_of(name: str, field_name: str, pairs: Iterable[str]) -> dict[str, float]:
    """ "layer1.0=0.2", … -> {"layer1.0": 0.2}: a share above 0 and below 1 by name.

    Args:
        name, field_name: of the options and of the one that holds the pairs.

    Raises:
        UsageError: an entry is no such pair, or a name is there twice.
    """
    return _numbers_of(name, field_name, pairs, "share", 1.0)


def factors_of(name: str, field_name: str, pairs: Iterable[str]) -> dict[str, float]:
    """ "layer1.*=2", … -> {"layer1.*": 2.0}: a finite factor above 0 by pattern.

    Args, Raises: as of `shares_of`.
    """
    return _numbers_of(name, field_name, pairs, "factor", math.inf)


class LossWeights:
    """By how much what is lost in a layer counts more than elsewhere.

    Args:
        name: of the pass.
        pairs: "PATTERN=FACTOR", …

    Raises:
        UsageError: an entry is no such pair, or a pattern is there twice.
    """

    def __init__(self, name: str, pairs: Iterable[str]) -> None:
        self._name, self._factors = name, factors_of(name, "loss_weight", pairs)

    def of(self, layers: Iterable[str]) -> float:
        """The product of the factors whose patterns match one of these layers; 1 of none."""
        names = list(layers)
        return math.prod(f for p, f in self._factors.items() if any(fnmatch(name, p) for name in names))

    def check(self, layers: Iterable[str]) -> None:
        """Refuse patterns that are of none of these layers: the user meant one.

        Raises:
            UsageError: naming the pattern.
        """
        names = list(layers)
        for pattern in self._factors:
            if not any(fnmatch(name, pattern) for name in names):
                raise UsageError(
                    f"{self._name}: --loss-weight {shown(pattern)} names no layer",
                    expected=", ".join(names[:5]) + (", …" if len(names) > 5 else ""),
                    remedy="nncompress inspect shows the layers",
                )


def _numbers_of(
    name: str, field_name: str, pairs: Iterable[str], what: str, below: float
) -> dict[str, float]:
    where = f"{name}: {flag_of(field_name)}"
    found: dict[str, float] = {}
    for pair in pairs:
        key, _, text = pair.rpartition("=")
        try:
            number = float(text)
        except ValueError:
            number = math.nan
        if not key or not 0 < number < below:
            bound = "" if math.isinf(below) else f" and below {below:g}"
            raise UsageError(
                f"{where} is no name and {what}",
                got=shown(pair),
                expected=f"NAME={what.upper()}, above 0{bound}",
            )
        if key in found:
            raise UsageError(f"{where} names {shown(key)} twice", expected=f"one {what} per name")
        found[key] = number
    return found
