"""What the script does: help and version from a table, everything else by `nncompress.cli.app`.

`nncompress --help` and `--version` are answered without importing anything else, because a user asks them
often and torch takes seconds to import.
"""

from __future__ import annotations

import os
import signal
import sys

from nncompress.cli.streams import give_up, open_closed, warn
from nncompress.cli.table import help_text
from nncompress.errors import ExitCode
from nncompress.version import __version__

COMPLETION = "_NNCOMPRESS_COMPLETE"  # set by a shell that asks how a line may go on


def answer(arguments: list[str] | None) -> None:
    """Run the command line (None: that of the process), and exit; what help and version are is printed."""
    script = arguments is None
    arguments = sys.argv[1:] if arguments is None else arguments
    open_closed()
    code: int | None = None
    if arguments == ["--version"]:
        code = _print(f"nncompress {__version__}")
    elif arguments in ([], ["--help"], ["-h"], ["help"]) and COMPLETION not in os.environ:
        code = _print(help_text())
    else:
        from nncompress.cli.app import run

        code = run(arguments)
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # all is done; the exit takes a moment
        if script and hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    if code is not None:
        sys.exit(code)


def _print(text: str) -> ExitCode | None:
    """Where that fails, the exit code."""
    try:
        print(text, flush=True)
    except BrokenPipeError:
        give_up(1)
    except OSError as error:
        give_up(1)
        warn(f"error: cannot print: {(error.strerror or str(error)).lower()}")
        return ExitCode.OUTPUT
    return None
