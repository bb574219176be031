"""torch and ONNX Runtime on an NVIDIA GPU.

Everything runs on one stream of ours, so that events recorded on it time either runtime. A bound call only
puts work on the stream and returns; `run` waits for the result and fetches it.
float32 means float32: the shorter TF32 products are switched off in both runtimes. Both search for the
fastest algorithm of each convolution when they first see its shape (ONNX Runtime does so by default).
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx

from nncompress.devices import need_cuda
from nncompress.errors import DeviceError, MissingExtraError, NNCompressError, UnsupportedError, UsageError
from nncompress.ir import Model
from nncompress.runtimes.base import Array, Call, Runner, check_inputs, output_array
from nncompress.runtimes.cuda.linear import use_int8, use_semi_structured
from nncompress.runtimes.on_onnxruntime import OnnxRuntimeRunner
from nncompress.runtimes.silence import silent

Mode = Literal["eager", "graphs", "compile"]
WARM_UP = 3  # calls before a graph is captured, and after compilation
DEVICE = torch.device("cuda", 0)  # with its number: an assertion in a graph compares it with a tensor's
PROVIDER = "CUDAExecutionProvider"
OUT_OF_MEMORY = ("out of memory", "Failed to allocate memory", "Available memory of", "CUBLAS_STATUS_ALLOC")
# ops that a figure "on the GPU" is about: with one of them on the processor it would be no such figure
HEAVY = {"Conv", "ConvTranspose", "Gemm", "MatMul", "FusedMatMul", "FusedConv", "Attention", "LSTM", "GRU"}


@dataclass(frozen=True)
class Cuda:
    """Run on the GPU: by which runtime, and for torch in which of its modes.

    Attributes:
        mode: "eager" launches node by node; "graphs" captures the launches once and replays them (CUDA
            graphs); "compile" generates fused kernels (torch.compile).
        sparse: linear layers whose weights are 2:4 run on sparse tensor cores.
    """

    runtime: Literal["torch", "onnxruntime"] = "torch"
    mode: Mode = "eager"
    sparse: bool = False


@cache
def stream() -> Any:
    """The stream that all work goes to; torch's current one from now on."""
    ours = torch.cuda.Stream()
    torch.cuda.set_stream(ours)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.benchmark = True
    return ours


def open_on_cuda(artifact: str | Path | Model, cuda: Cuda) -> Runner:
    """Open a model in torch, or an `.onnx` file in ONNX Runtime.

    Raises:
        DeviceError: there is no GPU, the runtime does not reach it, or its memory is full.
        MissingExtraError: the runtime is not installed for CUDA.
        UsageError: the runtime does not take this kind of artifact.
        UnsupportedError: it lacks an operator there.
    """
    need_cuda(cuda.runtime, "running on the GPU")
    if isinstance(artifact, Model):
        if cuda.runtime != "torch":
            raise UsageError("ONNX Runtime runs files", remedy="export the model to .onnx first")
        return TorchOnCuda(artifact, cuda.mode, sparse=cuda.sparse)
    path = Path(artifact)
    if cuda.runtime != "onnxruntime" or path.suffix.lower() != ".onnx":
        raise UsageError(f"{cuda.runtime} does not run {path.name} on a GPU", expected="an .onnx, or a model")
    return OnnxRuntimeOnCuda(path)


class CudaRunner(Runner):
    """What both have in common. Inputs may be of any float type; they are cast to the artifact's."""

    threads = 1
    device = "cuda"

    def bind(self, *inputs: Array) -> Call:
        cast = tuple(
            _as(value, spec.dtype) if spec.dtype.startswith(("float", "bfloat")) else value
            for spec, value in zip(self.inputs, inputs)
        )
        check_inputs(self.inputs, (*cast, *inputs[len(cast) :]), self.name)
        stream()
        return self._bind(cast)

    def run(self, *inputs: Array) -> tuple[np.ndarray, ...]:
        outputs = self.bind(*inputs)()
        with explained(self.name):  # what went wrong on the GPU is told when one waits for it
            torch.cuda.synchronize()
            return tuple(self._fetch(outputs))

    @abstractmethod
    def _fetch(self, outputs: Any) -> list[np.ndarray]:
        """What a call returned, in the processor's memory."""


