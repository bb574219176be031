"""`.onnx` and `.ort` files in ONNX Runtime on the CPU."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import onnxruntime

from nncompress.devices import processor
from nncompress.errors import DataError, ModelFileError, UnsupportedError
from nncompress.files.interrupts import stop_at_signals
from nncompress.ir import InputSpec
from nncompress.runtimes.base import Array, Call, Runner, input_array
from nncompress.runtimes.external_data import stored_bytes
from nncompress.runtimes.named_dims import with_named_dims
from nncompress.runtimes.onnx_files.functions import check_functions
from nncompress.runtimes.onnx_files.loops import check_loops, ended_in_time
from nncompress.runtimes.onnx_files.saturation import saturating_weights

DTYPES = {
    "tensor(float)": "float32",
    "tensor(double)": "float64",
    "tensor(float16)": "float16",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
MISSING_OPERATOR = ("No Op registered for", "is not a registered function/op")
FATAL = 4  # problems arrive as exceptions; the log on stderr would say them a second time


class OnnxRuntimeRunner(Runner):
    """An inference session on the CPU.

    Args:
        path: the `.onnx` or `.ort` file.
        threads: of one run. With 1, the runtime works in the calling thread.
        optimised: False: each node is computed as it is written, those between quantize and dequantize nodes
            in floats.

    Raises:
        ModelFileError: not an ONNX file that ONNX Runtime reads.
        UnsafeFileError: its external data lies outside its folder.
        UnsupportedError: inputs or outputs that are not tensors, operators the runtime lacks, or loops of
            too many turns.

    Attributes:
        patience: seconds after which a run is ended; None: never.
        remembers: a run begins with the state that the last one left; else with what the file holds.
    """

    patience: float | None = None
    remembers: bool = False

    runtime = "onnxruntime"

    def __init__(self, path: Path, threads: int, *, optimised: bool = True) -> None:
        if path.suffix.lower() == ".onnx" and path.is_file() and path.stat().st_size:
            _check_length(path)
        options = onnxruntime.SessionOptions()
        if not optimised:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = FATAL
        # Idle worker threads spin for a while after a run; in an interleaved benchmark they would burn the
        # time of the next candidate.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        try:
            self._session = onnxruntime.InferenceSession(
                str(path),
                options,
                providers=["CPUExecutionProvider"],
                enable_fallback=0,  # which retries the same provider, after printing that it does
            )
        except Exception as problem:  # the runtime's exceptions have no common base class of their own
            raise _explained(path, problem) from problem
        self._run_options = onnxruntime.RunOptions()
        self._run_options.log_severity_level = FATAL
        stop_at_signals(self)
        self.name = (
            f"ONNX Runtime {onnxruntime.__version__} CPU{'' if optimised else ' without optimisations'}"
        )
        try:
            self.inputs = with_named_dims([_spec(node, path) for node in self._session.get_inputs()])
            outputs = tuple(_spec(node, path).name for node in self._session.get_outputs())
            self.metadata = dict(self._session.get_modelmeta().custom_metadata_map)
        except UnicodeDecodeError as problem:  # the runtime itself takes any bytes
            raise ModelFileError(
                f"{path} names its inputs, outputs, dims or metadata in bytes that are no text",
                got=repr(problem.object)[:100],
                expected="UTF-8",
                remedy="copy or export the model again",
            ) from problem
        states = states_of(self.metadata)
        self._states = states
        self._left: dict[str, np.ndarray] = {}  # by the last run that remembers: its state
        self.outputs = tuple(name for name in outputs if name not in states)
        self.threads = threads
        self.notes = _saturation(path)
        self.file_size = stored_bytes(path)

    def stop(self) -> None:
        """End a run, and let none begin: a signal ends the command."""
        self._run_options.terminate = True

    def _bind(self, inputs: tuple[Array, ...]) -> Call:
        feed = {spec.name: input_array(value) for spec, value in zip(self.inputs, inputs)}
        session, run_options, outputs = self._session, self._run_options, list(self.outputs)
        states = self._states if self.remembers else {}

        def call() -> Sequence[np.ndarray]:
            try:
                with ended_in_time(run_options, self.patience):
                    results = session.run([*outputs, *states], feed | self._left, run_options)
                if states:
                    self._left = dict(zip(states.values(), results[len(outputs) :]))
                return results[: len(outputs)]
            except UnsupportedError:
                raise
            except Exception as problem:
                raise DataError(
                    "ONNX Runtime could not run the model on this input", got=_message(problem)
                ) from problem

        return call


def _check_length(path: Path) -> None:
    """As `check_loops` and `check_functions`; what is wrong with a file otherwise, the runtime says."""
    try:
        check_functions(path)
        check_loops(path)
    except UnsupportedError:
        raise
    except Exception:  # protobuf and onnx raise all kinds for a damaged file
        return


def states_of(metadata: Mapping[str, str]) -> dict[str, str]:
    """Output → input of every state in a file that was exported here: what one call hands to the next.

    A call of a runner is a first one, unless it `remembers`: the states are what the file holds, and no part
    of the answer.
    """
    try:
        stated = json.loads(metadata.get("nncompress.state", "{}"))
    except (ValueError, RecursionError):  # a file of somebody else's
        return {}
    if not isinstance(stated, dict) or not all(isinstance(name, str) for name in stated.values()):
        return {}
    return stated


def runtime() -> None:
    """Import what opening a file may need beside ONNX Runtime: the parser that `_saturation` uses."""
    if processor().saturates:
        import onnx  # noqa: F401


def _saturation(path: Path) -> tuple[str, ...]:
    """What a reader of its results must know where this processor cuts off 8-bit sums."""
    if not processor().saturates or path.suffix.lower() == ".ort":
        return ()
    found = saturating_weights(path)
    if not found:
        return ()
    return (
        f"this processor has no VNNI, and ONNX Runtime's 8-bit sums may overflow in {len(found)} of its "
        f"weights ({found[0]}, …); nncompress export --target ort-cpu on this machine, or quantize "
        "--weight-bits 7",
    )


def open_onnx(path: Path, threads: int) -> OnnxRuntimeRunner:
    """See `OnnxRuntimeRunner`."""
    return OnnxRuntimeRunner(path, threads)


def _spec(node: onnxruntime.NodeArg, path: Path) -> InputSpec:
    dtype = DTYPES.get(node.type)
    if dtype is None:
        raise UnsupportedError(
            f"{path}: {node.name} cannot be given to or taken from ONNX Runtime here",
            got=node.type,
            expected=", ".join(DTYPES),
        )
    return InputSpec(node.name, dtype, tuple("?" if d is None else d for d in node.shape))


def _explained(path: Path, problem: Exception) -> Exception:
    message = _message(problem)
    if "NotImplemented" in type(problem).__name__ or any(sign in message for sign in MISSING_OPERATOR):
        return UnsupportedError(
            f"{path} uses an operator that ONNX Runtime {onnxruntime.__version__} does not run here",
            got=message,
            remedy="export it with a lower opset, or install a newer onnxruntime",
        )
    return ModelFileError(
        f"{path} is not a model that ONNX Runtime reads",
        got=message,
        expected="an ONNX file",
        remedy="copy or export it again, with the opset of an ONNX that is released",
    )


def _message(problem: Exception) -> str:
    """One line, without the runtime's prefix and the path that is already named."""
    text = re.sub(r"^\[ONNXRuntimeError\] : \d+ : ", "", " ".join(str(problem).split()))
    text = re.sub(r"Load model from .* failed: ?", "", text)
    return re.sub(r"\S*/onnxruntime/\S+:\d+ .*?\) (?=[A-Z\[])", "", text)[:300]  # where in its own code
