"""`targets`: where models can run, and which is fastest here."""

from __future__ import annotations

import typer

from nncompress.cli import options
from nncompress.cli.later import later

work = later("targets:targets")

_HELP = """List the runtimes that --target names: what they take, whether they are here, which is fastest.

Those that run .onnx files on this processor are timed on one small network, in every precision that they
have here, for two seconds; the result is remembered per machine and versions. The fastest one in floats is
where passes measure latencies without --target.

Example:  nncompress targets
"""


def register(app: typer.Typer) -> None:
    app.command("targets", help=_HELP)(targets)


def targets(json: options.Json = False) -> None:
    work(json)
