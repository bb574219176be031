"""A small decoder as two graphs: of its prompt, and of a step with a key/value cache."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import nn
from torch.export import Dim

from nncompress.ir import Model
from nncompress.ir.graph.inputs import name_placeholders

VOCABULARY, WIDTH, HEADS, SIZE, UNITS = 20, 8, 2, 4, 12


class Decoder(nn.Module):
    """One block; `mask` is of all tokens, 0 hides one."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(64, WIDTH)
        self.q, self.k, self.v, self.o = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.up, self.down, self.head = (
            nn.Linear(WIDTH, UNITS),
            nn.Linear(UNITS, WIDTH),
            nn.Linear(WIDTH, VOCABULARY),
        )

    def forward(self, ids, mask, *past):
        start, length = past[0].shape[2] if past else 0, ids.shape[1]
        x = self.tokens(ids) + self.positions(torch.arange(start, start + length))
        q, k, v = (
            layer(x).view(x.shape[0], length, -1, SIZE).transpose(1, 2) for layer in (self.q, self.k, self.v)
        )
        if past:
            k, v = torch.cat([past[0], k], 2), torch.cat([past[1], v], 2)
        ahead = torch.arange(start + length)[None] > start + torch.arange(length)[:, None]
        seen = (mask[:, None, None] != 0) & ~ahead
        a = torch.softmax((q @ k.mT).masked_fill(~seen, -1e9), -1) @ v
        x = x + self.o(a.transpose(1, 2).flatten(2))
        return self.head(x + self.down(torch.relu(self.up(x)))), k, v


class _Step(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, ids, mask, key, value):
        return self.net(ids, mask, key, value)


class _Prompt(_Step):
    def forward(self, ids, mask):
        return self.net(ids, mask)


@cache
def _graphs(seed: int) -> tuple[Model, Model]:
    net = Decoder(seed).eval()
    ids, mask, cached = torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 6), torch.zeros(2, HEADS, 5, SIZE)
    batch, length, past = Dim("batch", max=64), Dim("length", min=2, max=60), Dim("past", min=2, max=60)
    text, kept = {0: batch, 1: length}, {0: batch, 2: past}
    prompt = Model.from_module(_Prompt(net), (ids, torch.ones(2, 5)), dynamic_shapes=(text, text))
    shapes = ({0: batch}, {0: batch, 1: past + 1}, kept, kept)
    step = Model.from_module(_Step(net), (ids[:, :1], mask, cached, cached + 1), dynamic_shapes=shapes)
    return prompt, step


def decoder_pair(seed: int = 0, *, named: bool = True) -> tuple[Decoder, Model, Model]:
    """The network, its prompt and its step.

    Args:
        named: caches are called as optimum calls them; else nothing but their order tells them.
    """
    prompt, step = (each.copy() for each in _graphs(seed))
    if named:
        prompt.outputs = step.outputs = ("logits", "present.0.key", "present.0.value")
        names = ("ids", "mask", "past_key_values_0_key", "past_key_values_0_value")
        step.inputs = tuple(replace(spec, name=name) for spec, name in zip(step.inputs, names))
        name_placeholders(step.graph_module, step.inputs)
    return Decoder(seed).eval(), prompt, step
