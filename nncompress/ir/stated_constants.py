"""Inputs that are always one number, as `--input` says it: `sr=16000`, `x:Bx512,sr=16000`, `training=false`.

They are no inputs any more: what depends on them alone is computed once, and branches that they decide are
taken. An input of several values has the number everywhere.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor

from nncompress.dtypes import INPUTS
from nncompress.errors import NNCompressError, UsageError

FIXED = "fixed_inputs"  # key of a model's metadata: the inputs that were made constants, with their values
FORM = "NAME=NUMBER, true or false; a dtype may follow: sr=16000, speed=1.5:float32"
M = TypeVar("M")
T = TypeVar("T")
_WORDS = {"true": True, "false": False}
# which numbers are values of a type of TorchScript
_SCRIPTED: dict[str, set[type]] = {
    "bool": {bool},
    "int": {int},
    "float": {int, float},
    "number": {bool, int, float},
}
_STATED = re.compile(r"(?P<name>[^=]*)=(?P<value>[^=:]*)(:(?P<dtype>[^=:]*))?")


@dataclass(frozen=True)
class Constant:
    """One input with its value.

    Attributes:
        dtype: None where none was said.
    """

    name: str
    value: bool | int | float
    dtype: str | None = None

    def __str__(self) -> str:
        value = str(self.value).lower() if isinstance(self.value, bool) else str(self.value)
        return f"{self.name}={value}" + (f":{self.dtype}" if self.dtype else "")

    def tensor(self, dtype: str, shape: Sequence[int | str] = ()) -> Tensor:
        """The value as the input of this dtype and shape.

        Raises:
            UsageError: it has another dtype, cannot hold the value, or has free sizes.
        """
        free = [size for size in shape if isinstance(size, str)]
        if free:
            raise UsageError(
                f"--input {self}: a constant is for an input whose sizes are known",
                got=f"{self.name} [{', '.join(map(str, shape))}]",
                remedy=f"leave {self.name} an input, or export the model with its sizes fixed",
            )
        if self.dtype not in (None, dtype):
            raise UsageError(f"--input {self}: the input is of another dtype", expected=dtype)
        kind: torch.dtype = getattr(torch, dtype)
        made = torch.tensor(self.value, dtype=torch.float64 if isinstance(self.value, float) else torch.int64)
        held = made.to(kind)
        # a fraction is rounded, as any literal is; a whole number is meant as it is said
        fraction = isinstance(self.value, float) and not (self.value.is_integer() and abs(self.value) < 2**53)
        near = kind.is_floating_point and bool(held.isfinite())
        if not (near if fraction and kind.is_floating_point else held.item() == self.value):
            raise UsageError(
                f"--input {self}: {self.name} is of {dtype}, which does not hold this value",
                expected="true or false" if dtype == "bool" else f"a number of {dtype}",
                remedy=f"--input {self.name}={int(held)}, the nearest" if near else "",
            )
        return held.expand([int(size) for size in shape]).clone()

    def argument(self, annotation: Any) -> Any:
        """The value as an argument of Python code: a number, or a tensor where it takes nothing else or a
        dtype was said."""
        words = re.findall(r"\w+", str(annotation))
        takes_tensor = any(word.endswith("Tensor") for word in words)
        if self.dtype is None and (not takes_tensor or not {"bool", "int", "float"}.isdisjoint(words)):
            return self.value
        usual = {bool: "bool", int: "int64", float: "float32"}[type(self.value)]
        return self.tensor(self.dtype or usual)

    def scripted_argument(self, kind: str) -> Any:
        """The value as an argument of TorchScript, of this type.

        Raises:
            UsageError: the type has no such value.
        """
        plain = kind.removeprefix("Optional[").removesuffix("]")
        if plain == "Tensor":
            return self.argument(plain)
        if self.dtype is not None or type(self.value) not in _SCRIPTED.get(plain, set()):
            raise UsageError(f"--input {self}: the argument of TorchScript is of another type", expected=kind)
        return float(self.value) if plain == "float" else self.value


def split_constants(text: str | None) -> tuple[str | None, tuple[Constant, ...]]:
    """What `--input` says of shapes, None where that is nothing, and its constants.

    Raises:
        UsageError: a value is none.
    """
    if text is None or "=" not in text:
        return text, ()
    parts = [part.strip() for part in text.split(",")]
    constants = tuple(_parsed(part, text) for part in parts if "=" in part)
    shapes = [part for part in parts if "=" not in part]
    names = [each.name for each in constants] + [shape.partition(":")[0] for shape in shapes]
    if twice := next((each.name for each in constants if names.count(each.name) > 1), None):
        raise UsageError(f"--input {text}: {twice!r} is said twice")
    return ",".join(shapes) or None, constants


def _parsed(part: str, text: str) -> Constant:
    found = _STATED.fullmatch(part)
    value = None if found is None else _number(found["value"].strip())
    if found is None or value is None or not found["name"]:
        raise UsageError(f"--input {text}: {part!r} is no constant", expected=FORM)
    if found["dtype"] not in (None, *INPUTS):
        raise UsageError(
            f"--input {text}: unknown dtype {found['dtype']!r}", expected=f"one of {', '.join(INPUTS)}"
        )
    return Constant(found["name"], value, found["dtype"])


def _number(text: str) -> bool | int | float | None:
    if text.lower() in _WORDS:
        return _WORDS[text.lower()]
    try:
        value = int(text)
        return value if -(2**63) <= value < 2**63 else None
    except ValueError:
        pass
    try:
        real = float(text)
    except ValueError:
        return None
    return real if math.isfinite(real) else None


class NoSuchInput(UsageError):
    """A constant is said of an input that a model does not have.

    Attributes:
        told: what is said where that is no mistake, as another model has it.
    """

    def __init__(self, constant: Constant, origin: str, names: Collection[str]) -> None:
        super().__init__(
            f"--input {constant}: {origin} has no input of this name",
            expected=", ".join(names) or "no inputs",
        )
        self.constant = constant
        self.told = f"{constant} is no input of {origin}, which is run without it"


def each_with_its_own(
    models: Iterable[M],
    text: str | None,
    open_with: Callable[[M, str | None], T],
    notice: Callable[[str], None],
) -> list[T]:
    """Each of several models opened with what --input says of it: a constant may be for some of them.

    Args:
        notice: told of those that do not have a constant that others have.
    Raises:
        UsageError: none of them has an input of a constant's name.
    """
    opened, lacking = [], []
    for model in models:
        made, lacks = with_its_own(text, partial(open_with, model))
        opened.append(made)
        lacking.append(lacks)
    for lacks in lacking:
        for constant, lack in lacks.items():
            if all(constant in each for each in lacking):
                raise lack
            notice(lack.told)
    return opened


def with_its_own(
    text: str | None, open_with: Callable[[str | None], T]
) -> tuple[T, dict[Constant, NoSuchInput]]:
    """A model opened with what --input says, less the constants that are none of its inputs: these, too."""
    said, lacks = text, dict[Constant, NoSuchInput]()
    while True:
        try:
            return open_with(said), lacks
        except NoSuchInput as error:
            lacks[error.constant] = error
            shapes, constants = split_constants(text)
            said = stated(shapes, [each for each in constants if each not in lacks])
        except NNCompressError as error:  # it may be that a constant's name is misspelt
            if lacks:
                raise next(iter(lacks.values())) from error
            raise


def stated(shapes: str | None, constants: Iterable[Constant]) -> str | None:
    """What `--input` says, put together again."""
    return ",".join([*([shapes] if shapes else []), *map(str, constants)]) or None


def with_remembered(text: str | None, metadata: Mapping[str, Any]) -> str | None:
    """The constants that --input says, and those that a model remembers, as --input for another model."""
    _, typed = split_constants(text)
    names = [each.name for each in typed]
    known = [(name, value) for name, value in _fixed_in(metadata).items() if name not in names]
    kept = [Constant(name, value) for name, value in known if isinstance(value, bool | int | float)]
    return stated(None, [*typed, *kept])


def left_to_fix(
    constants: Iterable[Constant], names: Collection[str], metadata: Mapping[str, Any], origin: str
) -> list[Constant]:
    """The constants that are inputs of a model; those that are in it already, with this value, are left out.

    Args:
        names: of its inputs.
        metadata: what the model remembers.
    Raises:
        UsageError: it has no such input, or no other, or was fixed to another value.
    """
    fixed = _fixed_in(metadata)
    found: list[Constant] = []
    for each in constants:
        if each.name in names:
            found.append(each)
        elif each.name not in fixed:
            raise NoSuchInput(each, origin, names)
        elif fixed[each.name] != each.value:
            raise UsageError(
                f"--input {each}: in {origin} it is fixed to another value",
                got=f"{each.name}={fixed[each.name]}",
                remedy="start from the model that still takes it",
            )
    if found and len(found) == len(names):
        raise UsageError(
            f"--input {','.join(map(str, found))}: {origin} would have no input left",
            expected="a model that takes something else, too",
        )
    return found


def remember_fixed(metadata: dict[str, Any], constants: Sequence[Constant]) -> str:
    """Keep in a model's metadata which inputs it has no more; a sentence that says so."""
    metadata[FIXED] = {**_fixed_in(metadata), **{each.name: each.value for each in constants}}
    return (
        f"{', '.join(map(str, constants))}: constant from now on, and no input of the model any more: "
        "what calls it leaves it out"
    )


def _fixed_in(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Anyone may have written it."""
    said = metadata.get(FIXED)
    return said if isinstance(said, dict) else {}
