"""Rows that choose their matrices (experts) are spelled in ops that any runtime has, at any width."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import nncompress
from nncompress import as_passes, pipeline
from nncompress.analysis.couplings import find_couplings, prove, remove_units
from nncompress.exporting import write_pt2
from nncompress.exporting.write.onnx import write_onnx
from nncompress.ir import Model
from nncompress.loading import load_model
from nncompress.passes import Context
from nncompress.runtimes import open_artifact

EXPERTS, CHOSEN, WIDTH, INNER = 4, 2, 8, 16


def products(rows: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    """The definition, and what the package `transformers` registers."""
    found = rows.new_zeros(rows.shape[0], weight.shape[2])
    start = 0
    for expert, end in enumerate(offs.tolist()):
        found[start:end] = rows[start:end] @ weight[expert]
        start = end
    return found


def registered(rows: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    if not hasattr(torch.ops.transformers, "grouped_mm_fallback"):
        op = torch.library.custom_op(
            "transformers::grouped_mm_fallback",
            products,
            mutates_args=(),
            schema="(Tensor input, Tensor weight, Tensor offs) -> Tensor",
        )
        op.register_fake(lambda input, weight, offs: input.new_empty(input.shape[0], weight.shape[2]))
    return torch.ops.transformers.grouped_mm_fallback(rows, weight, offs=offs)


def of_torch(rows: Tensor, weight: Tensor, offs: Tensor) -> Tensor:
    return nn.functional.grouped_mm(rows.bfloat16(), weight.bfloat16(), offs=offs).float()


class Experts(nn.Module):
    """As `transformers` writes them: rows are sorted by their expert, multiplied, and put back."""

    def __init__(self, grouped) -> None:
        super().__init__()
        self.grouped, self.gate = grouped, nn.Linear(WIDTH, EXPERTS)
        self.up = nn.Parameter(torch.randn(EXPERTS, 2 * INNER, WIDTH) / 3)
        self.down = nn.Parameter(torch.randn(EXPERTS, WIDTH, INNER) / 3)
        self.last = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, WIDTH)
        weights, chosen = self.gate(tokens).softmax(-1).topk(CHOSEN, -1)
        order = chosen.flatten().argsort(stable=True)
        rows = tokens[order // CHOSEN]
        counts = torch.histc(chosen.flatten()[order].float(), EXPERTS, 0, EXPERTS - 1)
        offs = counts.cumsum(0).to(torch.int32)
        first, second = self.grouped(rows, self.up.mT, offs).chunk(2, -1)
        rows = self.grouped(nn.functional.silu(first) * second, self.down.mT, offs)
        rows = rows[order.argsort()].reshape(-1, CHOSEN, WIDTH) * weights[..., None]
        return self.last(rows.sum(1)).reshape(*x.shape[:2], -1)


def opened(grouped) -> tuple[Model, Tensor, Tensor]:
    """A model, what it is given, and what the network makes of that."""
    torch.manual_seed(0)
    net = Experts(grouped).eval()
    model = nncompress.load(net, input="1x5x8")
    assert not [node for node in model.graph.nodes if "grouped" in str(node.target)]
    x = torch.randn(3, 5, WIDTH)
    with torch.no_grad():
        return model, x, net(x)


def test_what_torch_multiplies_in_16_bits_is_the_same() -> None:
    model, x, expected = opened(of_torch)
    torch.testing.assert_close(model(x), expected, rtol=0.02, atol=0.02)


def test_they_are_opened_pruned_to_any_width_written_and_run(tmp_path) -> None:
    model, x, expected = opened(registered)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)

    couplings = find_couplings(model)
    (inner,) = [group for group in couplings.groups if group.size == INNER]
    removal = {inner.name: [1, 4, 7, 8, 15]}
    pruned = model.copy()
    remove_units(pruned, removal)
    proof = prove(couplings, removal, pruned)
    assert proof.error < 1e-5 < 1e-3 < proof.effect
    assert tuple(pruned.tensor("down").shape) == (EXPERTS, WIDTH, 11)

    write_pt2(pruned, tmp_path / "m.pt2")
    write_onnx(pruned, tmp_path / "m.onnx")
    x = torch.randn(4, 5, WIDTH)
    expected = pruned(x)
    torch.testing.assert_close(load_model(tmp_path / "m.pt2")(x), expected)
    found = torch.from_numpy(open_artifact(tmp_path / "m.onnx").run(x)[0])
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "spec", ["prune:sparsity=0.5", "cluster:codebook=4", "quantize:mode=weights", "factorize:rank=2"]
)
def test_that_layers_alone_are_changed_is_said_of_them(spec) -> None:
    smaller, (step,) = pipeline.run(opened(registered)[0], as_passes(spec), Context())
    told = "96% of the parameters are stacks of matrices, no layers, and stay as they are: up, down"
    assert told in step.notes
    assert tuple(smaller.tensor("up").shape) == (EXPERTS, 2 * INNER, WIDTH)
