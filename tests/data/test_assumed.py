"""Data that could be another thing than it is taken for: said in a line, or refused where it fits not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nncompress import api
from nncompress.errors import DataError
from nncompress.ir import Model

COLOUR = np.random.default_rng(0).integers(0, 256, (8, 6, 6, 3), dtype=np.uint8)
LAST = COLOUR.transpose(0, 3, 1, 2)


def said(x, y=None, normalize=None, batch=None) -> list[str]:
    example = torch.randn(batch or 2, *(x.shape[1:] if x.dtype != np.uint8 else (x.shape[3], *x.shape[1:3])))
    net = nn.Sequential(nn.Flatten(), nn.Linear(example[0].numel(), 2))
    if batch is None:
        model = Model.from_module(net, (example,))
    else:
        model = Model.from_exported(torch.export.export(net, (example,)))
    lines: list[str] = []
    api.dataset((x,) if y is None else (x, y), model, normalize, lines.append)
    return lines


@pytest.mark.parametrize(
    ("x", "expected"),
    [
        (COLOUR, "x / 255, without mean and deviation"),
        (COLOUR[..., :1], ""),  # grey images are mostly trained so
        (LAST.astype(np.float32), "whole numbers up to 255"),
        ((LAST / 255).astype(np.float32), ""),
        (np.random.default_rng(0).standard_normal((8, 5)).astype(np.float32), ""),
    ],
)
def test_the_scale_of_pixels(x, expected):
    lines = said(x)
    assert [expected in line for line in lines] == [True] * bool(expected)


def test_a_normalisation_that_was_asked_for_is_no_assumption():
    assert said(COLOUR, normalize="none") == []
    assert said(COLOUR, normalize="imagenet") == []


def test_samples_that_a_fixed_batch_leaves_out():
    x = np.zeros((8, 5), np.float32)
    assert ["the last 2 samples are left out of 8" in line for line in said(x, batch=3)] == [True]
    assert ["the last sample is left out of 8" in line for line in said(x, batch=7)] == [True]
    assert said(x, batch=4) == []


def test_one_hot_labels_are_told_with_their_remedy():
    x, y = np.zeros((8, 5), np.float32), np.eye(2, dtype=np.float32)[np.arange(8) % 2]
    assert ["class numbers (y.argmax(1))" in line for line in said(x, y)] == [True]
    assert said(x, y + 0.5) == []
    assert said(x, np.arange(8) % 2) == []


class Tokens(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 4)

    def forward(self, ids):
        return self.table(ids).mean(1)


@pytest.mark.parametrize("token", [20, -1])
def test_a_token_that_the_table_has_no_row_for(token):
    model = Model.from_module(Tokens(), (torch.zeros(2, 6, dtype=torch.int64),))
    ids = np.full((8, 6), 19)
    assert api.dataset((ids,), model).inputs
    ids[5, 3] = token
    with pytest.raises(DataError, match="no row for") as caught:
        list(api.dataset((ids,), model).batches(4))
    assert "0 to 19" in (caught.value.expected or "")


def test_differences_that_the_models_precision_cannot_hold_are_told():
    times = 1.7e9 + np.random.default_rng(0).random((8, 5))
    (line,) = said(times)
    assert "rounds 5 of its 5 values" in line
    assert said(times - 1.7e9) == []
    assert said(np.full((8, 5), 0.1)) == []


def test_one_number_a_sample_and_one_that_all_share_are_looked_at_as_well(tmp_path):
    class Scaled(nn.Module):
        def forward(self, x, scale):
            return x * scale

    model = Model.from_module(Scaled(), (torch.randn(2), torch.tensor(2.0)))
    times = 1.7e9 + np.random.default_rng(0).random(8)
    lines: list[str] = []
    np.savez(tmp_path / "d.npz", x=times, scale=np.array(1.7e9))
    api.dataset(str(tmp_path / "d.npz"), model, None, lines.append)
    assert ["x is given" in line and "rounds 1 of its 1 values" in line for line in lines] == [True]


def test_what_normalization_leaves_is_what_the_precision_has_to_hold():
    times = 1.7e9 + np.random.default_rng(0).random((8, 5))
    assert said(times, normalize="1.7e9/1") == []
    assert ["rounds 5 of its 5 values" in line for line in said(times, normalize="1/1e9")] == [True]


def test_numbers_beyond_the_models_precision_are_refused():
    model = Model.from_module(nn.Linear(5, 2), (torch.randn(2, 5),))
    with pytest.raises(DataError, match="that the model's dtype cannot") as caught:
        list(api.dataset((np.full((8, 5), 1e300),), model).batches(4))
    assert caught.value.got == "1e+300 (float64)"
    half = Model.from_module(nn.Linear(5, 2).half(), (torch.randn(2, 5).half(),))
    (batch,) = api.dataset((np.full((8, 5), 65510.0),), half).batches(8)
    assert bool((batch.inputs[0] == 65504).all())  # the largest of 16 bits, which it is rounded to
    infinite = np.full((8, 5), -np.inf)
    assert list(api.dataset((infinite,), model).batches(4))
