"""What is tried: strengths and bits per layer by what they cost for what they save."""

from dataclasses import replace
from math import inf

import pytest

from nncompress.analysis.int8_cut import Times
from nncompress.api import dataset
from nncompress.loading import load_model
from nncompress.passes import Context, Factorize, PruneNodes, Quantize, Reduce
from nncompress.passes.quantize.by_clock import TimedLayers
from nncompress.pipeline import run
from nncompress.results import Estimate
from nncompress.search.candidates import Bits, Family, families, untried
from nncompress.search.layers.sensitivity import METHODS, Effect
from nncompress.search.layers.strengths import per_layer
from nncompress.search.neighbourhood import Neighbourhood
from nncompress.search.trial import Bounds


def effect(method, where, strength, error, saved):
    return Effect(method, where, strength, error, saved, saved, saved, "", "")


def test_steps_are_taken_by_error_per_saving_over_all_methods_together():
    effects = [
        effect("prune-nodes", "a", 0.5, 0.1, 0.2),
        effect("factorize", "b", 0.5, 0.3, 0.2),
        effect("quantize", "a", 8, 0.01, 0.3),
        effect("quantize", "a", 4, 0.02, 0.35),
        effect("quantize", "b", 8, 0.5, 0.3),
        effect("quantize", "c", 8, None, 0.3),  # could not be done
    ]
    methods = ("prune-nodes", "factorize", "quantize")
    assert per_layer(effects, 0.71, "bytes", methods)["quantize"] == {"a": 8}
    assert per_layer(effects, 0.66, "bytes", methods)["quantize"] == {"a": 4}
    chosen = per_layer(effects, 0.53, "bytes", methods)  # 0.65 · 0.8 are left
    assert chosen == {"prune-nodes": {"a": 0.5}, "factorize": {}, "quantize": {"a": 4}}
    assert per_layer(effects, 0.1, "bytes", methods)["quantize"] == {"a": 4, "b": 8}
    assert per_layer(effects, 0.9, "macs") == {"prune-nodes": {"a": 0.5}, "factorize": {}}


def timed(where, error, low, value):
    return replace(
        effect("factorize", where, 0.5, error, 0.3), time=Estimate(value, low, 2 * value - low, 0.95)
    )


def test_with_a_goal_of_latency_layers_are_chosen_by_the_time_that_they_save():
    """All save as many MACs; `a` loses least, and gains no time that its interval does not explain."""
    effects = [timed("a", 0.1, -0.01, 0.3), timed("b", 0.3, 0.25, 0.3), timed("c", 0.2, 0.05, 0.1)]
    assert per_layer(effects, 0.75, "macs")["factorize"] == {"a": 0.5}
    assert per_layer(effects, 0.75, "time")["factorize"] == {"b": 0.5}  # 0.09 / 0.3 is less than 0.04 / 0.1
    assert per_layer(effects, 0.3, "time")["factorize"] == {"b": 0.5, "c": 0.5}
    assert per_layer([effect("factorize", "d", 0.5, 0.1, 0.3)], 0.75, "time")["factorize"] == {}  # not timed
    found = {each.name: each for each in families(METHODS[:2], effects, "macs", by_time=True)}
    assert found["per layer"].recipe(0.75) == (Factorize(ratios=("b=0.5",)),)
    assert found["factorize"].recipe(0.75) == (Factorize(macs=0.75),)
    steps = [
        each[0].ratios for each in Neighbourhood((Factorize(ratios=("a=0.5", "b=0.5")),), effects).steps(True)
    ]
    assert steps.index(("a=0.5", "b=0.45")) < steps.index(("a=0.45", "b=0.5"))


def test_layers_stay_in_float_under_the_names_of_their_factors():
    effects = [effect("quantize", name, 8, error, 0.2) for name, error in
               (("conv", 0.5), ("conv1", 0.4), ("head", 0.3), ("stem", 0.0))]  # fmt: skip
    bits = Bits.of(effects)
    assert bits.worst == ("conv", "conv1", "head", "stem")
    assert bits.kept(0.5) == ("conv", "conv1*")  # "conv*" would be both
    assert bits.kept(0.5, (Factorize(ratios=("conv=0.5",)),)) == ("conv.*", "conv1*")
    assert bits.kept(1.0) == ("conv", "conv1*", "head*")  # one is quantized
    recipe = (PruneNodes(ratios=("g=0.5",)), Quantize(keep=("conv1*", "head*")))
    assert [next_ for next_ in Neighbourhood(recipe, effects).steps(True) if next_[0] == recipe[0]] == [
        (recipe[0], Quantize(keep=("conv1*",))),  # the head loses less
        (recipe[0], Quantize(keep=("head*",))),
    ]


def test_reduce_is_tried_where_there_are_nodes_and_ranks_to_choose_from():
    nodes, ranks = effect("prune-nodes", "g", 0.5, 0.1, 0.4), effect("factorize", "a", 0.5, 0.1, 0.3)
    found = {family.name: family for family in families(METHODS, [nodes, ranks], "params")}
    assert found["reduce"].recipe(0.4) == (Reduce(params=0.4),)
    assert found["reduce, int8"].recipe(0.4) == (Reduce(params=0.4), Quantize())
    for alone in (nodes, ranks):
        assert not any("reduce" in family.name for family in families([alone.method], [alone], "macs"))


def test_what_is_the_same_everywhere_needs_no_measurement_of_single_layers():
    names = {family.name for family in families(METHODS, (), "macs", blocks=3)}
    uniform = {"prune-nodes", "factorize", "prune-nodes and factorize", "reduce", "residual blocks left out"}
    assert names == uniform | {f"{name}, int8" for name in uniform} | {"int8"}


