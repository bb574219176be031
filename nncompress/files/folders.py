"""Folders that are made, and the one for what can be made anew."""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nncompress.errors import OutputError


def files_in(folder: Path, suffixes: Collection[str]) -> list[str]:
    """Those that end so; none where the folder cannot be listed."""
    try:
        return sorted(str(path) for path in folder.iterdir() if path.suffix in suffixes)
    except OSError:
        return []


def said_beside(path: Path, suffixes: Collection[str]) -> str:
    """What to do about a file that is not there."""
    here = files_in(path.parent, suffixes)
    return f"beside it there is: {', '.join(here[:5])}" if here else "check the path"


def make_folder(path: str | Path) -> Path:
    """The folder `path`, made with its parents where it is not there yet.

    Raises:
        OutputError: it cannot be made: a file has its name, or its parent may not be written to.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except (OSError, ValueError) as error:  # ValueError: a null character
        raise OutputError(
            f"cannot make the folder {path}",
            got=getattr(error, "strerror", None) or str(error),
            remedy="name another, or check its parent's permissions",
        ) from error
    return Path(path)


@contextmanager
def folder_to_fill(path: str | Path) -> Iterator[Path]:
    """As `make_folder`; it is taken away again where the work inside fails and has put nothing there.

    Raises:
        OutputError: it cannot be made.
    """
    folder = Path(path)
    missing = [each for each in (folder, *folder.parents) if not os.path.lexists(each)]
    make_folder(folder)
    try:
        yield folder
    except BaseException:
        with suppress(OSError):  # from where on one is not empty
            for each in missing:
                each.rmdir()
        raise


def cache_folder() -> Path | None:
    """Where this system keeps what programs can make anew, for this user; None for a user without a home."""
    try:
        if sys.platform == "win32":
            return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "nncompress"
        if sys.platform == "darwin":
            return Path.home() / "Library" / "Caches" / "nncompress"
        stated = Path(os.environ.get("XDG_CACHE_HOME", ""))
        # The XDG specification has a relative path ignored.
        return (stated if stated.is_absolute() else Path.home() / ".cache") / "nncompress"
    except RuntimeError:  # no HOME, and no entry in the list of users
        return None
