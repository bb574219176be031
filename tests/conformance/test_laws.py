"""The laws of `laws.py` on a few random networks each; `benchmarks/robustness` looks for more."""

from __future__ import annotations

import laws
import pytest
from hypothesis import HealthCheck, Phase, assume, example, given, settings
from hypothesis import strategies as st
from random_networks import DTYPES, Net, nets

pytestmark = pytest.mark.filterwarnings("ignore")
# A failure is shown as found: making it small took minutes.
few = settings(
    max_examples=3, phases=[Phase.explicit, Phase.generate], suppress_health_check=list(HealthCheck)
)
_STEPS = st.lists(st.sampled_from(laws.STEPS), min_size=1, max_size=3).map(tuple)
_ANY_DTYPE = nets(dtypes=("float32", *DTYPES))


def holds(law, *arguments) -> None:
    try:
        law(*arguments)
    except laws.Irrelevant:
        assume(False)


@few
@given(_ANY_DTYPE)
def test_loads_as_its_module(net: Net):
    holds(laws.loads_as_its_module, net)


@few
@given(_ANY_DTYPE, _STEPS, st.booleans())
@example(Net("image", (), head="boolean"), ("prune:sparsity=0.8,remove-dead=true",), True)
@example(Net("image", (), head="masked"), ("prune-nodes:ratio=0.3",), True)
@example(Net("image", (), head="number"), ("prune-nodes:ratio=0.4",), True)
@example(Net("image", (), dtype="float64"), ("prune-nodes:ratio=0.3",), True)
@example(Net("sequence", (), dtype="bfloat16"), ("cluster:decimals=1",), True)
def test_any_order_of_any_passes(net: Net, steps, with_data):
    holds(laws.any_order, net, steps, with_data)


@few
@given(nets(), _STEPS)
def test_onnx_runtime_agrees_after_any_passes(net: Net, steps):
    holds(laws.onnx_is_model, net, steps)


@few
@given(_ANY_DTYPE)
def test_nothing_to_do_is_nothing_done(net: Net):
    holds(laws.nothing_to_do, net)


@few
@given(nets(), st.sampled_from(["quantize", "cluster:codebook=8", "cluster:decimals=1", "prune:pattern=1:2"]))
def test_rounding_twice_is_rounding_once(net: Net, step):
    holds(laws.again_is_nothing, net, step)


@few
@given(
    _ANY_DTYPE, st.sampled_from([0.1, 0.5]), st.sampled_from([0.3, 0.8]), st.sampled_from(["global", "layer"])
)
def test_the_stronger_of_two_prunings_wins(net: Net, weak, strong, scope):
    holds(laws.stronger_prune_wins, net, weak, strong, scope)


@few
@given(nets(), st.integers(1, 2))
def test_factors_of_full_rank_keep_the_function(net: Net, rank):
    holds(laws.full_rank_keeps_the_function, net, rank)


@few
@given(_ANY_DTYPE, st.sampled_from(["grow:by=2", "grow:by=2,init=split"]))
def test_growing_keeps_the_function(net: Net, step):
    holds(laws.growing_keeps_the_function, net, step)


@few
@given(_ANY_DTYPE)
def test_a_copy_is_independent(net: Net):
    holds(laws.a_copy_is_independent, net)


_BLOCKS = st.tuples(st.just("residual"), st.integers(0, 5), st.just(0))


@few
@given(st.lists(_BLOCKS, min_size=2, max_size=3), st.integers(0, 3))
def test_sharing_weights_that_are_equal_changes_nothing(blocks, seed):
    holds(laws.sharing_equals_changes_nothing, Net("image", tuple(blocks), seed=seed))
