"""Widths, ranks and precisions of all layers for a time: against every choice that there is."""

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from torch import nn

from nncompress.analysis.int8_cut import Int8Cut, Times
from nncompress.ir import Model
from nncompress.ir.layers.weights import layers
from nncompress.passes import Factorize, PruneNodes, Quantize
from nncompress.passes.quantize.by_clock import TimedLayers
from nncompress.results import Estimate
from nncompress.search.candidates import families
from nncompress.search.layers.by_time import ByTime, with_time
from nncompress.search.layers.sensitivity import METHODS, Effect
from nncompress.search.neighbourhood import Neighbourhood

NAMES = ("0", "2", "4")
CONVERSION = Times(floats=0.3, int8=0.4)


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    return Model.from_module(
        nn.Sequential(
            nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 1)
        ).eval(),
        (torch.randn(2, 3, 4, 4),),
    )


class Measured:
    def __init__(self, full, half):
        self.layers, self.halved = full, half.get


def timed(net, full, half):
    cut = Int8Cut(net, list(layers(net)), lambda value: CONVERSION)
    return TimedLayers(NAMES, Measured(full, half), cut)


def effect(method, where, strength, error, saved=None):
    time = None if saved is None else Estimate(saved, saved, saved)
    return Effect(method, where, strength, error, 0.1, 0.1, 0.1, "", "", time=time)


def drawn(seed):
    """Seconds of three layers in float and in int8, and what each bears, at random."""
    generator = np.random.default_rng(seed)
    full, half, effects = {}, {}, []
    for name in NAMES:
        floats, int8 = generator.uniform(1, 3), generator.uniform(0.3, 3)
        full[name] = Times(floats, int8)
        half[name] = Times(floats * generator.uniform(0.4, 0.9), int8 * generator.uniform(0.4, 1))
        effects.append(effect("quantize", name, 8, generator.uniform(0.01, 0.1)))
    total = sum(times.floats for times in full.values())
    for name in NAMES:
        share = full[name].floats / total
        for strength in (0.25, 0.5):
            loses = generator.uniform(0.05, 0.4, 2) * strength
            effects.append(effect("prune-nodes", name, strength, loses[0], share * strength * 0.8))
            effects.append(effect("factorize", name, 1 - strength, loses[1], share * strength / 2))
    return full, half, effects


def seconds_and_error(full, half, effects, in_float, strengths):
    """Of one choice, added up by hand. All that is read and made between two convolutions is one value."""
    total = sum(times.floats for times in full.values())
    error = seconds = 0.0
    for name in NAMES:
        few, low = strengths[name]
        of = {(e.method, e.strength): e for e in effects if e.where == name}
        nodes, ranks = of.get(("prune-nodes", few)), of.get(("factorize", low))
        saved = 0.0 if nodes is None else nodes.time.value
        saved += 0.0 if ranks is None else ranks.time.value * (1 if nodes is None else 1 - few)
        error += sum(e.error**2 for e in (nodes, ranks) if e is not None)
        if name in in_float:
            seconds += full[name].floats - saved * total
        else:
            error += of["quantize", 8].error ** 2
            narrower = (full[name].int8 - half[name].int8) / (full[name].floats - half[name].floats)
            narrower = min(narrower, max(1, full[name].int8 / full[name].floats))
            seconds += full[name].int8 - saved * total * narrower
    int8 = [name not in in_float for name in NAMES]
    # rounded are the input for the first, and what a float layer gives to one in int8; a convolution in int8
    # gives bytes, which are turned back for whoever reads floats, the end included
    seconds += CONVERSION.int8 * sum(now and not before for before, now in zip([False, *int8], int8))
    seconds += CONVERSION.floats * sum(now and not after for now, after in zip(int8, [*int8[1:], False]))
    return seconds, error


