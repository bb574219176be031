"""Passes run on a model, what it costs, and the file it is written to."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nncompress import exporting, pipeline
from nncompress.analysis.cost import Cost, cost
from nncompress.api.opening import Input, Notice, dataset, taken
from nncompress.benchmarking.latency.int8_speed import int8_speed
from nncompress.data.sources.python import kept
from nncompress.errors import UsageError
from nncompress.exporting import ExportReport
from nncompress.ir import Model
from nncompress.passes import Context, Pass
from nncompress.progress import NullProgress, Progress
from nncompress.recipe import parse_pass, read_recipe
from nncompress.targets import target as named_target


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
        data: calibration samples for the passes that need them.
        input: what a module takes, where `data` does not say it (see `load`).
        limit: fit to at most this many of them.
        target: where the result will run (`nncompress targets` lists them): passes that choose by the clock
            measure there; None: where this machine is fastest.
        notice: called with what a pass warns of: outputs that have moved far from the original's.

    Raises:
        NNCompressError: a pass refused, or its result did not check out.
    """
    chosen = as_passes(passes)
    if target is not None:
        named_target(target)  # before anything is opened
    if isinstance(data, Iterator):  # which can be gone through once only
        data = kept(data)
    given = taken(model, input, data, notice)
    context = Context(
        data=None if data is None else dataset(data, given, notice=notice),
        seed=seed,
        progress=progress or NullProgress(),
        limit=limit,
        target=target,
    )
    result, steps = pipeline.run(given, chosen, context)
    for warning in (warning for step in steps for warning in step.warnings):
        notice(warning)
    return result


def inspect(model: Model | torch.nn.Module, *, input: Input | None = None) -> Cost:
    """Parameters, multiply-accumulates and bytes of every layer (`.layers`) and together (`.totals()`)."""
    return cost(taken(model, input, None, warnings.warn))


def as_passes(passes: Sequence[Pass | str] | str | Path) -> list[Pass]:
    """Pass objects from objects, texts, or a recipe file.

    Raises:
        UsageError: a text or the file names no pass.
    """
    if isinstance(passes, Path) or (isinstance(passes, str) and passes.endswith(".toml")):
        return read_recipe(passes)
    if isinstance(passes, str | Pass):
        passes = [passes]
    if (
        not isinstance(passes, Iterable)
        or isinstance(passes, Mapping)
        or not all(isinstance(each, str | Pass) for each in passes)
    ):
        raise UsageError(
            "these are no passes",
            got=f"{passes!r:.80}",
            expected='passes or texts such as ["prune:std=0.5", "quantize"], or the path of a .toml recipe',
        )
    made = [each if isinstance(each, Pass) else parse_pass(each) for each in passes]
    if not made:
        raise UsageError("no pass was given", remedy="--pass prune:std=0.5, or --recipe FILE.toml")
    return made


def export(
    model: Model | torch.nn.Module,
    path: str | Path,
    *,
    protect: Sequence[str | Path] = (),
    target: str | None = None,
) -> ExportReport:
    """Write `.pt2`, `.onnx` (verified in ONNX Runtime) or `.safetensors`; never onto a file in `protect`.

    Warns where 8-bit sums of the file may overflow on processors like this one.

    Args:
        model: what `load` or `compress` returned, or what its `to_module` gave.
        target: where it will run (`nncompress.targets`); None: a plain `.onnx`, whatever processor wrote it.
    Raises:
        OutputError: it cannot be written.
        VerificationError: the written file does not compute what the model computes.
    """
    if not isinstance(path, str | Path):
        raise UsageError("a path says where to write", got=type(path).__name__, expected='"small.onnx"')
    report = exporting.write(
        taken(model, None, None, warnings.warn), path, protect=protect, target=target, time_int8=int8_speed
    )
    if report.overflow:
        warnings.warn(f"{path}: {report.overflow}", stacklevel=2)
    return report
