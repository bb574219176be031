"""`compress`, and the running of passes that all pass commands share."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from nncompress import targets
from nncompress.cli import options
from nncompress.cli.console import print_json, progress, say, show
from nncompress.cli.declared import taking
from nncompress.errors import UsageError
from nncompress.extras import need
from nncompress.passes import Context, Pass
from nncompress.recipe import parse_pass, read_recipe
from nncompress.report import tables
from nncompress.targets import for_file

OURS = (".pt2", ".safetensors")  # what this tool reads, and no runtime
SUFFIXES = (".pt2", ".onnx", ".ort", ".xml", ".pte", ".safetensors")  # of nncompress.export.WRITERS
RUN_BY = {".pte": "mobile", ".xml": "openvino"}  # the extra whose runtime checks such a file

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
    chosen = read_recipe(recipe) if recipe else [parse_pass(text) for text in passes or ()]
    run_passes(chosen, model, recipe=recipe, dry_run=dry_run, **running)


def run_passes(
    passes: list[Pass],
    path: str | None,
    *,
    output: str | None,
    limit: int,
    seed: int,
    timing: bool,
    target: str | None,
    json: bool,
    recipe: str | None = None,
    dry_run: bool = False,
    **loading: Any,
) -> None:
    """Load, run, report each pass as it ends, write, and remember the result for the next command.

    Args:
        dry_run: only check what every pass requires, and say what would be done.
    """
    check_output(output, target)
    opened = options.open_model(path, **loading)
    from nncompress import api, export, pipeline

    label = passes[0].name if len(passes) == 1 else "compressed"
    data = loading["data"]
    reads = options.read_by(opened, data, loading["arch"], recipe)
    file = options.output_for(output, options.default_output(opened, label), reads)
    records = None if data is None else api.dataset(data, opened.model, loading["normalize"], say)
    if dry_run:
        pipeline.check(opened.model, passes, Context(data=records, seed=seed, limit=limit, target=target))
        _show_plan(passes, str(opened.path), str(file), json)
        return
    original = opened.model
    if len(opened.chain) > 1:
        original = options.open_model(str(opened.original), data=data).model
    steps: list[pipeline.Step] = []
    with progress() as bar:
        context = Context(data=records, seed=seed, limit=limit, progress=bar, target=target)

        def done(step: pipeline.Step, model: object) -> None:
            if not json:
                show(tables.step(step))

        result, steps = pipeline.run(
            opened.model, passes, context, original=original, done=done, timing=timing
        )
        bar.step(f"writing {file.name}", 0, None)
        report = export.write(result, file, protect=reads, target=written_for(file, target))
        options.remember(opened, file, opened.model, result)
    if json:
        print_json(
            {
                "schema": 1,
                "kind": "passes",
                "steps": [step.to_json() for step in steps],
                "output": report.to_json(),
            }
        )
    else:
        show(tables.written(report))
        if not any(step.changed for step in steps):
            say("no pass changed anything: the result is the model as it was")


def _show_plan(passes: Sequence[Pass], model: str, output: str, json: bool) -> None:
    if json:
        rows = [{"pass": each.name, "settings": each.settings()} for each in passes]
        print_json({"schema": 1, "kind": "plan", "model": model, "passes": rows, "output": output})
        return
    for number, each in enumerate(passes, 1):
        show(f"{number}. {each}")
    show(f"would write {output}; nothing was run or written")
    if len(passes) > 1:
        say("every pass was checked against the model as it is, not as the passes before it leave it")


def suffix_for(target: str | None) -> str:
    """Of a file whose name the user left to us.

    Raises:
        UsageError: there is no such target.
    """
    return ".onnx" if target is None else targets.target(target).suffixes[0]


def check_suffix(output: str | None, target: str | None = None) -> None:
    """Refuse an output name we cannot write before any work is done.

    Raises:
        UsageError: its suffix names no format, or none that the target reads.
        MissingExtraError: the runtime of that format, or of the target, is not installed.
    """
    if output is not None and Path(output).suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"--output {output}: cannot tell the format",
            got=Path(output).suffix or "no suffix",
            expected=", ".join(SUFFIXES),
        )
    if output is not None and Path(output).suffix.lower() in RUN_BY:
        need(RUN_BY[Path(output).suffix.lower()], Path(output).name)
    if target is not None:
        for_file(Path(output).suffix.lower() if output is not None else suffix_for(target), target)


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
