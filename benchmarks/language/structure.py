"""A language model with fewer multiply-adds, one shot, no training: perplexity beside other methods rebuilt.

python -m benchmarks.language.structure DIR [--macs 0.8 0.6]

DIR holds lm.pt2 of `model.py`, which makes it. All see the same 128 sequences, and leave the same
share of the multiply-adds (a row says which). Perplexity is of torch, on text that none has seen.

| row        |                                                                                              |
|------------|----------------------------------------------------------------------------------------------|
| ours       | prune-nodes --macs                                                                           |
| rotated    | prune-nodes --macs --rotate; separate: --blocks separate, too                                 |
| factorize  | factorize --macs, also ours                                                                  |
| random     | prune-nodes --macs --criterion random --no-compensate: the mean of three seeds               |
| magnitude  | prune-nodes --macs --criterion l2 --no-compensate                                            |
| FLAP-like  | An et al. 2024: variance of an input times the norm of its column, standardised in each      |
|            | layer; the mean of what goes is put into a bias                                              |
| CORP-like  | hidden units and heads by their energy in the output, a like share of every layer; what      |
|            | stays is fitted to the layer's outputs by least squares                                      |
| SliceGPT-  | Ashkboos et al. 2024: the residual stream of each block in its principal axes, the last ones |
| like       | cut; norms become RMS norms first; a matrix in every shortcut turns one block's axes to the  |
|            | next one's                                                                                   |
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nncompress
from benchmarks.language.comparison import Comparison, asked, seen_by
from benchmarks.language.model import CONTEXT, LanguageModel

WIDTH, HIDDEN, HEADS, DEPTH = 128, 512, 4, 3
SIZE = WIDTH // HEADS
OF_UNIT, OF_HEAD = 2 * WIDTH, 4 * WIDTH * SIZE + 2 * CONTEXT * SIZE  # multiply-adds of a token
OF_ALL = DEPTH * (HIDDEN * OF_UNIT + HEADS * OF_HEAD) + 256 * WIDTH


def readers(net: LanguageModel) -> Iterator[tuple[nn.Linear, int, int]]:
    """The layers whose inputs go, with how many of them go together and what that saves."""
    for block in net.blocks:
        yield block.out, SIZE, OF_HEAD
        yield block.down, 1, OF_UNIT


def flap(net: LanguageModel, ids: Tensor, macs: float) -> float:
    """In place; the share of the multiply-adds that is left."""
    layers = list(readers(net))
    inputs = seen_by(net, [layer for layer, _, _ in layers], ids)
    scores = []
    for (layer, together, saved), x in zip(layers, inputs):
        score = (x.var(0) * layer.weight.detach().square().sum(0)).view(-1, together).mean(1)
        standard = (score - score.mean()) / score.std()
        scores += [(float(s), layer, x, i, together, saved) for i, s in enumerate(standard)]
    left = OF_ALL
    for _, layer, x, i, together, saved in sorted(scores, key=lambda row: row[0]):
        if left - saved < macs * OF_ALL:
            continue
        left -= saved
        at = slice(i * together, (i + 1) * together)
        with torch.no_grad():
            layer.bias.add_(layer.weight[:, at] @ x[:, at].mean(0))
            layer.weight[:, at] = 0
    return left / OF_ALL


def corp(net: LanguageModel, ids: Tensor, macs: float) -> float:
    """In place; the share of the multiply-adds that is left."""
    left = OF_ALL
    share = (1 - macs) * OF_ALL / (DEPTH * (HIDDEN * OF_UNIT + HEADS * OF_HEAD))
    heads = round(share * HEADS)
    units = math.ceil(((1 - macs) * OF_ALL - DEPTH * heads * OF_HEAD) / DEPTH / OF_UNIT)
    for layer, together, saved in readers(net):  # each sees what is before it already smaller
        (x,) = seen_by(net, [layer], ids)
        score = (x.square().mean(0) * layer.weight.detach().square().sum(0)).view(-1, together).sum(1)
        kept = score.argsort(descending=True)[: len(score) - (heads if together > 1 else units)]
        left -= (len(score) - len(kept)) * saved
        at = (kept[:, None] * together + torch.arange(together)).flatten()
        rows = torch.cat([x[:, at], torch.ones(len(x), 1)], 1).double()
        moment = rows.T @ rows
        moment += 1e-4 * moment.diagonal().mean() * torch.eye(len(moment))
        with torch.no_grad():
            wanted = (x @ layer.weight.T + layer.bias).double()
            found = torch.linalg.solve(moment, rows.T @ wanted).float()
            layer.weight.zero_()
            layer.weight[:, at] = found[:-1].T
            layer.bias.copy_(found[-1])
    return left / OF_ALL


class Sliced(nn.Module):
    """The residual stream of every part of a block in its own axes, of which the first ones are left."""

    def __init__(self, net: LanguageModel, ids: Tensor, kept: int) -> None:
        super().__init__()
        self.net, self.kept = net, kept
        centre = torch.eye(WIDTH) - 1 / WIDTH
        with torch.no_grad():  # norms become RMS norms: the mean goes where it is made, their vectors behind
            for table in (net.embed, net.place):
                table.weight.copy_(table.weight @ centre)
            for block in net.blocks:
                for layer in (block.out, block.down):
                    layer.weight.copy_(centre @ layer.weight)
                    layer.bias.copy_(centre @ layer.bias)
            behind = [(b.norm1, [b.q, b.k, b.v]) for b in net.blocks]
            behind += [(b.norm2, [b.up]) for b in net.blocks] + [(net.norm, [net.head])]
            for norm, layers in behind:
                for layer in layers:
                    layer.bias.add_(layer.weight @ norm.bias)
                    layer.weight.mul_(norm.weight)
        self.axes = [torch.eye(WIDTH)] * (2 * DEPTH + 1)
        self._moments: list[Tensor] | None = [torch.zeros(WIDTH, WIDTH) for _ in self.axes]
        with torch.no_grad():
            for each in ids.split(16):
                self(each)
        moments, self._moments = self._moments, None
        self.axes = [torch.linalg.eigh(m.double())[1].flip(1)[:, :kept].float() for m in moments]

    def _read(self, x: Tensor, place: int) -> Tensor:
        """RMS-normed, back in the axes of the weights."""
        y = x * torch.rsqrt(x.square().sum(-1, keepdim=True) / WIDTH + 1e-5)
        if self._moments is not None:
            rows = y.flatten(0, 1)
            self._moments[place] += rows.T @ rows
        return y @ self.axes[place].T

    def forward(self, ids: Tensor) -> Tensor:
        net = self.net
        x = (net.embed(ids) + net.place(torch.arange(ids.shape[1]))) @ self.axes[0]
        for i, block in enumerate(net.blocks):
            y = self._read(x, 2 * i)
            shape = (*ids.shape, HEADS, SIZE)
            q, k, v = (layer(y).view(shape).transpose(1, 2) for layer in (block.q, block.k, block.v))
            mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
            x = x @ self.axes[2 * i].T @ self.axes[2 * i + 1] + block.out(mixed) @ self.axes[2 * i + 1]
            y = self._read(x, 2 * i + 1)
            hidden = block.down(F.gelu(block.up(y)))
            x = x @ self.axes[2 * i + 1].T @ self.axes[2 * i + 2] + hidden @ self.axes[2 * i + 2]
        return net.head(self._read(x, 2 * DEPTH))

    @staticmethod
    def share(kept: int) -> float:
        """Of the multiply-adds that is left, the matrices in the shortcuts included."""
        linear = DEPTH * (4 * WIDTH + 2 * HIDDEN) * kept + 256 * kept
        return (linear + DEPTH * 2 * CONTEXT * WIDTH + 2 * DEPTH * kept * kept) / OF_ALL


def sliced(net: LanguageModel, ids: Tensor, macs: float) -> tuple[nn.Module, float]:
    kept = max(k for k in range(8, WIDTH) if Sliced.share(k) <= macs)
    return Sliced(net, ids, kept), Sliced.share(kept)


def main() -> None:
    given = asked(str(__doc__), "--macs")
    table = Comparison(given.dir, "macs")
    for macs in given.shares:
        plain = f"prune-nodes:macs={macs},compensate=false,renormalize=false,criterion="
        for name, seeds, options in (
            ("ours", (0,), f"prune-nodes:macs={macs}"),
            ("rotated", (0,), f"prune-nodes:macs={macs},rotate=true"),
            ("rotated, separate", (0,), f"prune-nodes:macs={macs},rotate=true,blocks=separate"),
            ("factorize", (0,), f"factorize:macs={macs}"),
            ("magnitude", (0,), f"{plain}l2"),
            ("random", (0, 1, 2), f"{plain}random"),
        ):
            smaller = [nncompress.compress(table.model, [options], data=table.ids, seed=s) for s in seeds]
            table.ours(macs, name, smaller)
        for name, method in (("FLAP-like", flap), ("CORP-like", corp)):
            net = table.net()
            left = method(net, table.ids, macs)
            table.other(macs, name, net, left)
        table.other(macs, "SliceGPT-like", *sliced(table.net(), table.ids, macs))


if __name__ == "__main__":
    main()
