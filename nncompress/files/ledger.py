"""Which files of a folder are ours.

    FOLDER/.nncompress.json    {"files": {"trained-1.pt2": ["9f86d081…"]}}

Only these, and only while their content is what was written, are replaced or deleted. The digest is recorded
before the file appears, so that a process that is killed between the two leaves nothing that the next one
would take for somebody else's.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from nncompress.errors import OutputError
from nncompress.files.atomic import replacing
from nncompress.files.bounded_text import Unreadable, read_json
from nncompress.files.json_file import write_json
from nncompress.files.leftovers import PREFIX, SUFFIX
from nncompress.files.lock import alone_in

NAME = ".nncompress.json"
LOCK = ".nncompress.lock"  # while the record and the file that it is of are replaced
PATIENCE = 10  # seconds
OWN = (NAME, LOCK, ".lock")


class Ledger:
    """The record of what was written to `folder`, by this and earlier processes.

    Raises:
        OutputError: the record cannot be read.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._files = self._read()

    @property
    def names(self) -> tuple[str, ...]:
        """Of the files that were written; any of them may be gone or changed since."""
        return tuple(self._files)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """As `replacing`, for a file of ours.

        Raises:
            OutputError: a file of that name is there that is not ours; or it cannot be written.
        """
        self._check_ours(name)
        with ExitStack() as until_moved, replacing(self.folder / name) as temporary:
            yield temporary
            until_moved.enter_context(alone_in(self.folder, LOCK, wait=PATIENCE))
            self._files = self._read()  # another process may have written meanwhile
            known = self._check_ours(name)
            self._record(name, [*known, _digest(temporary)])

    def _check_ours(self, name: str) -> list[str]:
        """The digest of the file of ours that is there, nothing where there is none.

        Raises:
            OutputError: another one is there.
        """
        target = self.folder / name
        if self.owns(name):
            return [_digest(target)]
        if os.path.lexists(target):
            raise OutputError(
                f"{target} is not what was written there; it is not overwritten",
                remedy="move it elsewhere",
            )
        return []

    def adopt(self, name: str) -> None:
        """Record a file that was written by other means."""
        self._record(name, [_digest(self.folder / name)])

    def owns(self, name: str) -> bool:
        """Whether the file is there and is what was written."""
        path = self.folder / name
        if name not in self._files or path.is_symlink() or not path.is_file():
            return False
        return _digest(path) in self._files[name]

    def remove(self, name: str) -> bool:
        """Delete the file if it is ours; False if another one is there, which stays."""
        path = self.folder / name
        if self.owns(name):
            path.unlink(missing_ok=True)
        left = os.path.lexists(path)
        self._record(name, [])
        return not left

    def forget(self) -> None:
        """Delete every file that is ours, and the record of them."""
        for name in self.names:
            self.remove(name)
        (self.folder / NAME).unlink(missing_ok=True)

    def others(self) -> list[str]:
        """Names in the folder that are not ours, sorted."""
        return sorted(
            entry.name
            for entry in self.folder.iterdir()
            if not (
                entry.name in OWN
                or (entry.name.startswith(PREFIX) and entry.name.endswith(SUFFIX))
                or self.owns(entry.name)
            )
        )

    def _read(self) -> dict[str, list[str]]:
        path = self.folder / NAME
        if not os.path.lexists(path):
            return {}
        try:
            match read_json(path):
                case {"files": dict() as files} if all(isinstance(each, list) for each in files.values()):
                    return files
                case _:
                    raise Unreadable("another record than nncompress writes")
        except Unreadable as error:
            raise OutputError(
                f"cannot read {path}, which says what in there may be replaced",
                got=str(error),
                remedy="another folder, or delete that file after moving away what you want to keep",
            ) from error

    def _record(self, name: str, digests: list[str]) -> None:
        changed = {**self._files, name: digests} if digests else dict(self._files)
        if not digests:
            changed.pop(name, None)
        if changed != self._files:
            write_json(self.folder / NAME, {"files": changed})
            self._files = changed


def _digest(path: Path) -> str:
    with suppress(FileNotFoundError), path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
    return ""
