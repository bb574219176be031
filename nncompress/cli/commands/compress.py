"""`compress`: an ordered pipeline of passes, from a recipe or `--pass`."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from nncompress.cli import options
from nncompress.cli.declared import taking
from nncompress.cli.later import later
from nncompress.cli.output_format import check_output
from nncompress.errors import UsageError
from nncompress.recipe import parse_pass, read_recipe

run_passes = later("passes.run_passes:run_passes")

_HELP = """Run an ordered pipeline of passes, verify and record each, and write the result.

Passes come from a recipe file, or from --pass NAME:OPTION=VALUE,... given in order.

Example:  nncompress compress model.pt --pass prune:std=0.5 --pass factorize:err=1e-3 -o small.onnx
"""


def register(app: typer.Typer) -> None:
    app.command("compress", help=_HELP)(compress)


@taking(options.RUNNING)
def compress(
    model: options.ModelArgument = None,
    recipe: Annotated[
        str | None, typer.Option(metavar="FILE.toml", help="a recipe: passes and their options, in order")
    ] = None,
    passes: Annotated[
        list[str] | None,
        typer.Option("--pass", metavar="NAME:OPT=VAL,...", help="a pass; repeat for more, in order"),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="check recipe, model and data, say what would be done, write nothing"),
    ] = False,
    **running: Any,
) -> None:
    if (recipe is None) == (not passes):
        raise UsageError(
            "compress: give either --recipe or --pass",
            remedy="nncompress compress model.pt --pass prune:std=0.5",
        )
    if dry_run and running["report"] is not None:
        raise UsageError(
            "--dry-run does nothing that a --report could tell of", remedy="leave one of them out"
        )
    check_output(running["output"], running["target"])
    chosen = read_recipe(recipe) if recipe else [parse_pass(text) for text in passes or ()]
    run_passes(chosen, model, recipe=recipe, dry_run=dry_run, **running)
