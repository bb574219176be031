"""torch and ONNX Runtime on an NVIDIA GPU.

Everything runs on one stream of ours, so that events recorded on it time either runtime. A bound call only
puts work on the stream and returns; `run` waits for the result and fetches it.
float32 means float32: the shorter TF32 products are switched off in both runtimes.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx

from nncompress.devices import need_cuda
from nncompress.errors import DataError, DeviceError, UsageError
from nncompress.ir import Model
from nncompress.runtimes.base import Array, Call, Runner, check_inputs

Mode = Literal["eager", "graphs", "compile"]
WARM_UP = 3  # calls before a graph is captured, and after compilation


@dataclass(frozen=True)
class Cuda:
    """Run on the GPU: by which runtime, and for torch in which of its modes.

    Attributes:
        mode: "eager" launches node by node; "graphs" captures the launches once and replays them (CUDA
            graphs); "compile" generates fused kernels (torch.compile).
    """

    runtime: Literal["torch", "onnxruntime"] = "torch"
    mode: Mode = "eager"


@cache
def stream() -> Any:
    """The stream that all work goes to; torch's current one from now on."""
    ours = torch.cuda.Stream()
    torch.cuda.set_stream(ours)
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cuda.matmul.allow_tf32 = False
    return ours


def open_on_cuda(artifact: str | Path | Model, cuda: Cuda) -> Runner:
    """Open a model in torch, or an `.onnx` file in ONNX Runtime.

    Raises:
        DeviceError: there is no GPU, or the runtime does not reach it.
        MissingExtraError: the runtime is not installed for CUDA.
        UsageError: the runtime does not take this kind of artifact.
    """
    need_cuda(cuda.runtime, "running on the GPU")
    if isinstance(artifact, Model):
        if cuda.runtime != "torch":
            raise UsageError("ONNX Runtime runs files", remedy="export the model to .onnx first")
        return TorchOnCuda(artifact, cuda.mode)
    path = Path(artifact)
    if cuda.runtime != "onnxruntime" or path.suffix.lower() != ".onnx":
        raise UsageError(f"{cuda.runtime} does not run {path.name} on a GPU", expected="an .onnx, or a model")
    return OnnxRuntimeOnCuda(path)


class CudaRunner(Runner):
    """What both have in common. Inputs may be of any float type; they are cast to the artifact's."""

    threads = 1

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
        torch.cuda.synchronize()
        return tuple(self._fetch(outputs))

    @abstractmethod
    def _fetch(self, outputs: Any) -> list[np.ndarray]:
        """What a call returned, in the processor's memory."""


class TorchOnCuda(CudaRunner):
    """The graph as it is, in one of torch's modes."""

    def __init__(self, model: Model, mode: Mode) -> None:
        self._model = model.copy()
        _move(self._model.graph_module)
        self._mode = mode
        self.name = f"torch {torch.__version__.split('+')[0]} CUDA {mode}"
        self.inputs, self.outputs = model.inputs, model.outputs
        self.file_size = None

    def _bind(self, inputs: tuple[Array, ...]) -> Call:
        tensors = tuple(torch.as_tensor(value).to("cuda") for value in inputs)
        forward: Callable[..., Any] = self._model.outputs_of
        if self._mode == "compile":
            forward = torch.compile(self._model.graph_module)

        def call() -> Sequence[Any]:
            try:
                with torch.inference_mode():
                    return forward(*tensors)
            except RuntimeError as problem:
                raise DataError(
                    "torch could not run the model on the GPU", got=str(problem).splitlines()[0][:300]
                ) from problem

        if self._mode == "eager":
            return call
        for _ in range(WARM_UP):
            call()
        torch.cuda.synchronize()
        return self._captured(call) if self._mode == "graphs" else call

    def _captured(self, call: Call) -> Call:
        """The launches of one call, to be replayed on the same memory."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream()):
            outputs = call()

        def replay() -> Sequence[Any]:
            graph.replay()
            return outputs

        return replay

    def _fetch(self, outputs: Any) -> list[np.ndarray]:
        return [(x.float() if x.dtype == torch.bfloat16 else x).cpu().numpy() for x in outputs]


@dataclass(frozen=True)
class _Bound:
    """A binding with the tensors whose memory it borrows."""

    binding: Any
    tensors: list[Tensor]


class OnnxRuntimeOnCuda(CudaRunner):
    """An inference session whose inputs and outputs stay on the GPU."""

    def __init__(self, path: Path) -> None:
        import onnxruntime

        from nncompress.runtimes.on_onnxruntime import OnnxRuntimeRunner

        known = OnnxRuntimeRunner(path, 1)  # which checks the file
        self.inputs, self.outputs, self.file_size = known.inputs, known.outputs, known.file_size
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        settings = {"user_compute_stream": str(stream().cuda_stream), "use_tf32": "0"}
        self._session = onnxruntime.InferenceSession(
            str(path), options, providers=[("CUDAExecutionProvider", settings), "CPUExecutionProvider"]
        )
        if "CUDAExecutionProvider" not in self._session.get_providers():
            raise DeviceError(
                f"ONNX Runtime {onnxruntime.__version__} does not reach the GPU",
                got=", ".join(self._session.get_providers()),
                remedy="install the CUDA and cuDNN versions it was built for",
            )
        self._run_options = onnxruntime.RunOptions()
        self._run_options.log_severity_level = 4
        self._run_options.add_run_config_entry("disable_synchronize_execution_providers", "1")
        self.name = f"ONNX Runtime {onnxruntime.__version__} CUDA"

    def _bind(self, inputs: tuple[Array, ...]) -> Call:
        binding = self._session.io_binding()
        tensors = [torch.as_tensor(value).to("cuda").contiguous() for value in inputs]
        for spec, tensor in zip(self.inputs, tensors):
            kind = np.dtype(spec.dtype)
            binding.bind_input(spec.name, "cuda", 0, kind, tuple(tensor.shape), tensor.data_ptr())
        for name in self.outputs:
            binding.bind_output(name, "cuda", 0)
        torch.cuda.synchronize()  # the copies above

        def call() -> Any:
            self._session.run_with_iobinding(binding, self._run_options)
            return _Bound(binding, tensors)

        return call

    def _fetch(self, outputs: Any) -> list[np.ndarray]:
        return [value.numpy() for value in outputs.binding.get_outputs()]


def _as(value: Array, dtype: str) -> Array:
    wanted = getattr(torch, dtype)
    tensor = value if isinstance(value, Tensor) else torch.from_numpy(value)
    return tensor.to(wanted) if tensor.is_floating_point() else value


def _move(module: fx.GraphModule) -> None:
    """Weights to the GPU, and constants that the graph makes on the way."""
    module.to("cuda")

    def moved(value: Any) -> Any:
        return torch.device("cuda") if isinstance(value, torch.device) else value

    for node in module.graph.nodes:
        if node.op == "call_function":
            node.args = fx.node.map_aggregate(node.args, moved)
            node.kwargs = fx.node.map_aggregate(node.kwargs, moved)
    module.recompile()
