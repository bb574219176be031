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

from collections.abc import Iterator

import torch
from torch import Tensor, nn

import nncompress
from benchmarks.language.comparison import Comparison, asked, seen_by
from benchmarks.language.model import LanguageModel


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
    given = asked(str(__doc__), "--params")
    table = Comparison(given.dir, "parameters")
    for params in given.shares:
        for name, ids in (("ours", table.ids), ("ours, no data", None)):
            table.ours(
                params, name, [nncompress.compress(table.model, [f"factorize:params={params}"], data=ids)]
            )
        for name, ids in (("SVD", None), ("SVD-LLM-like", table.ids)):
            net = table.net()
            left = cut(net, params, ids)
            table.other(params, name, net, left)


if __name__ == "__main__":
    main()