class TorchOnCuda(CudaRunner):
    """The graph as it is, in one of torch's modes.

    Linear layers of a quantized model run on int8 kernels, which torch has for them and not for convolutions.
    """

    def __init__(self, model: Model, mode: Mode, *, sparse: bool = False) -> None:
        self.name = f"torch {torch.__version__.split('+')[0]} CUDA {mode}"
        self.inputs, self.outputs = model.inputs, model.outputs
        self.file_size = None
        own = model.copy()
        with explained(self.name):
            stream()
            move(own.graph_module, DEVICE)
            swapped = {"int8": use_int8(own)}
            if sparse:
                swapped["2:4"] = use_semi_structured(own)
        self.notes = tuple(text for kernels, done in swapped.items() if (text := done.summary(kernels)))
        self._module, self._mode = own.graph_module, mode

    def _bind(self, inputs: tuple[Array, ...]) -> Call:
        with explained(self.name):
            tensors = tuple(torch.as_tensor(value).to(DEVICE) for value in inputs)
        forward: Callable[..., Any] = self._module
        if self._mode == "compile":
            forward = torch.compile(self._module)

        def call() -> Sequence[Any]:
            with explained(self.name), torch.inference_mode():
                return forward(*tensors)

        if self._mode == "eager":
            return call
        with explained(self.name):
            for _ in range(WARM_UP):  # kernels are compiled and chosen now: a capture must not wait for that
                call()
            torch.cuda.synchronize()
        return self._captured(call) if self._mode == "graphs" else call

    def _captured(self, call: Call) -> Call:
        """The launches of one call, to be replayed on the same memory: inputs and outputs stay in place."""
        graph = torch.cuda.CUDAGraph()
        try:
            with torch.cuda.graph(graph, stream=stream()):
                outputs = call()
        except (NNCompressError, RuntimeError) as problem:  # the end of a failed capture raises once more
            first = problem.__context__ or problem
            raise UnsupportedError(
                f"{self.name}: the model cannot be captured as a CUDA graph",
                got=getattr(first, "got", "") or _line(first),
                remedy="--mode eager or compile: a graph cannot wait for the processor in between",
            ) from problem

        def replay() -> Sequence[Any]:
            graph.replay()
            return outputs

        return replay

    def _fetch(self, outputs: Any) -> list[np.ndarray]:
        return [output_array(output) for output in outputs]


@dataclass(frozen=True)
class _Bound:
    """A binding with the tensors whose memory it borrows."""

    binding: Any
    tensors: list[Tensor]


class OnnxRuntimeOnCuda(CudaRunner):
    """An inference session whose inputs and outputs stay on the GPU.

    Raises:
        DeviceError: ONNX Runtime does not reach the GPU; it would quietly run on the processor.
        MissingExtraError: another build of ONNX Runtime hides the one for GPUs.
        UnsupportedError: it has no kernel there for a convolution or a matrix product of the file.
    """

    def __init__(self, path: Path) -> None:
        import onnxruntime

        self.name = f"ONNX Runtime {onnxruntime.__version__} CUDA"
        _need_provider(onnxruntime)
        known = OnnxRuntimeRunner(path, 1)  # which checks the file
        self.inputs, self.outputs, self.file_size = known.inputs, known.outputs, known.file_size
        self.runtime, self.metadata = known.runtime, known.metadata
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
        with explained(self.name), silent():  # it prints where it fails to load a library
            torch.cuda.empty_cache()  # what torch keeps for itself would be missing here
            settings = {"user_compute_stream": str(stream().cuda_stream), "use_tf32": "0"}
            self._session = onnxruntime.InferenceSession(
                str(path),
                options,
                providers=[(PROVIDER, settings), "CPUExecutionProvider"],
                enable_fallback=0,
            )
        if PROVIDER not in self._session.get_providers():
            raise DeviceError(
                f"{self.name} does not reach the GPU: it would run on the processor",
                got=", ".join(self._session.get_providers()),
                remedy="install the CUDA and cuDNN versions that this onnxruntime-gpu was built for",
            )
        self.notes = _on_the_processor(self._session, path)
        self._run_options = onnxruntime.RunOptions()
        self._run_options.log_severity_level = 4
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")

    def _bind(self, inputs: tuple[Array, ...]) -> Call:
        with explained(self.name):
            binding = self._session.io_binding()
            tensors = [torch.as_tensor(value).to(DEVICE).contiguous() for value in inputs]
            for spec, tensor in zip(self.inputs, tensors):
                kind = np.dtype(spec.dtype)
                binding.bind_input(
                    spec.name, DEVICE.type, DEVICE.index or 0, kind, tuple(tensor.shape), tensor.data_ptr()
                )
            for name in self.outputs:
                binding.bind_output(name, DEVICE.type, DEVICE.index or 0)
            torch.cuda.synchronize()  # the copies above

        def call() -> Any:
            with explained(self.name):
                self._session.run_with_iobinding(binding, self._run_options)
            return _Bound(binding, tensors)

        return call

    def _fetch(self, outputs: Any) -> list[np.ndarray]:
        return [value.numpy() for value in outputs.binding.get_outputs()]


