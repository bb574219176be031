"""`share` and `substitute` on every architecture, each result checked by hand; print the table.

    python -m benchmarks.sweeps.share_substitute [NAME ...] [--limit SECONDS]

`share` as --which auto, second-3x3 and all-3x3, --adaptive, and on data: layers that lost their own weight.
`substitute` as separable, nonlinear-separable, kernel-composing and stacked-3x3: layers replaced. Checked of
every model that they changed:

- outputs are finite and of the same shapes; the .onnx file gives them at batch sizes 1 and 3 in ONNX Runtime
  (`onnx`; one file for the ways to share that tie the same layers);
- `by hand` (share): the outputs are those of the original with every tied weight put in layer by layer.
  Without data that is the mean of the old weights, computed here; on data, the result's weight and norms. The
  .onnx file holds one copy, .safetensors is as much smaller, and .pt2 loads tied;
- `exact` (substitute): where all replaced weights are random ones that the operation can express (rank 1 per
  input channel, or the composition of as many channels), the outputs do not change. Of nonlinear-separable
  that is asked without its ReLUs, which cut what lies three standard deviations below the mean; of
  stacked-3x3 not at all: its fit is no closed form.

`moved`: how far the least effective replacement moved the outputs; 0 would prove nothing. All distances are
relative to the largest output. Needs `transformers` for the second half of the list.
"""

from __future__ import annotations

import argparse
import logging
import re
import signal
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnx import numpy_helper
from torch import Tensor

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

from benchmarks.architectures import Architecture, build, everything  # noqa: E402
from nncompress import pipeline  # noqa: E402
from nncompress.analysis.cost import cost  # noqa: E402
from nncompress.data import Batch  # noqa: E402
from nncompress.data.input_batches import InputBatches  # noqa: E402
from nncompress.exporting import write  # noqa: E402
from nncompress.ir import Model  # noqa: E402
from nncompress.ir.graph.ops import op_name  # noqa: E402
from nncompress.ir.layers.weights import Layer, layers  # noqa: E402
from nncompress.loading import load_model  # noqa: E402
from nncompress.passes import Change, Context, Pass, Share, Substitute  # noqa: E402

SHARES = {
    "auto": Share(saving=1),
    "second-3x3": Share(which="second-3x3", saving=1),
    "all-3x3": Share(which="all-3x3", saving=1),
    "adaptive": Share(adaptive=True),
    "on data": Share(saving=1),
}
SUBSTITUTES = ("separable", "nonlinear-separable", "kernel-composing", "stacked-3x3")
COLUMNS = ("architecture", *SHARES, *SUBSTITUTES, "by hand", "exact", "moved", "onnx", "seconds")
TOLERANCE = 1e-3  # float32, through up to a hundred layers; what is wrong moves the outputs by their own size
Outputs = tuple[Tensor, ...]


class Failure(Exception):
    """A check that a result did not pass."""


@dataclass
class Row:
    """What one architecture gave: figures per column, worst distances, why layers were left alone."""

    counts: dict[str, int] = field(default_factory=dict)
    by_hand: list[float] = field(default_factory=list)
    exact: list[float] = field(default_factory=list)
    moved: list[float] = field(default_factory=list)
    onnx: list[float] = field(default_factory=list)


class Records:
    """Draws of an architecture as data without labels."""

    has_labels = False

    def __init__(self, architecture: Architecture, count: int = 32) -> None:
        self.inputs = architecture.draw(count, seed=5)

    def __len__(self) -> int:
        return len(self.inputs[0])

    def input_batches(self, batch_size: int, limit: int | None = None) -> InputBatches:
        return InputBatches.held([batch.inputs for batch in self.batches(batch_size, limit)])

    def batches(
        self, batch_size: int, limit: int | None = None, shuffle_seed: int | None = None
    ) -> Iterator[Batch]:
        end = min(limit or len(self), len(self))
        for start in range(0, end, batch_size):
            yield Batch(tuple(x[start : min(start + batch_size, end)] for x in self.inputs), None)


def distance(left: Outputs, right: Outputs) -> float:
    return max(
        float((a - b).abs().max() / b.abs().max().clamp_min(1e-12)) for a, b in zip(left, right, strict=True)
    )


def outputs_of(model: Model, inputs: Outputs) -> Outputs:
    with torch.no_grad():
        return model.outputs_of(*inputs)


def check_form(result: Model, model: Model, inputs: Outputs, what: str) -> Outputs:
    """Finite outputs of the original's shapes and types, which are returned."""
    given = outputs_of(result, inputs)
    for a, b in zip(given, outputs_of(model, inputs), strict=True):
        if not a.isfinite().all():
            raise Failure(f"{what}: outputs are not finite")
        if a.shape != b.shape or a.dtype != b.dtype:
            raise Failure(
                f"{what}: outputs are {a.dtype} {list(a.shape)} instead of {b.dtype} {list(b.shape)}"
            )
    return given


