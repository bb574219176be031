"""A file appears whole or not at all."""

from __future__ import annotations

import fcntl
import glob
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from nncompress.errors import OutputError

YOUNG = 60  # seconds: a folder may have been made and not yet locked


@contextmanager
def replacing(path: str | Path, protect: Iterable[str | Path] = ()) -> Iterator[Path]:
    """Gives a path to write to; what was written there replaces `path` when the block ends well.

    The path given lies in a temporary folder beside the target and has the target's name; further files
    written beside it (external data) move along, before the target does. When the block raises, or the
    process dies, the target is what it was; the folder of a process that was killed is removed by the next
    writer of that target.

    Raises:
        OutputError: the folder is missing or unwritable, the target is a folder or one of `protect`, or the
            disk is full.
    """
    target = Path(path)
    check_target(target, protect)
    try:
        _remove_stale(target)
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", suffix=".part", dir=target.parent))
        lock = _locked(folder)
    except OSError as error:
        raise _failure(target, error) from error
    try:
        yield folder / target.name
        written = sorted(folder.iterdir(), key=lambda file: file.name == target.name)
        for file in written:
            _sync(file)
        for file in written:
            file.chmod(0o666 & ~_umask())
            os.replace(file, target.parent / file.name)
        _sync(target.parent)
    except OSError as error:
        raise _failure(target, error) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        if lock is not None:
            os.close(lock)


def _locked(folder: Path) -> int | None:
    """A lock on the folder that lives as long as its descriptor or its process; None if another has it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or a file system without locks
        os.close(descriptor)
        return None
    return descriptor


def _remove_stale(target: Path) -> None:
    """Remove what writers of `target` left that were killed before they could: nobody holds its lock."""
    for folder in target.parent.glob(f".{glob.escape(target.name)}.*.part"):
        try:
            young = time.time() - folder.stat().st_mtime < YOUNG
            lock = None if young else _locked(folder)
        except OSError:  # its writer has just ended, or it is another user's
            continue
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def check_target(target: Path, protect: Iterable[str | Path] = ()) -> None:
    """Refuse a target that cannot be written, before the work that would be lost.

    Raises:
        OutputError: its folder is missing or may not be written to, or it is a folder or one of `protect`.
    """
    if not target.parent.is_dir():
        raise OutputError(
            f"cannot write {target}", got=f"no folder {target.parent}", remedy="create the folder first"
        )
    if target.is_dir():
        raise OutputError(f"cannot write {target}", got="a folder of that name", remedy="name a file")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"cannot write {target}",
            got=f"the folder {target.parent} may not be written to",
            remedy="another folder with -o, or check its permissions",
        )
    for source in protect:
        if target.exists() and Path(source).exists() and target.samefile(source):
            raise OutputError(f"{target} is the input; it is not overwritten", remedy="give another name")


def make_folder(path: str | Path) -> Path:
    """The folder `path`, made with its parents where it is not there yet.

    Raises:
        OutputError: it cannot be made: a file has its name, or its parent may not be written to.
    """
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the folder {path}",
            got=error.strerror or str(error),
            remedy="name another, or check its parent's permissions",
        ) from error
    return Path(path)


def _failure(target: Path, error: Exception) -> OutputError:
    reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
    return OutputError(
        f"cannot write {target}", got=reason, remedy="check the folder's permissions and free space"
    )


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
