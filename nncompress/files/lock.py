"""Locks that end with the process that took them, however it ends."""

from __future__ import annotations

import errno
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
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
    try:
        descriptor = os.open(folder / name, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o666)
    except OSError as error:
        raise OutputError(
            f"cannot write to {folder}",
            got=f"{name}: {error.strerror}",
            remedy="check its permissions, or name another folder",
        ) from error
    try:
        until = time.monotonic() + wait
        while (locked := lock(descriptor)) is False:
            if time.monotonic() >= until:
                raise OutputError(
                    f"another process is writing to {folder}",
                    remedy="wait until it has ended, or name another folder",
                )
            time.sleep(0.02)
        yield locked is True
    finally:
        os.close(descriptor)
