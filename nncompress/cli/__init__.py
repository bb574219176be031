"""The command line: parse, call, report; the only place that exits.

Nothing is imported before `main` runs, so that Ctrl-C is answered from there on.
"""

from __future__ import annotations

import sys
from contextlib import suppress

_INTERRUPTED = 130  # `ExitCode.INTERRUPTED`, which is not imported yet


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `nncompress` script; exits with a code of `nncompress.errors.ExitCode`."""
    try:
        from nncompress.cli.script import answer

        answer(arguments)
    except KeyboardInterrupt:  # while something is imported, before anything was done; or once more
        with suppress(AttributeError, OSError, ValueError):  # stderr is closed
            sys.stderr.write("error: interrupted\n")
            sys.stderr.flush()
        sys.exit(_INTERRUPTED)
