"""Where a report goes: refused before any work is done."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nncompress.cli.console import say
from nncompress.cli.output_format import report_format
from nncompress.errors import UsageError
from nncompress.files.targets import check_target
from nncompress.report.facts.read import section_in
from nncompress.report.files import write_report
from nncompress.results import plain


def check_report(path: str | None, reads: Iterable[Path], *outputs: Path | str) -> None:
    """Refuse a --report that could not be written, or would take the place of something else.

    Args:
        reads: what the command reads.
        outputs: what else it writes.

    Raises:
        UsageError, OutputError
    """
    if path is None:
        return
    report_format(path)
    check_target(Path(path), reads)
    for other in outputs:
        if os.path.realpath(other) == os.path.realpath(path):
            raise UsageError("--report and the output are one file", got=path, remedy="give another name")


def write(path: str | None, document: dict[str, Any], reads: Iterable[Path]) -> None:
    """The report of what a command has just done, if one was asked for."""
    if path is None:
        return
    section = section_in(plain(document), "this run")
    write_report(Path(path), report_format(path), [section], reads)
    say(f"wrote {path}")
