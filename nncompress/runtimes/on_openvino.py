"""`.onnx` and `.xml` (OpenVINO IR) files in OpenVINO on the CPU.

OpenVINO decides for itself in which precision floats are computed: in bfloat16 on a CPU that can. A runner
says which it was asked for ("float32", "bfloat16", "float16"), or None for "as it comes", and `layers` says
what each layer ran in. 8 bits come from quantize and dequantize nodes in the file.

OpenVINO's documentation: "Precision control", "CPU device", "High-level performance hints".
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from nncompress.devices import processor
from nncompress.errors import DataError, DeviceError, ModelFileError, UnsupportedError
from nncompress.extras import need, version
from nncompress.ir import InputSpec
from nncompress.runtimes.base import Array, Call, Runner, input_array
from nncompress.runtimes.external_data import stored_bytes
from nncompress.runtimes.onnx_files.functions import check_functions
from nncompress.runtimes.onnx_files.saturation import saturating_weights
from nncompress.runtimes.silence import silent

PRECISIONS = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}  # ours -> INFERENCE_PRECISION_HINT
ABILITIES = {"bfloat16": "BF16", "float16": "FP16"}  # -> what the device has to list
# what keeps OpenVINO from integer kernels, and from rounding what is multiplied with weights by groups, to 8
# bits, a scale for each group, as it does by itself where the processor multiplies bytes
AS_WRITTEN = {"LP_TRANSFORMS_MODE": "NO", "DYNAMIC_QUANTIZATION_GROUP_SIZE": 0}
DTYPES = {
    "f32": "float32",
    "f64": "float64",
    "f16": "float16",
    "boolean": "bool",
    **{
        f"{sign}{bits}": f"{kind}{bits}"
        for sign, kind in (("i", "int"), ("u", "uint"))
        for bits in (8, 16, 32, 64)
    },
}
WEIGHTS = "nncompress.weights"  # property of an `.xml` of ours: sha256 of its `.bin`
SATURATING = "nncompress.saturating"  # and how many weights could overflow without VNNI
_ELSEWHERE = "a plain .onnx, which ONNX Runtime runs; or another op in the model"
NO_LAYERS = ("Const", "Input", "Output", "Parameter", "Result")
# layer types of the compiled graph that do the heavy work
HEAVY = {
    "Convolution",
    "Deconvolution",
    "FullyConnected",
    "MatMul",
    "ScaledDotProductAttention",
    "RNNSeq",
    "RNNCell",
}


@dataclass(frozen=True)
class Layer:
    """One node of the compiled graph.

    Attributes:
        precision: what its kernel computed in, by its name: "float32", "bfloat16", "int8", …
        kernel: OpenVINO's name of the kernel: "brgconv_avx512_amx_I8".
    """

    name: str
    kind: str
    precision: str
    kernel: str


@dataclass(frozen=True)
class Timed:
    """The time of one layer in one run, in seconds."""

    layer: Layer
    seconds: float


@cache
def core() -> Any:
    """OpenVINO's one `Core`, imported when first needed.

    Raises:
        MissingExtraError: the extra is not installed.
    """
    with silent():
        need("openvino", "OpenVINO")
        import openvino

        return openvino.Core()


def need_precision(precision: str) -> None:
    """
    Raises:
        DeviceError: this CPU does not compute in it.
    """
    if precision not in precisions():
        raise DeviceError(
            f"OpenVINO does not compute in {precision} on this CPU",
            expected=", ".join(precisions()),
            remedy="leave --precision or --for out: without, it takes what the CPU has",
        )


def precisions() -> tuple[str, ...]:
    """The precisions in which this CPU computes floats."""
    able = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(name for name in PRECISIONS if name not in ABILITIES or ABILITIES[name] in able)


def by_itself() -> str:
    """The precision in which OpenVINO computes floats on this CPU unless it is told otherwise."""
    hint = core().get_property("CPU", "INFERENCE_PRECISION_HINT").get_type_name()
    return next((name for name, theirs in PRECISIONS.items() if theirs == hint), "float32")


class OpenVinoRunner(Runner):
    """A model compiled for the CPU: one stream, of latency.

    It is compiled anew for each shape of its inputs, as OpenVINO is faster where all sizes are known.

    Args:
        path: the `.onnx` or `.xml` file.
        threads: of one run. With 1, OpenVINO works in the calling thread.
        precision: of floats: a key of `PRECISIONS`; None leaves it to OpenVINO.
        integers: False: quantize and dequantize nodes are computed as they are written, in floats.
    Raises:
        MissingExtraError: OpenVINO is not installed.
        DeviceError: this CPU does not compute in that precision.
        ModelFileError: not a file that OpenVINO reads.
        UnsafeFileError: its external data lies outside its folder.
        UnsupportedError: inputs or outputs that are no tensors of a known type, or an operator it lacks.
    """

    runtime = "openvino"
    _reuses_outputs = True

    def __init__(
        self, path: Path, threads: int, precision: str | None = None, *, integers: bool = True
    ) -> None:
        need("openvino", path.name)
        if precision is not None:
            need_precision(precision)
        self._model = read_graph(path, path)
        self._path, self._compiled = path, {}  # type: ignore[var-annotated]
        self.threads, self.precision, self.integers = threads, precision, integers
        self.name = f"OpenVINO {version('openvino')} CPU" + (f" {precision}" if precision else "")
        self.inputs = tuple(_spec(port, path) for port in self._model.inputs)
        self.outputs = tuple(port.get_any_name() for port in self._model.outputs)
        try:
            self.metadata = _properties(self._model)
        except (UnicodeDecodeError, RuntimeError) as problem:
            raise _explained(path, problem) from problem
        _check_weights(path, self.metadata)
        self.file_size = stored_bytes(path)
        self.notes = _saturation(path, self.metadata)

    def layers(self, *inputs: Array) -> list[Layer]:
        """The compiled graph for inputs of these shapes, without constants, inputs and outputs."""
        graph = self._compile(tuple(tuple(value.shape) for value in inputs)).get_runtime_model()
        found = []
        for op in graph.get_ops():
            told = op.get_rt_info()
            kind, kernel, precision = (
                _text(told, key) for key in ("layerType", "primitiveType", "runtimePrecision")
            )
            if kind not in NO_LAYERS:
                found.append(Layer(op.get_friendly_name(), kind, _precision(precision, kernel), kernel))
        return found

    def times(self, *inputs: Array, runs: int) -> list[Timed]:
        """What each layer took in each run, in order; runs are slower for being watched."""
        arrays = [input_array(value) for value in inputs]
        shapes = tuple(array.shape for array in arrays)
        request = self._compile(shapes, watched=True).create_infer_request()
        found = []
        for _ in range(runs):
            request.infer(arrays, share_inputs=True)
            for node in request.get_profiling_info():
                if node.status.name == "EXECUTED" and node.node_type not in NO_LAYERS:
                    layer = Layer(
                        node.node_name, node.node_type, _precision("", node.exec_type), node.exec_type
                    )
                    found.append(Timed(layer, node.cpu_time.total_seconds()))
        return found

    def _compile(self, shapes: tuple[tuple[int, ...], ...], *, watched: bool = False) -> Any:
        key = (shapes, watched)
        if key not in self._compiled:
            settings: dict[str, Any] = {
                "INFERENCE_NUM_THREADS": self.threads,
                "PERFORMANCE_HINT": "LATENCY",
                "NUM_STREAMS": 1,
                "ENABLE_CPU_PINNING": False,
                **({"PERF_COUNT": True} if watched else {}),
                **({} if self.integers else AS_WRITTEN),
            }
            if self.precision is not None:
                settings["INFERENCE_PRECISION_HINT"] = PRECISIONS[self.precision]
            try:
                model = self._model.clone()
                model.reshape({port: list(shape) for port, shape in zip(model.inputs, shapes)})
                self._compiled[key] = core().compile_model(model, "CPU", settings)
            except Exception as problem:
                raise UnsupportedError(
                    f"OpenVINO reads {self._path} and does not run it",
                    got=_message(problem),
                    remedy=_ELSEWHERE,
                ) from problem
        return self._compiled[key]

    def _bind(self, inputs: tuple[Array, ...]) -> Call:
        arrays = [input_array(value) for value in inputs]
        request = self._compile(tuple(array.shape for array in arrays)).create_infer_request()

        def call() -> Sequence[np.ndarray]:
            try:
                return list(request.infer(arrays, share_inputs=True, share_outputs=True).values())
            except Exception as problem:
                raise DataError(
                    "OpenVINO could not run the model on this input", got=_message(problem)
                ) from problem

        return call


def read_graph(file: Path, told: Path) -> Any:
    """OpenVINO's own graph of an `.onnx` or `.xml`.

    Args:
        told: what the user calls it.
    Raises:
        ModelFileError: not a file that OpenVINO reads.
        UnsupportedError: an operator it lacks, or functions that are too long.
    """
    if file.suffix.lower() == ".onnx" and file.is_file() and file.stat().st_size:
        check_functions(file)
    try:
        return core().read_model(str(file))
    except Exception as problem:  # OpenVINO raises RuntimeError for everything
        raise _explained(told, problem) from problem


def open_openvino(path: Path, threads: int, precision: str | None = None) -> OpenVinoRunner:
    """See `OpenVinoRunner`."""
    return OpenVinoRunner(path, threads, precision)


def summary(layers: Sequence[Layer]) -> str:
    """In what the heavy layers run: "19 of 21 in int8, 2 in bfloat16"."""
    heavy = Counter(layer.precision for layer in layers if layer.kind in HEAVY)
    total = sum(heavy.values())
    first, *rest = heavy.most_common() or [("float32", 0)]
    return ", ".join([f"{first[1]} of {total} in {first[0]}", *(f"{n} in {name}" for name, n in rest)])


def _precision(stated: str, kernel: str) -> str:
    """The end of the kernel's name ("brgconv_avx512_amx_I8"), which is right where the two differ."""
    last = kernel.rpartition("_")[2].lower()
    told = last if last in ("i8", "u8", "f32", "bf16", "f16", "i32", "i64") else stated.lower()
    names = {"i8": "int8", "u8": "int8", "bf16": "bfloat16"}
    return names.get(told, DTYPES.get(told, told))


