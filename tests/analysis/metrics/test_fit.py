"""Every kind of answer by every metric: measured with a paired interval, or refused naming those that fit."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from torch import nn

import nncompress
from nncompress.analysis.metrics.base import Metric
from nncompress.analysis.metrics.fit import check_fit
from nncompress.analysis.metrics.registry import METRICS, named_metric
from nncompress.cli.app import run
from nncompress.data import Batch
from nncompress.errors import DataError, ExitCode

TOKENS, N = torch.randint(0, 9, (12, 6)), 12


def boxes():
    corners = torch.tensor([2.0, 2.0, 6.0, 6.0]).expand(N, 1, 4) + torch.rand(N, 1, 1)
    labels = torch.cat([torch.zeros(N, 1, 1), corners, torch.zeros(N, 1, 1)], dim=2)  # class, corners, crowd
    return torch.cat([corners, torch.rand(N, 1, 1), torch.zeros(N, 1, 1)], dim=2), labels


ANSWERS = {  # outputs, inputs and labels; the metrics that fit
    "classes": (torch.randn(N, 5), torch.randn(N, 3), torch.randint(0, 5, (N,)), "top1 top5 f1"),
    "one number": (torch.randn(N, 1), torch.randn(N, 3), torch.arange(N) % 2, "top1 f1 rmse mae"),
    "amounts": (torch.randn(N, 1), torch.randn(N, 3), torch.randn(N), "rmse mae"),
    "embeddings": (torch.randn(N, 8), torch.randn(N, 3), torch.randn(N, 8), "rmse mae cosine"),
    "pixels": (torch.randn(N, 3, 4, 4), torch.randn(N, 1, 4, 4), torch.randint(0, 3, (N, 4, 4)), "miou"),
    "boxes": (boxes()[0], torch.randn(N, 3, 16, 16), boxes()[1], "map rmse mae cosine"),
    "tokens": (torch.randn(N, 6, 9), TOKENS, None, "perplexity"),
    "symbols": (torch.randn(N, 7, 4), torch.randn(N, 7, 2), torch.randint(1, 4, (N, 3)), "wer miou"),
    "image": (torch.randn(N, 3, 4, 4), torch.randn(N, 3, 4, 4), None, "mse"),
}


def fits(metric: Metric, output, batch) -> str | None:
    """Nothing where it fits, else what is proposed."""
    try:
        check_fit(metric, output, batch, "data")
    except DataError as problem:
        return problem.remedy
    return None


@pytest.mark.parametrize("kind", ANSWERS)
def test_every_metric_measures_the_answers_or_names_those_that_do(kind):
    output, inputs, labels, expected = ANSWERS[kind]
    batch, measured = Batch((inputs,), labels), []
    for name in METRICS:
        metric = named_metric(name)
        if metric.needs_labels and labels is None:
            continue
        remedy = fits(metric, output, batch)
        if remedy is None:
            first, second = metric.begin(), metric.begin()
            first.add(output, batch, "data")
            second.add(output.flip(-1) if name != "map" else output, batch, "data")
            of, difference = first.interval(), second.less(first)
            assert of.low <= of.value <= of.high
            assert difference.low <= difference.value <= difference.high
            measured.append(name)
            continue
        assert "of your own" in remedy or "--metric" in remedy
        for proposed in set(re.findall(r"\b[a-z]+[15]?\b", remedy)) & set(METRICS):
            assert fits(named_metric(proposed), output, batch) is None, (name, remedy)
    assert set(measured) == set(expected.split()), measured


COMMANDS = {
    "eval": [],
    "bench": ["--time", "0.1s"],
    "train": ["--val", "d.npz", "--epochs", "1"],
    "cycle": ["--val", "d.npz", "--epochs", "1", "--max-cycles", "1"],
    "sensitivity": [],
    "optimize": ["--max-drop", "1"],
    "quantize": ["--max-drop", "1"],
}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_refuses_a_metric_that_does_not_fit_with_those_that_do(
    command, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    np.savez("d.npz", x=np.random.randn(20, 4).astype(np.float32), y=np.arange(20) % 3)
    model = nncompress.load(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), input="Bx4")
    nncompress.export(model, "m.pt2")
    line = [command, "m.pt2", "--data", "d.npz", *COMMANDS[command], "--metric"]
    assert run([*line, "miou"]) == ExitCode.DATA
    said = " ".join(capsys.readouterr().err.split())
    assert "--metric miou does not fit this output and these labels" in said
    assert "try: --metric top1 or top5 or f1 or FILE.py:NAME of your own" in said
    np.savez("d.npz", x=np.random.randn(20, 4).astype(np.float32))
    assert run([*line, "f1"]) == ExitCode.DATA
    said = " ".join(capsys.readouterr().err.split())
    assert re.search(
        r"--metric f1 needs labels and d.npz\S* has none .* try: --metric mse or perplexity", said
    ), said
