"""`--tokenizer DIR`: part of what `--data` and `--val` say, for every command that takes these."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from nncompress.errors import UsageError

SPECS = ("data", "val")
KEY = "tokenizer"


def encoding_texts(command: Callable[..., None]) -> Callable[..., None]:
    """The command, given the tokenizer as an option of its data."""

    @functools.wraps(command)
    def called(*, tokenizer: str | None = None, **values: Any) -> None:
        if tokenizer is not None:
            given = [name for name in SPECS if values.get(name) is not None]
            if not given:
                raise UsageError(
                    "--tokenizer is for the texts of --data", remedy="add --data reviews.txt?length=128"
                )
            values.update({name: _encoded(name, values[name], tokenizer) for name in given})
        command(**values)

    return called


def _encoded(name: str, spec: str, tokenizer: str) -> str:
    options = spec.partition("?")[2]
    if f"&{KEY}=" in f"&{options}":
        raise UsageError(
            f"--{name} {spec} names a tokenizer itself",
            got=f"--tokenizer {tokenizer}",
            remedy="leave one out",
        )
    if "&" in tokenizer:
        raise UsageError(
            f"--tokenizer {tokenizer}: an & ends an option of the data",
            remedy="ln -s to a name without &, and name that",
        )
    return f"{spec}{'&' if options else '?'}{KEY}={tokenizer}"
