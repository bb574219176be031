"""An exported ONNX file in ONNX Runtime: opened, run, compared with the graph."""

from __future__ import annotations

import re
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from nncompress.analysis.distance.precision import precision_of
from nncompress.errors import UnsupportedError, VerificationError
from nncompress.exporting.check import compare as verify
from nncompress.exporting.check.compare import Comparison
from nncompress.exporting.check.discrete_choices import Probe, compare_choices, find_choices
from nncompress.exporting.lower.onnxruntime.state_io import State
from nncompress.ir import Model
from nncompress.ir.formats.precision import MAKE_FLOAT32
from nncompress.ir.formats.samples import verification_inputs
from nncompress.ir.graph.ops import op_name
from nncompress.ir.graph.places import place

_IN_FLOAT32 = f"keep it as .pt2; or, of a model in other floats: {MAKE_FLOAT32}"


def compare(
    model: Model,
    path: Path,
    write: Callable[[Model, Path], object] | None = None,
    *,
    kernels: Path | None = None,
) -> Comparison:
    """See `nncompress.exporting.check.compare.compare`.

    A quantized file is first run as it is written, in floats, which shows whatever it says otherwise than the
    graph. Then on its integer kernels, which round a little differently. Where it disagrees and has discrete
    choices inside, a file with further outputs shows whether the choices are made from the same values.

    Args:
        write: how the file was written, and is right on this processor; without it, it is run as it is
            optimised only (`.ort`).
        kernels: the same for this processor, whose integer kernels cut off sums of `path` (default: `path`).

    Raises:
        UnsupportedError: ONNX Runtime cannot load the file; the message names the op.
        VerificationError: the outputs differ by more than the tolerance for the model's precision.
    """
    precision = precision_of(model)
    quantized = precision in ("int8", "int4")
    kernels = kernels or path
    choices = find_choices(model) if precision == "int8" else None  # whose comparison tells more than a proof
    told = ""
    right = not quantized or write is None  # as it is written
    proven = None
    try:
        if not right:
            as_written = f"{_runtime()} without optimisations"
            unoptimised = _runner(path, optimised=False)
            told = verify.compare(
                model,
                unoptimised,
                as_written,
                precision=f"{precision} as written",
                proof=None if choices else _proof(model, path),
            ).rounding
            right, proven = True, unoptimised
        found = verify.compare(model, _runner(kernels), _runtime(), proven=proven)
        return replace(found, rounding=found.rounding or told)
    except VerificationError as error:
        if choices is None:
            if not right:
                raise
            raise _whose_defect(model, path, error) from error
        with tempfile.TemporaryDirectory() as folder:
            probes = []
            if write is not None:
                probe = Path(folder) / "probe.onnx"
                write(choices.probe, probe)
                written = _runner(probe, optimised=False)
                by, precise = f"{_runtime()} without optimisations", f"{precision} as written"
                probes = [
                    Probe(written, by, precise, proof=_proof(choices.probe, probe)),
                    Probe(_runner(probe), _runtime(), precision, proven=written),
                ]
            return compare_choices(model, choices, _runner(kernels), _runtime(), (1, 3), probes)


def compare_steps(model: Model, path: Path, states: Sequence[State], steps: int = 3) -> None:
    """Several calls in a row, each with the state that the last one left, the first with the file's own.

    Raises:
        VerificationError: the outputs of a call differ by more than the tolerance.
    """
    if not states:
        return
    session = open_session(path)
    precision = precision_of(model)
    own = len(model.inputs) - len(states)
    batch = verify.batch_sizes(model)[-1]
    ours: tuple[Tensor, ...] = tuple(state.initial for state in states)
    theirs: tuple[Tensor, ...] = ()
    for step in range(steps):
        inputs = verification_inputs(model, batch=batch, seed=100 + step)[:own]
        with torch.no_grad():
            expected = model.outputs_of(*inputs, *ours)
        got = run(session, (*inputs, *theirs))
        for name, a, b in zip(model.outputs, expected, got, strict=True):
            verify.distance(f"{_runtime()} disagrees on output {name!r} of call {step + 1}", a, b, precision)
        ours, theirs = expected[-len(states) :], tuple(got[-len(states) :])


