"""When families go on, and when what is near the best of them is tried."""

import pytest

from nncompress.passes import PruneNodes, Quantize
from nncompress.search.candidates import Family, recipe_key
from nncompress.search.proposals import Proposals
from nncompress.search.trial import Bounds

NEAR = (PruneNodes(macs=0.11),)


class Holds:
    """A judge whose bound is held by recipes that leave at least this share."""

    def __init__(self, least, bounds):
        self.least, self.bounds = least, bounds

    def holds(self, row):
        return "share" in row and row["share"] >= self.least

    def within(self, row):
        return True

    def goal(self, row):
        return row["share"]


class Near:
    def recipes(self, best, rows):
        return [NEAR] if recipe_key(NEAR) not in rows else []


def tried(*recipes):
    return {recipe_key(each): (each, {"share": each[0].macs}) for each in recipes}


def of_macs(*after):
    return Family("prune-nodes", lambda share: (PruneNodes(macs=share), *after))


def searched(least=0.4, ends_in=None):
    bounds = Bounds(0.01, None, None, "macs", ends_in=ends_in)
    return Proposals(Holds(least, bounds), [of_macs(), of_macs(Quantize())], Near())


def test_nothing_is_near_the_best_before_the_family_that_leads_is_settled():
    proposals, rows, order = searched(), {}, []
    for _ in range(40):
        held = [key for key, (_, row) in rows.items() if row["share"] >= 0.4]
        best = min(held, key=lambda key: rows[key][1]["share"], default=None)
        recipes = proposals.next(rows, best)
        if not recipes:
            break
        order.append(recipes[0])
        rows |= tried(recipes[0])
    assert order.index(NEAR) > order.index((PruneNodes(macs=0.4),))  # bisection comes to the bound first
    assert (PruneNodes(macs=0.4), Quantize()) in order  # and nothing that is behind is given up
    assert not recipes


@pytest.mark.parametrize(("more", "near"), [(0, False), (1, True), (2, True), (3, False)])
def test_one_trial_of_three_goes_to_the_families_behind(more, near):
    bounds = Bounds(0.01, None, None, "macs")
    proposals = Proposals(Holds(0.4, bounds), [of_macs(Quantize())], Near())
    best = (PruneNodes(macs=0.4),)
    behind = (PruneNodes(macs=0.525), Quantize())
    rows = tried(best, behind, *[(PruneNodes(macs=0.2 + i / 100),) for i in range(1 + more)])
    assert (proposals.next(rows, recipe_key(best))[0] == NEAR) == near


def test_without_a_best_families_go_on_and_others_than_asked_for_are_left_out():
    assert searched().next({}, None) == [(PruneNodes(macs=0.525),), (PruneNodes(macs=0.525), Quantize())]
    assert searched(ends_in="int8").next({}, None) == [(PruneNodes(macs=0.525), Quantize())]


@pytest.mark.parametrize(("ends_in", "least"), [("int8", 0.6), ("float32", 0.725)])
def test_a_family_whose_recipes_round_from_some_share_on_is_bisected_in_the_part_that_is_wanted(
    ends_in, least
):
    def recipe(share):
        cut = (PruneNodes(macs=share),)
        return cut if share > 0.7 else (*cut, Quantize())

    bounds = Bounds(0.01, None, None, "macs", ends_in=ends_in)
    proposals, rows = Proposals(Holds(0.6, bounds), [Family("by time", recipe)]), {}
    while recipes := proposals.next(rows, None):
        assert all(map(bounds.admits, recipes))
        rows |= tried(recipes[0])
    assert min(row["share"] for _, row in rows.values() if row["share"] >= 0.6) == least
