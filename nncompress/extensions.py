"""What is known by name, ours and other packages': passes, criteria, runtimes, targets, data, metrics.

    PASSES = Registry("nncompress.passes", "pass", {"prune": "nncompress.passes.prune.options:Prune", ...})
    PASSES["prune"]        # imported now
    list(PASSES)           # names only: nothing is imported

A package of a user's adds to a registry by an entry point of its group (docs/extending.md):

    [project.entry-points."nncompress.passes"]
    shrink = "my_package.shrink:Shrink"

What such a package does wrong is told with its name and version, and disturbs nothing that does not use it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, TypeVar, cast

from nncompress.errors import RAISED_BY_OTHERS, ExtensionError

T = TypeVar("T")
GROUPS = {
    "nncompress.passes": "pass",
    "nncompress.criteria": "criterion",
    "nncompress.runtimes": "runtime",
    "nncompress.targets": "target",
    "nncompress.data": "data source",
    "nncompress.metrics": "metric",
}
_NAME = re.compile("[a-z][a-z0-9]*(-[a-z0-9]+)*")


class Registry(Mapping[str, T]):
    """Name -> object, in the order of the names: ours first, then other packages'. Imported when named.

    Args:
        group: of the entry points, a key of `GROUPS`.
        own: ours: the object, or where it is, "module:name".
        fault: what is wrong with an object that a package offers under a name; "" for nothing.
    """

    def __init__(
        self, group: str, own: Mapping[str, T | str], fault: Callable[[str, Any], str] = lambda name, it: ""
    ) -> None:
        self._group, self._own, self._fault = group, own, fault
        self._checked: dict[int, T] = {}  # by the id of an entry point, which `_offered` keeps

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from (name for name in offered(self._group) if name not in self._own)

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in offered(self._group)

    def __getitem__(self, name: str) -> T:
        """The object of this name.

        Raises:
            KeyError: there is none.
            ExtensionError: it is another package's, which is broken.
        """
        if name in self._own:
            own = self._own[name]
            return cast(T, named(own)) if isinstance(own, str) else own
        offers = offered(self._group)[name]
        if len(offers) > 1:
            raise ExtensionError(
                f"several packages add a {GROUPS[self._group]} called {name}",
                got=", ".join(map(distribution, offers)),
                remedy="uninstall all but one of them",
            )
        (offer,) = offers
        if id(offer) not in self._checked:
            if not _NAME.fullmatch(name):
                raise self.broken(name, "a name is small letters and digits, words joined by -")
            found = _imported(offer)
            fault = self._fault(name, found)
            if fault:
                raise self.broken(name, fault)
            self._checked[id(offer)] = found
        return self._checked[id(offer)]

    def usable(self) -> list[T]:
        """The objects of all names but those that other packages broke (`doctor` tells these)."""
        found = []
        for name in self:
            try:
                found.append(self[name])
            except ExtensionError:  # no use of it was asked for
                continue
        return found

    def broken(self, name: str, fault: str) -> ExtensionError:
        """The error that says what is wrong with what another package offers under `name`."""
        return _broken(offered(self._group)[name][0], fault)

    def origin(self, name: str) -> str:
        """Which package adds it, "shrink-tools 1.2"; "" for what is ours."""
        return "" if name in self._own else " and ".join(map(distribution, offered(self._group)[name]))

    def shadowed(self, name: str) -> list[str]:
        """The packages whose offer is not used, because the name is ours."""
        return list(map(distribution, offered(self._group).get(name, ()))) if name in self._own else []


def named(place: str) -> Any:
    """The object at "module:name"."""
    module, _, name = place.partition(":")
    return getattr(import_module(module), name)


def offered(group: str) -> dict[str, tuple[EntryPoint, ...]]:
    """Name -> the entry points of that name, in alphabetical order."""
    return _offered(group, tuple(sys.path))


@cache
def _offered(group: str, path: tuple[str, ...]) -> dict[str, tuple[EntryPoint, ...]]:
    found: dict[str, tuple[EntryPoint, ...]] = {}
    for point in sorted(entry_points(group=group), key=lambda point: (point.name, distribution(point))):
        found[point.name] = (*found.get(point.name, ()), point)
    return found


def distribution(point: EntryPoint) -> str:
    """ "shrink-tools 1.2"."""
    return f"{point.dist.name} {point.dist.version}" if point.dist else "an unknown package"


def _broken(point: EntryPoint, fault: str) -> ExtensionError:
    """The error for what a package offers and cannot be used."""
    name = point.dist.name if point.dist else "PACKAGE"
    return ExtensionError(
        f"the {GROUPS[point.group]} {point.name} of {distribution(point)} cannot be used",
        got=fault,
        remedy=f"pip uninstall {name}, or a version of it that works",
    )


def _imported(point: EntryPoint) -> Any:
    try:
        return point.load()
    except RAISED_BY_OTHERS as error:  # whatever its code does when imported
        raise _broken(point, f"{type(error).__name__}: {error}"[:300]) from error


def culprit(error: BaseException) -> str:
    """The package that adds to us in whose code `error` arose, "shrink-tools 1.2"; "" where in none."""
    owners = {
        point.module.partition(".")[0]: distribution(point)
        for group in GROUPS
        for points in offered(group).values()
        for point in points
    }
    found, frame = "", error.__traceback__
    while frame is not None:
        owner = str(frame.tb_frame.f_globals.get("__name__", "")).partition(".")[0]
        found = owners.get(owner, "" if owner == "nncompress" else found)  # ours called last: ours to answer
        frame = frame.tb_next
    return found
