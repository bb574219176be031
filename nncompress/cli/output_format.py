"""The format of a result or a report, by its suffix and by --target: refused before any work is done."""

from __future__ import annotations

import os
import shlex
from pathlib import Path

from nncompress import targets
from nncompress.errors import UsageError
from nncompress.extras import need

OURS = (".pt2", ".safetensors")  # what this tool reads, and no runtime
SUFFIXES = (".pt2", ".onnx", ".ort", ".xml", ".pte", ".safetensors")  # of nncompress.exporting.WRITERS
_SEPARATORS = tuple({"/", os.sep})
REPORTS = {".html": "html", ".htm": "html", ".md": "md", ".json": "json"}
RUN_BY = {".pte": "mobile", ".xml": "openvino"}  # the extra whose runtime checks such a file


def suffix_for(target: str | None) -> str:
    """Of a file whose name the user left to us.

    Raises:
        UsageError: there is no such target.
    """
    return ".onnx" if target is None else targets.target(target).suffixes[0]


def check_suffix(output: str | None, target: str | None = None) -> None:
    """Refuse an output name we cannot write before any work is done.

    Raises:
        UsageError: it is a folder, or its suffix names no format, or none that the target reads.
        MissingExtraError: the runtime of that format, or of the target, is not installed.
    """
    known = output is not None and Path(output).suffix.lower() in SUFFIXES
    if output and (output.endswith(_SEPARATORS) or (not known and Path(output).is_dir())):
        made = "" if Path(output).is_dir() else f"mkdir -p {shlex.quote(str(Path(output)))}; then "
        raise UsageError(
            f"--output {output} names a folder",
            expected=f"a file, whose suffix says the format: {', '.join(SUFFIXES)}",
            remedy=f"{made}--output {shlex.quote(str(Path(output) / 'model.pt2'))}",
        )
    if output is not None and not known:
        raise UsageError(
            f"--output {output}: cannot tell the format",
            got=Path(output).suffix or "no suffix",
            expected=", ".join(SUFFIXES),
        )
    if output is not None and Path(output).suffix.lower() in RUN_BY:
        need(RUN_BY[Path(output).suffix.lower()], Path(output).name)
    if target is not None:
        targets.for_file(Path(output).suffix.lower() if output is not None else suffix_for(target), target)


def check_output(output: str | None, target: str | None) -> None:
    """As `check_suffix`, for commands whose result may also be a model of ours, which is for every target.

    Raises:
        UsageError, MissingExtraError: as there.
    """
    ours = output is None or Path(output).suffix.lower() in OURS
    check_suffix(output, None if ours else target)
    if ours and target is not None:
        targets.target(target)


def written_for(file: Path, target: str | None) -> str | None:
    """The target that a file is written for; None for a model of ours."""
    return None if file.suffix.lower() in OURS else target


def report_format(path: str) -> str:
    """Of a report's file, by its suffix.

    Raises:
        UsageError: it names none.
    """
    suffix = Path(path).suffix.lower()
    if suffix not in REPORTS:
        raise UsageError(
            f"{path}: cannot tell the format of the report",
            got=suffix or "no suffix",
            expected=".html, .md or .json",
        )
    return REPORTS[suffix]