def onnx_distance(result: Model, architecture: Architecture, path: Path) -> float:
    """`write` compares too, by itself; here the file is run anew."""
    write(result, path)
    session = onnxruntime.InferenceSession(path)
    worst = 0.0
    for batch in (1, 3):
        inputs = architecture.draw(batch, seed=batch)
        feed = {spec.name: x.numpy() for spec, x in zip(session.get_inputs(), inputs, strict=True)}
        there = tuple(torch.from_numpy(y) for y in session.run(None, feed))
        worst = max(worst, distance(there, outputs_of(result, inputs)))
    return worst


def tied_groups(model: Model, result: Model) -> list[list[str]]:
    """Names of weights that were several tensors in `model` and are one in `result`."""
    groups: dict[int, list[str]] = {}
    for name in dict.fromkeys(layer.weight.name for layer in layers(model)):
        groups.setdefault(id(result.tensor(name)), []).append(name)
    return [group for group in groups.values() if len({id(model.tensor(name)) for name in group}) > 1]


def assign(model: Model, name: str, value: Tensor) -> None:
    with torch.no_grad():
        model.tensor(name).copy_(value)


def shared_by_hand(model: Model, result: Model, groups: list[list[str]], on_data: bool) -> Model:
    """The original with the shared weights put in one by one, and nothing tied."""
    reference = model.copy()
    for group in groups:
        mean = torch.stack([model.tensor(name).detach() for name in group]).mean(0)
        for name in group:
            assign(reference, name, result.tensor(name) if on_data else mean)
    if on_data:
        for node in reference.graph.nodes:
            if op_name(node) == "batch_norm":
                for source in node.all_input_nodes:
                    if source.op == "get_attr":
                        assign(reference, str(source.target), result.tensor(str(source.target)))
    return reference


def check_storage(model: Model, result: Model, groups: list[list[str]], folder: Path) -> None:
    """One stored copy in `result.onnx`, which is there, and in the files of the other formats."""
    stored = [numpy_helper.to_array(t) for t in onnx.load(folder / "result.onnx").graph.initializer]
    gone = 0
    for group in groups:
        shared = result.tensor(group[0]).detach()
        copies = sum(np.array_equal(array, shared.numpy()) for array in stored)
        if copies != 1:
            raise Failure(f".onnx: {copies} copies of {group[0]}")
        gone += (len(group) - 1) * shared.nbytes
    write(model, folder / "model.safetensors")
    write(result, folder / "result.safetensors")
    before, after = ((folder / f"{name}.safetensors").stat().st_size for name in ("model", "result"))
    if before - after < gone - 1024:  # of history
        raise Failure(f".safetensors: {before - after} bytes fewer, not {gone}")
    write(result, folder / "result.pt2")
    loaded = load_model(folder / "result.pt2")
    if len(tied_groups(model, loaded)) != len(groups):
        raise Failure(".pt2: the loaded model has not the same tied weights")


def apply(model: Model, each: Pass, data: Records | None = None) -> tuple[Model, list[Change]]:
    result, (step,) = pipeline.run(model, [each], Context(data=data))  # type: ignore[arg-type]
    return result, [change for change in step.changes if change.applied]


def share(row: Row, model: Model, architecture: Architecture, folder: Path) -> None:
    inputs = architecture.draw(3, seed=1)
    seen: set[tuple[tuple[str, ...], ...]] = set()
    for name, each in SHARES.items():
        on_data = name == "on data"
        result, changes = apply(model, each, Records(architecture) if on_data else None)
        groups = tied_groups(model, result)
        row.counts[name] = sum(len(group) - 1 for group in groups)
        if sum(change.numbers.get("tied", 0) for change in changes) != row.counts[name]:
            raise Failure(f"share {name}: reports other layers than it tied")
        if not groups:
            continue
        given = check_form(result, model, inputs, f"share {name}")
        reference = outputs_of(shared_by_hand(model, result, groups, on_data), inputs)
        row.by_hand.append(distance(given, reference))
        row.moved.append(distance(reference, outputs_of(model, inputs)))
        key = tuple(map(tuple, groups))
        if key not in seen:
            row.onnx.append(onnx_distance(result, architecture, folder / "result.onnx"))
            check_storage(model, result, groups, folder)
        seen.add(key)


