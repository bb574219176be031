"""Locks that end with the process that took them, however it ends.

A lock's file is removed by the one that holds the lock, so that nothing is left in folders where nothing was
written; another that waited for it then takes a new one. Only what is killed leaves its file, unlocked.
"""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from nncompress.errors import OutputError

LOCK = ".lock"
_HELD = (errno.EWOULDBLOCK, errno.EACCES, errno.EDEADLK)


def lock(descriptor: int) -> bool | None:
    """Lock an open file until it is closed; False where another has it, None where there are no locks."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return False if error.errno in _HELD else None
    return True


@contextmanager
def alone_in(folder: Path, name: str = LOCK, *, wait: float = 0) -> Iterator[bool]:
    """Only one process at a time does what the lock `name` in `folder` is for.

    Gives False where there are no locks, and others may be at it.

    Args:
        wait: seconds, for one that has it to end.
    Raises:
        OutputError: another one is at it, or the lock's file cannot be opened.
    """
    path = folder / name
    descriptor, locked = _taken(path, time.monotonic() + wait)
    try:
        yield locked
    finally:
        if locked and sys.platform != "win32":  # where what is open cannot be removed
            with suppress(OSError):
                path.unlink()
        os.close(descriptor)


def _taken(path: Path, until: float) -> tuple[int, bool]:
    """The open file of the lock, and whether it is locked.

    Args:
        until: of the clock, when one that has it is waited for no longer.
    """
    while True:
        try:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
        except OSError as error:
            raise OutputError(
                f"cannot write to {path.parent}",
                got=f"{path.name}: {error.strerror}",
                remedy="check its permissions, or name another folder",
            ) from error
        try:
            locked = lock(descriptor)
            if locked is None or (locked and os.fstat(descriptor).st_nlink):  # else it was removed meanwhile
                held, descriptor = descriptor, -1
                return held, bool(locked)
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        if locked is False:
            if time.monotonic() >= until:
                raise OutputError(
                    f"another process is writing to {path.parent}",
                    remedy="wait until it has ended, or name another folder",
                )
            time.sleep(0.02)
