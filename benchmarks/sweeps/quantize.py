"""Quantize every architecture, save, load, export and run it; print the table.

    python -m benchmarks.sweeps.quantize [NAME ...] [--part 1/4] [--modes 3] [--pte] [--own]

Random weights, 32 random records to calibrate. `int8`: weighted convolutions, products and recurrent layers
that ONNX Runtime runs on integer kernels, of all; those in float are listed with the reason after the table.
`error`: the int8 model in torch against float32, ‖y' − y‖ / ‖y‖. `onnx`: ONNX Runtime against torch at batch
1 and 3, the largest difference, in steps (1/255 of the output's range); `share`: the median record's as a
share of the error, ‖r − y'‖ / ‖y' − y‖. `dynamic`, `weights`, `float16`: the error of that mode, its file
verified in ONNX Runtime; on every 3rd architecture, or on what --modes says (0: none). `pte`: ExecuTorch
against torch, ‖r − y'‖ / ‖y'‖, with --pte. A saved and loaded .pt2 has to compute the same bits.
Needs `transformers` for the second half of the list; without it that half is skipped with a note.
"""

from __future__ import annotations

import argparse
import logging
import re
import signal
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import nncompress  # noqa: E402
from benchmarks.architectures import Architecture, build, everything  # noqa: E402
from nncompress import exporting  # noqa: E402
from nncompress.errors import NNCompressError  # noqa: E402
from nncompress.exporting.check.onnxruntime import open_session, run  # noqa: E402
from nncompress.ir import Model  # noqa: E402
from nncompress.ir.layers.weights import layers  # noqa: E402

COLUMNS = "architecture layers int8 error onnx share dynamic weights float16 pte seconds"
MODES = ("dynamic", "weights", "float16")
MOBILE = (  # one of each kind
    "cifar-resnet20", "resnext", "vgg-bn", "googlenet", "densenet", "mobilenet-v2", "efficientnet",
    "shufflenet-v2", "unet", "dcgan", "vit", "convnext", "gru-cells", "tcn", "recommender", "hf-bert",
)  # fmt: skip
RECORDS = 32
MOST_SHARE = (
    0.5  # of the error: ONNX Runtime may round to the other side where a value lies between two steps
)
SECONDS = 120  # of CPU time, for one architecture


def records(architecture: Architecture, model: Model, path: Path) -> str:
    """Random records, as a user keeps them."""
    drawn = architecture.draw(RECORDS, seed=5)
    np.savez(path, **{spec.name: x.numpy() for spec, x in zip(model.inputs, drawn)})
    return str(path)


def norm(values: list[Tensor]) -> float:
    return float(sum(v.double().square().sum() for v in values)) ** 0.5


def distance(left: list[Tensor], right: list[Tensor]) -> float:
    return norm([a - b for a, b in zip(left, right) if a.is_floating_point()])


def floats(outputs: Any) -> list[Tensor]:
    return [y.detach() for y in outputs if y.is_floating_point()]


def against_onnx(model: Model, reference: Model, path: Path) -> tuple[float, float]:
    """(largest difference in steps, the median record's share of the error) over batches of 1 and 3."""
    session, steps, shares = open_session(path), 0.0, []
    for batch in (1, 3) if "batch" in model.dynamic else (1,):
        inputs = model.example_inputs(batch, seed=40 + batch)
        with torch.no_grad():
            ours, float32 = floats(model.outputs_of(*inputs)), floats(reference.outputs_of(*inputs))
        theirs = floats(run(session, inputs))
        for a, b in zip(ours, theirs):
            span = float(a.max() - a.min()) or 1.0
            steps = max(steps, 255 * float((a - b).abs().max()) / span)
        records = range(len(ours[0])) if "batch" in model.dynamic else [slice(None)]
        for each in records:
            left, middle, right = ([y[each] for y in outputs] for outputs in (theirs, ours, float32))
            shares.append(distance(left, middle) / max(distance(middle, right), 1e-30))
    return steps, float(np.median(shares))


def error_of(model: Model, reference: Model) -> float:
    inputs = reference.example_inputs(8, seed=9)
    with torch.no_grad():
        ours, float32 = floats(model.outputs_of(*inputs)), floats(reference.outputs_of(*inputs))
    return distance(ours, float32) / max(norm(float32), 1e-30)


def same_bits(model: Model, path: Path) -> bool:
    exporting.write(model, path)
    loaded = nncompress.load(path)
    inputs = model.example_inputs(3, seed=2)
    with torch.no_grad():
        pairs = zip(model.outputs_of(*inputs), loaded.outputs_of(*inputs))
        return all(torch.equal(a, b) for a, b in pairs)


