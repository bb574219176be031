import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from nncompress.devices import Processor
from nncompress.exporting import write_onnx
from nncompress.exporting.check.int8_coverage import int8_coverage
from nncompress.exporting.lower.onnxruntime.int8 import tiles as lower_tiles
from nncompress.ir import Model
from nncompress.targets import TARGETS
from tests.exporting.lower.int8.test_lower_int8 import quantized


class Wide(nn.Module):
    """Dot products of 512 (at every pixel), 144 and 1152 (gathered from 3×3 pixels)."""

    def __init__(self) -> None:
        super().__init__()
        self.point, self.short = nn.Conv2d(512, 16, 1), nn.Conv2d(16, 128, 3, padding=1)
        self.long = nn.Conv2d(128, 8, 3, stride=2, padding=1)

    def forward(self, x):
        return self.long(torch.relu(self.short(torch.relu(self.point(x)))))


def test_long_dot_products_get_a_zero_point_that_is_not_zero_and_the_same_values(tmp_path, monkeypatch):
    torch.manual_seed(0)
    model = Model.from_module(Wide().eval(), (torch.randn(2, 512, 6, 6),))
    model = quantized(model, weight_bits=7)  # exact on processors without VNNI, too
    x = torch.randn(5, 512, 6, 6).numpy()
    outputs, files = {}, {}
    for flags in ({"avx512_vnni"}, {"avx512_vnni", "amx_int8"}):
        machine = Processor("a processor", 2, frozenset(flags))
        monkeypatch.setattr(lower_tiles, "processor", lambda machine=machine: machine)
        path = tmp_path / f"{len(flags)}.onnx"
        write_onnx(model, path, target=TARGETS["ort-cpu"])
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        outputs[len(flags)] = session.run(None, {session.get_inputs()[0].name: x})[0]
        files[len(flags)] = path
    np.testing.assert_array_equal(outputs[2], outputs[1])
    stored = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(files[2]).graph.initializer}
    assert {name for name in stored if "shifted" in name} == {
        "point.weight_int8_shifted",
        "long.weight_int8_shifted",
    }
    before = {t.name: onnx.numpy_helper.to_array(t) for t in onnx.load(files[1]).graph.initializer}
    assert not any("shifted" in name for name in before)
    whole = before["point.weight_int8"].astype(int)
    np.testing.assert_array_equal(stored["point.weight_int8_shifted"].astype(int) + 1, whole)
    assert int8_coverage(files[2]).summary().startswith("3 of 3 in int8")