@pytest.mark.parametrize("seed", range(6))
def test_no_choice_of_all_is_faster_at_as_little_error(net, seed):
    full, half, effects = drawn(seed)
    choices = ByTime(timed(net, full, half), effects)
    total = sum(times.floats for times in full.values())
    options = list(product((None, 0.25, 0.5), (None, 0.75, 0.5)))
    every = [
        seconds_and_error(full, half, effects, in_float, dict(zip(NAMES, each)))
        for each in product(options, repeat=3)
        for in_float in (
            {name for name, left in zip(NAMES, which) if left} for which in product((0, 1), repeat=3)
        )
    ]
    fastest, last = min(seconds for seconds, _ in every), None
    kinds = set()
    for share in (0.9, 0.75, 0.6, 0.5, 0.4, 0.3, 0.2):
        found = choices.choice(share)
        kinds.add((len(found.in_float), *(len(found.strengths[method]) for method in found.strengths)))
        given = {
            name: (found.strengths["prune-nodes"].get(name), found.strengths["factorize"].get(name))
            for name in NAMES
        }
        by_hand = seconds_and_error(full, half, effects, found.in_float, given)
        assert by_hand == pytest.approx((found.seconds, found.error))
        assert found.seconds <= max(share * total, fastest) * (1 + 1e-9)
        assert not any(
            seconds <= found.seconds * (1 - 1e-9) and error <= found.error * (1 - 1e-9)
            for seconds, error in every
        )
        assert last is None or found.error >= last.error  # what is faster loses more
        last = found
    assert len(kinds) > 2


def test_a_layer_that_bears_int8_worst_for_its_time_stays_in_float(net):
    full = dict.fromkeys(NAMES, Times(2.0, 0.5))
    effects = [effect("quantize", name, 8, 0.3 if name == "4" else 0.01) for name in NAMES]
    bits = ByTime(timed(net, full, {}), effects)
    assert bits.choice(0.7).in_float == {"4"}
    assert bits.choice(0.1).in_float == set()


def test_what_int8_does_not_gain_by_width_is_not_made_narrower(net):
    """In int8 half the outputs take as long, in float half as long: so nodes go where floats stay."""
    full = dict.fromkeys(NAMES, Times(2.0, 1.0))
    half = dict.fromkeys(NAMES, Times(1.0, 1.0))
    effects = [effect("quantize", name, 8, 0.9 if name == "0" else 0.01) for name in NAMES]
    effects += [effect("prune-nodes", name, 0.5, 0.05, 1 / 6) for name in NAMES]
    found = ByTime(timed(net, full, half), effects).choice(0.7)
    assert found.in_float == {"0"}
    assert found.strengths == {"prune-nodes": {"0": 0.5}, "factorize": {}}


def test_the_recipe_of_a_choice_and_what_is_near_it(net):
    full = {"0": Times(2.0, 1.0), "2": Times(2.0, 0.5), "4": Times(2.0, 1.8)}
    half = dict.fromkeys(NAMES, Times(1.0, 0.4))
    effects = [effect("quantize", name, 8, 0.5 if name == "4" else 0.01) for name in NAMES]
    effects += [effect("factorize", "4", 0.5, 0.02, 1 / 6), effect("prune-nodes", "2", 0.5, 0.3, 1 / 6)]
    layered = timed(net, full, half)
    found = {each.name: each for each in families(METHODS, effects, "macs", by_time=True, timed=layered)}
    recipe = found["widths, ranks and int8 by time"].recipe(0.6)
    assert recipe == (Factorize(ratios=("4=0.5",)), Quantize(keep=("4*",)))
    assert found["int8 by time"].recipe(0.9) == (Quantize(keep=("4*",)),)
    assert not any("by time" in name for name in (f.name for f in families(METHODS, effects, "macs")))

    by_time = with_time(effects, layered)
    assert [e.time.value for e in by_time[:3]] == pytest.approx([1 / 6, 1.5 / 6, 0.2 / 6])
    middle = (PruneNodes(ratios=("2=0.5",)), Quantize(keep=("0*", "4*")))
    rounded = [
        each[-1].keep for each in Neighbourhood(middle, by_time).steps(True) if each[:-1] == middle[:-1]
    ]
    assert rounded == [("4*",), ("0*",)]  # the first saves more and loses less
    one = replace(by_time[0], time=Estimate(-0.1, -0.1, -0.1))  # slower in int8: last, whatever it loses
    rounded = [
        each[-1].keep
        for each in Neighbourhood(middle, (one, *by_time[1:])).steps(True)
        if each[:-1] == middle[:-1]
    ]
    assert rounded == [("0*",), ("4*",)]


