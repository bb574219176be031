"""The running of passes that `compress` and the commands of single passes share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nncompress.cli import model_files
from nncompress.cli.console import print_json, progress, say, show
from nncompress.cli.output_format import check_output, written_for
from nncompress.passes import Context, Pass
from nncompress.report import tables


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
    opened = model_files.open_model(path, **loading)
    from nncompress import api, export, pipeline

    label = passes[0].name if len(passes) == 1 else "compressed"
    data = loading["data"]
    reads = model_files.read_by(opened, data, loading["arch"], recipe)
    file = model_files.output_for(output, model_files.default_output(opened, label), reads)
    samples = None if data is None else api.dataset(data, opened.model, loading["normalize"], say)
    if dry_run:
        pipeline.check(opened.model, passes, Context(data=samples, seed=seed, limit=limit, target=target))
        _show_plan(passes, str(opened.path), str(file), json)
        return
    original = opened.model
    if len(opened.chain) > 1:
        original = model_files.open_model(str(opened.original), data=data).model
    steps: list[pipeline.Step] = []
    with progress() as bar:
        context = Context(data=samples, seed=seed, limit=limit, progress=bar, target=target)

        def done(step: pipeline.Step, model: object) -> None:
            if not json:
                show(tables.step(step))

        result, steps = pipeline.run(
            opened.model, passes, context, original=original, done=done, timing=timing
        )
        bar.step(f"writing {file.name}", 0, None)
        report = export.write(result, file, protect=reads, target=written_for(file, target))
        model_files.remember(opened, file, opened.model, result)
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