def substitute(row: Row, model: Model, architecture: Architecture, folder: Path) -> None:
    inputs = architecture.draw(3, seed=1)
    for operation in SUBSTITUTES:
        each = Substitute(with_=operation, relative=1)  # type: ignore[arg-type]
        result, changes = apply(model, each)
        row.counts[operation] = len(changes)
        if not changes:
            continue
        check_form(result, model, inputs, f"substitute {operation}")
        if cost(result).macs >= cost(model).macs:
            raise Failure(f"substitute {operation}: not fewer MACs")
        row.onnx.append(onnx_distance(result, architecture, folder / "result.onnx"))
        if operation == "stacked-3x3":
            continue
        fitting = model.copy()
        by_name = {layer.name: layer for layer in layers(fitting)}
        for change in changes:
            put_expressible(by_name[change.where], operation, result)
        replaced, again = apply(fitting, each)
        if len(again) != len(changes):
            raise Failure(f"substitute {operation}: other layers for other weights")
        if operation == "nonlinear-separable":
            without_cuts(replaced)
        row.exact.append(distance(outputs_of(replaced, inputs), outputs_of(fitting, inputs)))
        row.moved.append(distance(outputs_of(fitting, inputs), outputs_of(model, inputs)))


def put_expressible(layer: Layer, operation: str, result: Model) -> None:
    """A random weight of the same norm that the operation expresses."""
    weight = layer.weight.value()
    outputs, inputs, *kernel = weight.shape
    draw = torch.Generator().manual_seed(weight.numel())
    if operation == "kernel-composing":
        prefix = f"{layer.name}_" if layer.name == layer.weight.name else f"{layer.name}."
        channels = result.tensor(f"{prefix}0.weight").shape[0]
        horizontal = torch.randn(channels, inputs, kernel[1], generator=draw)
        vertical = torch.randn(outputs, channels, kernel[0], generator=draw)
        found = torch.einsum("cix,ocy->oiyx", horizontal, vertical)
    else:
        filters = torch.randn(1, inputs, *kernel, generator=draw)
        found = torch.randn(outputs, inputs, *[1] * len(kernel), generator=draw) * filters
    layer.weight.assign(found * (weight.norm() / found.norm()))


def without_cuts(model: Model) -> None:
    """Take the ReLUs of the non-linear separable convolutions out."""
    for node in list(model.graph.nodes):
        source = node.args[0] if node.args else None
        if (
            op_name(node) != "relu"
            or not isinstance(source, torch.fx.Node)
            or op_name(source) != "batch_norm"
        ):
            continue
        stored = [str(n.target) for n in source.all_input_nodes if n.op == "get_attr"]
        if any(re.search(r"norm\.running_mean(_\d+)?$", name) for name in stored) and all(
            "conv" in op_name(user) for user in node.users
        ):
            node.replace_all_uses_with(source)
    model.refresh()


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Raise TimeoutError after that much CPU time."""

    def stop(*_: object) -> None:
        raise TimeoutError(f"took more than {seconds:.0f} s of CPU time")

    signal.signal(signal.SIGVTALRM, stop)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def cells_of(name: str, row: Row, seconds: float) -> list[str]:
    worst = [f"{max(found):.0e}" if found else "" for found in (row.by_hand, row.exact)]
    moved = f"{min(row.moved):.1g}" if row.moved else ""
    onnx = f"{max(row.onnx):.0e}" if row.onnx else ""
    counts = [str(row.counts[column]) for column in (*SHARES, *SUBSTITUTES)]
    return [name, *counts, *worst, moved, onnx, f"{seconds:.1f}"]


def good(row: Row) -> bool:
    worst = max([0.0, *row.by_hand, *row.exact, *row.onnx])
    return worst <= TOLERANCE and min([1.0, *row.moved]) > 20 * worst


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--limit", type=float, default=180, help="CPU seconds for one architecture")
    options = parser.parse_args(arguments)
    known = everything()
    chosen = options.names or list(known)
    print("| " + " | ".join(COLUMNS) + " |\n" + "|---" * len(COLUMNS) + "|", flush=True)
    failed: list[str] = []
    changed: Counter[str] = Counter()
    total = time.process_time()
    for name in chosen:
        row, started, problem = Row(), time.process_time(), ""
        try:
            with limited(options.limit), tempfile.TemporaryDirectory() as folder:
                model = build(known[name])
                share(row, model, known[name], Path(folder))
                substitute(row, model, known[name], Path(folder))
            cells = cells_of(name, row, time.process_time() - started)
            problem = "" if good(row) else " FAILED"
        except Exception as error:  # one architecture must not hide the others
            cells = [name, f"{type(error).__name__}: {str(error)[:300]}".replace("\n", " ")]
            problem = " FAILED"
        if problem:
            failed.append(name)
        changed.update(column for column, count in row.counts.items() if count)
        print("| " + " | ".join(cells) + " |" + problem, flush=True)
    print(f"\n{len(chosen)} architectures, {time.process_time() - total:.0f} s of CPU time")
    print("changed by: " + ", ".join(f"{c} {changed[c]}" for c in (*SHARES, *SUBSTITUTES)))
    print(f"{len(chosen) - len(failed)} of {len(chosen)} right" + (f"; failed: {failed}" if failed else ""))
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