def row(
    name: str, architecture: Architecture, others: Collection[str], pte: bool
) -> tuple[list[str], list[str], list[str]]:
    """The cells, what is wrong, and "layer: reason" of each layer that ONNX Runtime runs in float."""
    wrong: list[str] = []
    start = time.perf_counter()
    model = build(architecture)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        data = records(architecture, model, Path(folder) / "records.npz")
        small = nncompress.compress(model, ["quantize"], data=data)
        if not same_bits(small, file.with_suffix(".pt2")):
            wrong.append(".pt2 loaded again computes something else")
        report = exporting.write(small, file)
        coverage = exporting.int8_coverage(file)
        steps, share = against_onnx(small, model, file)
        if share > MOST_SHARE:
            wrong.append(f"ONNX Runtime is off by {share:.2f} of the error")
        if "not compared" in report.int8:
            wrong.append(re.sub(r".*; (not compared)", r"\1", report.int8))
        done, total = len(coverage.int8), len(coverage.int8) + len(coverage.float)
        error = error_of(small, model)
        cells = [
            name, str(len(list(layers(model)))), f"{done}/{total}", f"{error:.4f}", f"{steps:.1f}",
            f"{share:.3f}",
        ]  # fmt: skip
        for mode in MODES:
            if name not in others:
                cells.append("")
                continue
            try:
                changed = nncompress.compress(model, [f"quantize:mode={mode}"])
                exporting.write(changed, file)
                cells.append(f"{error_of(changed, model):.4f}")
            except NNCompressError as refused:
                wrong.append(f"{mode}: {refused}")
                cells.append("refused")
        cells.append("")
        if pte and name in MOBILE:
            try:
                cells[-1] = f"{exporting.write(small, file.with_suffix('.pte')).relative_error:.3f}"
            except NNCompressError as refused:
                wrong.append(f".pte: {refused}")
                cells[-1] = "refused"
    cells.append(f"{time.perf_counter() - start:.1f}")
    return cells, wrong, [f"{layer}: {coverage.reasons[layer]}" for _, layer in coverage.float]


class Late(BaseException):
    """An architecture takes longer than it may; no `except Exception` on the way takes it for its own."""


def limited(
    name: str, architecture: Architecture, others: Collection[str], pte: bool
) -> tuple[list[str], list[str], list[str]]:
    def late(*_: object) -> None:
        raise Late

    signal.signal(signal.SIGPROF, late)
    signal.setitimer(signal.ITIMER_PROF, SECONDS)
    try:
        return row(name, architecture, others, pte)
    except Late:
        return [name], [f"took more than {SECONDS} s of CPU time"], []
    except Exception as error:  # one architecture must not hide the others
        told = str(error) if isinstance(error, NNCompressError) else traceback.format_exc(limit=-3)
        return [name], [f"{type(error).__name__}: {told}"], []
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--own", action="store_true", help="our own definitions only")
    parser.add_argument("--part", default="1/1", help="2/4: the second quarter of the list")
    parser.add_argument("--modes", type=int, default=3, help="the other modes on every 3rd; 0: on none")
    parser.add_argument("--pte", action="store_true", help=f"ExecuTorch too, on {len(MOBILE)} of them")
    arguments = parser.parse_args()
    known = everything(own=arguments.own)
    others = list(known)[:: max(arguments.modes, 1)] if arguments.modes else ()
    part, parts = map(int, arguments.part.split("/"))
    chosen = {k: v for k, v in known.items() if not arguments.names or k in arguments.names}
    chosen = {k: chosen[k] for k in list(chosen)[part - 1 :: parts]}
    print("| " + " | ".join(COLUMNS.split()) + " |\n" + "|---" * len(COLUMNS.split()) + "|")
    failed, reasons, int8, total = {}, Counter[str](), 0, 0
    told: list[str] = []
    for name, architecture in chosen.items():
        cells, wrong, left = limited(name, architecture, others, arguments.pte)
        print("| " + " | ".join(cells) + " |" + (" WRONG" if wrong else ""), flush=True)
        for each in wrong:
            print(f"    {each}", flush=True)
        if wrong:
            failed[name] = wrong
        if len(cells) > 2:
            done, of = map(int, cells[2].split("/"))
            int8, total = int8 + done, total + of
        told += [f"    {name}: {each}" for each in left]
        reasons.update(each.partition(": ")[2] for each in left)
    print(f"\n{int8} of {total} weighted layers in int8; in float:")
    print("\n".join(f"{count:5} {reason}" for reason, count in reasons.most_common()))
    print("\n".join(told))
    print(
        f"\n{len(chosen) - len(failed)} of {len(chosen)} right"
        + (f"; wrong: {list(failed)}" if failed else "")
    )
    return bool(failed)


if __name__ == "__main__":
    raise SystemExit(main())
