"""`--loss-weight`: what is lost in some layers counts more, under the same budget."""

from __future__ import annotations

import pytest
import torch
from networks import built_once
from records import Records
from torch import nn

from nncompress import pipeline
from nncompress.analysis.cost import cost
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.passes import Context, Factorize, Pass, PruneNodes, Reduce

KINDS = (PruneNodes, Factorize, Reduce)


@built_once
def twins() -> Model:
    """Two branches of the same shape, on which the output depends alike."""
    torch.manual_seed(0)

    class Twins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = (
                nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh()) for _ in "ab"
            )
            self.last = nn.Linear(32, 4)

        def forward(self, x):
            return self.last(torch.cat([self.a(x), self.b(x)], 1))

    return Model.from_module(Twins().eval(), (torch.randn(2, 8),))


def left(each: Pass) -> dict[str, float]:
    """Values in the weights of each branch."""
    x = torch.randn(128, 8, generator=torch.Generator().manual_seed(1))
    small, _ = pipeline.run(twins(), [each], Context(data=Records((x,)), limit=None))  # type: ignore[arg-type]
    assert cost(small).macs <= 0.6 * cost(twins()).macs
    sizes = {name: value.numel() for name, value in small.state_dict().items()}
    return {branch: sum(size for name, size in sizes.items() if name.startswith(branch)) for branch in "ab"}


@pytest.mark.parametrize("kind", KINDS)
def test_layers_whose_losses_count_more_keep_more(kind):
    for precious, other in ("ab", "ba"):
        found = left(kind(macs=0.6, loss_weight=(f"{precious}.*=1000",)))
        assert found[precious] > 1.2 * found[other]
    assert left(kind(macs=0.6, loss_weight=("*=3",))) == left(kind(macs=0.6))  # all alike: nothing changes


@pytest.mark.parametrize("kind", KINDS)
def test_a_name_of_no_layer_is_refused_and_so_is_no_factor(kind):
    with pytest.raises(UsageError, match=r"--loss-weight 'c\*' names no layer"):
        left(kind(macs=0.6, loss_weight=("c*=2",)))
    for wrong in ("a", "a=0", "a=inf", "a=-1", "=2"):
        with pytest.raises(UsageError, match="no name and factor"):
            kind(macs=0.6, loss_weight=(wrong,))


@pytest.mark.parametrize("kind", [PruneNodes, Factorize])
def test_without_a_budget_there_is_nothing_to_weigh_against(kind):
    with pytest.raises(UsageError, match="under a budget"):
        kind(ratio=0.5, loss_weight=("a*=2",))
    with pytest.raises(UsageError, match="under a budget"):
        kind(loss_weight=("a*=2",))


def test_nodes_that_do_not_compare_between_groups_cannot_be_weighed():
    with pytest.raises(UsageError, match="compare"):
        pipeline.run(twins(), [PruneNodes(macs=0.6, criterion="l2", loss_weight=("a*=2",))], Context())