def _need_provider(onnxruntime: Any) -> None:
    """Refuse a build for processors, and load the CUDA libraries that were installed as packages.

    Raises:
        MissingExtraError: onnxruntime and onnxruntime-gpu share one folder; the one installed last is there.
    """
    if PROVIDER not in onnxruntime.get_available_providers():
        raise MissingExtraError(
            f"the onnxruntime {onnxruntime.__version__} that is imported was not built for GPUs",
            remedy="pip uninstall onnxruntime onnxruntime-gpu, then pip install 'nncompress[cuda]'",
        )
    with silent():
        onnxruntime.preload_dlls()


def _on_the_processor(session: Any, path: Path) -> tuple[str, ...]:
    """A note on the ops that the runtime does not run on the GPU.

    Raises:
        UnsupportedError: a convolution or a matrix product is among them.
    """
    if not hasattr(session, "get_provider_graph_assignment_info"):  # ONNX Runtime before 1.24 does not tell
        return ()
    left = sorted(
        {
            node.op_type
            for part in session.get_provider_graph_assignment_info()
            if part.ep_name != PROVIDER
            for node in part.get_nodes()
        }
    )
    heavy = sorted(HEAVY & set(left))
    if heavy:
        raise UnsupportedError(
            f"ONNX Runtime has no kernel on the GPU for {', '.join(heavy)} of {path.name}",
            remedy="--runtime torch",
        )
    return (f"runs on the processor and not on the GPU: {', '.join(left)}",) if left else ()


@contextmanager
def explained(where: str) -> Iterator[None]:
    """What a runtime raises as one error of ours.

    Raises:
        DeviceError: the GPU's memory is full.
        UnsupportedError: anything else.
    """
    try:
        yield
    except NNCompressError:
        raise
    except Exception as problem:  # the runtimes' exceptions have no common base class
        if isinstance(problem, torch.OutOfMemoryError) or any(s in str(problem) for s in OUT_OF_MEMORY):
            raise DeviceError(
                f"{where}: the GPU's memory is full",
                got=_line(problem),
                remedy="a smaller --batch, --precision float16, or fewer models at a time",
            ) from problem
        raise UnsupportedError(f"{where}: cannot run the model on the GPU", got=_line(problem)) from problem


def _line(problem: BaseException) -> str:
    """The first line that says something."""
    return next((line.strip() for line in str(problem).splitlines() if line.strip()), repr(problem))[:300]


def _as(value: Array, dtype: str) -> Array:
    wanted = getattr(torch, dtype)
    tensor = value if isinstance(value, Tensor) else torch.from_numpy(value)
    return tensor.to(wanted) if tensor.is_floating_point() else value


def move(module: fx.GraphModule, device: torch.device) -> None:
    """Weights and constants to a device, and with them what the graph makes on the way."""
    module.to(device)

    def moved(value: Any) -> Any:
        return device if isinstance(value, torch.device) else value

    for node in module.graph.nodes:
        if node.op == "get_attr":
            _move_attribute(module, str(node.target), device)
        if node.op == "call_function":
            node.args = fx.node.map_aggregate(node.args, moved)
            node.kwargs = fx.node.map_aggregate(node.kwargs, moved)
    module.recompile()


def _move_attribute(module: fx.GraphModule, name: str, device: torch.device) -> None:
    """A tensor that is no parameter and no buffer: `Module.to` passes it by."""
    prefix, _, leaf = name.rpartition(".")
    holder = module.get_submodule(prefix)
    value = getattr(holder, leaf)
    if isinstance(value, Tensor) and value.device != device:
        setattr(holder, leaf, value.to(device))


__all__ = ["Cuda", "open_on_cuda", "stream"]
