"""Which layers to leave in float: of all sets, the one that the cut stands for takes as little as it says."""

import numpy as np
import pytest
import torch
from torch import nn

from nncompress.analysis.int8_cut import Int8Cut, Times
from nncompress.ir import Model
from nncompress.ir.layers.weights import layers

UNIT = 1e-4  # seconds


class Branching(nn.Module):
    """A residual sum, a convolution that is read twice, a concatenation, products behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.c = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)
        self.b, self.d = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.f, self.g = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        x = self.a(x).relu()
        y = (self.b(x) + x).relu()
        z = self.c(self.c(nn.functional.max_pool2d(y, 2)).relu())
        w = nn.functional.silu(self.d(torch.cat([z, nn.functional.max_pool2d(y, 2)], 1))).mean((2, 3))
        return self.g(self.f(self.f(w).relu()).relu())


@pytest.mark.parametrize(("float_results", "seed"), [(False, 7), (True, 6)])
def test_the_set_that_is_found_takes_what_the_cut_says(float_results, seed):
    """In seconds, sums of floats differ in their last digits, by which a cut may be misled: in one of some
    thousand draws, which these seeds have."""
    torch.manual_seed(0)
    model = Model.from_module(Branching().eval(), (torch.randn(2, 3, 8, 8),))
    every, generator = list(layers(model)), np.random.default_rng(seed)
    for _ in range(300):

        def drawn(most):
            return Times(*generator.uniform(0.2, most, 2) * UNIT)

        seconds, known = {layer.name: drawn(3) for layer in every}, {}
        cut = Int8Cut(
            model,
            every,
            lambda value, known=known: known.setdefault(value, drawn(1)),
            float_results=float_results,
        )
        found, least = cut.least(seconds)
        forced = {  # another set costs more than any does
            name: Times(
                times.floats + (0 if name in found else 100 * UNIT),
                times.int8 + (100 * UNIT if name in found else 0),
            )
            for name, times in seconds.items()
        }
        again, same = cut.least(forced)
        assert (again, same) == (found, pytest.approx(least))
        for others in ({layer.name for layer in every}, set()):  # neither do all, nor none
            fixed = {
                name: Times(
                    times.floats + (0 if name in others else 100 * UNIT),
                    times.int8 + (100 * UNIT if name in others else 0),
                )
                for name, times in seconds.items()
            }
            assert cut.least(fixed)[1] >= least * (1 - 1e-9)
