"""What runs on a GPU, on a processor that is taken for one: order of calls, placement, errors, numbers."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import networks
import numpy as np
import onnxruntime
import pytest
import torch
from records import Whole
from torch import nn
from torch.nn import functional as F

from nncompress.data import Batch
from nncompress.errors import DeviceError, MissingExtraError, UnsupportedError
from nncompress.exporting import write_onnx
from nncompress.ir import Model
from nncompress.ir.formats.precision import in_precision
from nncompress.passes import Context
from nncompress.passes.prune.options import Prune
from nncompress.passes.quantize.options import Quantize
from nncompress.runtimes.cuda import linear, on_cuda
from nncompress.runtimes.cuda.on_cuda import Cuda, move, open_on_cuda

META = torch.device("meta")


@pytest.fixture
def gpu(monkeypatch):
    """The processor plays the GPU; `log` keeps what was asked of torch.cuda, in order."""
    log: list[str] = []

    @contextmanager
    def capture(graph, stream):
        log.append(f"capture on {stream.name}")
        yield
        log.append("captured")

    class Graph:
        def replay(self):
            log.append("replay")

    ours = SimpleNamespace(name="ours", cuda_stream=7)
    on_cuda.stream.cache_clear()
    monkeypatch.setattr(on_cuda, "need_cuda", lambda runtime, what: None)
    monkeypatch.setattr(on_cuda, "DEVICE", torch.device("cpu"))
    monkeypatch.setattr(on_cuda, "PROVIDER", "CPUExecutionProvider")
    monkeypatch.setattr(torch.cuda, "Stream", lambda: ours)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: log.append(f"on {stream.name}"))
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: log.append("wait"))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: log.append("empty"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    yield log
    on_cuda.stream.cache_clear()


class Constants(nn.Module):
    """Makes a tensor on the way, holds one that is no parameter, and asserts where its input is."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(6, 6)
        self.table = torch.randn(6)

    def forward(self, x):
        x = x.to(torch.float32) + torch.arange(6, device=x.device) * self.table
        return self.fc(torch.where(x > 0, x, torch.zeros(6, device=x.device)))


@pytest.mark.parametrize("name", [*networks.NETWORKS, "constants"])
def test_a_moved_model_leaves_nothing_behind(name):
    """Device "meta" refuses to mix with the processor's tensors, as a GPU would."""
    if name == "constants":
        model, inputs = Model.from_module(Constants().eval(), (torch.randn(2, 6),)), (torch.randn(3, 6),)
    else:
        model, inputs = networks.model(name), networks.inputs(name, 3)
    expected = model.outputs_of(*inputs)
    module = model.copy().graph_module
    move(module, META)
    outputs = module(*(x.to(META) for x in inputs))
    assert [(y.device, y.shape, y.dtype) for y in outputs] == [(META, y.shape, y.dtype) for y in expected]


def test_a_constant_that_is_no_buffer_is_moved():
    model = Model.from_module(nn.Linear(4, 4).eval(), (torch.zeros(2, 4),))
    module = model.graph_module
    module.plain = torch.ones(4)  # neither parameter nor buffer
    output = module.graph.output_node()
    with module.graph.inserting_before(output):
        read = module.graph.create_node("get_attr", "plain")
        total = module.graph.call_function(torch.ops.aten.add.Tensor, (output.args[0][0], read))
    output.args = ((total,),)
    module.recompile()
    move(module, META)
    assert module.plain.device == META
    assert module(torch.zeros(3, 4, device=META))[0].device == META


@pytest.mark.parametrize("name", ["residual", "two-inputs", "two-outputs", "tied"])
@pytest.mark.parametrize("mode", ["eager", "graphs"])
def test_torch_computes_the_same(gpu, name, mode):
    inputs = networks.inputs(name, 4)
    got = open_on_cuda(networks.model(name), Cuda("torch", mode)).run(*inputs)
    for y, expected in zip(got, networks.model(name).outputs_of(*inputs), strict=True):
        np.testing.assert_allclose(y, expected.detach(), rtol=1e-5, atol=1e-6)
    assert torch.backends.cudnn.allow_tf32 is False
    assert torch.backends.cuda.matmul.allow_tf32 is False
    torch.backends.cudnn.allow_tf32 = True  # as it was


def test_a_graph_is_captured_on_our_stream_after_warming_up_and_then_only_replayed(gpu):
    model = networks.model("residual")
    runner = open_on_cuda(model, Cuda("torch", "graphs"))
    calls = []
    runner._module.register_forward_hook(lambda *_: calls.append(len(gpu)))
    call = runner.bind(*networks.inputs("residual", 4))
    assert gpu == ["on ours", "wait", "capture on ours", "captured"]
    assert len(calls) == on_cuda.WARM_UP + 1
    assert calls[: on_cuda.WARM_UP] == [1] * on_cuda.WARM_UP  # before anything waited or captured
    first, second = call(), call()
    assert first is second  # the same memory
    assert gpu[4:] == ["replay", "replay"]
    assert len(calls) == on_cuda.WARM_UP + 1


