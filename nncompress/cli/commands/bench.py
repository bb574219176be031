"""`bench`: is it faster, and by how much?"""

from __future__ import annotations

from typing import Annotated, Any, Literal

import typer

from nncompress.cli import options, quantities
from nncompress.cli.declared import taking
from nncompress.cli.later import later
from nncompress.errors import UsageError

work = later("bench:bench")

_HELP = """Measure models against the first one: speed, memory, size, accuracy.

All models take turns in one measurement: two measurements one after the
other would compare two moments of the machine. Ratios come with their 95 %
interval; where it holds 1, no difference was seen. Models that are no .onnx
are exported for the measurement, so that all run in the same runtime
(--runtime torch: as they are). Ctrl-C shows what was measured until then.

What was it worth?
nncompress bench model.pt2 small.onnx --data val.npz

At the batch sizes that I serve?
nncompress bench model.pt2 small.onnx --batch 1,8,32 --threads 2

Are 2 % real?
nncompress bench a.onnx b.onnx --target-error 0.5%

In the other runtime of this CPU, which is faster on many?
nncompress bench model.pt2 small.onnx --runtime onnxruntime,openvino

On a phone's runtime, on a GPU?
nncompress bench model.pt2 --device mobile
nncompress bench model.pt2 --device cuda --precision float32,float16

How many tokens a second, reading a prompt and writing?
nncompress bench gpt.pt2 gpt.onnx --tokens 128

Where does the time go?
nncompress bench model.onnx --profile

In CI: once the first line, then the second on every change; exit code 11
where small.onnx became slower by more than --tolerance beyond noise.
nncompress bench model.onnx small.onnx -o base.json
nncompress bench model.onnx small.onnx --compare base.json
"""


def register(app: typer.Typer) -> None:
    app.command("bench", help=_HELP)(bench)


@taking(options.LOADING)
def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="left out: the original and the newest result here"),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="MODEL left out: every result since the original, in order")
    ] = False,
    runtime: Annotated[
        str,
        typer.Option(
            metavar="onnxruntime,openvino",
            help="what runs the models: onnxruntime, openvino, torch; each model is measured in each",
        ),
    ] = "onnxruntime",
    target: Annotated[
        str | None,
        typer.Option(
            metavar="ort-cpu,openvino",
            help="--runtime and --device in one word: ort-cpu, openvino, xnnpack, ort-cuda",
        ),
    ] = None,
    device: Annotated[
        Literal["cpu", "mobile", "cuda"], typer.Option(help="where they run; mobile: ExecuTorch, on this CPU")
    ] = "cpu",
    precision: Annotated[
        str | None,
        typer.Option(
            metavar="float32,float16",
            help="of floats; on cuda: float32, float16, bfloat16, float16-2:4, bfloat16-2:4; in openvino the "
            "first three, or what it chooses; each is measured",
        ),
    ] = None,
    mode: Annotated[
        str | None,
        typer.Option(
            metavar="eager,graphs", help="of torch on cuda: eager, graphs, compile; each is measured"
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(metavar="1,8,32", help="samples per call; several are measured one after the other"),
    ] = None,
    tokens: Annotated[
        int | None,
        typer.Option(
            min=1, metavar="N", help="of a language model: a prompt of N tokens, then one at a time"
        ),
    ] = None,
    threads: Annotated[int, typer.Option(min=1, help="per call")] = 1,
    time: Annotated[str, typer.Option(metavar="10s", help="how long to measure, per batch")] = "10s",
    target_error: Annotated[
        str | None,
        typer.Option(metavar="1%", help="go on until every ratio is known to within this, or 10 x --time"),
    ] = None,
    profile: Annotated[bool, typer.Option("--profile", help="also the time per operator of each")] = False,
    output: Annotated[
        list[str] | None,
        typer.Option(
            "--output",
            "-o",
            metavar="FILE",
            help="also write .json (everything, raw samples) or .csv; may be repeated",
        ),
    ] = None,
    compare: Annotated[
        str | None,
        typer.Option(metavar="OLD.json", help="fail with exit code 11 where a model is slower than there"),
    ] = None,
    tolerance: Annotated[
        str, typer.Option(metavar="5%", help="of --compare: slower by less is no regression")
    ] = "5%",
    seed: options.Seed = 0,
    metric: options.Metric = None,
    report: options.Report = None,
    json: options.Json = False,
    **loading: Any,
) -> None:
    if profile and device == "cuda":
        raise UsageError(
            "--profile tells the operators of the processor only",
            got="--device cuda",
            remedy="NVIDIA's nsys profile, around the same command",
        )
    if tokens is not None and compare is not None:
        raise UsageError("bench: --compare knows no phases of --tokens", remedy="leave one of them out")
    settings: dict[str, Any] = {
        "threads": threads,
        "time_budget": quantities.seconds(time, "--time"),
        "target_error": None if target_error is None else quantities.fraction(target_error, "--target-error"),
        "profiled": profile,
        "seed": seed,
    }
    work(
        models,
        every=every,
        runtime=runtime,
        target=target,
        device=device,
        precision=precision,
        mode=mode,
        batches=None if batch is None else quantities.counts(batch, "--batch"),
        tokens=tokens,
        settings=settings,
        outputs=output or [],
        compare=compare,
        tolerance=quantities.fraction(tolerance, "--tolerance"),
        metric=metric,
        report=report,
        json=json,
        loading=loading,
    )
