"""What a kind of data is: how it is told and opened. `nncompress.data.sources` has the table of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nncompress.data.fit import ExpectedInput
from nncompress.data.source import Source, StreamSource
from nncompress.errors import DataError


@dataclass(frozen=True)
class Asked:
    """What stands behind `--data`, and of which model.

    Attributes:
        spec: all of it.
        path: what stands before the `?`.
        options: what stands behind it.
        expected: the model's inputs; None: not known.
        names: of these inputs, where no more is known.
    """

    spec: str
    path: str
    options: dict[str, str] = field(default_factory=dict)
    expected: list[ExpectedInput] | None = None
    names: Sequence[str] = ()

    @property
    def file(self) -> Path | None:
        return Path(self.path) if os.path.isfile(self.path) else None

    @property
    def folder(self) -> Path | None:
        return Path(self.path) if os.path.isdir(self.path) else None

    @property
    def scheme(self) -> str:
        """NAME of NAME:PLACE, "" of a path."""
        name, colon, _ = self.path.partition(":")
        return name if colon else ""

    @property
    def place(self) -> str:
        """PLACE of NAME:PLACE."""
        return self.path.partition(":")[2]

    def one_of(self, option: str, values: Sequence[str], default: str) -> str:
        """The value of an option that has few.

        Raises:
            DataError: it is another one.
        """
        found = self.options.get(option, default)
        if found not in values:
            raise DataError(
                f"{self.spec}: unknown option",
                got=f"{option}={found}",
                expected=" or ".join(f"?{option}={value}" for value in values),
            )
        return found


@dataclass(frozen=True)
class Kind:
    """A kind of data.

    Attributes:
        form: how it is written, in the list of what can be read; "" where another's says it.
        claims: whether what was asked for is of this kind, where none before it in the table is.
        open: its samples.
        options: what may stand behind a `?`; None: anything, names of columns.
        runs_code: opening it runs code of the user's, or of a package that adds to us.
    """

    form: str
    claims: Callable[[Asked], bool]
    open: Callable[[Asked], Source | StreamSource]
    options: tuple[str, ...] | None = ()
    runs_code: bool = False

    def check_options(self, asked: Asked) -> None:
        """Refuse what may not stand behind the `?`.

        Raises:
            DataError: naming what may.
        """
        unknown = [] if self.options is None else sorted(set(asked.options) - set(self.options))
        if not unknown:
            return
        remedy = "leave out what follows the ?"
        if "tokenizer" in unknown:
            remedy = "leave --tokenizer out: it is for texts, in a .txt or a table"
        elif "vocabulary" in unknown:
            remedy = "leave it out; or put transcripts there: a .txt beside each sound, or *.trans.txt"
        elif self.options:
            remedy = f"leave it out; it takes {', '.join(self.options)}"
        raise DataError(
            f"{asked.spec} takes no options" if not self.options else f"{asked.spec}: unknown option",
            got="?" + "&".join(unknown),
            remedy=remedy,
        )
