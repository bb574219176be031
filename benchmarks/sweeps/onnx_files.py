"""ONNX files of torch's two exporters, read, pruned or factorized, exported and run again; print the table.

    python -m benchmarks.sweeps.onnx_files --work DIR [--minutes 5] [PATTERN ...]      e.g. "timm-*" "hf-*"

Every architecture is written by each exporter once, at opsets 13 to 20 (18 to 20) in turn, with a free batch
where the exporter keeps it. Of the two files one is pruned by 30 %, the other factorized to 80 % of its
parameters, in turn; with `--one` the second is left out where the first is equal, the exporters in turn.
`read`: the file against ONNX Runtime, as the loader compares; `after`: parameters left; `written`: the result
in ONNX Runtime, as the export compares it. What torch itself cannot export is said and not counted. Needs
`torchvision`, `timm` and `transformers` for those of these packages.

Each row is kept in DIR/rows.jsonl as it is measured, and not measured again; `--minutes` ends the run after
the row in which they are over, so that it can be done in pieces. The counts are those of all rows kept.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch

warnings.filterwarnings("ignore")
logging.disable(logging.WARNING)

import nncompress  # noqa: E402
from benchmarks.architectures import Architecture, everything, settle  # noqa: E402
from benchmarks.architectures.published import published  # noqa: E402
from nncompress.exporting import write  # noqa: E402

TRACING = range(13, 21)  # opsets of the exporter by tracing
EXPORTING = range(18, 21)  # and of the one by torch.export, which writes no older ones
PASSES = ("prune-nodes:ratio=0.3", "factorize:params=0.8")
COLUMNS = "architecture exporter opset pass read after written CPU"


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Nothing on the standard output: where it fails, the exporter prints whole graphs there, from C++."""
    sys.stdout.flush()
    kept, nothing = os.dup(1), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)
        os.close(nothing)


def exported(
    module: torch.nn.Module, inputs: tuple[torch.Tensor, ...], dynamo: bool, opset: int, path: Path
) -> str:
    """The file, with a free batch or else a fixed one; else why torch cannot write it."""
    names = [f"in{i}" for i in range(len(inputs))]
    tried: list[dict[str, Any]]
    if dynamo:
        shapes = [{0: torch.export.Dim("batch")} for _ in inputs]
        tried = [
            {"dynamic_shapes": shapes},
            {"dynamic_shapes": (tuple(shapes),)},
            {},
        ]  # the second for forward(*inputs)
    else:
        tried = [{"dynamic_axes": {name: {0: "batch"} for name in names}, "input_names": names}, {}]
    why = ""
    for settings in tried:
        with quiet():
            try:
                torch.onnx.export(module, inputs, path, opset_version=opset, dynamo=dynamo, **settings)
                return ""
            except Exception as problem:  # of whatever kind the exporter raises
                why = " ".join(str(problem).split())[:120] or type(problem).__name__
    return why


def measured(name: str, architecture: Architecture, dynamo: bool, opset: int, step: str) -> dict[str, object]:
    """The row; `went` is null where torch could not write the file."""
    begun = time.process_time()
    torch.manual_seed(0)
    module = settle(architecture.make(), architecture.draw)
    cells: dict[str, object] = {**key_of(name, dynamo, opset, step), "went": False}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        if why := exported(module, architecture.draw(2), dynamo, opset, path):
            return cells | {"went": None, "read": f"torch cannot write it: {why}"}
        said: list[str] = []
        try:
            model = nncompress.load(path, notice=said.append)
            read = next((s.rsplit(" ", 1)[1] for s in said if "agrees with" in s), "?")
            smaller = nncompress.compress(model, [step])
            error = write(smaller, Path(folder) / "pruned.onnx").relative_error
        except Exception as problem:  # a refusal, or a defect, which ends this row and no other
            return cells | {"read": f"{type(problem).__name__}: {' '.join(str(problem).split())}"[:300]}
        before, after = (sum(p.numel() for p in m.graph_module.parameters()) for m in (model, smaller))
    return cells | {
        "went": True,
        "read": read,
        "after": f"{after / before:.2f}",
        "written": f"{error:.1e}",
        "CPU": f"{time.process_time() - begun:.0f} s",
    }


def key_of(name: str, dynamo: bool, opset: int, step: str) -> dict[str, object]:
    exporter = "torch.export" if dynamo else "tracing"
    return {"architecture": name, "exporter": exporter, "opset": opset, "pass": step.partition(":")[0]}


def cases(patterns: list[str]) -> Iterator[tuple[str, Architecture, bool, int, str]]:
    for place, (name, architecture) in enumerate((published() | everything()).items()):
        if not patterns or any(fnmatch(name, pattern) for pattern in patterns):
            steps = PASSES[place % 2], PASSES[1 - place % 2]
            files = [
                (name, architecture, False, TRACING[place % len(TRACING)], steps[0]),
                (name, architecture, True, EXPORTING[place % len(EXPORTING)], steps[1]),
            ]
            yield from files if place // 3 % 2 else files[::-1]  # by threes: each with every opset and pass


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("patterns", nargs="*")
    parser.add_argument("--work", type=Path, required=True, metavar="DIR")
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--one", action="store_true", help="of each architecture only until one is equal")
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    kept = options.work / "rows.jsonl"
    rows = [json.loads(line) for line in kept.read_text().splitlines()] if kept.exists() else []
    until = time.monotonic() + 60 * options.minutes
    left = 0
    for case in cases(options.patterns):
        key = key_of(case[0], *case[2:])
        if any(key.items() <= row.items() for row in rows):
            continue
        if options.one and any(row["architecture"] == case[0] and row["went"] for row in rows):
            continue
        if time.monotonic() > until:
            left += 1
            continue
        rows.append(measured(*case))
        with kept.open("a") as file:
            file.write(json.dumps(rows[-1]) + "\n")
        print("\t".join(str(cell) for cell in rows[-1].values()), flush=True)
    print("\t".join(COLUMNS.split()))
    for row in rows:
        print("\t".join(str(row.get(column, "")) for column in COLUMNS.split()))
    good, bad, unwritten = (sum(row["went"] is went for row in rows) for went in (True, False, None))
    names = {row["architecture"] for row in rows if row["went"]}
    print(f"{good} equal, of {len(names)} architectures; {bad} not; {unwritten} that torch does not write")
    if left:
        print(f"{left} rows are left: run it again")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
