from functools import partial

import numpy as np
import pytest
import torch
from networks import built_once
from records import Whole
from torch import nn
from torch.nn import functional as F

from nncompress import exporting
from nncompress.data import Batch
from nncompress.exporting.check.int8_coverage import int8_coverage
from nncompress.exporting.lower.onnxruntime.int8.stem import block_pads, spread_kernel
from nncompress.ir import Model
from nncompress.passes import Context, Quantize
from nncompress.targets import TARGETS
from tests.exporting.networks import convolutional, settle

# For this machine's kernels, whatever it is.
write_onnx = partial(exporting.write_onnx, target=TARGETS["ort-cpu"])


class Noise(Whole):
    def __init__(self, model: Model) -> None:
        self.model = model

    def batches(self, batch_size, limit=None, shuffle_seed=None):
        yield Batch(self.model.example_inputs(32, seed=5), None)


def quantized(model: Model, **options) -> Model:
    Quantize(**options).apply(model, Context(data=Noise(model)))
    return model


def blocks(x: torch.Tensor) -> torch.Tensor:
    """SpaceToDepth as the ONNX standard words it."""
    n, c, h, w = x.shape
    return x.reshape(n, c, h // 2, 2, w // 2, 2).permute(0, 3, 5, 1, 2, 4).reshape(n, 4 * c, h // 2, w // 2)


@pytest.mark.parametrize("kernel", [1, 2, 3, 5, 7])
@pytest.mark.parametrize("padding", [0, 1, 2, 3])
def test_a_strided_convolution_over_blocks_is_the_same(kernel, padding):
    x, weight = torch.randn(2, 3, 16, 12).double(), torch.randn(5, 3, kernel, kernel + 1).double()
    expected = F.conv2d(x, weight, stride=2, padding=padding)
    top, bottom = block_pads(kernel, 16, padding, padding)
    left, right = block_pads(kernel + 1, 12, padding, padding)
    spread = torch.from_numpy(spread_kernel(weight.numpy(), (padding, padding)))
    got = F.conv2d(F.pad(blocks(x), (left, right, top, bottom)), spread)
    torch.testing.assert_close(got, expected)


class Strided(nn.Module):
    """Stem over blocks, depthwise with relu6, a pool, a residual, a global mean, a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 16, 7, 2, 3, bias=False), nn.BatchNorm2d(16)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.point = nn.Conv2d(16, 16, 1)
        self.head = nn.Linear(16, 10)

    def forward(self, x):
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 3, 2, 1)
        x = x + self.point(F.relu6(self.depthwise(x)))
        return self.head(x.mean((2, 3)))


@built_once
def strided() -> Model:
    torch.manual_seed(4)
    return Model.from_module(settle(Strided(), torch.randn(8, 3, 32, 32)), (torch.randn(2, 3, 32, 32),))


def test_every_heavy_op_runs_in_int8_and_nothing_is_converted_between(tmp_path):
    write_onnx(quantized(strided()), tmp_path / "m.onnx")
    coverage = int8_coverage(tmp_path / "m.onnx")
    assert [kernel for kernel, _ in coverage.int8] == ["QLinearConv"] * 3 + ["QGemm"]
    assert [name for _, name in coverage.int8] == ["stem", "depthwise", "point", "head"]
    assert coverage.float == ()
    assert coverage.conversions == 1  # of the input
    assert coverage.summary() == "4 of 4 in int8"


def test_coverage_names_what_stays_float(tmp_path):
    write_onnx(quantized(convolutional(), keep=("wide",)), tmp_path / "m.onnx")
    coverage = int8_coverage(tmp_path / "m.onnx")
    assert {name for _, name in coverage.int8} == {"stem", "depthwise", "head"}
    assert {name for _, name in coverage.float} == {"wide", "up"}
    assert "in float: " in coverage.summary()
    write_onnx(convolutional(), tmp_path / "float.onnx")
    assert int8_coverage(tmp_path / "float.onnx").int8 == ()


def test_lowered_file_computes_what_the_graph_does(tmp_path):
    """The graph in float64 arithmetic on the same grids is the reference."""
    import onnxruntime

    model = quantized(strided())
    write_onnx(model, tmp_path / "m.onnx")
    x = torch.randn(6, 3, 32, 32)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    expected = model(x).detach().numpy()
    step = np.abs(expected).max() / 100
    assert np.abs(got - expected).max() < step
    assert np.abs(expected - expected.mean(0)).max() > 5 * step  # outputs depend on the input


def test_small_maps_and_odd_sizes_are_left_alone(tmp_path):
    torch.manual_seed(5)
    model = Model.from_module(
        settle(nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.BatchNorm2d(4)), torch.randn(8, 3, 9, 9)),
        (torch.randn(2, 3, 9, 9),),
    )
    write_onnx(quantized(model), tmp_path / "m.onnx")
    assert int8_coverage(tmp_path / "m.onnx").summary() == "1 of 1 in int8"


class Pools(nn.Module):
    """Windows that stick out at the end of an image, without and with padding, counted and not."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.heads = nn.Conv2d(3, 8, 1), nn.ModuleList(nn.Conv2d(8, 4, 1) for _ in range(4))

    def forward(self, x):
        x = self.stem(x)
        settings = [(0, True), (0, False), (1, False), (1, True)]
        pooled = [F.avg_pool2d(x, 3, 2, p, ceil_mode=True, count_include_pad=c) for p, c in settings]
        return tuple(head(each) for head, each in zip(self.heads, pooled))


def test_pools_divide_by_what_torch_divides_by(tmp_path):
    import onnxruntime

    torch.manual_seed(8)
    original = Model.from_module(Pools(), (torch.randn(2, 3, 10, 10),))
    model = quantized(original.copy())
    model.refresh()
    for a, b in zip(
        model.outputs_of(*original.example_inputs(8)), original.outputs_of(*original.example_inputs(8))
    ):
        assert float((a - b).norm() / b.norm()) < 0.05
    write_onnx(model, tmp_path / "m.onnx")
    assert int8_coverage(tmp_path / "m.onnx").summary() == "5 of 5 in int8"
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(4, 3, 10, 10)
    with torch.no_grad():
        for got, expected in zip(session.run(None, {"x": x.numpy()}), model(x)):
            difference = (torch.from_numpy(got) - expected).abs()
            assert float(difference.max()) < 0.03 * float(expected.abs().max())  # a tie falls to either side
            assert float(difference.median()) < 1e-5


def test_a_bias_of_zeros_is_not_packed_away_from_its_kernel(tmp_path):
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 1000)
    )
    nn.init.zeros_(network[4].bias)
    write_onnx(quantized(Model.from_module(network.eval(), (torch.randn(2, 3, 9, 9),))), tmp_path / "m.onnx")
    assert int8_coverage(tmp_path / "m.onnx").summary() == "2 of 2 in int8"