def _whose_defect(model: Model, path: Path, error: VerificationError) -> VerificationError:
    """The same, unless the file is right when it is run as it is written; of a known kernel its reason."""
    power = next(filter(_of_whole_numbers, model.graph.nodes), None)
    if power is not None:
        return VerificationError(
            error.what,
            got=error.got,
            expected=error.expected,
            remedy=f"keep the model as .pt2, or take the power of floats: {place(power)} is one of whole "
            "numbers, which ONNX Runtime computes in floating point, and beyond the type's range otherwise "
            "than torch",
        )
    try:
        if path.suffix != ".onnx":
            return error
        verify.compare(model, _runner(path, optimised=False), _runtime())
    except (VerificationError, UnsupportedError):
        return error
    return VerificationError(
        f"the file is right, but {_runtime()} optimises it to something else: {error.what}",
        got=error.got,
        expected=error.expected,
        remedy="keep the model as .pt2 and report it: such graphs can be written so that they are left alone",
    )


def _of_whole_numbers(node: fx.Node) -> bool:
    return op_name(node) == "pow" and not node.meta["val"].is_floating_point()


def _proof(model: Model, path: Path) -> Callable[[], str]:
    return partial(verify.differs_without_rounding, model, path, lambda file: _runner(file, optimised=False))


def _runtime() -> str:
    import onnxruntime

    return f"onnxruntime {onnxruntime.__version__}"


def _runner(path: Path, *, optimised: bool = True) -> Callable[[tuple[Tensor, ...]], list[Tensor]]:
    session = open_session(path, optimised=optimised)
    return lambda inputs: run(session, inputs)


def open_session(path: Path, save_to: Path | None = None, *, optimised: bool = True) -> Any:
    """An ONNX Runtime session on the CPU, silent, with all or none of its optimisations.

    Args:
        save_to: write the graph after optimisation there (before the layout of float kernels is chosen).

    Raises:
        UnsupportedError: it has no implementation of an op in the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if not optimised:
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own exception classes share no base but Exception
        text = str(error)
        op = re.search(r"implementation for (\w+)\(", text) or re.search(r"Op \((\w+)\)", text)
        missing = "NOT_IMPLEMENTED" in text
        layer = re.search(r"node with name '([^']+)'", text)
        place = f" (layer {layer.group(1)})" if layer and not layer.group(1).startswith("node_") else ""
        raise UnsupportedError(
            f"ONNX Runtime has no {op.group(1)} of this model's kind of numbers on this machine{place}"
            if op and missing
            else f"ONNX Runtime on this machine cannot run the op {op.group(1)} of this model{place}"
            if op
            else "ONNX Runtime cannot load the exported model",
            got=text.replace(f"Load model from {path}", "the load").splitlines()[0][:300],
            remedy=_IN_FLOAT32 if missing else "keep it as .pt2, or replace the op in the model",
        ) from error


def run(session: Any, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs for positional inputs; those of a state may be left out.

    Raises:
        UnsupportedError: a kernel of the runtime refuses what it is given.
    """
    wanted = [value.name for value in (*session.get_inputs(), *session.get_overridable_initializers())]
    arrays = {name: tensor.contiguous().numpy() for name, tensor in zip(wanted, inputs)}
    try:
        results = session.run(None, arrays)
    except Exception as error:  # the runtime's own exception classes share no base but Exception
        raise UnsupportedError(
            "ONNX Runtime loads the exported model and then cannot run it",
            got=str(error).splitlines()[0][:300],
            remedy=_IN_FLOAT32,
        ) from error
    return [torch.from_numpy(np.array(array)) for array in results]
