"""Attention masks that are known before the first call."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nncompress.exporting import write_onnx
from nncompress.exporting.lower import masks
from nncompress.exporting.lower.masks import with_known_masks
from nncompress.ir import Model


class Attends(nn.Module):
    """With a mask as libraries make it: of positions, repeated for the batch."""

    def __init__(self, masked) -> None:
        super().__init__()
        self.masked = masked

    def forward(self, x):
        mask = self.masked(torch.arange(5)) if callable(self.masked) else self.masked
        mask = mask.expand(x.shape[0], 1, 5, 5)
        return F.scaled_dot_product_attention(x, x.cos(), x.sin(), mask)


ALL = ("nothing is hidden", lambda at: (at >= 0)[None, None, :, None], {"Where": 0, "IsNaN": 0, "Add": 0})
BANDED = ("some of every query", lambda at: (at[:, None] - at).abs() < 2, {"Where": 0, "IsNaN": 0, "Add": 1})
ZEROS = ("nothing is added", lambda at: 0.0 * at[:, None], {"Where": 0, "IsNaN": 0, "Add": 0})
BIAS = ("a bias", lambda at: (at[:, None] - at) / 4 - 1e9 * (at > 3), {"Where": 0, "IsNaN": 0, "Add": 1})
ROW = ("all of a query", lambda at: (at > 0)[:, None] & (at < 9), {"Where": 2, "IsNaN": 1, "Add": 0})


@pytest.mark.parametrize(("masked", "ops"), [case[1:] for case in (ALL, BANDED, ZEROS, BIAS, ROW)])
def test_only_what_may_hide_everything_is_guarded(tmp_path, masked, ops):
    module, x = Attends(masked).eval(), torch.randn(2, 3, 5, 8)
    write_onnx(Model.from_module(module, (x,)), tmp_path / "m.onnx")
    names = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert {op: names.count(op) for op in ops} == ops
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(4, 3, 5, 8)
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(got, module(x).numpy(), atol=1e-6)


def test_a_mask_that_depends_on_the_input_stays():
    class Padded(nn.Module):
        def forward(self, x):
            return F.scaled_dot_product_attention(x, x, x, (x[..., 0] > 0)[:, :, None])

    model = Model.from_module(Padded().eval(), (torch.randn(2, 3, 5, 8),))
    assert with_known_masks(model) is model


def test_the_model_itself_keeps_its_masks():
    model = Model.from_module(Attends(BANDED[1]).eval(), (torch.randn(2, 3, 5, 8),))
    before = str(model.graph)
    assert str(with_known_masks(model).graph) != before
    assert str(model.graph) == before


class TwoPrecisions(nn.Module):
    """One mask of two attentions."""

    def forward(self, x):
        mask, half = (torch.arange(5)[:, None] - torch.arange(5)).abs() < 2, x.half()
        exact = F.scaled_dot_product_attention(x, x.cos(), x.sin(), mask)
        return exact, F.scaled_dot_product_attention(half, half, half, mask)


def test_a_mask_is_added_in_the_precision_of_each_attention():
    module, x = TwoPrecisions().eval(), torch.randn(2, 3, 5, 8)
    found = with_known_masks(Model.from_module(module, (x,)))
    assert not any("attention" in str(node.target) for node in found.graph.nodes if node.op != "get_attr")
    for got, expected in zip(found.outputs_of(x), module(x), strict=True):
        assert got.dtype == expected.dtype
        torch.testing.assert_close(got, expected, rtol=0, atol=1e-2 if got.dtype == torch.half else 1e-6)


def test_an_attention_that_cannot_be_taken_apart_keeps_its_mask(monkeypatch):
    monkeypatch.setattr(masks, "take_apart", lambda *given: False)
    module, x = Attends(BANDED[1]).eval(), torch.randn(2, 3, 5, 8)
    model = Model.from_module(module, (x,))
    assert str(with_known_masks(model).graph) == str(model.graph)
