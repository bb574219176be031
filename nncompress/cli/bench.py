"""`bench`: is it faster, and by how much?"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from nncompress.cli import artifacts, options
from nncompress.cli.console import print_json, progress, show
from nncompress.errors import DeviceError

_HELP = """Measure models against the first one: latency, memory, size, MACs, and with --data accuracy.

All models run in turn in one interleaved measurement; ratios come with their 95 % interval. Models that are
no .onnx are exported for the measurement, so that all run in the same runtime (--runtime torch: as they are).

Example:  nncompress bench model.pt2 small.onnx --batch 8 --data val.npz
"""


def register(app: typer.Typer) -> None:
    app.command("bench", help=_HELP)(bench)


def bench(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="left out: the original and the newest result here"),
    ] = None,
    every: Annotated[
        bool, typer.Option("--all", help="MODEL left out: every result since the original, in order")
    ] = False,
    runtime: Annotated[
        Literal["onnxruntime", "torch"], typer.Option(help="what runs the models")
    ] = "onnxruntime",
    device: Annotated[Literal["cpu", "cuda", "mobile"], typer.Option(help="where they run")] = "cpu",
    batch: Annotated[int, typer.Option(min=1, help="records per call")] = 1,
    threads: Annotated[int, typer.Option(min=1, help="per call")] = 1,
    time: Annotated[float, typer.Option(min=0.1, metavar="SECONDS", help="how long to measure")] = 10.0,
    data: options.Data = None,
    normalize: options.Normalize = None,
    arch: options.Arch = None,
    input: options.Input = None,
    trust_pickle: options.TrustPickle = False,
    seed: options.Seed = 0,
    json: options.Json = False,
) -> None:
    if device != "cpu":
        raise DeviceError(
            f"bench --device {device}: this version measures on the CPU only", remedy="--device cpu"
        )
    opened = artifacts.open_all(
        models,
        every=every,
        arch=arch,
        input=input,
        data=data,
        normalize=normalize,
        trust_pickle=trust_pickle,
    )
    from nncompress.bench import PARITY_RECORDS, benchmark
    from nncompress.report import bench_table

    records = None if data is None else artifacts.dataset_for(opened, data, normalize)
    with progress() as bar, tempfile.TemporaryDirectory() as folder:
        arms = [_arm(each, runtime, Path(folder), position, bar) for position, each in enumerate(opened)]
        result = benchmark(
            arms,
            inputs=_one_call(records, batch),
            parity_inputs=_one_call(records, max(batch, PARITY_RECORDS)),
            batch=batch,
            threads=threads,
            time_budget=time,
            seed=seed,
            progress=bar,
        )
        result = _with_accuracy(result, arms, records, bar)
    if json:
        print_json(result.to_json())
    else:
        show(bench_table.benchmark(result))


def _arm(artifact: artifacts.Artifact, runtime: str, folder: Path, position: int, bar: Any) -> Any:
    """The artifact in the runtime that was asked for, with its cost where its graph is known."""
    from nncompress.analysis.cost import cost
    from nncompress.bench import Arm
    from nncompress.export import write

    if artifact.model is None:
        return Arm(artifact.name, artifact.path)
    costs = cost(artifact.model)
    target: Any = artifact.model
    if runtime == "onnxruntime":
        bar.step(f"exporting {artifact.name}", 0, None)
        target = folder / f"{position}.onnx"
        write(artifact.model, target)
    return Arm(artifact.name, target, parameters=costs.parameters, macs=costs.macs)


def _one_call(records: Any, batch: int) -> Any:
    if records is None:
        return None
    for each in records.batches(records.fixed_batch or batch, limit=records.fixed_batch or batch):
        return tuple(tensor.numpy() for tensor in each.inputs)
    return None


def _with_accuracy(result: Any, arms: list[Any], records: Any, bar: Any) -> Any:
    """The result with each arm's accuracy, where the data has labels."""
    if records is None or not records.has_labels:
        return result
    from dataclasses import replace

    from nncompress.analysis.accuracy import evaluate
    from nncompress.runtimes import open_artifact

    measured = [
        replace(arm, accuracy=evaluate(open_artifact(given.artifact).run, records, progress=bar))
        for arm, given in zip(result.arms, arms)
    ]
    return replace(result, arms=tuple(measured))
