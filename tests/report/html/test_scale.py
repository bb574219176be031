"""Axes: every number has a place, the ticks are round."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nncompress.report.html.plots.scale import scale

NUMBERS = st.floats(-1e12, 1e12, allow_subnormal=False).filter(lambda x: x == 0 or abs(x) > 1e-12)


@given(st.lists(NUMBERS, max_size=20), st.booleans(), st.booleans())
def test_every_number_has_a_place_between_the_ends(values, log, zero):
    found = scale(values, 10, 110, log=log, zero=zero)
    assert 1 <= len(found.ticks) <= 14
    for value in values:
        assert 10 <= found.at(value) <= 110
    places = [found.at(tick) for tick in found.ticks]
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0, 97], (0, 20, 40, 60, 80, 100)),
        ([3, 3], (2.7, 3.3)),
        ([0.5, 0.9], (0.5, 0.6, 0.7, 0.8, 0.9)),
        ([], (0, 0.2, 0.4, 0.6, 0.8, 1)),
    ],
)
def test_ticks_are_round_and_hold_all(values, ticks):
    found = scale(values, 0, 1).ticks
    assert found[0] == pytest.approx(ticks[0], rel=0.1)
    assert found[-1] == pytest.approx(ticks[-1], rel=0.1)


def test_no_share_is_above_all_of_it():
    assert max(scale([0.998, 0.998], 0, 1, share=True).ticks) == pytest.approx(1)
    assert max(scale([0.2, 1.4], 0, 1, share=True).ticks) > 1


def test_counts_have_no_ticks_between_them():
    assert scale([1, 3], 0, 1, whole=True).ticks == (1, 2, 3)
    assert scale([0, 6], 0, 1, whole=True).ticks == (0, 2, 4, 6)


def test_by_powers_of_ten():
    found = scale([0.002, 30], 0, 5, log=True)
    assert found.ticks == pytest.approx((1e-3, 1e-2, 1e-1, 1, 10, 100))
    assert found.at(0) == 0
    assert found.at(0.1) == 2


@pytest.mark.parametrize("values", [[1e-3, 1e100], [-1e100, 1e100], [0, 5e-324], [1e-320, 1e-310]])
@pytest.mark.parametrize("log", [False, True])
def test_numbers_at_the_ends_of_floats_have_a_place(values, log):
    found = scale(values, 0, 100, log=log)
    assert all(0 <= found.at(value) <= 100 for value in values)
    assert len(found.ticks) < 20
