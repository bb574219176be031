"""Admitting JSON: a check takes a parsed value and returns it rebuilt, or raises `Rejected`.

    point = record(x=plain(int), y=plain(int), label=optional(plain(str)))
    admit(listed(point), b'[{"x": 1, "y": 2}]')     # [{"x": 1, "y": 2, "label": None}]

What a check returns holds only values that some check admitted, never a part of the file passed through.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from nncompress.files.bounded_text import Unreadable, bounded

Check = Callable[[Any], Any]


class Rejected(Exception):
    """A value that the schema does not admit, with the path to it.

    Args:
        reason: what was found.
        code: whether the value would make torch run code that the file carries.
    """

    def __init__(self, reason: str, *, code: bool = False) -> None:
        super().__init__(reason)
        self.reason, self.code = reason, code
        self.path: list[str] = []

    def __str__(self) -> str:
        where = ".".join(reversed(self.path)).replace(".[", "[")
        return f"{self.reason}, at {where}" if where else self.reason


def at(check: Check, value: Any, step: str) -> Any:
    try:
        return check(value)
    except Rejected as rejected:
        rejected.path.append(step)
        raise


def shown(value: Any) -> str:
    return repr(value)[:80]


def plain(kind: type, allowed: Callable[[Any], bool] = lambda value: True) -> Check:
    """Exactly `kind` (a bool is no int here), and `allowed`."""

    def check(value: Any) -> Any:
        if type(value) is not kind or not allowed(value):
            raise Rejected(f"{shown(value)} is not an admitted {kind.__name__}")
        return value

    return check


def number(value: Any) -> Any:
    """Any but NaN."""
    if type(value) not in (int, float) or value != value:
        raise Rejected(f"{shown(value)} is no number")
    return value


def finite(value: Any) -> Any:
    """A number that is neither NaN nor infinite."""
    if type(value) not in (int, float) or not math.isfinite(value):
        raise Rejected(f"{shown(value)} is no finite number")
    return value


def any_json(value: Any) -> Any:
    """Any value of a `bounded` document: what is shown and written back, and never interpreted."""
    try:
        return bounded(value)
    except Unreadable as error:
        raise Rejected(str(error)) from error


_left_out: ContextVar[set[str] | None] = ContextVar("_left_out", default=None)


@contextmanager
def without_empty_keys() -> Iterator[set[str]]:
    """Meanwhile a record may have unknown keys that hold nothing: None or an empty list, table or text.

    A later version of a format adds fields that old readers may do without; unused, they are empty. One that
    holds something could change what the rest means, and is refused as before.

    Returns:
        The keys that were left out.
    """
    keys: set[str] = set()
    token = _left_out.set(keys)
    try:
        yield keys
    finally:
        _left_out.reset(token)


def record(**fields: Check) -> Check:
    """A dict with these keys and no others (but see `without_empty_keys`); a missing key is what its check
    makes of None."""

    def check(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise Rejected(f"{shown(value)} where a record was expected")
        unknown = set(value) - set(fields)
        left_out = _left_out.get()
        if left_out is not None:
            empty = {key for key in unknown if value[key] is None or value[key] in ([], {}, "")}
            left_out |= empty
            unknown -= empty
        if unknown:
            raise Rejected(f"unknown key {sorted(unknown)[0][:80]!r}")
        return {key: at(admit, value.get(key), key) for key, admit in fields.items()}

    return check


def union(**kinds: Check) -> Check:
    """A dict with exactly one of these keys."""

    def check(value: Any) -> dict[str, Any]:
        if type(value) is not dict or len(value) != 1:
            raise Rejected(f"{shown(value)} where one tagged value was expected")
        ((kind, content),) = value.items()
        if kind not in kinds:
            raise Rejected(f"unknown kind {kind!r}")
        return {kind: at(kinds[kind], content, kind)}

    return check


def listed(check_item: Check) -> Check:
    def check(value: Any) -> list[Any]:
        if type(value) is not list:
            raise Rejected(f"{shown(value)} where a list was expected")
        return [at(check_item, item, f"[{index}]") for index, item in enumerate(value)]

    return check


def table_with(**fields: Check) -> Check:
    """A dict with these keys where it has them, and any others, whose values are `any_json`."""

    def check(value: Any) -> dict[str, Any]:
        if type(value) is not dict:
            raise Rejected(f"{shown(value)} where a table was expected")
        return {str(key): at(fields.get(key, any_json), item, str(key)[:80]) for key, item in value.items()}

    return check


def mapped(check_key: Check, check_item: Check) -> Check:
    """A dict; a missing one is empty."""

    def check(value: Any) -> dict[str, Any]:
        if value is None:
            return {}
        if type(value) is not dict:
            raise Rejected(f"{shown(value)} where a table was expected")
        return {check_key(key): at(check_item, item, str(key)[:80]) for key, item in value.items()}

    return check


def optional(check: Check, default: Any = None) -> Check:
    return lambda value: default if value is None else check(value)


def dropped(replacement: Any) -> Check:
    """Whatever the file says here, torch is given `replacement`."""
    return lambda value: replacement


def one_of(*values: Any) -> Check:
    def check(value: Any) -> Any:
        if not any(type(value) is type(known) and value == known for known in values):
            raise Rejected(f"{shown(value)} is none of the admitted values")
        return value

    return check


def refused(what: str) -> Check:
    def check(value: Any) -> Any:
        raise Rejected(f"{what} can run code when it is loaded", code=True)

    return check


def admit(check: Check, content: bytes) -> Any:
    """The JSON document `content`, rebuilt by `check`.

    Raises:
        Rejected: it is not JSON, or says something that is not admitted.
    """
    try:
        return check(json.loads(content.decode("utf-8")))
    except (ValueError, RecursionError) as error:
        raise Rejected("it is not a plain JSON document") from error
