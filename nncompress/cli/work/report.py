"""`report`: one page of what runs have left behind."""

from __future__ import annotations

from pathlib import Path

from nncompress.cli.console import print_text, say
from nncompress.cli.output_format import report_format
from nncompress.files.targets import check_target
from nncompress.report.facts.headline import report as report_of
from nncompress.report.facts.read import section_of
from nncompress.report.files import write_report, written
from nncompress.report.html.page import MOST_BYTES


def report(runs: list[str], output: str | None, wanted: str | None) -> None:
    """Read the runs and write the page, or print it where there is no `output`.

    Args:
        wanted: the format; None: by the suffix of `output`.
    """
    reads = tuple(map(Path, runs))
    if output is not None:
        wanted = wanted or report_format(output)
        check_target(Path(output), reads)
    sections = [section_of(run) for run in runs]
    if output is None:
        print_text(written(report_of(sections), str(wanted)))
    else:
        size = write_report(Path(output), str(wanted), sections, reads)
        say(f"wrote {output} ({size / 1000:.0f} kB)")
        if size > MOST_BYTES and wanted == "html":
            say(f"{output} is larger than {MOST_BYTES // 1000} kB: fewer runs make a smaller page")
