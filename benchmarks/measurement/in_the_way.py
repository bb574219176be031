"""What stands in the way of more: a network's int8 time in a target, by layers of one kind.

    python -m benchmarks.networks.targets WORK --cifar DIR
    python -m benchmarks.measurement.in_the_way WORK/*.pt2 [--target openvino]

Every layer of the float network and of its int8 form is timed by itself (`nncompress inspect --target`), one
sample, one thread, CPU time; layers of the same kind and filter are summed up. Columns: its time in the
floats that the target computes in by itself, in int8, and in int8 with half its outputs. The last lines are
the sum, and the network as a whole: less where the runtime fuses layers, more where it works between them.
Halving every layer is a cut to about a quarter of the products.
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from pathlib import Path

import numpy as np

import nncompress
from nncompress.api import dataset
from nncompress.benchmarking.latency.forecast import Forecast, LayerForecast, forecast
from nncompress.devices import processor
from nncompress.passes import Context, Quantize
from nncompress.pipeline import run
from nncompress.progress import NullProgress

SHOWN = 8  # kinds of layers by name, those that take longest in int8


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("models", type=Path, nargs="+", metavar="MODEL.pt2", help="beside it MODEL.npz")
    parser.add_argument("--target", default="openvino")
    parser.add_argument("--limit", type=int, default=16, help="samples to calibrate on")
    given = parser.parse_args()
    for path in given.models:
        model = nncompress.load(path)
        data = dataset(str(path.with_suffix(".npz")), model, None, print)
        rounding = Quantize(weight_bits=7 if processor().saturates else 8, every_layer=True)
        context = Context(data=data, limit=given.limit, target=given.target)
        int8, _ = run(model, [rounding], context)
        show(
            path.stem,
            forecast(model, given.target, NullProgress()),
            forecast(int8, given.target, NullProgress()),
        )


def show(name: str, floats: Forecast, int8: Forecast) -> None:
    """The table of a network, in Markdown, times in microseconds."""
    before = {each.name: each for each in floats.layers}
    groups: dict[str, list[LayerForecast]] = defaultdict(list)
    for each in int8.layers:
        groups[kind_of(each)].append(each)
    rows = [(kind, *sums(layers, before)) for kind, layers in groups.items()]
    rows.sort(key=lambda row: -row[2])
    rest = [row[1:] for row in rows[SHOWN:]]
    print(f"\n{name}, {floats.target}\n\n| layers | {floats.floats} | int8 | int8, half |\n|---|---|---|---|")
    for row in rows[:SHOWN]:
        line(*row)
    if rest:
        line(f"{len(rest)} other kinds", *np.sum(rest, 0))
    line("all layers, one by one", *np.sum([row[1:] for row in rows], 0))
    line("the whole network", floats.seconds, int8.seconds, None)
    if int8.skipped:
        print(f"\nnot timed: {len(int8.skipped)} ({int8.skipped[0][1]})")


def sums(layers: list[LayerForecast], before: dict[str, LayerForecast]) -> tuple[float, float, float]:
    """Seconds in floats, in int8, and with half the outputs (a layer without a half as it is)."""
    floats = sum(before[each.name].seconds for each in layers if each.name in before)
    halves = sum(each.seconds if each.half is None else each.half for each in layers)
    return floats, sum(each.seconds for each in layers), halves


def kind_of(layer: LayerForecast) -> str:
    """ "3×3 convolution, 64 of 64"; as the weight lies: outputs of inputs."""
    outputs, inputs, *window = layer.weight
    if not window:
        return f"product, {outputs} of {inputs}"
    size = "×".join(map(str, window))
    return f"{size} convolution, " + (
        f"{outputs} single channels" if inputs == 1 else f"{outputs} of {inputs}"
    )


def line(kind: str, *seconds: float | None) -> None:
    print(f"| {kind} | " + " | ".join("" if s is None else f"{s * 1e6:,.0f}" for s in seconds) + " |")


if __name__ == "__main__":
    main()
