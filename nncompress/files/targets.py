"""May this name be written? Asked before the work that would be lost.

One rule for every command:

1. What the command reads is never written, whatever name it is reached by: another spelling, a hard or
   symbolic link, a name that differs in case on a file system that ignores case.
2. A name that the user typed is written, and replaces the file that was there. A symbolic link is replaced
   itself, not what it points to.
3. A name that we chose (a default output, a file beside the output) replaces only what we wrote
   (`check_chosen`).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path

from nncompress.errors import OutputError

_SPECIAL = {
    stat.S_IFIFO: "a FIFO",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
}


def check_target(target: Path, protect: Iterable[str | Path] = ()) -> None:
    """Refuse a target that cannot be written.

    Args:
        protect: files and folders that the command reads; nothing in such a folder is replaced either.

    Raises:
        OutputError: its folder is missing or may not be written to; its name is no name of a file; or it is a
            folder, a device, or one of `protect`.
    """
    try:
        parent = os.stat(target.parent)
        found = _status(target)
    except (OSError, ValueError) as error:  # ValueError: a null character
        if not isinstance(error, FileNotFoundError | NotADirectoryError):
            reason = getattr(error, "strerror", None) or str(error)
            raise OutputError(f"cannot write {target}", got=reason, remedy="give another name") from error
        parent = None
    if parent is None or not stat.S_ISDIR(parent.st_mode):
        file = parent is not None or any(each.is_file() for each in target.parents)
        raise OutputError(
            f"cannot write {target}",
            got=f"{target.parent} is no folder" if file else f"no folder {target.parent}",
            remedy="name another folder" if file else "create the folder first",
        )
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise OutputError(f"cannot write {target}", got="a folder of that name", remedy="name a file")
    if found is not None and (kind := _SPECIAL.get(stat.S_IFMT(found.st_mode))):
        raise OutputError(f"cannot write {target}", got=f"{kind} of that name", remedy="name a file")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"cannot write {target}",
            got=f"the folder {target.parent} may not be written to",
            remedy="another folder with -o, or check its permissions",
        )
    if found is not None:
        for source in map(Path, protect):
            _check_not_input(target, found, source)


def check_chosen(target: Path, is_ours: Callable[[Path], bool], option: str = "-o") -> None:
    """Refuse to replace a file under a name that we chose, unless we wrote that file.

    Args:
        option: what names another file; "" where nothing does.
    Raises:
        OutputError: it is there, and not ours.
    """
    if os.path.lexists(target) and not target.is_dir() and not is_ours(target):
        remedy = (
            f"{option} names another file (or this one, to replace it)" if option else "move it elsewhere"
        )
        raise OutputError(f"{target} is there already, and nncompress did not write it", remedy=remedy)


def _status(target: Path) -> os.stat_result | None:
    """Of what the name leads to; of the link itself where it leads nowhere; None where there is nothing."""
    try:
        return os.stat(target)
    except OSError:
        try:
            return os.lstat(target)
        except FileNotFoundError:
            return None


def _check_not_input(target: Path, found: os.stat_result, source: Path) -> None:
    try:
        given = os.stat(source)
    except (OSError, ValueError):  # no file; whoever reads it says so
        return
    if os.path.samestat(given, found):
        raise OutputError(f"{target} is the input; it is not overwritten", remedy="give another name")
    if stat.S_ISDIR(given.st_mode) and source.resolve() in target.resolve().parents:
        raise OutputError(
            f"{target} lies in the folder {source}, which is read; it is not overwritten",
            remedy="give another name",
        )
