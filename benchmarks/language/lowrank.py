"""A language model of low-rank factors, no training: perplexity beside plain and whitened SVD, rebuilt.

python -m benchmarks.language.lowrank DIR [--params 0.8 0.6]

DIR holds lm.pt2 of `model.py`, which makes it. All leave the same share of the parameters (a row
says which). Perplexity is of torch, on text that the model has not seen.

| row              |                                                                                       |
|------------------|---------------------------------------------------------------------------------------|
| ours             | factorize --params, with 128 sequences                                                |
| ours, no data    | the same without                                                                      |
| SVD              | every linear layer of the blocks to the same share of its parameters                  |
| SVD-LLM-like     | Wang et al. 2025: the SVD of W L, with L Lᵀ the moments of the inputs that the layers |
|                  | before it, already cut, give it; then both factors times L⁻¹                          |
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

import nncompress
from benchmarks.language.model import CALIBRATION, CONTEXT, HELD_OUT, LanguageModel, text, trained
from benchmarks.language.structure import perplexity, seen_by
from nncompress.analysis.cost import cost


def layers(net: LanguageModel) -> Iterator[nn.Linear]:
    for block in net.blocks:
        yield from (block.q, block.k, block.v, block.out, block.up, block.down)


def cut(net: LanguageModel, params: float, ids: Tensor | None) -> float:
    """In place, the product stored; the share of the parameters that the factors leave."""
    whole = sum(each.numel() for each in net.parameters())
    matrices = sum(layer.weight.numel() for layer in layers(net))
    share = 1 - (1 - params) * whole / matrices
    left = whole - matrices
    for layer in layers(net):
        outputs, inputs = layer.weight.shape
        rank = int(share * outputs * inputs / (outputs + inputs))
        left += rank * (outputs + inputs)
        with torch.no_grad():
            root = torch.eye(inputs, dtype=torch.float64)
            if ids is not None:
                x = seen_by(net, [layer], ids)[0].double()
                moment = x.T @ x / len(x)
                root = torch.linalg.cholesky(moment + 1e-6 * moment.diagonal().mean() * root)
            u, s, v = torch.linalg.svd(layer.weight.double() @ root, full_matrices=False)
            low = (u[:, :rank] * s[:rank]) @ v[:rank]
            layer.weight.copy_(torch.linalg.solve_triangular(root, low, upper=False, left=False).float())
    return left / whole


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dir", type=Path)
    parser.add_argument("--params", type=float, nargs="+", default=[0.8, 0.6])
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = text()
    known, held = data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]
    model = trained(given.dir, known, 120)
    at = torch.randint(0, len(known) - CONTEXT, (CALIBRATION, 1), generator=torch.Generator().manual_seed(1))
    ids = known[at + torch.arange(CONTEXT)]
    rows = held[: len(held) // CONTEXT * CONTEXT].view(-1, CONTEXT)[:HELD_OUT]
    net = LanguageModel().eval()
    net.load_state_dict(model.state_dict())
    base, whole = perplexity(net, rows), cost(model).parameters
    print(f"| parameters | {len(rows)} × {CONTEXT} bytes | perplexity | relative | left |")
    print(f"|---|---|---|---|---|\n| all | | {base:.3f} | | 1 |", flush=True)

    def row(params: float, name: str, found: float, left: float) -> None:
        print(f"| {params} | {name} | {found:.3f} | {found / base - 1:+.1%} | {left:.3f} |", flush=True)

    for params in given.params:
        for name, known_ids in (("ours", ids), ("ours, no data", None)):
            small = nncompress.compress(model, [f"factorize:params={params}"], data=known_ids)
            found = perplexity(lambda x, small=small: small.outputs_of(x)[0], rows)
            row(params, name, found, cost(small).parameters / whole)
        for name, known_ids in (("SVD", None), ("SVD-LLM-like", ids)):
            other = copy.deepcopy(net)
            left = cut(other, params, known_ids)
            row(params, name, perplexity(other, rows), left)


if __name__ == "__main__":
    main()
