"""`--tokenizer DIR`: part of what `--data` and `--val` say, for every command that takes these."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from nncompress.errors import UsageError

SPECS = ("data", "val")


def encoding_texts(command: Callable[..., None]) -> Callable[..., None]:
    """The command, given the tokenizer as an option of its data."""

    @functools.wraps(command)
    def called(*, tokenizer: str | None = None, **values: Any) -> None:
        if tokenizer is not None:
            given = [name for name in SPECS if values.get(name) is not None]
            if not given:
                raise UsageError(
                    "--tokenizer is for the texts of --data", remedy="--data reviews.txt?length=128"
                )
            from nncompress.data.spec import with_tokenizer  # torch takes seconds to import

            values.update({name: with_tokenizer(values[name], tokenizer) for name in given})
        command(**values)

    return called
