"""Numbers of channels, pools and diagonal matrices that integer kernels like: the same values, to the bit."""

from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nncompress import exporting
from nncompress.exporting.check.int8_coverage import int8_coverage
from nncompress.exporting.lower.onnxruntime.int8 import rewrite as lower_int8
from nncompress.ir import Model
from nncompress.targets import TARGETS
from tests.exporting.lower.int8.test_lower_int8 import quantized

# For this machine's kernels, whatever it is.
write_onnx = partial(exporting.write_onnx, target=TARGETS["ort-cpu"])


def run(path: Path, x: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def both(model: Model, folder: Path, monkeypatch, *off: str) -> tuple[Path, Path]:
    """The model's file as it is lowered, and without these steps."""
    with_, without = folder / "with.onnx", folder / "without.onnx"
    write_onnx(model, with_)
    for step in off or ("lower_channels", "lower_pools"):
        monkeypatch.setattr(lower_int8, step, lambda graph: None)
    write_onnx(model, without)
    return with_, without


def shapes(path: Path) -> dict[str, tuple[list[int], int]]:
    """Weight shape and groups of each convolution, by name."""
    graph = onnx.load(path).graph
    stored = {t.name: list(t.dims) for t in graph.initializer}
    made_by = {name: node for node in graph.node for name in node.output}
    found = {}
    for node in graph.node:
        if node.op_type == "Conv":
            groups = next((a.i for a in node.attribute if a.name == "group"), 1)
            found[node.name] = (stored[made_by[node.input[1]].input[0]], groups)
    return found


class Separable(nn.Module):
    """20 channels through depthwise layers between dense ones, on an image of 3 channels."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.first = nn.Conv2d(3, 20, 3, padding=1), nn.Conv2d(20, 20, 3, padding=1, groups=20)
        self.second = nn.Conv2d(20, 20, 5, stride=2, padding=2, groups=20, bias=False)
        self.point, self.last = nn.Conv2d(20, 7, 1), nn.Conv2d(7, 9, 3)

    def forward(self, x):
        x = self.second(F.relu6(self.first(F.relu(self.stem(x)))))
        return self.last(self.point(x))


def made(network: nn.Module, *shape: int) -> Model:
    torch.manual_seed(5)
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.3)
    return quantized(Model.from_module(network.eval(), (torch.randn(2, *shape),)))


def test_channels_are_added_where_nobody_sees_them(tmp_path, monkeypatch):
    model = made(Separable(), 3, 14, 13)
    with_, without = both(model, tmp_path, monkeypatch)
    assert shapes(without) == {
        "stem": ([20, 3, 3, 3], 1),
        "first": ([20, 1, 3, 3], 20),
        "second": ([20, 1, 5, 5], 20),
        "point": ([7, 20, 1, 1], 1),
        "last": ([9, 7, 3, 3], 1),
    }
    assert shapes(with_) == {
        "stem": ([32, 4, 3, 3], 1),
        "first": ([32, 1, 3, 3], 32),
        "second": ([32, 1, 5, 5], 32),
        "point": ([8, 32, 1, 1], 1),
        "last": ([9, 8, 3, 3], 1),
    }
    x = torch.randn(3, 3, 14, 13).numpy()
    expected = run(without, x)
    np.testing.assert_array_equal(run(with_, x), expected)
    assert len(np.unique(expected)) > 50
    assert int8_coverage(with_).summary().startswith("5 of 5 in int8")


class Seen(nn.Module):
    """Others see the channels of the depthwise layer: an addition, the output, a float op."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.stem, self.point = nn.Conv2d(4, 20, 3, padding=1), nn.Conv2d(20, 20, 1)
        self.deep = nn.Conv2d(20, 20, 3, padding=1, groups=20)

    def forward(self, x):
        y = F.relu(self.stem(x))
        z = self.deep(y)
        if self.how == "addition":
            return self.point(z + y)
        if self.how == "output":
            return self.point(z), z
        if self.how == "float":
            return self.point(z) * torch.softmax(z, 1)
        if self.how == "input":
            return self.point(self.deep(y.tanh()))
        return self.point(self.deep(z))


@pytest.mark.parametrize("how", ["addition", "output", "float", "input", "shared"])
def test_what_others_see_keeps_its_channels(how, tmp_path, monkeypatch):
    with_, without = both(made(Seen(how), 4, 8, 8), tmp_path, monkeypatch)
    x = torch.randn(2, 4, 8, 8).numpy()
    np.testing.assert_array_equal(run(with_, x), run(without, x))
    assert all(groups in (1, 20) for _, groups in shapes(with_).values())


class Normed(nn.Module):
    """A stream of 20 channels; its batch norms are layers of their own, one in front of a depthwise layer."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, channels, 3, padding=1)
        self.one, self.two = nn.BatchNorm2d(channels), nn.BatchNorm2d(channels)
        self.deep = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.point, self.head = nn.Conv2d(channels, channels, 1), nn.Conv2d(channels, 6, 3)

    def forward(self, x):
        x = self.stem(x)
        x = x + self.point(self.deep(F.relu(self.one(x))))
        return self.head(F.relu(self.two(x)))


def test_batch_norms_become_diagonal_matrices_that_add_channels(tmp_path, monkeypatch):
    with_, without = both(made(Normed(20), 4, 9, 9), tmp_path, monkeypatch)
    assert shapes(without)["one"] == shapes(without)["two"] == ([20, 1, 1, 1], 20)
    found = shapes(with_)
    assert found["one"] == ([32, 20, 1, 1], 1)
    assert found["deep"] == ([32, 1, 3, 3], 32)
    assert found["point"] == ([20, 32, 1, 1], 1)
    assert found["two"] == ([20, 20, 1, 1], 1)
    x = torch.randn(3, 4, 9, 9).numpy()
    np.testing.assert_array_equal(run(with_, x), run(without, x))


def test_a_wide_batch_norm_stays_depthwise(tmp_path, monkeypatch):
    with_, without = both(made(Normed(100), 4, 6, 6), tmp_path, monkeypatch)
    found = shapes(with_)
    assert found["one"] == found["two"] == ([100, 1, 1, 1], 100)
    x = torch.randn(3, 4, 6, 6).numpy()
    np.testing.assert_array_equal(run(with_, x), run(without, x))


class Pools(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.point = nn.Conv2d(4, 16, 3, padding=1), nn.Conv2d(16, 8, 1)
        self.head, self.end = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = F.avg_pool2d(self.stem(x), (3, 2), stride=(2, 1), padding=1)
        x = F.avg_pool2d(self.point(x), 3, stride=1, padding=1, count_include_pad=False)
        x = F.avg_pool2d(self.head(x), 2)
        return self.end(x)


def test_average_pools_become_convolutions_that_are_no_layers(tmp_path, monkeypatch):
    with_, without = both(made(Pools(), 4, 11, 10), tmp_path, monkeypatch, "lower_pools")
    pools = {
        name: sum(n.op_type == "AveragePool" for n in onnx.load(path).graph.node)
        for name, path in (("with", with_), ("without", without))
    }
    assert pools == {"with": 1, "without": 3}  # one does not count the padding
    assert [s for name, s in shapes(with_).items() if "pool" in name] == [
        ([16, 1, 3, 2], 16),
        ([16, 1, 2, 2], 16),  # of 8 channels
    ]
    x = torch.randn(3, 4, 11, 10).numpy()
    steps = np.unique(run(without, x))
    step = np.diff(steps).min()
    assert np.abs(run(with_, x) - run(without, x)).max() <= 1.01 * step
    assert int8_coverage(with_).summary() == int8_coverage(without).summary()
