from functools import partial

import onnxruntime
import pytest
import torch
from records import Whole
from torch import nn
from torch.nn import functional as F

from nncompress import exporting
from nncompress.data import Batch
from nncompress.exporting.check.int8_coverage import int8_coverage
from nncompress.ir import Model
from nncompress.passes import Context, Quantize
from nncompress.targets import TARGETS

# For this machine's kernels, whatever it is.
write_onnx = partial(exporting.write_onnx, target=TARGETS["ort-cpu"])


class Tokens(nn.Module):
    """[batch, tokens, 16]: products of one input, a residual, a relu between linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(16, 16) for _ in range(3))
        self.wide, self.narrow, self.norm = nn.Linear(16, 32), nn.Linear(32, 16, bias=False), nn.LayerNorm(16)
        self.last = nn.Linear(16, 5)

    def forward(self, x):
        x = x + F.softmax(self.q(x) @ self.k(x).mT, -1) @ self.v(x)
        return self.last(x + self.narrow(F.relu(self.wide(self.norm(x)))))


class Noise(Whole):
    def __init__(self, model: Model) -> None:
        self.model = model

    def batches(self, batch_size, limit=None, shuffle_seed=None):
        yield Batch(self.model.example_inputs(2, seed=5), None)


BATCH, LENGTH = torch.export.Dim("batch", min=1, max=64), torch.export.Dim("length", min=2, max=64)


@pytest.mark.parametrize("dims", [{}, {0: BATCH}, {0: BATCH, 1: LENGTH}])
def test_products_over_tokens_run_in_int8_whatever_sizes_are_known(dims, tmp_path):
    torch.manual_seed(6)
    x = torch.randn(2, 7, 16)
    model = Model.from_exported(torch.export.export(Tokens().eval(), (x,), dynamic_shapes=(dims,)))
    Quantize().apply(model, Context(data=Noise(model)))
    model.refresh()
    write_onnx(model, tmp_path / "m.onnx")
    coverage = int8_coverage(tmp_path / "m.onnx")
    assert coverage.summary() == "6 of 6 in int8"
    assert {name for _, name in coverage.int8} == {"q", "k", "v", "wide", "narrow", "last"}
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for shape in [(2, 7)] + [(1, 7), (5, 7)] * (0 in dims) + [(3, 11)] * (1 in dims):
        x = torch.randn(*shape, 16)
        (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
        torch.testing.assert_close(torch.from_numpy(got), model(x).detach(), rtol=1e-4, atol=1e-4)


def test_an_output_that_is_a_lowered_op_itself_keeps_its_name(tmp_path):
    class Ends(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.table, self.linear = nn.Conv2d(3, 8, 1), nn.Embedding(9, 4), nn.Linear(4, 6)

        def forward(self, x, ids):
            rows = self.table(ids)
            return {"pooled": self.conv(x).mean((2, 3)), "rows": rows, "products": self.linear(rows)}

    torch.manual_seed(7)
    model = Model.from_module(Ends(), (torch.randn(2, 3, 4, 4), torch.randint(0, 9, (2, 5))))
    Quantize().apply(model, Context(data=Noise(model)))
    model.refresh()
    report = write_onnx(model, tmp_path / "m.onnx")
    assert report.int8.startswith("2 of 2 in int8")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert [value.name for value in session.get_outputs()] == list(model.outputs)
