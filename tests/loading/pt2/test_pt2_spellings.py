"""A `.pt2` of torch.export has the one spelling of each op that the module itself gets."""

from __future__ import annotations

from pathlib import Path

import onnxruntime
import pytest
import torch
from torch import Tensor, nn

import nncompress
from nncompress.ir.graph.ops import op_name


class Spelled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.head = nn.Linear(6, 8), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.up(x)
        h = torch.hstack([h, h.relu()]) + h.median(1, keepdim=True)[0]
        return self.head(torch.swapaxes(h, 0, 1).moveaxis(0, 1) * torch.atleast_2d(h).tanh())


@pytest.mark.parametrize("bounds", [{}, {"min": 1, "max": 512}, {"min": 2}])
def test_composites_are_taken_apart_whatever_bounds_the_batch_has(
    bounds: dict[str, int], tmp_path: Path
) -> None:
    net, x = Spelled().eval(), torch.randn(2, 6)
    program = torch.export.export(net, (x,), dynamic_shapes=({0: torch.export.Dim("batch", **bounds)},))
    torch.export.save(program, tmp_path / "m.pt2")
    read = nncompress.load(tmp_path / "m.pt2")
    ops = [op_name(node) for node in nncompress.load(net, input=x).graph.nodes if node.op == "call_function"]
    assert [op_name(node) for node in read.graph.nodes if node.op == "call_function"] == ops
    assert not {"hstack", "swapaxes", "moveaxis"}.intersection(ops)
    nncompress.export(read, tmp_path / "m.onnx")  # where a median is sorted, and taken
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    for batch in (2, 5) if bounds.get("min") == 2 else (1, 5):
        fresh = torch.randn(batch, 6)
        with torch.no_grad():
            right = net(fresh)
        torch.testing.assert_close(read(fresh), right)
        (found,) = session.run(None, {session.get_inputs()[0].name: fresh.numpy()})
        torch.testing.assert_close(torch.from_numpy(found), right, atol=1e-5, rtol=1e-4)