def test_int8_is_tried_where_it_serves_the_goal_only():
    effects = [effect("prune-nodes", "g", 0.5, 0.1, 0.4), effect("factorize", "a", 0.5, 0.1, 0.3)]
    assert not any("int8" in family.name for family in families(METHODS[:2], effects, "macs"))
    with_bits = [*effects, effect("quantize", "a", 8, 0.1, 0.3), effect("quantize", "b", 8, 0.2, 0.3)]
    by_size = {family.name for family in families(METHODS, with_bits, "params")}
    assert {"int8", "int8, the worst in float", "widths, ranks and bits per layer"} <= by_size
    four = {f.name: f for f in families(METHODS, with_bits, "params")}
    assert four["4 bits"].recipe(0.5) == (Quantize(weight_bits=4),)
    assert four["reduce, 4 bits"].recipe(0.4) == (Reduce(params=0.4), Quantize(weight_bits=4))
    assert "widths, ranks and bits per layer" not in {f.name for f in families(METHODS, with_bits, "macs")}


def slow(*names):
    times = dict.fromkeys("abc", Times(1.0, 0.5)) | dict.fromkeys(names, Times(1.0, 2.0))

    class Cut:
        def least(self, costs):
            found = {name for name, cost in costs.items() if cost.floats < cost.int8}
            return found, sum(min(cost.floats, cost.int8) for cost in costs.values())

    class Measured:
        layers = times

    return TimedLayers(tuple(times), Measured(), Cut())


def test_layers_that_are_slower_in_int8_stay_in_float_in_some():
    effects = [effect("prune-nodes", "g", 0.5, 0.1, 0.4), effect("quantize", "a", 8, 0.1, 0.3)]
    methods = ("prune-nodes", "quantize")
    found = {each.name: each for each in families(methods, effects, "macs", timed=slow("a", "b"))}
    left = Quantize(keep=("a*", "b*"))
    assert found["int8 where that is faster"].recipe(0.5) == (left,)
    both = found["prune-nodes, int8 where that is faster"].recipe(0.5)
    assert both == (PruneNodes(macs=0.5), left)
    assert not any("faster" in family.name for family in families(METHODS, effects, "macs"))
    assert not any("faster" in family.name for family in families(METHODS, effects, "macs", timed=slow()))


def test_whole_residual_blocks_are_left_out_and_the_rest_rounded():
    effects = [effect("quantize", "a", 8, 0.1, 0.3)]
    found = {family.name: family for family in families(["quantize"], effects, "macs", blocks=9)}
    assert found["residual blocks left out"].recipe(0.5) == (PruneNodes(drop_blocks=2),)
    assert found["residual blocks left out"].recipe(0.975) == (PruneNodes(drop_blocks=1),)
    assert found["residual blocks left out, int8"].recipe(0.1) == (PruneNodes(drop_blocks=7), Quantize())
    assert not any("blocks" in family.name for family in families(METHODS, effects, "macs"))


@pytest.mark.parametrize(
    ("ends_in", "admitted"), [(None, "fq"), ("float32", "f"), ("bfloat16", "f"), ("int8", "q")]
)
def test_a_result_runs_in_the_precision_that_was_asked_for(ends_in, admitted):
    recipes = {"f": (PruneNodes(macs=0.5),), "q": (PruneNodes(macs=0.5), Quantize())}
    bounds = Bounds(0.01, None, None, "macs", ends_in=ends_in)
    assert "".join(name for name, recipe in recipes.items() if bounds.admits(recipe)) == admitted


def test_families_that_nothing_is_known_of_come_first_and_then_those_that_reached_most():
    def family(name):
        return Family(name, lambda share: (PruneNodes(ratios=(f"{name}={share:g}",)),))

    searched, goals = [family(name) for name in "abc"], {}

    def known(recipe):
        return goals.get(recipe[0].ratios[0].partition("=")[0])

    def asked():
        found = untried(
            searched,
            lambda recipe: (
                known(recipe) is not None
                if recipe[0].ratios[0].endswith("=0.525") and known(recipe)
                else None
            ),
            lambda recipe: known(recipe) or inf,
        )
        return [(reached, recipe[0].ratios[0]) for reached, recipe in found]

    assert asked() == [(-inf, "a=0.525"), (-inf, "b=0.525"), (-inf, "c=0.525")]
    goals.update(a=0.5, c=0.3)
    assert asked() == [(-inf, "b=0.525"), (0.3, "c=0.3"), (0.5, "a=0.3")]


def test_widths_ranks_and_bits_together_can_be_carried_out(here):
    original = load_model("m.pt2")
    context = Context(data=dataset("val.npz", original), limit=128)
    effects = [
        effect("factorize", "0", 0.5, 0.01, 0.3),
        effect("quantize", "0", 8, 0.02, 0.5),
        effect("quantize", "2", 8, 0.03, 0.2),
        effect("quantize", "2", 4, 0.04, 0.25),
    ]
    recipe = Bits.of(effects).jointly(effects, 0.2)
    assert [each.name for each in recipe] == ["factorize", "quantize", "quantize"]
    _, steps = run(original, recipe, context)
    done = {change.where: change.what for step in steps for change in step.changes if change.applied}
    assert done["0.0"] == "int8 weights and activations"
    assert done["2"] == "weights of 4 bits and activations"
    assert all(step.changed for step in steps)


def test_int8_everywhere_is_tried_before_anything_else_where_it_serves_the_goal():
    """A search that is over after a few trials is to know it."""
    for unit in ("macs", "params"):
        first, *_ = untried(families(METHODS, (), unit, blocks=3), lambda recipe: None, lambda recipe: inf)
        assert first[1] == (Quantize(),)
    first, *_ = untried(families(METHODS[:2], (), "macs"), lambda recipe: None, lambda recipe: inf)
    assert first[1] == (PruneNodes(macs=0.525),)