def _text(told: Any, key: str) -> str:
    return str(told[key].astype(str)) if key in told else ""


def _spec(port: Any, path: Path) -> InputSpec:
    """Names of dims are not kept by OpenVINO: the first free one is the batch, others are like no other."""
    name, dtype = port.get_any_name(), port.get_element_type().get_type_name()
    if dtype not in DTYPES or port.partial_shape.rank.is_dynamic:
        raise UnsupportedError(
            f"{path}: {name} cannot be given to OpenVINO here", got=f"{dtype} {port.partial_shape}"
        )
    shape = tuple(
        dim.get_length() if dim.is_static else "batch" if axis == 0 else f"{name}_{axis}"
        for axis, dim in enumerate(port.partial_shape)
    )
    return InputSpec(name, DTYPES[dtype], shape)


def _check_weights(path: Path, metadata: dict[str, str]) -> None:
    """Two files cannot be replaced in one step: refuse the weights of another export."""
    stated = metadata.get(WEIGHTS)
    if path.suffix.lower() == ".xml" and stated is not None:
        with path.with_suffix(".bin").open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != stated:
            raise ModelFileError(
                f"{path.with_suffix('.bin')} does not hold the weights of {path.name}",
                got=f"sha256 {found[:16]}…",
                expected=f"{stated[:16]}…",
                remedy="export it again",
            )


