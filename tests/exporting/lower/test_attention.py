"""Attention of any number of dims, in ONNX Runtime against torch."""

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.nn import functional as F

from nncompress.exporting import write_onnx
from nncompress.ir import Model


class Attends(nn.Module):
    def __init__(self, mask=None, **options):
        super().__init__()
        self.options = options
        self.register_buffer("mask", mask)

    def forward(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, self.mask, **self.options)


HALF_HIDDEN = torch.tensor(
    [[True, False, True], [False, False, False], [True, True, True], [False, True, True]]
)
LEARNED = torch.linspace(-3, 3, 2 * 4 * 3).view(2, 4, 3)
FALLING = torch.full((4, 3), -torch.inf).triu(-1)
CASES = {  # query, key, value without the batch, mask, options
    "two dims of windows": ((5, 2, 4, 8), (5, 2, 3, 8), (5, 2, 3, 6), None, {}),
    "no heads": ((4, 8), (3, 8), (3, 6), None, {"scale": 0.3}),
    "a learned bias per head": ((5, 2, 4, 8), (5, 2, 3, 8), (5, 2, 3, 8), LEARNED, {}),
    "a bias of its own per window": ((5, 2, 4, 8), (5, 2, 3, 8), (5, 2, 3, 8), torch.randn(5, 1, 4, 3), {}),
    "a mask that hides a whole row": ((5, 2, 4, 8), (5, 2, 3, 8), (5, 2, 3, 8), HALF_HIDDEN, {}),
    "the same in four dims": ((2, 4, 8), (2, 3, 8), (2, 3, 8), HALF_HIDDEN, {}),
    "a bias of minus infinity": ((2, 4, 8), (2, 3, 8), (2, 3, 8), FALLING, {}),
    "causal, fewer queries": ((5, 2, 4, 8), (5, 2, 7, 8), (5, 2, 7, 8), None, {"is_causal": True}),
    "causal, more queries": ((2, 7, 8), (2, 4, 8), (2, 4, 8), None, {"is_causal": True, "scale": 2.0}),
    "grouped queries": ((3, 6, 4, 8), (3, 2, 5, 8), (3, 2, 5, 8), None, {"enable_gqa": True}),
    "grouped, causal": ((6, 4, 8), (2, 5, 8), (2, 5, 8), None, {"enable_gqa": True, "is_causal": True}),
}  # fmt: skip


class AllCases(nn.Module):
    def __init__(self):
        super().__init__()
        self.each = nn.ModuleList(Attends(mask, **options) for *_, mask, options in CASES.values())

    def forward(self, inputs):
        return [each(*inputs[3 * i : 3 * i + 3]) for i, each in enumerate(self.each)]


def test_agrees_with_torch(tmp_path):
    torch.manual_seed(0)
    module = AllCases().eval()
    shapes = [shape for *three, _, _ in CASES.values() for shape in three]
    write_onnx(Model.from_module(module, ([torch.randn(2, *s) for s in shapes],)), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    inputs = [torch.randn(3, *s) for s in shapes]
    results = session.run(None, {v.name: t.numpy() for v, t in zip(session.get_inputs(), inputs)})
    for case, got, expected in zip(CASES, results, module(inputs), strict=True):
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-5, err_msg=case)


def test_leading_dims_that_broadcast(tmp_path):
    """One set of keys for all windows, one query for all records."""
    module = Attends().eval()
    shapes = (1, 5, 2, 4, 8), (2, 1, 2, 3, 8), (2, 5, 2, 3, 8)
    torch.manual_seed(0)
    inputs = [torch.randn(*s) for s in shapes]
    model = Model.from_module(module, tuple(inputs), dynamic_batch=False)
    write_onnx(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    inputs = [torch.randn(*s) for s in shapes]
    got = session.run(None, {v.name: t.numpy() for v, t in zip(session.get_inputs(), inputs)})[0]
    np.testing.assert_allclose(got, module(*inputs).numpy(), atol=1e-5)
