"""A report as a file, in the format of its name."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from nncompress.files.atomic import replacing
from nncompress.report.facts.content import Report, Section
from nncompress.report.facts.headline import report as report_of
from nncompress.report.html import page
from nncompress.report.markdown import markdown


def written(report: Report, form: str) -> str:
    """The report as "html", "md" or "json"."""
    if form == "json":
        return json.dumps(report.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    return page(report) if form == "html" else markdown(report)


def write_report(path: Path, form: str, sections: Sequence[Section], protect: Iterable[Path] = ()) -> int:
    """Write the report of these runs.

    Returns: its size in bytes.

    Raises:
        OutputError: it cannot be written, or is one of `protect`.
    """
    content = written(report_of(sections), form).encode("utf-8", "backslashreplace")
    with replacing(path, protect) as temporary:
        temporary.write_bytes(content)
    return len(content)
