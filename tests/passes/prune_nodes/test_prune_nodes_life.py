"""`prune-nodes`: the life of a pruned model, and what is refused. Criteria have tests of their own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from networks import model
from torch import nn

from nncompress.errors import ModelFileError, UsageError
from nncompress.ir import Model
from nncompress.passes import Context, PruneNodes

FRESH = """
import sys
import numpy as np, torch
from nncompress.ir import Model
from nncompress.loading import load_model
from nncompress.passes import Context, PruneNodes

model = load_model(sys.argv[1])
before = sum(p.numel() for p in model.graph_module.parameters())
PruneNodes(ratio=0.5).apply(model, Context())
after = sum(p.numel() for p in model.graph_module.parameters())
assert after < before, (before, after)

model.set_training(True)  # a step of fine-tuning
parameters = list(model.graph_module.parameters())
optimizer = torch.optim.SGD(parameters, 1e-2)
loss = model.outputs_of(*model.example_inputs(8, seed=1))[0].square().mean()
loss.backward()
assert all(p.grad is not None for p in parameters)
optimizer.step()
model.set_training(False)

from nncompress.exporting import write
write(model, sys.argv[2])
write(model, sys.argv[3])
again = load_model(sys.argv[2])
x = model.example_inputs(3, seed=2)
torch.testing.assert_close(again.outputs_of(*x), model.outputs_of(*x))
print(before, after)
"""


@pytest.mark.parametrize("name", ["residual"])
def test_life_of_a_pruned_model(name, tmp_path):
    """Pruned, saved, loaded where the architecture's code is unknown, pruned, trained and exported again."""
    given = model(name)
    PruneNodes(ratio=0.3).apply(given, Context())
    from nncompress.exporting import write

    first, second, onnx = (str(tmp_path / f) for f in ("first.pt2", "second.pt2", "second.onnx"))
    write(given, first)
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", FRESH, first, second, onnx],
        capture_output=True, text=True, cwd=root,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = map(int, done.stdout.split())
    assert before == sum(p.numel() for p in given.graph_module.parameters())
    assert after < before
    assert Path(onnx).stat().st_size > 0


def test_nothing_removable_is_refused():
    given = Model.from_module(nn.Linear(3, 2), (torch.randn(2, 3),))
    with pytest.raises(UsageError, match="no nodes can be removed"):
        PruneNodes(ratio=0.3).apply(given, Context())


def test_nan_weights_are_refused_before_work_starts():
    given = model("concat")
    given.tensor("mix.weight").data[0, 0, 0, 0] = float("nan")
    with pytest.raises(ModelFileError, match=r"mix\.weight"):
        PruneNodes().requires(given, Context())


@pytest.mark.parametrize("ratio", [1, -0.1, float("nan")])
def test_ratios_that_would_empty_a_group_are_refused(ratio):
    with pytest.raises(UsageError, match="ratio"):
        PruneNodes(ratio=ratio)