def test_one_bias_for_all_outputs_of_a_product(tmp_path):
    class OneBias(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight, self.bias = nn.Parameter(torch.randn(8, 6)), nn.Parameter(torch.randn(1))

        def forward(self, x):
            return torch.addmm(self.bias, x, self.weight)

    write_onnx(quantized(Model.from_module(OneBias(), (torch.randn(2, 8),))), tmp_path / "m.onnx")


@pytest.mark.parametrize("mode", ["static", "weights"])
def test_layers_that_are_looked_up_in_one_table_keep_their_names(tmp_path, mode):
    import onnx

    convolutions = [nn.Conv2d(3, 64, 3), *(nn.Conv2d(64, 64, 3, bias=False) for _ in range(2))]
    model = Model.from_module(nn.Sequential(*convolutions), (torch.randn(2, 3, 9, 9),))
    write_onnx(quantized(model, weight_bits=4, mode=mode), tmp_path / "m.onnx")
    written = onnx.load(tmp_path / "m.onnx").graph
    assert [node.name for node in written.node if node.op_type == "Conv"] == ["0", "1", "2"]


@pytest.mark.parametrize("dims", [1, 3])
def test_pools_of_lines_and_volumes_divide_by_what_torch_divides_by(tmp_path, dims):
    convolution = {1: nn.Conv1d, 3: nn.Conv3d}[dims]
    pool = {1: nn.AvgPool1d, 3: nn.AvgPool3d}[dims](3, 2, 1, ceil_mode=True)
    network = nn.Sequential(convolution(2, 6, 1), pool, convolution(6, 4, 1))
    model = Model.from_module(network.eval(), (torch.randn(2, 2, *[4] * dims),))
    assert write_onnx(quantized(model), tmp_path / "m.onnx").relative_error < 0.01


def test_a_padded_pool_over_images_of_any_size_divides_by_what_torch_divides_by(tmp_path):
    network = nn.Sequential(nn.Conv2d(3, 8, 1), nn.AvgPool2d(3, 2, 1, ceil_mode=True), nn.Conv2d(8, 4, 1))
    batch, any_size = torch.export.Dim("batch", min=1, max=9), torch.export.Dim.DYNAMIC
    sizes = {"input": {0: batch, 2: any_size, 3: any_size}}
    model = Model.from_module(network.eval(), (torch.randn(2, 3, 8, 12),), dynamic_shapes=sizes)
    assert write_onnx(quantized(model), tmp_path / "m.onnx").relative_error < 0.01