def test_layers_that_were_not_measured_are_as_bad_in_int8_as_others(net):
    full = dict.fromkeys(NAMES, Times(2.0, 0.5))
    effects = [effect("quantize", "0", 8, 0.3), effect("quantize", "2", 8, 0.01)]
    assert ByTime(timed(net, full, {}), effects).choice(0.7).in_float == {"0"}
    assert ByTime(timed(net, full, {}), effects[1:]).choice(0.1).in_float == set()


def test_what_ends_in_no_numbers_is_left_alone(net):
    full = dict.fromkeys(NAMES, Times(2.0, 0.5))
    effects = [effect("quantize", name, 8, float("inf") if name == "2" else 0.01) for name in NAMES]
    effects.append(effect("prune-nodes", "0", 0.5, float("inf"), 1 / 6))
    found = ByTime(timed(net, full, dict.fromkeys(NAMES, Times(1.0, 0.2))), effects).choice(0.8)
    assert found.in_float == {"2"}
    assert found.strengths == {"prune-nodes": {}, "factorize": {}}
    assert found.error == pytest.approx(2e-4)


def test_a_layer_without_times_costs_its_rounding(net):
    full = {"0": Times(2.0, 0.5), "4": Times(2.0, 0.5)}
    effects = [effect("quantize", name, 8, 5.0 if name == "2" else 0.01) for name in NAMES]
    assert ByTime(timed(net, full, {}), effects).choice(0.6).in_float == {"2"}


def test_what_saves_little_in_float_saves_no_more_in_int8(net):
    """The half takes as long in float: a quotient of what two clocks differ by would be a hundred."""
    full, half = dict.fromkeys(NAMES, Times(1.0, 0.5)), dict.fromkeys(NAMES, Times(0.999, 0.4))
    effects = [effect("quantize", name, 8, 0.01) for name in NAMES]
    effects += [effect("prune-nodes", "0", 0.5, 0.3, 0.01), effect("prune-nodes", "0#2", 0.5, 0.3, 0.3)]
    found = ByTime(timed(net, full, half), effects).choice(0.0)
    assert found.strengths["prune-nodes"] == {"0": 0.5, "0#2": 0.5}
    assert found.seconds == pytest.approx(1.5 + 0.4 + 0.3 - 0.03 - 0.9 / 2)  # and two conversions


@pytest.mark.parametrize("measured", [NAMES, NAMES[:2], NAMES[1:]])
def test_near_what_is_chosen_by_time_every_layer_may_move(net, measured):
    """Those that were not measured, too: they are left in float or rounded as any other."""
    full = {"0": Times(1.0, 2.0), "2": Times(2.0, 0.5), "4": Times(2.0, 3.0)}
    layered = timed(net, full, {})
    effects = with_time([effect("quantize", name, 8, 0.1) for name in measured], layered)
    assert {e.where for e in effects} == set(NAMES)
    found = {each.name: each for each in families(("quantize",), effects, "macs", True, layered)}
    recipe = found["int8 by time"].recipe(0.1)
    assert recipe == found["int8 where that is faster"].recipe(0.1) == (Quantize(keep=("0*", "4*")),)
    assert {step[0].keep for step in Neighbourhood(recipe, effects).steps(True)} == {("0*",), ("4*",)}


def test_a_layer_that_int8_times_do_not_name_is_not_left_in_float_with_another(net):
    """`dec_up` is stored in 8 bits and computes in float: "dec*" would be both."""
    cut = Int8Cut(net, [], lambda value: CONVERSION)
    layered = TimedLayers(("dec",), Measured({"dec": Times(1.0, 2.0)}, {}), cut)
    effects = [effect("quantize", name, 8, 0.1) for name in ("dec", "dec_up")]
    layered.cut.least = lambda costs: ({"dec"}, 1.0)
    found = {each.name: each for each in families(("quantize",), effects, "macs", True, layered)}
    assert found["int8 where that is faster"].recipe(0.5) == (Quantize(keep=("dec",)),)


def test_near_a_recipe_that_leaves_an_unmeasured_layer_in_float_nothing_is_known():
    effects = [effect("quantize", "0", 8, 0.1)]
    near = Neighbourhood((Quantize(keep=("2*",)),), effects)
    assert list(near.steps(True)) == list(near.steps(False)) == []
