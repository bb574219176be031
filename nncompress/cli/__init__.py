"""The command line: parse, call, report; the only place that exits.

`nncompress --help` and `--version` are answered from one table, without importing anything else, because a
user asks them often and torch takes seconds to import. Everything else goes to `nncompress.cli.app`.
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


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `nncompress` script; exits with a code of `nncompress.errors.ExitCode`."""
    script = arguments is None
    arguments = sys.argv[1:] if arguments is None else arguments
    open_closed()
    if arguments == ["--version"]:
        _print(f"nncompress {__version__}")
    elif arguments in ([], ["--help"], ["-h"], ["help"]) and COMPLETION not in os.environ:
        _print(help_text())
    else:
        try:
            from nncompress.cli.app import run

            code = run(arguments)
        except KeyboardInterrupt:  # while the parser is imported, before anything was done; or once more
            warn("error: interrupted")
            code = ExitCode.INTERRUPTED
        for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # all is done; the exit takes a moment
            if script and hasattr(signal, name):
                signal.signal(getattr(signal, name), signal.SIG_IGN)
        sys.exit(code)


def _print(text: str) -> None:
    try:
        print(text, flush=True)
    except BrokenPipeError:
        give_up(1)
    except OSError as error:
        give_up(1)
        warn(f"error: cannot print: {(error.strerror or str(error)).lower()}")
        sys.exit(ExitCode.OUTPUT)