def test_a_model_that_cannot_be_captured_is_one_error(gpu, monkeypatch):
    @contextmanager
    def broken(graph, stream):
        try:
            yield
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nmore")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    monkeypatch.setattr(torch.cuda, "graph", broken)
    runner = open_on_cuda(networks.model("residual"), Cuda("torch", "graphs"))
    with pytest.raises(UnsupportedError, match="cannot be captured") as caught:
        runner.bind(*networks.inputs("residual", 2))
    assert "not permitted when stream is capturing" in caught.value.got
    assert "more" not in caught.value.got
    assert "eager" in caught.value.remedy


@pytest.mark.parametrize(
    "problem",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has …\nSee docs"),
        RuntimeError("Failed to allocate memory for requested buffer of size 123"),
    ],
)
def test_a_full_memory_is_one_error(gpu, monkeypatch, problem):
    def full(module, device):
        raise problem

    monkeypatch.setattr(on_cuda, "move", full)
    with pytest.raises(DeviceError, match="memory is full") as caught:
        open_on_cuda(networks.model("residual"), Cuda())
    assert "\n" not in caught.value.got
    assert "--batch" in caught.value.remedy


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_half_precision_takes_and_gives_what_callers_have(gpu, precision):
    model = networks.model("flatten")
    inputs = networks.inputs("flatten", 4)
    (got,) = open_on_cuda(in_precision(model, precision), Cuda()).run(*(x.numpy() for x in inputs))
    tolerance = {"float16": 1e-2, "bfloat16": 6e-2}[precision]
    assert got.dtype == {"float16": np.float16, "bfloat16": np.float32}[precision]
    expected = model(*inputs).detach().numpy()
    assert np.abs(got - expected).max() < tolerance * np.abs(expected).max()


# -- ONNX Runtime ------------------------------------------------------------------------------------------


@pytest.fixture
def onnx_file(tmp_path):
    path = tmp_path / "m.onnx"
    write_onnx(networks.model("two-inputs"), path)
    return path


def test_onnxruntime_reads_and_writes_bound_memory(gpu, onnx_file, monkeypatch):
    model, inputs = networks.model("two-inputs"), networks.inputs("two-inputs", 4)
    runner = open_on_cuda(onnx_file, Cuda("onnxruntime"))
    (got,) = runner.run(*inputs)
    np.testing.assert_allclose(got, model(*inputs).detach(), rtol=1e-4, atol=1e-5)
    monkeypatch.setattr(runner._session, "run", None)  # which would copy
    call = runner.bind(*inputs)
    assert gpu[-1] == "wait"  # the copies to the GPU are done before the first call
    call()
    assert gpu[-1] == "wait"
    assert gpu.count("wait") == 3


def test_onnxruntime_that_would_run_on_the_processor_is_refused(gpu, onnx_file, monkeypatch):
    monkeypatch.setattr(on_cuda, "PROVIDER", "CUDAExecutionProvider")
    with pytest.raises(MissingExtraError, match="not built for GPUs"):
        open_on_cuda(onnx_file, Cuda("onnxruntime"))
    known = [*onnxruntime.get_available_providers(), "CUDAExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: known)
    # built for GPUs, but its libraries do not load: the session silently does without
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *args, **more: real(*args, providers=["CPUExecutionProvider"])
    )
    with pytest.raises(DeviceError, match="would run on the processor"):
        open_on_cuda(onnx_file, Cuda("onnxruntime"))


def test_ops_on_the_processor_are_told_and_heavy_ones_refused(tmp_path):
    def session(*ops):
        node = SimpleNamespace
        parts = [
            node(ep_name="CUDAExecutionProvider", get_nodes=lambda: [node(op_type="Relu")]),
            node(ep_name="CPUExecutionProvider", get_nodes=lambda: [node(op_type=op) for op in ops]),
        ]
        return node(get_provider_graph_assignment_info=lambda: parts)

    path = tmp_path / "m.onnx"
    assert on_cuda._on_the_processor(session(), path) == ()
    (note,) = on_cuda._on_the_processor(session("Shape", "Gather", "Shape"), path)
    assert note.endswith(": Gather, Shape")
    with pytest.raises(UnsupportedError, match="Conv"):
        on_cuda._on_the_processor(session("Shape", "Conv"), path)


# -- linear layers on kernels of their own -----------------------------------------------------------------


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3, padding=1)
        self.fc1, self.fc2 = nn.Linear(16, 64), nn.Linear(64, 32, bias=False)
        self.odd, self.head = nn.Linear(32, 48), nn.Linear(48, 10)

    def forward(self, x):
        x = F.relu(self.conv(x)).flatten(2).transpose(1, 2)  # [batch, positions, 16]
        return self.head(F.relu(self.odd(F.relu(self.fc2(F.relu(self.fc1(x)))))).mean(1))


@pytest.fixture
def perceptron() -> Model:
    torch.manual_seed(0)
    return Model.from_module(Perceptron().eval(), (torch.randn(2, 3, 8, 8),))


