"""What can go wrong, said once: an exit code and a message with what, where, got/expected, remedy.

Every error a user can cause is an `NNCompressError`; `cli` turns it into one message and its exit code.
Anything else that escapes is a defect of ours and keeps its traceback.
"""

from __future__ import annotations

import re
from enum import IntEnum

# What code that is not ours may raise: its `sys.exit(0)` would be taken for a command's success.
RAISED_BY_OTHERS = (Exception, SystemExit)
MOST_SHOWN = 1000  # characters of one part of a message

# Control characters but tab and newline, and what reorders text: a name in a file could rewrite the terminal.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")

_NESTED = re.compile(r"\n  (got|expected|try): +")  # the further lines of a message


class Told(UserWarning):
    """What a room far below the faces has to say to the user; a line of every command."""


class ExitCode(IntEnum):
    """The process exit codes, one per kind of outcome."""

    OK = 0
    INTERNAL = 1  # a defect of ours
    USAGE = 2  # an option or argument is wrong
    MODEL_FILE = 3  # the model file cannot be read, or is not a model
    UNSAFE_FILE = 4  # the model file would need to run code to load
    DATA = 5  # the data is missing, unreadable, or does not fit the model
    UNSUPPORTED = 6  # the model uses what we or a runtime cannot express
    MISSING_EXTRA = 7  # an optional runtime is not installed
    NO_DEVICE = 8  # the device asked for is not on this machine
    VERIFICATION = 9  # a result was produced but did not check out; nothing was written
    OUTPUT = 10  # the result could not be written
    REGRESSION = 11  # a comparison that was asked for found a regression
    EXTENSION = 12  # a package that adds to nncompress is broken
    NO_PROMISE = 13  # no result of which the accuracy that was asked for can be promised
    HUNG_UP = 129  # 128 + SIGHUP, as a shell reports it
    INTERRUPTED = 130
    TERMINATED = 143


def printable(text: str) -> str:
    """`text` as a terminal may get it: what would move its cursor or change colours is written as `\\x1b`."""
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def on_one_line(text: str) -> str:
    """`text` as part of a line: a name may hold a newline, and a message be quoted in another."""
    return printable(_NESTED.sub(r"; \1: ", text)).replace("\n", "\\n")


def _shown(part: str) -> str:
    """A part of a message, which may quote what a file holds, however long."""
    part = on_one_line(part)
    if len(part) > MOST_SHOWN:
        return f"{part[: MOST_SHOWN - 200]} […{len(part)} characters…] {part[-150:]}"
    return part


class NNCompressError(Exception):
    """A mistake a user can mend.

    Args:
        what: what was wrong and where, one sentence without a final stop.
        got: what was found, if that helps.
        expected: what should have been there.
        remedy: what to do about it.
    """

    exit_code = ExitCode.INTERNAL

    def __init__(self, what: str, *, got: str = "", expected: str = "", remedy: str = "") -> None:
        self.what, self.got, self.expected, self.remedy = what, got, expected, remedy
        super().__init__(what)

    def __str__(self) -> str:
        lines = [_shown(self.what)]
        if self.got:
            lines.append(f"  got:      {_shown(self.got)}")
        if self.expected:
            lines.append(f"  expected: {_shown(self.expected)}")
        if self.remedy:
            lines.append(f"  try:      {_shown(self.remedy)}")
        return "\n".join(lines)


class UsageError(NNCompressError):
    """An option or argument is wrong."""

    exit_code = ExitCode.USAGE


class ModelFileError(NNCompressError):
    """The model file is missing, damaged, or not a model."""

    exit_code = ExitCode.MODEL_FILE


class UnsafeFileError(NNCompressError):
    """Loading the file would run code that it carries."""

    exit_code = ExitCode.UNSAFE_FILE


class DataError(NNCompressError):
    """The data is missing, unreadable, or does not fit the model."""

    exit_code = ExitCode.DATA


class UnsupportedError(NNCompressError):
    """The model uses something that a pass or a runtime cannot express."""

    exit_code = ExitCode.UNSUPPORTED


class MissingExtraError(NNCompressError):
    """An optional dependency is needed and not installed."""

    exit_code = ExitCode.MISSING_EXTRA


class DeviceError(NNCompressError):
    """The device asked for is not there, or its memory is full."""

    exit_code = ExitCode.NO_DEVICE


class VerificationError(NNCompressError):
    """A result was computed but failed its check, so it was not kept."""

    exit_code = ExitCode.VERIFICATION


class OutputError(NNCompressError):
    """The result could not be written."""

    exit_code = ExitCode.OUTPUT


class RegressionError(NNCompressError):
    """A result is worse than the one that it was to be compared with."""

    exit_code = ExitCode.REGRESSION


class ExtensionError(NNCompressError):
    """A package that adds a pass, criterion, runtime, target, data source or metric is broken."""

    exit_code = ExitCode.EXTENSION


class PromiseError(NNCompressError):
    """Of no result can it be promised that it is as accurate as was asked for."""

    exit_code = ExitCode.NO_PROMISE
