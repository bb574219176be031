"""stdin, stdout and stderr as they may be: closed, full, or a pipe that nobody reads any more."""

from __future__ import annotations

import os
import sys

from nncompress.errors import printable


def open_closed() -> None:
    """Put something in the place of a standard stream that is closed (`nncompress … >&-`).

    Else the next file that is opened gets its number, and what a library prints goes into that file. Writing
    to a closed stdout stays an error; what is said on a closed stderr is lost.
    """
    for number, flags in ((0, os.O_RDONLY), (1, os.O_RDONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, flags)  # the lowest free number, which is this one
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w", closefd=False, encoding="utf-8"))
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # names of files need not be UTF-8, nor terminals know our signs
            stream.reconfigure(errors="backslashreplace")


def give_up(number: int) -> None:
    """Send what is still to be written to stream `number` nowhere, so that the exit does not fail on it."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, number)
    os.close(nowhere)


def warn(text: str) -> None:
    """A line on stderr, if that can be written."""
    try:
        print(printable(text), file=sys.stderr, flush=True)
    except OSError:
        give_up(2)
