"""How good models are on data, and how fast, in the runtimes that own their files."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch

from nncompress import exporting
from nncompress.analysis import accuracy
from nncompress.analysis.answer import index_of, known_answer
from nncompress.analysis.cost import cost
from nncompress.api.opening import Input, dataset, load, taken
from nncompress.benchmarking import Candidate, benchmark
from nncompress.data import Dataset, open_data
from nncompress.data.sources.python import kept
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.ir.graph.stated_input import parse_input, restated
from nncompress.ir.stated_constants import each_with_its_own, left_to_fix, split_constants
from nncompress.options import check_whole
from nncompress.progress import Progress
from nncompress.results import BenchResult, EvalResult
from nncompress.runtimes import OPENERS, open_artifact


def evaluate(
    model: Model | torch.nn.Module | str | Path,
    data: Any,
    *,
    task: str = "auto",
    metric: str | None = None,
    input: Input | None = None,
    output_index: int | str | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    progress: Progress | None = None,
) -> EvalResult:
    """Top-1 and top-5, RMSE, or reconstruction error on labelled data; an `.onnx` runs in ONNX Runtime.

    Args:
        task: see `nncompress.analysis.accuracy.measure`.
        metric: another measure: a name, or "file.py:function" of your own (docs/eval.md).
        input: what a module takes, where `data` does not say it, and which inputs are one number (see
            `load`).
        output_index: number or name of the output that the labels are held against; None: the one that they
            fit.
        limit: use this many samples, spread over the data.

    Raises:
        DataError: labels are missing or do not fit the outputs.
        NNCompressError: the model cannot be opened.
    """
    check_whole("batch_size", batch_size)
    if limit is not None:
        check_whole("limit", limit)
    if isinstance(data, Iterator):
        data = kept(data)
    if _is_artifact(model):
        if not isinstance(input, str | None):
            raise UsageError(
                f"{model} says what it takes", remedy='leave input out, or state it: "1x3x32x32"'
            )
        runner = _as_stated(Candidate("", model), model, input).open(1)
        if isinstance(data, Dataset):
            samples = data
        else:
            samples = open_data(data, runner.inputs, runner.remembered_normalization())
        samples.at_least(runner.least_batch)
        for assumption in samples.assumptions():
            warnings.warn(assumption, stacklevel=2)
        return accuracy.evaluate(
            runner.run,
            samples,
            task,
            metric=metric,
            batch_size=batch_size,
            limit=limit,
            output=runner.remembered_answer()
            if output_index is None
            else index_of(runner.outputs, str(output_index)),
            progress=progress,
        )
    if isinstance(model, str | Path):
        given = load(model, input=input, data=data, notice=warnings.warn)
    else:
        given = taken(model, input, data, warnings.warn)
    return accuracy.evaluate(
        open_artifact(given).run,
        dataset(data, given, notice=warnings.warn),
        task,
        metric=metric,
        batch_size=batch_size,
        limit=limit,
        output=known_answer(given) if output_index is None else index_of(given.outputs, str(output_index)),
        progress=progress,
    )


def bench(
    models: Mapping[str, Model | torch.nn.Module | str | Path],
    *,
    input: Input | None = None,
    batch: int = 1,
    threads: int = 1,
    seconds: float = 10.0,
    runtime: Literal["onnxruntime", "torch"] = "onnxruntime",
    progress: Progress | None = None,
) -> BenchResult:
    """Measure models against the first one, by name, in one interleaved run on random inputs.

    Args:
        models: loaded, in memory, or files (`.onnx`, `.ort`, `.pte` in their own runtime).
        input: what modules take, and which inputs are one number (see `load`), of those that have them;
            models that are loaded know theirs.
        seconds: of measuring.
        runtime: "onnxruntime": what is no file of a runtime is exported for the measurement.

    Raises:
        NNCompressError: one cannot be opened, exported or run.
    """
    if runtime not in ("onnxruntime", "torch"):
        raise UsageError("unknown runtime", got=runtime, expected="onnxruntime, torch")
    if not isinstance(models, Mapping):
        raise UsageError(
            "bench takes models by name",
            got=type(models).__name__,
            expected='{"original": model, "small": smaller}',
        )
    if input is not None and all(isinstance(model, Model) for model in models.values()):
        raise UsageError("loaded models know their inputs", remedy="leave input out")
    if not isinstance(input, str | None) and all(map(_is_artifact, models.values())):
        raise UsageError(
            "tensors are for modules, and these files say what they take", remedy="leave input out"
        )
    with tempfile.TemporaryDirectory() as folder:

        def opened(item: tuple[str, Any], stated: str | None) -> Candidate:
            name, model = item
            if _is_artifact(model):
                return _as_stated(Candidate(name, model), model, stated)
            how = stated if isinstance(input, str) else input
            if isinstance(model, Model):
                _check_fixed(model, name, stated)
                given = taken(model, None, None, warnings.warn)
            elif isinstance(model, str | Path):
                given = load(model, input=how, notice=warnings.warn)
            else:
                given = taken(model, how, None, warnings.warn)
            costs = cost(given)
            return Candidate(name, given, parameters=costs.parameters, macs=costs.macs)

        stated = input if isinstance(input, str) else None
        candidates = each_with_its_own(models.items(), stated, opened, warnings.warn)
        for position, candidate in enumerate(candidates):
            if runtime == "onnxruntime" and isinstance(candidate.artifact, Model):
                file = Path(folder) / f"{position}.onnx"
                # measured here, and then gone
                exporting.write(candidate.artifact, file, target="ort-cpu", read_back=False)
                candidates[position] = replace(candidate, artifact=file)
        return benchmark(candidates, batch=batch, threads=threads, time_budget=seconds, progress=progress)


def _as_stated(file: Candidate, path: str | Path, stated: str | None) -> Candidate:
    """A file with the inputs that it is said to have."""
    if stated is None:
        return file
    shapes, constants = split_constants(stated)
    file = replace(file, constants=constants)
    runner = file.open(1)
    if shapes is None:
        return file
    inputs, sizes, _ = restated(runner.inputs, parse_input(shapes), str(path), runner.remembered())
    return replace(file, inputs=tuple(inputs), sizes=sizes)


def _check_fixed(model: Model, name: str, stated: str | None) -> None:
    """Refuse constants that a loaded model still has as inputs: they are taken out where it is loaded.

    Raises:
        UsageError: it has one.
    """
    names = [spec.name for spec in model.inputs]
    left = left_to_fix(split_constants(stated)[1], names, model.metadata, name)
    if left:
        raise UsageError(
            f"{name} was loaded, and still takes {', '.join(each.name for each in left)}",
            remedy=f"load it with input={stated!r}",
        )


def _is_artifact(model: Any) -> TypeGuard[str | Path]:
    """A file that a runtime owns."""
    return isinstance(model, str | Path) and Path(model).suffix.lower() in OPENERS
