"""The work of a command, imported once its line is read: it needs torch, and --help does not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nncompress.cli.console import starting
from nncompress.extensions import named


def later(place: str) -> Callable[..., None]:
    """The function at "module:name" of `nncompress.cli.work`, imported when it is called."""

    def work(*arguments: Any, **values: Any) -> None:
        with starting():
            function = named(f"nncompress.cli.work.{place}")
        function(*arguments, **values)

    return work
