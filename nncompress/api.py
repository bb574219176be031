"""The Python interface; the command line is a thin face of it.

    import nncompress

    model = nncompress.load("model.pt2")  # or the nn.Module itself
    smaller = nncompress.compress(model, ["prune:std=0.5", "factorize:err=1e-3", "quantize"], data="val.npz")
    nncompress.save(smaller, "smaller.onnx")
    module = smaller.to_module()  # to train it in a loop of your own

`data` is everywhere what `--data` takes, or an object in memory: a tensor or array, `(x, y)`, a `Dataset` or
`DataLoader` of torch, any iterable of batches, or a function that returns one of these.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeGuard

import torch
from torch import Tensor

from nncompress import export, pipeline
from nncompress.analysis import accuracy
from nncompress.analysis.answer import ANSWER, known_answer, settle_answer
from nncompress.analysis.cost import Cost, cost
from nncompress.bench import Arm
from nncompress.bench import benchmark as measure
from nncompress.data import Dataset, open_data
from nncompress.data.sources.python import kept, name_of
from nncompress.dtypes import dtype_name
from nncompress.errors import DataError, UsageError
from nncompress.export import ExportReport
from nncompress.ir import Model
from nncompress.ir.graph.inputs import sizes_of
from nncompress.loading import Examples, load_model, load_module, stated_form
from nncompress.memory import unbounded_memory
from nncompress.passes import Context, Pass
from nncompress.progress import NullProgress, Progress
from nncompress.recipe import parse_pass, read_recipe
from nncompress.results import BenchResult, EvalResult
from nncompress.runtimes import OPENERS, open_artifact

Notice = Callable[[str], None]
Input = str | Tensor | Sequence[Tensor]
GIVEN = "a path, or a torch.nn.Module"


def load(
    model: str | Path | torch.nn.Module,
    *,
    arch: str | None = None,
    weights_key: str | None = None,
    strict: bool = True,
    input: Input | None = None,
    data: Any = None,
    normalize: str | None = None,
    trust_pickle: bool = False,
    notice: Notice | None = None,
) -> Model:
    """Load a saved model (`.pt2`, `.onnx`, a pickled `nn.Module`, a state_dict with its architecture), or
    take a module in memory, which stays as it is.

    Args:
        arch: "file.py:factory" or "package.module:factory", called without arguments, for a state_dict.
        weights_key: where a checkpoint holds the weights, keys joined by dots ("state_dict.student").
        strict: False: weights that are missing or unexpected are told to `notice` instead of refused.
        input: what it takes, where the model does not carry it: shapes such as "1x3x32x32", or example
            tensors, records along the first dim.
        data: records to take the input's shape from, where neither model nor `input` says it.
        normalize: how its images are normalised ("imagenet", "m1,m2,m3/s1,s2,s3"); kept with the model.
        trust_pickle: allow a pickle to run code.
        notice: called with sentences that the user should read (a guessed input shape).

    Raises:
        NNCompressError: see `nncompress.loading`.
    """
    say = notice or (lambda sentence: None)
    module = model if isinstance(model, torch.nn.Module) else None
    if module is not None and (arch is not None or weights_key is not None or trust_pickle):
        raise UsageError("arch, weights_key and trust_pickle are for files", got=f"a {type(model).__name__}")
    if module is None and not isinstance(model, str | Path):
        raise UsageError("there is no model in this", got=type(model).__name__, expected=GIVEN)
    path = Path() if isinstance(model, torch.nn.Module) else Path(model)
    shapes = input if isinstance(input, str) else None
    examples: Examples | None = _examples(input)
    drawn: list[Tensor] = []

    def records(names: Sequence[str]) -> tuple[Tensor, ...]:
        with unbounded_memory():
            drawn[:] = _records_as_examples(data, normalize, names, _spec(model))
        return tuple(drawn)

    if input is None and data is not None:
        examples = records
    try:
        if module is not None:
            loaded = load_module(module, input_shapes=shapes, example_inputs=examples, notice=say)
        else:
            loaded = load_model(
                path,
                arch=arch,
                weights_key=weights_key,
                strict=strict,
                input_shapes=shapes,
                trust_pickle=trust_pickle,
                example_inputs=examples,
                notice=say,
            )
    except UsageError as error:
        if not drawn or "does not run on an input" not in error.what:
            raise
        of = ", ".join(f"{dtype_name(t.dtype)}{list(t.shape[1:])}" for t in drawn)
        raise DataError(
            f"the samples of {_spec(data)} do not fit {_spec(model)}",
            got=f"samples of {of}: {error.got}",
            remedy="data the model takes; or --input 1x3x32x32, which says what it takes",
        ) from error
    if normalize is not None:
        loaded.metadata["normalize"] = normalize
    return loaded


def dataset(
    spec: Any,
    model: Model,
    normalize: str | None = None,
    notice: Callable[[str], None] | None = None,
) -> Dataset:
    """Open data for `model`, normalised as the model remembers unless `normalize` says otherwise.

    The model remembers which of several outputs its labels fit, and the sizes of the records where its own
    dims are dynamic.

    Args:
        notice: told which output that is.
    Raises:
        DataError: it cannot be read or does not fit the model's inputs.
    """
    if isinstance(spec, Dataset):
        found = spec
    else:
        found = open_data(spec, model.inputs, normalize or model.metadata.get("normalize"))
    model.sizes.update(sizes_of(model.inputs, [field.shape for field in found.inputs]))
    if settle_answer(model, found) and notice is not None:
        index = model.metadata[ANSWER]
        name = model.outputs[index]
        notice(f"labels fit output {index} of {len(model.outputs)} ({name}); --output-index says another")
    return found


def compress(
    model: Model | torch.nn.Module,
    passes: Sequence[Pass | str] | str | Path,
    *,
    data: Any = None,
    input: Input | None = None,
    limit: int | None = 512,
    seed: int = 0,
    target: str | None = None,
    progress: Progress | None = None,
    notice: Notice = warnings.warn,
) -> Model:
    """Run passes in order on a copy of `model` and return it; each is verified and recorded in its history.

    Args:
        model: what `load` returned, or a module in memory; it stays as it is.
        passes: pass objects, texts like "prune:std=0.5", one such text, or the path of a .toml recipe.
        data: calibration records for the passes that need them.
        input: what a module takes, where `data` does not say it (see `load`).
        limit: fit to at most this many of them.
        target: where the result will run (`nncompress targets` lists them): passes that choose by the clock
            measure there; None: where this machine is fastest.
        notice: called with what a pass warns of: outputs that have moved far from the original's.

    Raises:
        NNCompressError: a pass refused, or its result did not check out.
    """
    chosen = as_passes(passes)
    if isinstance(data, Iterator):  # which can be gone through once only
        data = kept(data)
    taken = _taken(model, input, data, notice)
    context = Context(
        data=None if data is None else dataset(data, taken),
        seed=seed,
        progress=progress or NullProgress(),
        limit=limit,
        target=target,
    )
    result, steps = pipeline.run(taken, chosen, context)
    for warning in (warning for step in steps for warning in step.warnings):
        notice(warning)
    return result


def inspect(model: Model | torch.nn.Module, *, input: Input | None = None) -> Cost:
    """Parameters, multiply-accumulates and bytes of every layer (`.layers`) and together (`.totals()`)."""
    return cost(_taken(model, input, None, warnings.warn))


def evaluate(
    model: Model | torch.nn.Module | str | Path,
    data: Any,
    *,
    task: str = "auto",
    metric: str | None = None,
    input: Input | None = None,
    batch_size: int = 64,
    limit: int | None = None,
    progress: Progress | None = None,
) -> EvalResult:
    """Top-1 and top-5, RMSE, or reconstruction error on labelled data; an `.onnx` runs in ONNX Runtime.

    Args:
        task: see `nncompress.analysis.accuracy.measure`.
        metric: another measure: a name, or "file.py:function" of your own (docs/eval.md).
        input: what a module takes, where `data` does not say it (see `load`).
        limit: use this many records, spread over the data.

    Raises:
        DataError: labels are missing or do not fit the outputs.
        NNCompressError: the model cannot be opened.
    """
    if isinstance(data, Iterator):
        data = kept(data)
    if _is_artifact(model):
        runner = open_artifact(model)
        records = data if isinstance(data, Dataset) else open_data(data, runner.inputs)
        return accuracy.evaluate(
            runner.run,
            records,
            task,
            metric=metric,
            batch_size=batch_size,
            limit=limit,
            progress=progress,
        )
    taken = load(model, data=data, notice=warnings.warn) if isinstance(model, str | Path) else None
    taken = taken or _taken(model, input, data, warnings.warn)
    return accuracy.evaluate(
        open_artifact(taken).run,
        dataset(data, taken),
        task,
        metric=metric,
        batch_size=batch_size,
        limit=limit,
        output=known_answer(taken),
        progress=progress,
    )


def benchmark(
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
        input: what modules take (see `load`).
        seconds: of measuring.
        runtime: "onnxruntime": what is no file of a runtime is exported for the measurement.

    Raises:
        NNCompressError: one cannot be opened, exported or run.
    """
    if runtime not in ("onnxruntime", "torch"):
        raise UsageError("unknown runtime", got=runtime, expected="onnxruntime, torch")
    with tempfile.TemporaryDirectory() as folder:
        arms = []
        for position, (name, given) in enumerate(models.items()):
            if _is_artifact(given):
                arms.append(Arm(name, given))
                continue
            taken = load(given, input=input) if isinstance(given, str | Path) else None
            taken = taken or _taken(given, input, None, warnings.warn)
            costs = cost(taken)
            arm = Arm(name, taken, parameters=costs.parameters, macs=costs.macs)
            if runtime == "onnxruntime":
                file = Path(folder) / f"{position}.onnx"
                export.write(taken, file, target="ort-cpu")  # measured here, and then gone
                arm = replace(arm, artifact=file)
            arms.append(arm)
        return measure(arms, batch=batch, threads=threads, time_budget=seconds, progress=progress)


