"""A file appears whole or not at all.

    .nncompress-k3v9x0_a.part/new/model.pt2  what becomes model.pt2 once it is complete and synced

The folder lies beside the target, so that the last step is a rename. What a killed process left in such a
folder is told by what it signed there (`leftovers`), and removed or finished by the next one.
"""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nncompress.errors import OutputError
from nncompress.files.interrupts import held_back
from nncompress.files.leftovers import (
    MOVING,
    NEW,
    PREFIX,
    RECORD,
    SUFFIX,
    discard,
    remove_leftovers,
    remove_replaced,
)
from nncompress.files.lock import lock
from nncompress.files.targets import check_chosen, check_target

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES)


@contextmanager
def replacing(
    path: str | Path, protect: Iterable[str | Path] = (), is_ours: Callable[[Path], bool] = lambda path: False
) -> Iterator[Path]:
    """Gives a path to write to; what was written there replaces `path` when the block ends well.

    The path given has the target's name; further files written beside it (external data) move along, before
    the target does. When the block raises, or the process or the machine dies, the target is what it was.

    Args:
        is_ours: whether a file that is there under the name of one of those further files may be replaced.
    Raises:
        OutputError: the folder is missing or unwritable, the target is a folder or one of `protect`, the disk
            is full, or a further file has the name of one that is not ours.
    """
    target, protect = Path(path), tuple(protect)
    check_target(target, protect)
    claimed: list[tuple[Path, int]] = []
    try:
        try:
            remove_leftovers(target.parent, protect)
            with held_back():
                claimed.append(_claim(target.parent))
            new = claimed[0][0] / NEW
            new.mkdir()
        except OSError as error:
            raise _failure(target, error) from error
        try:
            yield new / target.name
            with held_back():  # several files are moved as one
                _move(new, claimed[0][1], target, protect, is_ours)
        except OSError as error:
            raise _failure(target, error) from error
    finally:
        try:
            _release(claimed)
        except BaseException:  # a signal that came before it was held back
            _release(claimed)
            raise


def _claim(directory: Path) -> tuple[Path, int]:
    """A new folder in `directory`, and the descriptor of its record, which holds the lock."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, suffix=SUFFIX, dir=directory))
        try:
            held = _sign(folder)
        except BaseException:
            discard(folder)
            raise
        if held is not None:
            return folder, held


def _sign(folder: Path) -> int | None:
    """Write who is at work in the folder; None where another took it for a leftover meanwhile."""
    try:
        descriptor = os.open(folder / RECORD, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    except FileNotFoundError:
        if folder.parent.is_dir():
            return None
        raise
    try:
        if lock(descriptor) is False or os.fstat(descriptor).st_nlink == 0:
            os.close(descriptor)
            return None
        os.write(descriptor, json.dumps({"writer": "nncompress", **_me()}).encode())
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _me() -> dict[str, str | int]:
    return {"host": socket.gethostname(), "pid": os.getpid()}


def _release(claimed: list[tuple[Path, int]]) -> None:
    """Remove the folders, and take them from the list."""
    with held_back():
        while claimed:
            folder, held = claimed[-1]
            if sys.platform == "win32":  # where what is open cannot be removed
                os.close(held)
                discard(folder)
            else:
                discard(folder)
                os.close(held)
            claimed.pop()


def _move(
    folder: Path,
    record: int,
    target: Path,
    protect: tuple[str | Path, ...],
    is_ours: Callable[[Path], bool],
) -> None:
    """All files of the folder to where the target is, the target last; begun, that is finished by whoever
    writes there next."""
    written = sorted(folder.iterdir(), key=lambda file: file.name == target.name)
    for file in written:
        check_target(target.parent / file.name, protect)
        if file.name != target.name:
            check_chosen(target.parent / file.name, is_ours, "")
        file.chmod(_mode(target.parent / file.name))
        _sync(file)
    _sync(folder)
    if len(written) > 1:
        _note(written, record)
        folder = folder.rename(folder.with_name(MOVING))
        _sync(folder.parent)
    for file in written:
        os.replace(folder / file.name, target.parent / file.name)
    _sync(target.parent)
    remove_replaced(target.parent, {file.name for file in written})


def _note(written: list[Path], record: int) -> None:
    """The second line of the record: what is about to be moved, in its order."""
    line = "\n" + json.dumps({file.name: file.lstat().st_ino for file in written})
    with open(os.dup(record), "a", encoding="utf-8") as lines:
        lines.write(line)
    os.fsync(record)


def _mode(target: Path) -> int:
    """Permissions: those of the file that is replaced, else what every new file gets."""
    with suppress(OSError):
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _failure(target: Path, error: OSError) -> OutputError:
    while target.parent.name == NEW and target.parent.parent.name.endswith(SUFFIX):  # written to be moved
        target = target.parents[2] / target.name
    reason, remedy = why_and_remedy(error, target.parent)
    return OutputError(f"cannot write {target}", got=reason, remedy=remedy)


def is_full(error: OSError) -> bool:
    """The system has no room for what was to be written, or does not let it be."""
    return error.errno in _FULL or _finds_no_scratch(error)


def _finds_no_scratch(error: OSError) -> bool:
    return error.errno == errno.ENOENT and "temporary directory" in (error.strerror or "")


def why_and_remedy(error: OSError, folder: Path | None = None) -> tuple[str, str]:
    """What the system refused, and what to do about it, for a message.

    Args:
        folder: which was to be written to; what failed may be a temporary file elsewhere.
    """
    reason = error.strerror or str(error).splitlines()[0]
    if _finds_no_scratch(error):
        return reason, "name a folder that may be written to: TMPDIR=FOLDER nncompress ..."
    if error.errno == errno.ENAMETOOLONG:  # of a file beside it, mostly
        return reason, "give a shorter name"
    name = error.filename2 or error.filename  # of a copy, what was copied from and what was written
    failed = Path(os.fsdecode(name)) if isinstance(name, str | bytes) else None
    if failed is not None and (folder is None or not failed.is_relative_to(folder)):
        scratch = tempfile.gettempdir()
        if failed.is_relative_to(scratch):
            return f"{reason}: {failed}", f"free some space in {scratch}, or TMPDIR=FOLDER nncompress ..."
    return reason, "check the folder's permissions and free space"


def _sync(path: Path) -> None:
    """To the disk, so that a power cut leaves the old file or the new one."""
    if sys.platform == "win32" and path.is_dir():  # where a directory cannot be opened
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
