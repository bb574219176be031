"""The Python interface; the command line is a thin face of it.

import nncompress

model = nncompress.load("model.pt2")
smaller = nncompress.compress(model, ["prune:std=0.5", "factorize:err=1e-3", "quantize"], data="val.npz")
nncompress.save(smaller, "smaller.onnx")
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nncompress import export, pipeline
from nncompress.analysis.answer import ANSWER, settle_answer
from nncompress.data import Dataset, open_data
from nncompress.errors import DataError, UsageError
from nncompress.export import ExportReport
from nncompress.ir import Model
from nncompress.ir.graph.inputs import sizes_of
from nncompress.loading import load_model
from nncompress.loading.file_kind import FileKind, file_kind
from nncompress.passes import Context, Pass
from nncompress.progress import NullProgress, Progress
from nncompress.recipe import parse_pass, read_recipe


def load(
    path: str | Path,
    *,
    arch: str | None = None,
    weights_key: str | None = None,
    strict: bool = True,
    input: str | None = None,
    data: str | None = None,
    normalize: str | None = None,
    trust_pickle: bool = False,
    notice: Callable[[str], None] | None = None,
) -> Model:
    """Load a saved model: `.pt2`, a pickled `nn.Module`, or a state_dict with its architecture.

    Args:
        arch: "file.py:factory" or "package.module:factory", called without arguments, for a state_dict.
        weights_key: where a checkpoint holds the weights, keys joined by dots ("state_dict.student").
        strict: False: weights that are missing or unexpected are told to `notice` instead of refused.
        input: shapes such as "1x3x32x32", where the file does not carry them.
        data: records to take the input's shape from, where neither file nor `input` says it.
        normalize: how its images are normalised ("imagenet", "m1,m2,m3/s1,s2,s3"); kept with the model.
        trust_pickle: allow a pickle to run code.
        notice: called with sentences that the user should read (a guessed input shape).

    Raises:
        NNCompressError: see `nncompress.loading`.
    """
    say = notice or (lambda sentence: None)
    examples = None
    if input is None and data is not None and file_kind(Path(path)) is not FileKind.PT2:
        examples = _records_as_examples(open_data(data, None, normalize))
    try:
        model = load_model(
            path,
            arch=arch,
            weights_key=weights_key,
            strict=strict,
            input_shapes=input,
            trust_pickle=trust_pickle,
            example_inputs=examples,
            notice=say,
        )
    except UsageError as error:
        if examples is None or "does not run on an input" not in error.what:
            raise
        shapes = ", ".join(f"{str(t.dtype).removeprefix('torch.')}{list(t.shape[1:])}" for t in examples)
        raise DataError(
            f"the records of {data} do not fit {path}",
            got=f"records of {shapes}: {error.got}",
            remedy="data the model takes; or --input 1x3x32x32, which says what it takes",
        ) from error
    if normalize is not None:
        model.metadata["normalize"] = normalize
    return model


def dataset(
    spec: str | Dataset,
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
    model: Model,
    passes: Sequence[Pass | str] | str | Path,
    *,
    data: str | Dataset | None = None,
    limit: int | None = 512,
    seed: int = 0,
    progress: Progress | None = None,
    notice: Callable[[str], None] = warnings.warn,
) -> Model:
    """Run passes in order on a copy of `model` and return it; each is verified and recorded in its history.

    Args:
        passes: pass objects, texts like "prune:std=0.5", one such text, or the path of a .toml recipe.
        data: calibration records for the passes that need them.
        limit: fit to at most this many of them.
        notice: called with what a pass warns of: outputs that have moved far from the original's.

    Raises:
        NNCompressError: a pass refused, or its result did not check out.
    """
    context = Context(
        data=None if data is None else dataset(data, model),
        seed=seed,
        progress=progress or NullProgress(),
        limit=limit,
    )
    result, steps = pipeline.run(model, as_passes(passes), context)
    for warning in (warning for step in steps for warning in step.warnings):
        notice(warning)
    return result


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


def save(model: Model, path: str | Path, *, protect: Sequence[str | Path] = ()) -> ExportReport:
    """Write `.pt2`, `.onnx` (verified in ONNX Runtime) or `.safetensors`; never onto a file in `protect`.

    Raises:
        OutputError: it cannot be written.
        VerificationError: the written file does not compute what the model computes.
    """
    return export.write(model, path, protect=protect)


def _records_as_examples(records: Dataset) -> tuple[Any, ...]:
    for batch in records.batches(2, limit=2):
        return batch.inputs
    raise UsageError(f"{records.spec} has no records")