def _saturation(path: Path, metadata: dict[str, str]) -> tuple[str, ...]:
    """As in ONNX Runtime: without VNNI, 8-bit products are summed in pairs in 16 bits."""
    if not processor().saturates:
        return ()
    onnx = path.suffix.lower() == ".onnx"
    found = len(saturating_weights(path)) if onnx else metadata.get(SATURATING, "0")
    if str(found) == "0":
        return ()
    return (
        f"this processor has no VNNI, and OpenVINO's 8-bit sums may overflow in {str(found)[:9]} of its "
        "weights; quantize --weight-bits 7 is right everywhere",
    )


def _properties(model: Any) -> dict[str, str]:
    """The metadata properties of an `.onnx`, which OpenVINO keeps in its own files, too."""
    info = model.get_rt_info()
    kept = _opened(info["framework"]) if "framework" in info else {}
    return {key: str(_opened(text)) for key, text in kept.items()} if isinstance(kept, dict) else {}


def _opened(value: Any) -> Any:
    """OpenVINO wraps what it keeps, but not always."""
    return getattr(value, "value", value)


def _explained(path: Path, problem: Exception) -> Exception:
    message = _message(problem)
    lacking = ("OpConversionFailure", "does not support the following ONNX operations", "Unsupported")
    if any(text in str(problem) for text in lacking):
        return UnsupportedError(
            f"{path} uses an operator that OpenVINO does not run",
            got=message.removeprefix("-- "),
            remedy=_ELSEWHERE,
        )
    return ModelFileError(
        f"{path} is not a model that OpenVINO reads", got=message, expected="an .onnx or .xml file"
    )


def _message(problem: Exception) -> str:
    """The last line that says something: those before are places in OpenVINO's source."""
    lines = [line.strip() for line in str(problem).splitlines() if line.strip()]
    telling = [line for line in lines if not line.startswith(("Exception from", "Check "))] or lines
    return (telling[-1] if telling else type(problem).__name__)[:300]
