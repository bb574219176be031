"""The running of passes that `compress` and the commands of single passes share."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from nncompress import api, exporting, pipeline
from nncompress.benchmarking.environment import environment
from nncompress.benchmarking.latency.int8_speed import int8_speed
from nncompress.cli import options
from nncompress.cli.console import print_json, progress, say, show
from nncompress.cli.output_format import written_for
from nncompress.cli.work import model_files, report_file
from nncompress.cli.work.passes.paired import open_paired
from nncompress.errors import UsageError
from nncompress.ir.formats.precision import convert, has_other_floats
from nncompress.options import flag_of
from nncompress.passes import Context, Pass
from nncompress.passes.base import Precision
from nncompress.report import tables
from nncompress.results import SCHEMA


def run_passes(
    passes: list[Pass],
    path: str | None,
    *,
    output: str | None,
    limit: int,
    seed: int,
    timing: bool,
    target: str | None,
    for_: Literal["float32", "bf16", "int8"] | None,
    report: str | None,
    json: bool,
    with_past: str | None = None,
    recipe: str | None = None,
    dry_run: bool = False,
    **loading: Any,
) -> None:
    """Load, run, report each pass as it ends, write, and remember the result for the next command.

    Args:
        with_past: the decoder with past of the decoder that `path` is: both are treated as one.
        dry_run: only check what every pass requires, and say what would be done.
    """
    if for_ is not None:
        _check_timed(passes)
    precision: Precision | None = "bfloat16" if for_ == "bf16" else for_
    opened = model_files.open_model(path, **loading)
    both = None
    if with_past is not None:
        both = open_paired(opened, with_past, passes, loading["input"], trust_pickle=loading["trust_pickle"])
        opened, timing = both.joined, False
    loading |= {"arch": opened.arch, "weights": None}  # of `opened.path`
    label = passes[0].name if len(passes) == 1 else "compressed"
    data = loading["data"]
    reads = model_files.read_by(opened, data, loading["arch"], recipe, with_past)
    file = model_files.output_for(output, model_files.default_output(opened, label), reads)
    report_file.check_report(report, reads, file)
    second = None if both is None else both.file(file, label, output, reads)
    for model in (opened.model,) if both is None else (both.pair.prompt, both.pair.step):
        exporting.check_ops(model, file)
    samples = None if data is None else api.dataset(data, opened.model, loading["normalize"], say)
    if dry_run:
        asked = Context(data=samples, seed=seed, limit=limit, target=target, ends_in=precision)
        pipeline.check(opened.model, passes, asked)
        _show_plan(passes, str(opened.path), str(file), json)
        return
    original = opened.model
    if len(opened.chain) > 1:
        original = model_files.open_model(str(opened.original), data=data).model
        # `export --precision float32` came between
        if has_other_floats(original) and not has_other_floats(opened.model):
            convert(original, "float32")
    steps: list[pipeline.Step] = []
    with progress() as bar:
        context = Context(
            data=samples, seed=seed, limit=limit, progress=bar, target=target, ends_in=precision
        )

        def done(step: pipeline.Step, model: object) -> None:
            if not json:
                show(tables.step(step))

        result, steps = pipeline.run(
            opened.model, passes, context, original=original, done=done, timing=timing
        )
        bar.step(f"writing {file.name}", 0, None)
        how: dict[str, Any] = {"protect": reads, "target": written_for(file, target), "time_int8": int8_speed}
        if both is None or second is None:
            reports = [exporting.write(result, file, **how)]
            model_files.remember(opened, file, opened.model, result)
        else:
            reports = both.write(result, (file, second), **how)
            say("the next command has to name its files: MODEL is not remembered where there are two")
    given = {**loading, "limit": limit, "seed": seed, "target": target, "for_": for_, "with_past": with_past}
    document = {
        "schema": SCHEMA,
        "kind": "passes",
        "model": str(opened.path),
        "command": _command(opened.path, file, given),
        "steps": [step.to_json() for step in steps],
        "layers": {
            "before": [row.to_json() for row in steps[0].before.layers],
            "after": [row.to_json() for row in steps[-1].after.layers],
        },
        "output": reports[0].to_json(),
        "with_past": reports[1].to_json() if reports[1:] else None,
        "environment": environment(),
    }
    if json:
        print_json(document)
    else:
        for written in reports:
            show(tables.written(written))
        if not any(step.changed for step in steps):
            say("no pass changed anything: the result is the model as it was")
    report_file.write(report, document, (*reads, file))


def _command(model: Path, output: Path, given: dict[str, Any]) -> str:
    """What makes the result again, from its recipe as recipe.toml."""
    words = ["nncompress", "compress", str(model), "--recipe", "recipe.toml"]
    for name, value in given.items():
        default = {**options.LOADING, **options.RUNNING}[name][1]
        if value == default:
            continue
        flag = flag_of(name)
        if isinstance(value, bool):
            words.append(flag if value else f"--no-{flag[2:]}")
        else:
            words += [flag, str(value)]
    return shlex.join([*words, "-o", str(output)])


def _check_timed(passes: Sequence[Pass]) -> None:
    """--for says what is timed: refuse it where nothing is."""
    if not any(pipeline.chooses_by_clock(each) for each in passes):
        raise UsageError(
            "--for is the precision that prune-nodes, factorize and grow time with --latency (or --faster)",
            got=", ".join(each.name for each in passes),
            remedy="add --latency 0.7 to one of these, or leave --for out",
        )


def _show_plan(passes: Sequence[Pass], model: str, output: str, json: bool) -> None:
    if json:
        rows = [{"pass": each.name, "settings": each.settings()} for each in passes]
        print_json({"schema": SCHEMA, "kind": "plan", "model": model, "passes": rows, "output": output})
        return
    for number, each in enumerate(passes, 1):
        show(f"{number}. {each}")
    show(f"would write {output}; nothing was run or written")
    if len(passes) > 1:
        say("every pass was checked against the model as it is, not as the passes before it leave it")
