"""`.pte`: a program for ExecuTorch, its heavy ops handed to XNNPACK; run and compared before it is kept."""

from __future__ import annotations

import json
import re
import tempfile
import time
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nncompress.analysis.distance.precision import precision_of
from nncompress.errors import DataError, ModelFileError, UnsupportedError, VerificationError
from nncompress.exporting.check import compare as verify
from nncompress.exporting.check.discrete_choices import Probe, Run, compare_choices, find_choices
from nncompress.exporting.check.int8_coverage import Coverage
from nncompress.exporting.check.pte_coverage import outside_the_delegate, pte_coverage
from nncompress.exporting.lower.spell_out import Unspeakable, in_other_words
from nncompress.exporting.lower.xnnpack.rewrite import lower_xnnpack
from nncompress.exporting.report import ExportReport
from nncompress.extras import broken, need, version
from nncompress.files.atomic import replacing
from nncompress.ir import Model
from nncompress.ir.formats.precision import MAKE_FLOAT32
from nncompress.runtimes.on_executorch import RECORD
from nncompress.runtimes.silence import silent
from nncompress.runtimes.worker import run_apart
from nncompress.version import __version__

# ExecuTorch plans memory for the largest inputs, so dynamic dims need a bound.
LARGEST_BATCH = 64
LARGEST_OTHER = 512
# Traced with a small batch, the program silently takes small batches only (2: up to 15).
EXAMPLE_BATCH = 16
CHECKED_BATCHES = (1, 17)  # one on each side of the example


def write_pte(model: Model, path: str | Path, *, protect: Iterable[str | Path] = ()) -> ExportReport:
    """Lower to XNNPACK, in int8 where the model is quantized, and compare in ExecuTorch itself.

    Raises:
        MissingExtraError: ExecuTorch is not installed.
        UnsupportedError: ExecuTorch has no such op; the message names it.
        VerificationError: ExecuTorch computes something else; nothing is written.
        OutputError: the file cannot be written.
    """
    need("mobile", Path(path).name)
    start = time.perf_counter()
    verify.refuse_changing(model, "a .pte")
    _refuse_types(model)
    with replacing(path, protect) as temporary:
        coverage, portable = _write(model, temporary)
        found = _compare(model, temporary)
        written = temporary.stat().st_size
    precision = precision_of(model)
    int8 = coverage.summary() if precision == "int8" else ""
    if precision == "int4":
        int8 = "its weights of 4 bits are floats in this format"
    return ExportReport(
        Path(path),
        written,
        time.perf_counter() - start,
        **asdict(found),
        int8=int8,
        portable=portable,
        target="xnnpack",
    )


def _refuse_types(model: Model) -> None:
    """What no data can give, as numpy has none of it."""
    where = next((spec.name for spec in model.inputs if spec.torch_dtype() == torch.bfloat16), None)
    if where is not None:
        raise UnsupportedError(
            f"a .pte that takes bfloat16 cannot be given its inputs to be checked: input {where}",
            remedy=MAKE_FLOAT32,
        )


def _write(model: Model, file: Path) -> tuple[Coverage, tuple[str, ...]]:
    """Lower and save: what of it runs in int8, and the ops that the delegate does not take."""
    lowered = bounded(lower_xnnpack(model))
    record = _record(model, lowered)
    _, (program, coverage, portable) = in_other_words(lowered, lambda said: _compile(said, record))
    with file.open("wb") as opened:
        program.write_to_file(opened)
    return coverage, portable


def bounded(model: Model) -> Model:
    """`model` with an upper bound on every dynamic dim."""
    for name, (low, high) in model.dynamic.items():
        most = LARGEST_BATCH if name == "batch" else LARGEST_OTHER
        model.dynamic[name] = (low, max(low, min(high or most, most)))
    return model


def _record(model: Model, lowered: Model) -> str:
    """What the program itself does not tell; `nncompress.runtimes.on_executorch` reads it."""
    return json.dumps(
        {
            "schema": 1,
            "nncompress": __version__,
            "executorch": version("executorch"),
            "inputs": [spec.to_json() for spec in model.inputs],
            "outputs": list(model.outputs),
            "dynamic": {name: list(bounds) for name, bounds in lowered.dynamic.items()},
            "history": model.history,
            "metadata": model.metadata,
        }
    )


def _compile(lowered: Model, record: str) -> tuple[Any, Coverage, tuple[str, ...]]:
    """The program, what of it runs in int8, and the ops that the delegate does not take."""
    low, high = lowered.dynamic.get("batch", (1, LARGEST_BATCH))
    exported = lowered.exported_program(min(max(EXAMPLE_BATCH, low), high or EXAMPLE_BATCH))
    try:
        with silent():
            from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
            from executorch.exir import to_edge_transform_and_lower

            edge = to_edge_transform_and_lower(
                exported, partitioner=[XnnpackPartitioner()], constant_methods={RECORD: record}
            )
            inside = edge.exported_program()
            return edge.to_executorch(), pte_coverage(inside), outside_the_delegate(inside)
    except ImportError as error:
        raise broken("mobile", "a .pte", error) from error
    except Exception as error:  # its passes raise whatever they stumble over
        raise _refusal(error) from error


def _refusal(error: BaseException) -> OSError | Unspeakable:
    """What is to be told of an error while it was lowered: the first cause, where there was no room for its
    temporary files, or the op that is missing."""
    chain = [str(error)]
    while error.__cause__ is not None:
        error = error.__cause__
        chain.append(str(error))
    if isinstance(error, OSError):
        return OSError(error.errno, error.strerror or str(error), error.filename)
    text = "\n".join(chain)
    missing = re.search(r"Missing out variants: \{([^}]*)\}", text)
    op = re.search(r"(?:Operator |OpOverload.*?)((?:torch\._ops\.)?[a-z_]+[.:]+[a-z_0-9.]+)", text)
    named = missing.group(1).replace("'", "") if missing else op.group(1) if op else ""
    reason = next((line.strip() for line in chain[-1].splitlines() if line.strip()), type(error).__name__)
    return Unspeakable(
        f"ExecuTorch has no {named}" if named else "ExecuTorch cannot lower this model",
        op=named,
        got=reason[:300],
        remedy="export it to .onnx, or replace the op in the model",
    )


def _compare(model: Model, path: Path) -> verify.Comparison:
    """Where a quantized file disagrees and chooses inside: what is chosen from, by a second file."""
    runtime = f"executorch {version('executorch')}"
    try:
        return verify.compare(model, _runner(path), runtime, CHECKED_BATCHES)
    except VerificationError:
        choices = find_choices(model) if precision_of(model) == "int8" else None
        if choices is None:
            raise
        with tempfile.TemporaryDirectory() as folder:
            probe = Path(folder) / "probe.pte"
            _write(choices.probe, probe)
            probes = [Probe(_runner(probe), runtime, "int8")]
            return compare_choices(model, choices, _runner(path), runtime, CHECKED_BATCHES, probes)


def _runner(path: Path) -> Run:
    threads = torch.get_num_threads()

    def run(inputs: tuple[Tensor, ...]) -> list[Tensor]:
        try:
            return [torch.from_numpy(each) for each in run_apart(path, inputs, threads)]
        except (DataError, ModelFileError) as error:  # of inputs that are the model's own, in a file of ours
            loads = isinstance(error, DataError)
            raise UnsupportedError(
                f"ExecuTorch compiles this model and then cannot {'run' if loads else 'load'} it",
                got=error.got or error.what,
                remedy="export it to .onnx, and report the model",
            ) from error

    return run