def as_passes(passes: Sequence[Pass | str] | str | Path) -> list[Pass]:
    """Pass objects from objects, texts, or a recipe file.

    Raises:
        UsageError: a text or the file names no pass.
    """
    if isinstance(passes, Path) or (isinstance(passes, str) and passes.endswith(".toml")):
        return read_recipe(passes)
    if isinstance(passes, str):
        passes = [passes]
    made = [each if isinstance(each, Pass) else parse_pass(each) for each in passes]
    if not made:
        raise UsageError("no pass was given", remedy="--pass prune:std=0.5, or --recipe FILE.toml")
    return made


def save(
    model: Model, path: str | Path, *, protect: Sequence[str | Path] = (), target: str | None = None
) -> ExportReport:
    """Write `.pt2`, `.onnx` (verified in ONNX Runtime) or `.safetensors`; never onto a file in `protect`.

    Args:
        target: where it will run (`nncompress.targets`); None: a plain `.onnx`, whatever processor wrote it.
    Raises:
        OutputError: it cannot be written.
        VerificationError: the written file does not compute what the model computes.
    """
    return export.write(model, path, protect=protect, target=target)


def _taken(model: Any, input: Input | None, data: Any, notice: Notice) -> Model:
    """The model of what was given: itself, or that of a module."""
    if isinstance(model, Model):
        if input is not None:
            raise UsageError("a loaded model knows its inputs", remedy="leave input out")
        return model
    if isinstance(model, str | Path):
        raise UsageError(
            "this takes a loaded model", got=str(model), remedy=f"nncompress.load({str(model)!r})"
        )
    known = data if isinstance(data, Dataset) else None
    return load(model, input=input, data=None if known else data, notice=notice)


