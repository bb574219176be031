"""Records of ours from JSON: the inverse of `nncompress.results.plain`.

    rebuilt(BenchSuite, json.loads(text))

Only what the types of the fields say is admitted. Keys that the record has not are left out: later versions
may add some.
"""

from __future__ import annotations

import math
import types
import typing
from dataclasses import MISSING, fields, is_dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, TypeVar

from nncompress.loading.json_schema import Rejected, any_json, at, shown

T = TypeVar("T")
MOST = 1e100  # of a number: nothing that is measured is as large, and sums and axes of it stay finite


def rebuilt(kind: type[T], value: Any) -> T:
    """The record that `plain` made `value` of.

    Raises:
        Rejected: it is something else; the message tells where.
    """
    made: T = _of(kind, value)
    return made


def _of(hint: Any, value: Any) -> Any:
    if hint is Any:
        return any_json(value)
    if is_dataclass(hint):
        return _record(hint, value)
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        return _one_of(inner, value)
    if origin is Literal:
        if not any(type(value) is type(each) and value == each for each in inner):
            raise Rejected(f"{shown(value)} is none of {', '.join(map(str, inner))}")
        return value
    if origin is dict:
        if type(value) is not dict:
            raise Rejected(f"{shown(value)} where a table was expected")
        return {key: at(partial(_of, inner[1]), item, key[:80]) for key, item in value.items()}
    if origin in (list, tuple):
        return _several(origin, inner, value)
    return _plain(hint, value)


def _record(kind: Any, value: Any) -> Any:
    if type(value) is not dict:
        raise Rejected(f"{shown(value)} where a record was expected")
    given = {}
    hints = _hints(kind)
    for f in fields(kind):
        if f.name in value:
            given[f.name] = at(partial(_of, hints[f.name]), value[f.name], f.name)
        elif f.default is MISSING and f.default_factory is MISSING:
            raise Rejected(f"no {f.name!r}")
    return kind(**given)


@cache
def _hints(kind: type) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _one_of(kinds: tuple[Any, ...], value: Any) -> Any:
    if value is None and types.NoneType in kinds:
        return None
    refused: Rejected | None = None
    for kind in kinds:
        if kind is types.NoneType:
            continue
        try:
            return _of(kind, value)
        except Rejected as rejected:
            refused = refused or rejected
    raise refused or Rejected(f"{shown(value)} is not admitted")


def _several(origin: type, inner: tuple[Any, ...], value: Any) -> Any:
    if type(value) is not list:
        raise Rejected(f"{shown(value)} where a list was expected")
    if origin is list or inner[-1] is ...:
        return origin(at(partial(_of, inner[0]), item, f"[{i}]") for i, item in enumerate(value))
    if len(value) != len(inner):
        raise Rejected(f"{len(value)} values where {len(inner)} were expected")
    return tuple(at(partial(_of, hint), item, f"[{i}]") for i, (hint, item) in enumerate(zip(inner, value)))


def _plain(kind: Any, value: Any) -> Any:
    if kind is float:
        if value is None:  # what NaN and infinity are written as
            return math.nan
        if type(value) in (int, float) and abs(value) <= MOST:  # NaN is not
            return float(value)
    elif kind is Path:
        if type(value) is str:
            return Path(value)
    elif type(value) is kind:
        return value
    raise Rejected(f"{shown(value)} is not an admitted {getattr(kind, '__name__', kind)}")
