"""What commands leave behind, made of their own records, small and without running anything."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nncompress.analysis.cost import Cost, LayerCost
from nncompress.analysis.distance.drift import Samples
from nncompress.cycles.result import Cycle, CycleResult
from nncompress.exporting.report import ExportReport
from nncompress.ir.graph.verify import Drift
from nncompress.passes import Change
from nncompress.pipeline import Step
from nncompress.report.facts.content import Report
from nncompress.report.facts.headline import report
from nncompress.report.facts.read import section_in
from nncompress.results import (
    SCHEMA,
    BenchResult,
    BenchSuite,
    CandidateResult,
    CompareResult,
    Estimate,
    EvalResult,
    Latency,
    OperatorTime,
    OutputDifference,
    PairedResult,
    plain,
)
from nncompress.results import Samples as Times
from nncompress.search.layers.sensitivity import Effect, Sensitivity
from nncompress.search.promise import Promise
from nncompress.train.state import TrainResult

EVIL = '<script>alert("x")</script>&\'"><img src=x onerror=alert(1)>{{7*7}}{% raw %}|@all](http://x)\u202e'


def passes(layer: str = "conv1") -> dict[str, Any]:
    """Of a pipeline: prune-nodes, then factorize."""

    def row(name: str, parameters: int, macs: int, bits: int = 32) -> LayerCost:
        return LayerCost(
            name,
            "conv2d",
            (8, 4, 3, 3),
            (1, 8, 4, 4),
            parameters,
            parameters,
            macs,
            bits // 8 * parameters,
            bits,
        )

    before = Cost((row(layer, 300, 4000), row("fc", 100, 100)))
    middle = Cost((row(layer, 150, 2000), row("fc", 100, 100)))
    after = Cost((row(f"{layer}.0", 50, 600), row(f"{layer}.1", 40, 500), row("fc", 100, 100, bits=8)))
    samples = Samples((), (64,), "held-out")
    spectrum = {"rank": 3, "spectrum": [(1, 0.5), (2, 0.1), (3, 0.01), (4, 0.0)]}
    steps = [
        Step(
            "prune-nodes", {"ratio": 0.5}, [Change(layer, "4 of 8 nodes left")], before, middle,
            [Drift("output", 0.05, 0.1)], samples, 1.5, ["a note"], [f"{layer} moves them most"],
        ),
        Step(
            "factorize", {"macs": 0.6},
            [Change(layer, "channel: rank 3 of 8", spectrum), Change("fc", "skipped: small", applied=False)],
            middle, after, [Drift("output", 0.125, 0.2)], samples, 2.0, [], [],
        ),
    ]  # fmt: skip
    return plain(
        {
            "schema": SCHEMA,
            "kind": "passes",
            "model": "net.pt2",
            "command": "nncompress compress net.pt2 --recipe recipe.toml --data d.npz -o small.onnx",
            "steps": [step.to_json() for step in steps],
            "layers": {"before": list(before.layers), "after": list(after.layers)},
            "output": ExportReport(Path("small.onnx"), 1234, 0.5).to_json(),
            "with_past": None,
            "environment": {"cpu": "a processor", "versions": {"torch": "2"}, "memory": 2**34},
        }
    )


def bench(name: str = "small.onnx") -> dict[str, Any]:
    """Two models, the second twice as fast, with a profile."""

    def arm(name: str, median: float, speedup: Estimate | None, top1: float) -> CandidateResult:
        accuracy = EvalResult("d.npz", "classification", 450, top1=top1, metric="top1", value=top1)
        return CandidateResult(
            name, "ONNX Runtime", Latency(median, 2 * median, 3 * median, 0.0), None, speedup, None,
            Times((1,)), profile=(OperatorTime("Conv", name, 1, median), OperatorTime("Relu", "", 1, 1.0)),
            file_size=int(median * 1e9), parameters=100, macs=int(median * 1e9), accuracy=accuracy,
        )  # fmt: skip

    arms = (arm("net.pt2", 2e-4, None, 0.9), arm(name, 1e-4, Estimate(2.0, 1.9, 2.1), 0.895))
    environment = {"cpu": "a processor", "instruction_sets": ["avx2"], "load_average": 0.5}
    run = BenchResult(
        arms, 1, 1, "cpu", (100,), 10, 0, environment, "not reported", warnings=("a noisy machine",)
    )
    return BenchSuite((run,)).to_json()


def evaluation(name: str = "small.onnx") -> dict[str, Any]:
    """Two models on labels, and their outputs side by side."""
    first, second = (
        EvalResult(
            "d.npz",
            "classification",
            450,
            top1=t,
            metric="top1",
            value=t,
            interval=Estimate(t, t - 0.02, t + 0.02),
        )
        for t in (0.9, 0.895)
    )
    paired = PairedResult(450, 0.9, 0.895, 5, 3, Estimate(-0.005, -0.015, 0.005), 0.7)
    outputs = CompareResult(450, (OutputDifference("output", 0.98, 0.999, 30.5, 0.125),))
    rows = [
        {"name": "net.pt2", "runtime": "torch", "result": first.to_json()},
        {"name": name, "runtime": "ONNX Runtime", "result": second.to_json()}
        | {"paired": paired.to_json(), "difference": outputs.to_json()},
    ]
    return plain({"schema": SCHEMA, "kind": "evaluation", "models": rows})


def sensitivity(layer: str = "conv1") -> dict[str, Any]:
    """Two layers at two strengths, one of which could not be done."""
    effects = tuple(
        Effect(
            "prune-nodes",
            where,
            strength,
            error,
            0.1,
            0.2,
            0.3,
            "" if error else "too small",
            f"--exclude {where}",
        )
        for where, strength, error in [
            (layer, 0.25, 0.1),
            (layer, 0.5, 0.9),
            ("fc", 0.25, 0.01),
            ("fc", 0.5, None),
        ]
    )
    return Sensitivity("on 64 held-out samples", effects, 4, 0).to_json()


def optimize(recipe: str = "small.toml") -> dict[str, Any]:
    """Three trials, one of which was refused."""
    rows: dict[str, Any] = {
        f"{i}": {"recipe": [{"name": "prune-nodes", "macs": share}], "worker": "w", "macs": share}
        | {"size": 1000 * share, "lost": lost, "at_most": 2 * lost, "samples": 400, "seconds": 1.0}
        | {"latency": {"here": {"share": share, "low": share - 0.1, "high": share + 0.1, "seconds": 1e-4}}}
        for i, (share, lost) in enumerate([(0.5, 0.015), (0.7, 0.005)])
    }
    rows["2"] = {"recipe": [{"name": "quantize"}], "worker": "w", "failed": "no", "seconds": 0.1}
    kept = Promise("top1", 400, 0.9, 0.895, 0.005, -0.002, 0.012, "in words", 0.95, 0.02, True, 300, 1)
    return plain(
        {"schema": SCHEMA, "kind": "optimize", "model": "net.pt2", "best": rows["0"], "trials": rows}
        | {"promise": kept.to_json(), "output": ExportReport(Path("best.onnx"), 1234, 0.5).to_json()}
        | {"recipe": recipe, "commands": [f"nncompress compress net.pt2 --recipe {recipe}"], "stopped": False}
        | {"environment": {"cpu": "a processor"}}
    )


def train(top1: float = 0.9) -> dict[str, Any]:
    """Three epochs, the second kept."""
    rows = tuple(
        {"epoch": i, "lr": 0.1, "loss": 1 / i, "seconds": 1.0, "validation": {"loss": 1.5 / i, "top1": top1}}
        for i in (1, 2, 3)
    )
    result = TrainResult(1 / 3, {"loss": 0.75, "top1": top1}, 2, "all epochs", rows)
    return {**result.to_json(), "output": ExportReport(Path("t.pt2"), 99, 0.1).to_json()}


def cycle(group: str = "conv1") -> dict[str, Any]:
    """Two cycles."""
    rows = tuple(
        Cycle(i, {group: 8 // i, "fc": 4}, 0.5 * i, {"loss": 0.6, "top1": 0.8}, 2, 4, i == 1, 1.0)
        for i in (1, 2)
    )
    result = CycleResult(rows, {group: 4, "fc": 4}, 0.5, "max cycles")
    return {**result.to_json(), "output": ExportReport(Path("c.pt2"), 99, 0.1).to_json()}


def spectra(layer: str = "conv1") -> dict[str, Any]:
    """Of one weight."""
    rows = [{"name": layer, "shape": [8, 36], "values": [4.0, 2.0, 1.0, 0.5, 0.0]}]
    return {"schema": SCHEMA, "kind": "spectra", "model": "net.pt2", "spectra": rows}


EVERY = {
    "passes": passes,
    "bench-suite": bench,
    "evaluation": evaluation,
    "sensitivity": sensitivity,
    "optimize": optimize,
    "train": train,
    "cycle": cycle,
    "spectra": spectra,
}


def everything(name: str | None = None) -> Report:
    """A report of every kind of run, with `name` as the name of layers and files."""
    make = [(kind, make() if name is None else make(name)) for kind, make in EVERY.items() if kind != "train"]
    return report([*(section_in(document, kind) for kind, document in make), section_in(train(), "train")])
