"""Moments of inputs as changed layers make them, with a ridge that follows from samples held out."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from nncompress.analysis.observe.moments import RIDGE_OF_FEW, RIDGES, with_ridge
from nncompress.analysis.observe.seen_inputs import SeenInputs
from nncompress.ir import Model
from nncompress.ir.layers.weights import layers


def seen_by_second(count, batches):
    """The moments of a second layer's inputs, after the first layer was halved; and what they are of."""
    net = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 3)).eval()
    model = Model.from_module(net, (torch.zeros(2, 24),))
    x = torch.randn(count, 4) @ torch.randn(4, 24) + torch.randn(count, 24)
    seen = SeenInputs(model, [(part,) for part in x.chunk(batches)], seed=0)
    first, second = layers(model)
    seen.second_moments(first)
    first.weight.assign(first.weight.value() / 2)
    moment = seen.second_moments(second)[0]
    with torch.no_grad():
        net[0].weight /= 2
        return seen, moment, net[0](x).double()


def test_moments_are_of_all_samples_after_the_layers_before_have_changed():
    seen, moment, x = seen_by_second(60, batches=3)
    expected = x.T @ x / len(x)
    expected += seen.ridges["1"] * expected.diagonal().mean() * torch.eye(24)
    np.testing.assert_allclose(moment, expected, rtol=1e-5, atol=1e-6)
    assert [(rows.layer, rows.count, rows.samples) for rows in seen.rows] == [("0", 60, 60), ("1", 60, 60)]


def test_few_samples_get_a_stronger_ridge_than_many():
    few, many = (seen_by_second(count, batches=2)[0].ridges["1"] for count in (16, 4000))
    assert few > many
    assert {few, many} <= set(RIDGES)


def test_batches_of_one_sample_are_held_out_as_a_whole():
    seen, _, _ = seen_by_second(8, batches=8)
    assert set(seen.ridges.values()) <= set(RIDGES)
    assert seen.rows[1].count == 8
    alone, _, _ = seen_by_second(3, batches=1)
    assert set(alone.ridges.values()) == {RIDGE_OF_FEW}  # too few to hold any out


@pytest.mark.parametrize("count", [12, 400])
def test_a_solution_gets_the_ridge_that_is_best_for_it_on_held_out_samples(count):
    """Least squares for half of the inputs of a layer with five positions to a sample."""
    net = nn.Linear(24, 3).eval()
    model = Model.from_module(net, (torch.zeros(2, 5, 24),))
    x = torch.randn(count, 1, 4) @ torch.randn(4, 24) + torch.randn(count, 5, 24)
    (layer,) = layers(model)
    weight = net.weight.detach().double()

    def solve(second):
        left = torch.zeros_like(weight)
        left[:, :12] = torch.linalg.solve(second[0][:12, :12], second[0][:12] @ weight.T).T
        return left

    def error(rows, moved):
        return float((rows @ moved.T).square().sum() / (rows @ weight.T).square().sum())

    seen = SeenInputs(model, [(part,) for part in x.chunk(2)], seed=0)
    found = seen.solved(layer, solve)
    held = torch.arange(count) % 4 == 3
    own, others = x[~held].flatten(0, 1).double(), x[held].double()
    errors = {}
    for ridge in RIDGES:
        moved = solve(with_ridge((own.T @ own / len(own))[None], ridge)) - weight
        errors[ridge] = error(others.flatten(0, 1), moved) + error(others.mean(1), moved)
    assert seen.ridges[layer.name] == min(errors, key=errors.__getitem__)
    every = x.flatten(0, 1).double()
    second = with_ridge((every.T @ every / len(every))[None], seen.ridges[layer.name])
    torch.testing.assert_close(found, solve(second), rtol=1e-5, atol=1e-5)  # products of float32


def test_products_of_the_same_inputs_get_the_same_moments_at_once():
    class Attention(nn.Module):
        def __init__(self):
            super().__init__()
            self.q, self.k, self.o = (nn.Linear(8, 8) for _ in range(3))

        def forward(self, x):
            return self.o(self.q(x) * self.k(x))

    model = Model.from_module(Attention().eval(), (torch.zeros(2, 8),))
    seen = SeenInputs(model, [(torch.randn(40, 8),)], seed=0)
    first, second, last = map(seen.second_moments, layers(model))
    assert second is first
    assert not torch.equal(last, first)
    assert [rows.layer for rows in seen.rows] == ["q", "o"]
