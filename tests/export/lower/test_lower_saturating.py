"""On processors whose 8-bit products saturate, an exported int8 model computes what the graph does."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from nncompress.devices import Processor
from nncompress.export import write_onnx
from nncompress.export.check import compare
from nncompress.export.lower.onnxruntime import saturating as lower_saturating
from nncompress.ir import Model
from nncompress.runtimes import on_onnxruntime
from nncompress.runtimes.saturation import overflows, saturating_weights
from tests.export.lower.test_lower_int8 import quantized

OLD = Processor("without VNNI", 2, frozenset({"sse4_1", "avx2"}))


class Saturating(nn.Module):
    """Large weights of one sign side by side meet large activations: 16 bits do not hold two products."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.flat, self.linear = nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16 * 16, 10)
        with torch.no_grad():
            self.conv.weight.abs_()
            self.linear.weight.abs_()

    def forward(self, x):
        return self.linear(self.flat(torch.relu(self.conv(x))))


@pytest.mark.parametrize(
    ("options", "expected"), [({}, "UINT8"), ({"mode": "dynamic"}, "UINT8"), ({"weight_bits": 7}, "INT8")]
)
def test_weights_that_could_overflow_are_unsigned_and_sums_are_right(
    options, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(lower_saturating, "processor", lambda: OLD)
    torch.manual_seed(0)
    model = quantized(Model.from_module(Saturating().eval(), (torch.rand(2, 8, 6, 6),)), **options)
    write_onnx(model, tmp_path / "m.onnx")
    stored = {t.name: t for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    weights = {n: t for n, t in stored.items() if n.startswith("linear.weight") and len(t.dims) == 2}
    assert {onnx.TensorProto.DataType.Name(t.data_type) for t in weights.values()} == {expected}
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x = torch.rand(32, 8, 6, 6)
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    wanted = model(x).detach().numpy()
    assert np.linalg.norm(got - wanted) < 5e-3 * np.linalg.norm(wanted)


@pytest.mark.parametrize(
    "flags", [{"sse4_1", "avx2", "avx512_vnni"}, {"sse4_1", "avx_vnni"}, {"asimd"}, set()]
)
def test_processors_that_sum_in_32_bits_do_not_saturate(flags):
    assert not Processor("a processor", 2, frozenset(flags)).saturates


def test_files_written_for_other_processors_are_told_of_where_they_are_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(lower_saturating, "processor", lambda: Processor("VNNI", 2, frozenset({"avx_vnni"})))
    monkeypatch.setattr(
        compare, "TOLERANCE", dict.fromkeys(compare.TOLERANCE, 1.0)
    )  # this very machine may be old
    monkeypatch.setattr(compare, "MEDIAN", dict.fromkeys(compare.MEDIAN, 1.0))
    torch.manual_seed(0)
    model = quantized(Model.from_module(Saturating().eval(), (torch.rand(2, 8, 6, 6),)))
    write_onnx(model, tmp_path / "m.onnx")
    assert len(saturating_weights(tmp_path / "m.onnx")) == 2
    monkeypatch.setattr(on_onnxruntime, "processor", lambda: OLD)
    (note,) = on_onnxruntime.open_onnx(tmp_path / "m.onnx", 1).notes
    assert "2 of its weights" in note
    assert "nncompress export" in note
    monkeypatch.setattr(on_onnxruntime, "processor", lambda: Processor("ARM", 2, frozenset({"asimd"})))
    assert on_onnxruntime.open_onnx(tmp_path / "m.onnx", 1).notes == ()


def test_a_file_without_8_bit_numbers_is_not_parsed(tmp_path, monkeypatch):
    write_onnx(Model.from_module(Saturating().eval(), (torch.rand(2, 8, 6, 6),)), tmp_path / "m.onnx")
    monkeypatch.setattr(onnx, "load", None)
    assert saturating_weights(tmp_path / "m.onnx") == ()


def test_overflow_is_told_from_the_two_largest_weights_of_one_sign():
    assert overflows(np.array([[127, -127], [2, 0]], np.int8))
    assert not overflows(np.array([[127, -128], [1, 0]], np.int8))
    assert overflows(np.array([-100, -29], np.int8))
    assert not overflows(np.array([-100, -28], np.int8))
    assert not overflows(np.array([-64, -64, 63, 63], np.int8))
    assert not overflows(np.array([127], np.int8))
    rng = np.random.default_rng(0)
    for _ in range(50):
        w = rng.integers(-128, 128, 6).astype(np.int8)
        pairs = [255 * (int(a) + int(b)) for i, a in enumerate(w) for b in w[i + 1 :]]
        assert overflows(w) == (max(pairs) > 32767 or min(pairs) < -32768)
