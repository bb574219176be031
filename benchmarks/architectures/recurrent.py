"""Recurrent nets and one-dimensional convolutions."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class CellStack(nn.Module):
    """Two LSTM or GRU cells, unrolled by export."""

    def __init__(self, kind: str = "lstm", i: int = 8, hidden: int = 16) -> None:
        super().__init__()
        cell = {"lstm": nn.LSTMCell, "gru": nn.GRUCell, "rnn": nn.RNNCell}[kind]
        self.cells, self.out, self.hidden = (
            nn.ModuleList([cell(i, hidden), cell(hidden, hidden)]),
            nn.Linear(hidden, 4),
            hidden,
        )
        self.kind = kind

    def forward(self, x: Tensor) -> Tensor:
        zero = x.new_zeros(x.shape[0], self.hidden)
        states = [(zero, zero) if self.kind == "lstm" else zero for _ in self.cells]
        for step in range(x.shape[1]):
            y = x[:, step]
            for n, cell in enumerate(self.cells):
                states[n] = cell(y, states[n])
                y = states[n][0] if self.kind == "lstm" else states[n]
        return self.out(y)


class WrittenLSTM(nn.Module):
    """An LSTM written out: one linear layer for four gates, chunked."""

    def __init__(self, i: int = 6, hidden: int = 12) -> None:
        super().__init__()
        self.gates, self.hidden, self.out = nn.Linear(i + hidden, 4 * hidden), hidden, nn.Linear(hidden, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = c = torch.zeros(x.shape[0], self.hidden)
        for step in range(x.shape[1]):
            i, f, g, o = self.gates(torch.cat([x[:, step], h], 1)).chunk(4, 1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
            h = torch.sigmoid(o) * torch.tanh(c)
        return self.out(h)


class SequenceRNN(nn.Module):
    """nn.LSTM / nn.GRU as one op: two layers, optionally in both directions, on an embedding."""

    def __init__(self, kind: str = "lstm", bidirectional: bool = False) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 12)
        self.rnn = {"lstm": nn.LSTM, "gru": nn.GRU}[kind](
            12, 16, 2, batch_first=True, bidirectional=bidirectional
        )
        self.out = nn.Linear(32 if bidirectional else 16, 5)

    def forward(self, ids: Tensor) -> Tensor:
        return self.out(self.rnn(self.embed(ids))[0][:, -1])


class TCN(nn.Module):
    """Causal dilated convolutions, cropped, with residuals and 1x1 shortcuts."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(
            [nn.Conv1d(i, o, 3, padding=2 * d, dilation=d) for i, o, d in ((4, 12, 1), (12, 12, 2))]
        )
        self.short, self.out = nn.Conv1d(4, 12, 1), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.convs[0](x)[..., :-2])
        y = F.relu(self.convs[1](y)[..., :-4] + self.short(x))
        return self.out(y[..., -1])


class WaveNet(nn.Module):
    """Gated units from one convolution, residual and skip paths cut from another."""

    def __init__(self, c: int = 12) -> None:
        super().__init__()
        self.start = nn.Conv1d(1, c, 1)
        self.gated = nn.ModuleList([nn.Conv1d(c, 2 * c, 3, padding=d, dilation=d) for d in (1, 2)])
        self.mixed, self.end, self.c = (
            nn.ModuleList([nn.Conv1d(c, 2 * c, 1) for _ in "ab"]),
            nn.Conv1d(c, 4, 1),
            c,
        )

    def forward(self, x: Tensor) -> Tensor:
        x, skip = self.start(x), 0
        for gated, mixed in zip(self.gated, self.mixed):
            y = mixed(F.glu(gated(x), 1))
            x, skip = x + y[:, : self.c], skip + y[:, self.c :]
        return self.end(F.relu(skip))


class ConvTasNet(nn.Module):
    """Speech separation: learned filter bank, masks per speaker, transposed convolution back."""

    def __init__(self, filters: int = 16, speakers: int = 2) -> None:
        super().__init__()
        self.encode, self.decode = nn.Conv1d(1, filters, 8, 4), nn.ConvTranspose1d(filters, 1, 8, 4)
        self.norm, self.a = nn.GroupNorm(1, filters), nn.Conv1d(filters, 24, 1)
        self.dw, self.mask, self.n = (
            nn.Conv1d(24, 24, 3, padding=1, groups=24),
            nn.Conv1d(24, filters * speakers, 1),
            speakers,
        )

    def forward(self, x: Tensor) -> Tensor:
        w = F.relu(self.encode(x))
        m = torch.sigmoid(self.mask(F.relu(self.dw(F.relu(self.a(self.norm(w)))))))
        b, f, t = w.shape
        masked = w[:, None] * m.view(b, self.n, f, t)
        return self.decode(masked.view(b * self.n, f, t)).view(b, self.n, -1)


class Recommender(nn.Module):
    """Wide and deep: embeddings of ids beside dense features; a factorisation term."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Embedding(20, 8), nn.Embedding(30, 8)
        self.deep = nn.Sequential(
            nn.Linear(22, 32), nn.ReLU(), nn.BatchNorm1d(32), nn.Linear(32, 16), nn.ReLU()
        )
        self.out = nn.Linear(16, 1)

    def forward(self, user: Tensor, item: Tensor, dense: Tensor) -> Tensor:
        u, i = self.user(user), self.item(item)
        return self.out(self.deep(torch.cat([u, i, dense], 1))) + (u * i).sum(1, keepdim=True)
