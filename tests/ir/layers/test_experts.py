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
from nncompress.ir.layers.other_products import stacks_left
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

    def __init__(self, grouped, experts: int = EXPERTS) -> None:
        super().__init__()
        self.grouped, self.gate = grouped, nn.Linear(WIDTH, experts)
        self.up = nn.Parameter(torch.randn(experts, 2 * INNER, WIDTH) / 3)
        self.down = nn.Parameter(torch.randn(experts, WIDTH, INNER) / 3)
        self.last = nn.Linear(WIDTH, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.reshape(-1, WIDTH)
        weights, chosen = self.gate(tokens).softmax(-1).topk(CHOSEN, -1)
        order = chosen.flatten().argsort(stable=True)
        rows = tokens[order // CHOSEN]
        experts = len(self.up)
        counts = torch.histc(chosen.flatten()[order].float(), experts, 0, experts - 1)
        offs = counts.cumsum(0).to(torch.int32)
        first, second = self.grouped(rows, self.up.mT, offs).chunk(2, -1)
        rows = self.grouped(nn.functional.silu(first) * second, self.down.mT, offs)
        rows = rows[order.argsort()].reshape(-1, CHOSEN, WIDTH) * weights[..., None]
        return self.last(rows.sum(1)).reshape(*x.shape[:2], -1)


def opened(grouped, experts: int = EXPERTS) -> tuple[Model, Tensor, Tensor]:
    """A model, what it is given, and what the network makes of that."""
    torch.manual_seed(0)
    net = Experts(grouped, experts).eval()
    model = nncompress.load(net, input="1x5x8")
    assert not [node for node in model.graph.nodes if "grouped" in str(node.target)]
    x = torch.randn(3, 5, WIDTH)
    with torch.no_grad():
        return model, x, net(x)


def test_what_torch_multiplies_in_16_bits_is_the_same() -> None:
    model, x, expected = opened(of_torch)
    torch.testing.assert_close(model(x), expected, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("experts", [EXPERTS, 20])  # few multiply every row, of many each row picks its own
def test_they_are_opened_pruned_to_any_width_written_and_run(experts, tmp_path) -> None:
    model, x, expected = opened(registered, experts)
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)

    couplings = find_couplings(model)
    (inner,) = [group for group in couplings.groups if group.size == INNER]
    removal = {inner.name: [1, 4, 7, 8, 15]}
    pruned = model.copy()
    remove_units(pruned, removal)
    proof = prove(couplings, removal, pruned)
    assert proof.error < 1e-5 < 1e-3 < proof.effect
    assert tuple(pruned.tensor("down").shape) == (experts, WIDTH, 11)

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
    told = "96% of the stored numbers are stacks of matrices, no layers, and stay as they are: up, down"
    assert told in step.notes
    assert tuple(smaller.tensor("up").shape) == (EXPERTS, 2 * INNER, WIDTH)


@pytest.mark.parametrize("experts", [EXPERTS, 20])
def test_rows_of_no_expert_are_nothing(experts) -> None:
    class Some(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(experts, WIDTH, 3))

        def forward(self, x: Tensor) -> Tensor:
            offs = torch.arange(1, experts + 1, dtype=torch.int32) // 4
            return registered(x.reshape(-1, WIDTH), self.weight, offs).reshape(*x.shape[:2], 3)

    net, x = Some().eval(), torch.randn(2, 15, WIDTH)
    with torch.no_grad():
        torch.testing.assert_close(Model.from_module(net, (x,))(x), net(x))


def test_stacks_that_a_pass_takes_or_that_are_little_of_the_model_are_not_told() -> None:
    class Stack(nn.Module):
        """A product that passes take for a layer, and one that is no parameter."""

        def __init__(self, wide: int) -> None:
            super().__init__()
            self.stack = nn.Parameter(torch.randn(1, 8, 8))
            self.register_buffer("kept", torch.randn(2, 8, 8))
            self.layer = nn.Linear(8, wide, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            its = self.kept[(x[:, 0] > 0).long()]
            return self.layer((x[None] @ self.stack)[0]) + torch.bmm(x[:, None], its).sum(2)

    told = {wide: stacks_left(Model.from_module(Stack(wide), (torch.randn(2, 8),))) for wide in (8, 500)}
    assert [line.split(" stacks")[0] for line in told[8]] == ["50% of the stored numbers are"]
    assert told[8][0].endswith(": kept")
    assert told[500] == []
    bare = pipeline.run(
        Model.from_module(nn.Linear(4, 3, bias=False), (torch.randn(2, 4),)),
        as_passes("quantize:mode=weights"),
        Context(),
    )[0]
    assert stacks_left(bare) == []  # nothing is a parameter