def _is_artifact(model: Any) -> TypeGuard[str | Path]:
    """A file that a runtime owns."""
    return isinstance(model, str | Path) and Path(model).suffix.lower() in OPENERS


def _examples(input: Input | None) -> tuple[Tensor, ...] | None:
    if input is None or isinstance(input, str):
        return None
    tensors = (input,) if isinstance(input, Tensor) else tuple(input)
    if not tensors or not all(isinstance(each, Tensor) and each.dim() for each in tensors):
        raise UsageError(
            "input is no shape and no tensors",
            got=str([type(each).__name__ for each in tensors]),
            expected='"1x3x32x32", or a tensor per argument, samples along the first dim',
        )
    return tuple(each.detach().cpu() for each in tensors)


def _spec(given: Any) -> str:
    return str(given) if isinstance(given, str | Path) else name_of(given)


def _records_as_examples(
    data: Any, normalize: str | None, names: Sequence[str], model: str
) -> tuple[Tensor, ...]:
    """Two samples of the data, an input of the model each of these names.

    Raises:
        DataError: the data has no samples, or not these inputs.
    """
    found = open_data(data, None, normalize, names)
    if len(names) > 1 and len(found.inputs) != len(names):
        raise DataError(
            f"{found.spec} does not hold the {len(names)} inputs that {model} takes",
            got=", ".join(field.name for field in found.inputs),
            expected=", ".join(names),
            remedy=f"name its arrays so, or say what the model takes: --input {stated_form(names)}",
        )
    for batch in found.batches(2, limit=2):
        return batch.inputs
    raise DataError(f"{found.spec} has no samples")