class Records(Whole):
    """Noise to calibrate on."""

    has_labels = False

    def batches(self, batch_size, limit=None, shuffle_seed=None):
        generator = torch.Generator().manual_seed(3)
        yield Batch((torch.randn(64, 3, 8, 8, generator=generator),), None)


def test_linear_layers_of_a_quantized_model_multiply_integers(gpu, perceptron):
    Quantize().apply(perceptron, Context(data=Records()))
    x = torch.randn(5, 3, 8, 8)
    expected = perceptron(x).detach()
    own = perceptron.copy()
    swapped = linear.use_int8(own)
    assert swapped.done == ["fc1", "fc2", "odd"]
    assert swapped.left == {"head": "10 outputs, no multiple of 8"}
    torch.testing.assert_close(own(x), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))
    runner = open_on_cuda(perceptron, Cuda())
    assert runner.notes == ("3 of 4 linear layers on int8 kernels; not: head (10 outputs, no multiple of 8)",)
    np.testing.assert_allclose(runner.run(x)[0], own(x).detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(1,), (33,), (2, 7)])
def test_the_product_of_integers_is_that_of_the_numbers_they_stand_for(shape):
    generator = torch.Generator().manual_seed(int(np.prod(shape)))
    x = torch.randint(0, 256, (*shape, 24), generator=generator, dtype=torch.uint8)
    weight = torch.randint(-127, 128, (16, 24), generator=generator, dtype=torch.int8)
    scales, bias = torch.rand(16, generator=generator), torch.randn(16, generator=generator)
    shift = (128 - 37) * weight.sum(1, dtype=torch.int32)
    got = linear.int8_linear(x, weight, 0.02 * scales, shift, bias)
    exact = (x.double() - 37) * 0.02 @ (weight.double() * scales.double()[:, None]).T + bias.double()
    assert got.shape == (*shape, 16)
    torch.testing.assert_close(got.double(), exact, rtol=1e-6, atol=1e-5)


def test_exactly_the_layers_that_are_2_of_4_become_sparse(gpu, perceptron, monkeypatch):
    Prune(pattern="2:4", exclude=("fc2",)).apply(perceptron, Context())
    converted = []

    def converter(weight):
        converted.append(weight)
        return weight * 2  # so that it can be seen

    monkeypatch.setattr(linear, "_converter", lambda: converter)
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: True)
    half = in_precision(perceptron, "bfloat16")
    runner = open_on_cuda(half, Cuda(sparse=True))
    assert [tuple(weight.shape) for weight in converted] == [(64, 16), (48, 32)]
    assert all(weight.dtype == torch.bfloat16 and weight.is_contiguous() for weight in converted)
    assert runner.notes == (
        "2 of 4 linear layers on 2:4 kernels; not: fc2 (its weight is not 2:4), "
        "head (10 outputs, no multiple of 16)",
    )
    for name, factor in {"fc1": 2, "fc2": 1, "odd": 2, "head": 1}.items():
        module = runner._module.get_submodule(name)
        torch.testing.assert_close(module.weight, half.tensor(f"{name}.weight") * factor)
    (got,) = runner.run(torch.randn(3, 3, 8, 8))
    assert got.shape == (3, 10)


def test_what_has_no_16_bits_or_too_small_a_side_stays(perceptron, monkeypatch):
    Prune(pattern="2:4").apply(perceptron, Context())
    monkeypatch.setattr(linear, "_converter", lambda: lambda weight: pytest.fail("nothing to convert"))
    swapped = linear.use_semi_structured(perceptron.copy())
    assert set(swapped.left.values()) == {"its weight is not of 16 bits"}
    monkeypatch.setattr(linear, "_converter", lambda: lambda weight: weight)
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: False)  # CUTLASS wants 32 × 64
    swapped = linear.use_semi_structured(in_precision(perceptron, "float16"))
    assert swapped.done == ["fc2"]
    assert swapped.left["fc1"] == "16 inputs, no multiple of 64"
    assert swapped.left["odd"] == "48 outputs, no multiple of 32"


def test_a_weight_that_an_embedding_reads_too_stays_dense(monkeypatch):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding, self.head = nn.Embedding(32, 16), nn.Linear(16, 32, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, tokens):
            return self.head(self.embedding(tokens))

    model = Model.from_module(Tied().eval(), (torch.zeros(2, 3, dtype=torch.int64),))
    with torch.no_grad():
        model.tensor("embedding.weight").zero_()
    monkeypatch.setattr(torch.backends.cusparselt, "is_available", lambda: True)
    swapped = linear.use_semi_structured(in_precision(model, "float16"))
    assert (swapped.done, list(swapped.left.values())) == (
        [],
        ["its weight is read by more than linear layers"],
    )


def test_2_of_4_is_read_along_the_inputs():
    pattern = torch.tensor([[1.0, 1, 0, 0, 0, 1, 0, 1]])
    assert linear.is_semi_structured(pattern)
    assert linear.is_semi_structured(torch.zeros(3, 8))
    assert not linear.is_semi_structured(pattern.roll(1))
    assert not linear.is_semi_structured(torch.zeros(3, 6))
