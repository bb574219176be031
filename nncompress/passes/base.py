"""The contract of a pass.

A pass is a frozen dataclass. Its fields are its options: once declared, they are the command's flags, the
recipe's keys and the recorded settings. The driver (`nncompress.pipeline`) calls

    requires(model, context)   refuse before work starts, naming the node and the remedy
    apply(model, context)      edit the model; say what changed (nothing changed = empty list, bit for bit)
    ensures(model, changes)    state what holds now; checked on the result

Pass modules do not import torch when they are imported: `nncompress prune --help` answers at once.
"""

from __future__ import annotations

import math
import types
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from nncompress.errors import UsageError
from nncompress.progress import NullProgress, Progress

if TYPE_CHECKING:
    from nncompress.data import Dataset
    from nncompress.ir import Model


@dataclass(frozen=True)
class Change:
    """One thing that a pass did, or (with `applied=False`) decided to leave alone and why.

    Attributes:
        where: layer or tensor name.
        what: one phrase: "rank 12 of 64", "left: fewer MACs but rank 60 saves nothing".
        numbers: the figures behind it, JSON-able (`params_before`, `mse`, …).
    """

    where: str
    what: str
    numbers: dict[str, Any] = field(default_factory=dict)
    applied: bool = True


@dataclass
class Context:
    """What a pass may use besides the model.

    Attributes:
        data: calibration records, None where the user gave none.
        seed: every random choice derives from it.
        progress: told what is being done; never printed to.
        limit: at most this many records of `data` are used for statistics; None uses all.
        batch_size: records per forward pass.
        notes: sentences that the user should read after the pass.
    """

    data: Dataset | None = None
    seed: int = 0
    progress: Progress = field(default_factory=NullProgress)
    limit: int | None = 512
    batch_size: int = 64
    notes: list[str] = field(default_factory=list)


def option(
    default: Any = MISSING,
    *,
    help: str,
    above: float | None = None,
    least: float | None = None,
    most: float | None = None,
    below: float | None = None,
    metavar: str | None = None,
) -> Any:
    """Declare a pass option with its help text and its bounds (exclusive `above`/`below`, else inclusive).

    The type comes from the field's annotation: `bool`, `int`, `float`, `str`, a `Literal[...]` of strings,
    or `tuple[str, ...]` (a repeatable flag), each optionally `| None`.
    """
    bounds = {"above": above, "least": least, "most": most, "below": below}
    return field(default=default, metadata={"help": help, "bounds": bounds, "metavar": metavar})


@dataclass(frozen=True)
class Pass:
    """Base of all passes: checks option types and bounds on construction.

    Raises:
        UsageError: an option is of the wrong type, out of bounds, or not one of its choices.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    example: ClassVar[str] = ""

    def __post_init__(self) -> None:
        for f in fields(self):
            object.__setattr__(
                self, f.name, _checked(self.name, f, _hints(type(self))[f.name], getattr(self, f.name))
            )

    def requires(self, model: Model, context: Context) -> None:
        """Refuse before work starts.

        Raises:
            NNCompressError: this model, these settings or this data cannot work.
        """

    def apply(self, model: Model, context: Context) -> list[Change]:
        """Edit `model` in place."""
        raise NotImplementedError

    def ensures(self, model: Model, changes: list[Change]) -> None:
        """Check the result.

        Raises:
            VerificationError: what the pass promises does not hold.
        """

    def settings(self) -> dict[str, Any]:
        """The options that differ from their default: what a recipe would have to say."""
        values = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if value != f.default:
                values[f.name] = list(value) if isinstance(value, tuple) else value
        return values

    def __str__(self) -> str:
        options = ",".join(f"{k}={v}" for k, v in self.settings().items())
        return f"{self.name}:{options}" if options else self.name


def need_data(context: Context, name: str, why: str) -> Dataset:
    """The calibration data, or one clear refusal."""
    if context.data is None:
        raise UsageError(f"{name} needs data: {why}", remedy="add --data FILE.npz (or a folder of images)")
    return context.data


def option_types(pass_class: type[Pass]) -> dict[str, tuple[type, tuple[str, ...] | None, bool]]:
    """Per option: its plain type (bool, int, float, str, tuple), choices if a Literal, if it may be None."""
    return {name: _unwrap(hint) for name, hint in _hints(pass_class).items()}


def _hints(pass_class: type) -> dict[str, Any]:
    hints = typing.get_type_hints(pass_class)
    return {f.name: hints[f.name] for f in fields(pass_class)}


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


def _checked(name: str, f: Field[Any], hint: Any, value: Any) -> Any:
    kind, choices, optional = _unwrap(hint)
    where = f"{name}: --{f.name.replace('_', '-')}"
    if value is None and optional:
        return None
    convert: dict[type, Callable[[Any], Any]] = {
        bool: _to_bool,
        int: _to_int,
        float: _to_float,
        str: str,
        tuple: _to_tuple,
    }
    try:
        value = convert[kind](value)
    except (TypeError, ValueError):
        raise UsageError(f"{where} is not a {kind.__name__}", got=repr(value)) from None
    if choices is not None and value not in choices:
        raise UsageError(f"{where} has no such choice", got=repr(value), expected=", ".join(choices))
    bounds = f.metadata.get("bounds", {})
    if kind in (int, float):
        _check_bounds(where, value, bounds)
    return value


def _check_bounds(where: str, value: float, bounds: dict[str, float | None]) -> None:
    tests = {
        "above": ("more than", lambda v, b: v > b),
        "least": ("at least", lambda v, b: v >= b),
        "most": ("at most", lambda v, b: v <= b),
        "below": ("less than", lambda v, b: v < b),
    }
    if math.isnan(value):
        raise UsageError(f"{where} is not a number", got="nan")
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
    return int(value)


def _to_float(value: Any) -> float:
    if isinstance(value, bool):
        raise ValueError
    return float(value)


def _to_tuple(value: Any) -> tuple[str, ...]:
    return tuple(value.split("+")) if isinstance(value, str) else tuple(str(v) for v in value)
