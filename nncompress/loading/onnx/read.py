"""An `.onnx` file to a `Model`: opened, traced at sizes that it runs on, compared with ONNX Runtime."""

from __future__ import annotations

import itertools
import math
import re
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx
import torch
from onnx.inliner import inline_local_functions
from torch import Tensor
from torch.export import Dim

from nncompress.analysis.distance.precision import TOLERANCE, precision_of
from nncompress.errors import (
    DataError,
    ModelFileError,
    NNCompressError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from nncompress.ir import InputSpec, Model
from nncompress.ir.graph.inputs import random_input
from nncompress.ir.graph.stated_input import InputShape, matched
from nncompress.ir.graph.tracing import MAX_BATCH, trace
from nncompress.loading.onnx import control, layers, movement, pointwise, quantized, recurrent, reductions
from nncompress.loading.onnx.interpreter import OnnxModule, missing_ops
from nncompress.loading.onnx.values import DTYPES
from nncompress.runtimes import Runner
from nncompress.runtimes.on_onnxruntime import external_files, open_onnx

RULE_MODULES = (
    control,
    layers,
    movement,
    pointwise,
    quantized,
    recurrent,
    reductions,
)  # imported: they register

# sizes of free dims, the likeliest first: of images, and of anything else (tokens, samples, channels)
IMAGE_SIZES = (224, 64, 32, 320, 640, 96, 28, 299, 512)
LENGTHS = (16, 64, 8, 128, 256, 1024, 16000, 4, 2)
BATCH = 2


@dataclass(frozen=True)
class _Input:
    """One input as the file states it; a str in `shape` names a free dim, equal names are equal sizes."""

    name: str
    dtype: torch.dtype
    shape: tuple[int | str, ...]


def read_onnx(
    path: Path,
    *,
    input_shapes: Sequence[InputShape] | None = None,
    notice: Callable[[str], None] = lambda sentence: None,
) -> Model:
    """The model of an `.onnx` file, its weights as parameters under their names there.

    Free dims stay free where the graph allows it; the first dim of all inputs, where it is free and the same,
    is the batch. It is compared with ONNX Runtime at two sizes of every free dim.

    Args:
        input_shapes: what sizes to trace with, per input, where free dims leave it open.
        notice: told, in a sentence, what was guessed, fixed and measured.

    Raises:
        ModelFileError, UnsafeFileError: it is damaged, or its external data lies outside its folder.
        UnsupportedError: ops that are not read (named, with counts), or control flow that depends on data.
        UsageError: `input_shapes` do not fit, or no usual sizes run and they are needed.
        VerificationError: what was read computes something else than ONNX Runtime.
    """
    proto = _opened(path)
    missing = missing_ops(proto.graph)
    if missing:
        raise UnsupportedError(
            f"{path} holds ONNX ops that are not read",
            got=", ".join(f"{op} ({count})" for op, count in sorted(missing.items())),
            remedy="bench and eval run the file as it is; to compress it, load the model that it came from",
        )
    runner = open_onnx(path, 1)  # which refuses most of what does not fit together
    module = _module(proto, path)
    inputs = [_input(value, path) for value in module.inputs]
    sizes = _sizes(inputs, runner, input_shapes, path, notice)
    module.eval()
    model = _traced(module, inputs, sizes, notice)
    _rename(model, inputs, [output.name for output in proto.graph.output])
    compared = _compare(model, runner, inputs, sizes, path)
    notice(f"{path.name} was read as a graph that agrees with {runner.name} to {compared:.1e}")
    return model


def _opened(path: Path) -> onnx.ModelProto:
    external_files(path)  # refuses what lies outside the folder
    try:
        proto = onnx.load(path, load_external_data=False)
        return inline_local_functions(proto) if proto.functions else proto
    except NNCompressError:
        raise
    except Exception as error:  # protobuf and onnx raise all kinds for a damaged file
        reason = next(
            (line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__
        )
        raise ModelFileError(
            f"{path} is not a model that can be read", got=reason[:300], expected="an ONNX file"
        ) from error


def _module(proto: onnx.ModelProto, path: Path) -> OnnxModule:
    try:
        return OnnxModule(proto, str(path.resolve().parent))
    except NNCompressError:
        raise
    except Exception as error:  # bytes, dims and types of a tensor that do not fit, each in its own way
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ModelFileError(
            f"{path} is damaged: a tensor in it does not fit its own shape or type",
            got=f"{type(error).__name__}: {reason}"[:300],
            remedy="copy or export the model again",
        ) from error


def _input(value: onnx.ValueInfoProto, path: Path) -> _Input:
    kind = value.type.tensor_type
    if not value.type.HasField("tensor_type") or kind.elem_type not in DTYPES:
        raise UnsupportedError(f"{path}: the input {value.name} is no tensor of numbers")
    if not kind.HasField("shape"):
        raise UnsupportedError(
            f"{path}: the input {value.name} has no shape, not even a number of dims",
            remedy="set one with onnx.tools.update_model_dims",
        )
    shape: list[int | str] = []
    for axis, dim in enumerate(kind.shape.dim):
        named = (
            dim.dim_param if re.search(r"[^\W_]", dim.dim_param) else f"{value.name}_{axis}"
        )  # "?" is no name
        shape.append(dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else named)
    return _Input(value.name, DTYPES[kind.elem_type], tuple(shape))


# --- sizes ------------------------------------------------------------------------------------------------


def _sizes(
    inputs: list[_Input],
    runner: Runner,
    given: Sequence[InputShape] | None,
    path: Path,
    notice: Callable[[str], None],
) -> dict[str, int]:
    """A number for every free dim, with which ONNX Runtime runs the file."""
    free = list(dict.fromkeys(dim for each in inputs for dim in each.shape if isinstance(dim, str)))
    if given is not None:
        return _stated(inputs, given, path)
    candidates = [_candidates(dim, inputs) for dim in free]
    failure = ""
    most = max((len(each) for each in candidates), default=1)
    trials = [tuple(each[min(i, len(each) - 1)] for each in candidates) for i in range(most)]
    for sizes in dict.fromkeys((*trials, *itertools.islice(itertools.product(*candidates), 200))):
        chosen = dict(zip(free, sizes))
        try:
            runner.run(*_examples(inputs, chosen, seed=0))
        except DataError as error:
            failure = str(error.got)
            continue
        guessed = {dim: size for dim, size in chosen.items() if dim != _batch(inputs)}
        if guessed:
            told = ", ".join(f"{dim} = {size}" for dim, size in guessed.items())
            notice(f"sizes that {path.name} leaves free were guessed: {told}; --input states others")
        return chosen
    shapes = ", ".join(f"{each.name} [{', '.join(map(str, each.shape))}]" for each in inputs)
    raise UsageError(
        f"{path} leaves sizes free, and none of the usual ones runs",
        got=f"{shapes}; {failure}",
        remedy="state them: --input "
        + ",".join("x".join(str(d if isinstance(d, int) else 1) for d in each.shape) for each in inputs),
    )


def _stated(inputs: list[_Input], given: Sequence[InputShape], path: Path) -> dict[str, int]:
    given = matched(given, [each.name for each in inputs])
    sizes: dict[str, int] = {}
    for each, stated in zip(inputs, given):
        fits = len(stated.shape) == len(each.shape)
        for d, (dim, size) in enumerate(zip(each.shape, stated.shape)):
            if d == stated.batch_dim and isinstance(dim, int):
                continue  # a batch of a fixed size
            fits &= size == (sizes.setdefault(dim, size) if isinstance(dim, str) else dim)
        if not fits:
            raise UsageError(
                f"--input does not fit {path}",
                got=str(stated),
                expected=f"{each.name} [{', '.join(map(str, each.shape))}]",
            )
    batch = _batch(inputs)
    if batch is not None and sizes.get(batch) == 1:
        sizes[batch] = BATCH  # torch.export would take 1 for a constant
    return sizes


def _batch(inputs: list[_Input]) -> str | None:
    """The name of the first dim, where it is free and all inputs share it."""
    first = {each.shape[0] if each.shape else None for each in inputs}
    (only,) = first if len(first) == 1 else (None,)
    return only if isinstance(only, str) else None


def _candidates(dim: str, inputs: list[_Input]) -> tuple[int, ...]:
    if dim == _batch(inputs) or any(each.shape[:1] == (dim,) and len(each.shape) > 1 for each in inputs):
        return (BATCH,)
    spatial = any(len(each.shape) == 4 and dim in each.shape[1:] for each in inputs)
    return IMAGE_SIZES if spatial else LENGTHS


def _examples(inputs: list[_Input], sizes: dict[str, int], seed: int) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(seed)
    specs = [InputSpec("x", str(each.dtype).removeprefix("torch."), each.shape) for each in inputs]
    return tuple(
        random_input(spec, tuple(sizes[d] if isinstance(d, str) else d for d in spec.shape), generator)
        for spec in specs
    )


# --- tracing ----------------------------------------------------------------------------------------------


def _traced(
    module: OnnxModule, inputs: list[_Input], sizes: dict[str, int], notice: Callable[[str], None]
) -> Model:
    """Free dims stay free as named, as torch infers them, or, with a word, only the batch or none."""
    examples = _examples(inputs, _apart(sizes), seed=0)
    dims = {name: Dim(re.sub(r"\W", "_", f"d_{name}"), min=1, max=MAX_BATCH) for name in sizes}
    batch = _batch(inputs)

    def shapes(of: Callable[[str], Any]) -> Any:
        each = [
            {
                axis: of(dim)
                for axis, dim in enumerate(i.shape)
                if isinstance(dim, str) and of(dim) is not None
            }
            for i in inputs
        ]
        return {"inputs": tuple(each)}

    attempts: list[tuple[Any, str]] = [(shapes(lambda name: dims[name]), "")]
    if sizes:
        attempts.append((shapes(lambda name: Dim.AUTO), ""))
        fixed = ", ".join(f"{dim} = {size}" for dim, size in sizes.items() if dim != batch)
        if batch is not None and fixed:
            only = shapes(lambda name: dims[name] if name == batch else None)
            attempts.append((only, f"sizes that the graph cannot leave free are fixed: {fixed}"))
        attempts.append(
            (
                None,
                "sizes that the graph cannot leave free are fixed: "
                + ", ".join(f"{d} = {s}" for d, s in sizes.items()),
            )
        )
    failure: UnsupportedError | None = None
    for dynamic, said in attempts:
        free = dynamic is not None
        try:
            program = trace(module, examples if free else _examples(inputs, sizes, seed=0), {}, dynamic)
        except UnsupportedError as error:
            failure = _named(error)
            if isinstance(failure, UnsupportedError) and "is not read" in failure.what:
                break
            continue
        if said:
            notice(said)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Model.from_exported(program, copy_weights=True)
    assert failure is not None
    raise failure


def _apart(sizes: dict[str, int]) -> dict[str, int]:
    """No two free dims of one size: torch.export would take them for the same."""
    taken: set[int] = set()
    result = {}
    for name, size in sizes.items():
        while size in taken:
            size += 1
        taken.add(size)
        result[name] = size
    return result if len(set(sizes.values())) < len(sizes) and len(sizes) <= 1 else sizes


def _named(error: UnsupportedError) -> UnsupportedError:
    """Our own refusal of an op where one is behind what torch.export said."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, UnsupportedError) and cause is not error:
            return cause
        cause = cause.__cause__ or cause.__context__
    return error


def _rename(model: Model, inputs: list[_Input], outputs: list[str]) -> None:
    """Inputs, outputs and free dims as the file names them (inputs: as far as Python takes the name)."""
    batch = _batch(inputs)
    names: dict[str, str] = {}
    for spec, each in zip(model.inputs, inputs):
        names |= {
            ours: ("batch" if theirs == batch else theirs)
            for ours, theirs in zip(spec.shape, each.shape)
            if isinstance(ours, str) and isinstance(theirs, str)
        }
    taken: set[str] = set()
    specs, stated = [], {}
    for spec, each in zip(model.inputs, inputs):
        name = re.sub(r"\W", "_", each.name)
        name = name if name.isidentifier() and name not in taken else f"input_{len(taken)}"
        taken.add(name)
        if name != each.name:
            stated[name] = each.name
        shape = tuple(names.get(d, d) if isinstance(d, str) else d for d in spec.shape)
        specs.append(replace(spec, name=name, shape=shape))
    model.inputs = tuple(specs)
    model.dynamic = {names.get(name, name): bounds for name, bounds in model.dynamic.items()}
    if len(outputs) == len(model.outputs):
        model.outputs = tuple(outputs)
    if stated:
        model.metadata["input_names"] = stated


# --- comparing --------------------------------------------------------------------------------------------


def _compare(model: Model, runner: Runner, inputs: list[_Input], sizes: dict[str, int], path: Path) -> float:
    """The largest relative error against ONNX Runtime, at the traced sizes and at others where free."""
    precision = precision_of(model)
    free = {dim for spec in model.inputs for dim in spec.shape if isinstance(dim, str)}
    batch = _batch(inputs)
    trials = [sizes]
    if free:
        trials.append({n: s + 1 if (n == batch and "batch" in free) else s for n, s in sizes.items()})
    worst = 0.0
    for seed, trial in enumerate(trials):
        arrays = _drawn(model, inputs, trial, seed)
        expected = runner.run(*arrays)
        with torch.no_grad():
            got = model.outputs_of(*arrays)
        for name, ours, theirs in zip(model.outputs, got, expected, strict=True):
            error = _relative_error(ours.detach(), torch.from_numpy(theirs))
            if not error <= TOLERANCE[precision]:
                raise VerificationError(
                    f"{path}: what was read differs from {runner.name} on output {name!r}",
                    got=f"relative error {error:.2g}"
                    if error < math.inf
                    else "another shape, or other infinities",
                    expected=f"at most {TOLERANCE[precision]:g} in {precision}",
                    remedy="this is a defect of the reader; bench and eval run the file as it is",
                )
            worst = max(worst, error)
    return worst


def _drawn(model: Model, inputs: list[_Input], sizes: dict[str, int], seed: int) -> tuple[Tensor, ...]:
    """Random inputs of those sizes; integers within the ranges that the graph takes."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(
        random_input(spec, tuple(sizes[d] if isinstance(d, str) else d for d in each.shape), generator)
        for spec, each in zip(model.inputs, inputs)
    )


def _relative_error(ours: Tensor, theirs: Tensor) -> float:
    """‖difference‖ / ‖theirs‖ where both are finite; of integers, the share that differs."""
    if ours.shape != theirs.shape:
        return math.inf
    if not theirs.dtype.is_floating_point:
        return float((ours.to(theirs.dtype) != theirs).double().mean()) if theirs.numel() else 0.0
    a, b = ours.double(), theirs.double()
    finite = b.isfinite()
    if not torch.equal(finite, a.isfinite()):
        return math.inf
    away, norm = float((a - b)[finite].norm()), float(b[finite].norm())
    return away / norm if norm else away
