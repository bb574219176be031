"""What the comparisons of language models share: the samples, perplexity, a table's rows."""

from __future__ import annotations

import argparse
import copy
import math
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from benchmarks.language.model import CALIBRATION, CONTEXT, HELD_OUT, LanguageModel, text, trained
from nncompress.analysis.cost import cost
from nncompress.ir import Model


def perplexity(model: Callable[[Tensor], Tensor], rows: Tensor) -> float:
    with torch.no_grad():
        lost = [
            F.cross_entropy(model(each)[:, :-1].flatten(0, 1), each[:, 1:].flatten())
            for each in rows.split(16)
        ]
    return math.exp(torch.stack(lost).mean())


def seen_by(net: nn.Module, layers: list[nn.Linear], ids: Tensor) -> list[Tensor]:
    """What these layers multiply, [tokens, in] each."""
    found: list[list[Tensor]] = [[] for _ in layers]
    hooks = [
        layer.register_forward_pre_hook(lambda _, given, to=to: to.append(given[0].flatten(0, -2)))
        for layer, to in zip(layers, found)
    ]
    with torch.no_grad():
        for each in ids.split(16):
            net(each)
    for hook in hooks:
        hook.remove()
    return [torch.cat(each) for each in found]


class Comparison:
    """The model in DIR with the sequences that methods see, and the text that none has seen.

    Args:
        folder: where `lm.pt2` is, or is made.
        counted: which cost the methods lower: "macs" or "parameters".
    """

    def __init__(self, folder: Path, counted: str) -> None:
        torch.set_num_threads(1)
        data = text()
        known, held = data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]
        self.model = trained(folder, known, 120)
        generator = torch.Generator().manual_seed(1)
        at = torch.randint(0, len(known) - CONTEXT, (CALIBRATION, 1), generator=generator)
        self.ids = known[at + torch.arange(CONTEXT)]
        self.rows = held[: len(held) // CONTEXT * CONTEXT].view(-1, CONTEXT)[:HELD_OUT]
        self._net = LanguageModel().eval()
        self._net.load_state_dict(self.model.state_dict())
        self.counted, self._whole = counted, getattr(cost(self.model), counted)
        self._base = perplexity(self._net, self.rows)
        name = {"macs": "multiply-adds"}.get(counted, counted)
        print(f"| {name} | {len(self.rows)} × {CONTEXT} bytes | perplexity | relative | left |")
        print(f"|---|---|---|---|---|\n| all | | {self._base:.3f} | | 1 |", flush=True)

    def net(self) -> LanguageModel:
        """The network itself, to be changed in place."""
        return copy.deepcopy(self._net)

    def ours(self, share: float, name: str, smaller: list[Model]) -> None:
        """A row for results of a pass: their mean perplexity."""
        found = [perplexity(lambda x, m=m: m.outputs_of(x)[0], self.rows) for m in smaller]
        left = getattr(cost(smaller[0]), self.counted) / self._whole
        self._row(share, name, sum(found) / len(found), left)

    def other(self, share: float, name: str, net: nn.Module, left: float) -> None:
        """A row for a network that another method changed, and how much that left."""
        self._row(share, name, perplexity(net, self.rows), left)

    def _row(self, share: float, name: str, found: float, left: float) -> None:
        print(f"| {share} | {name} | {found:.3f} | {found / self._base - 1:+.1%} | {left:.3f} |", flush=True)


def asked(description: str, option: str) -> argparse.Namespace:
    """`DIR [--OPTION SHARE …]`, as `dir` and `shares`."""
    parser = argparse.ArgumentParser(description=description.partition("\n")[0])
    parser.add_argument("dir", type=Path)
    parser.add_argument(option, dest="shares", type=float, nargs="+", default=[0.8, 0.6])
    return parser.parse_args()
