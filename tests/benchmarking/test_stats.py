"""The statistics on synthetic timings whose truth is known: no test here looks at a real clock."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats as scipy_stats

from nncompress.analysis.intervals import student_t
from nncompress.benchmarking.stats import latency, precision, slowdown, speedup, typical

TRIALS = 200
MS = 1e6


def timings(rng, *, ratio=1.0, sessions=8, rounds=60, session_spread=0.01, drift=0.0, neighbour=0.0):
    """Two candidates' times per session [ns]: the second `ratio` times as fast as the first.

    Args:
        session_spread: standard deviation of what each opening does to an artifact's speed for good.
        drift: how much slower both are at the end than at the beginning.
        neighbour: a program that comes periodically and makes whichever call it meets that much slower.
    """
    first, other = [], []
    for s in range(sessions):
        progress = (s + np.linspace(0, 1, rounds)) / sessions
        common = 10 * MS * (1 + drift * progress)
        phase = rng.uniform(0, 7)
        for candidate, speed in ((first, 1.0), (other, ratio)):
            moment = np.arange(rounds) * 2 + rng.integers(0, 2, rounds)  # the random order within a round
            met = ((moment + phase) % 7) < 2
            noise = rng.normal(0, 0.02, rounds) + rng.exponential(0.02, rounds)
            opening = math.exp(rng.normal(0, session_spread))
            candidate.append(
                (common * opening * (1 + noise) * (1 + neighbour * met) / speed).astype(np.int64)
            )
    return first, other


SITUATIONS = {
    "quiet": {},
    "no spread between sessions": {"session_spread": 0.0},
    "openings differ by 4 %": {"session_spread": 0.04},
    "drift of 50 %": {"drift": 0.5},
    "periodic neighbour": {"neighbour": 1.0},
    "few sessions": {"sessions": 3},
    "few rounds": {"rounds": 5},
    "all at once": {"drift": 0.5, "neighbour": 1.0, "session_spread": 0.04},
}


@pytest.mark.parametrize("situation", SITUATIONS.values(), ids=SITUATIONS)
@pytest.mark.parametrize("ratio", [1.0, 1.3])
def test_the_interval_contains_the_truth(situation, ratio):
    """A 95 % interval contains the true ratio in >= 90 % of trials: 1 in an A/A run, 1.3 in an A/B run."""
    rng = np.random.default_rng(1)
    estimates = [speedup(*timings(rng, ratio=ratio, **situation)) for _ in range(TRIALS)]
    assert np.mean([ratio in e for e in estimates]) >= 0.90
    assert np.median([e.value for e in estimates]) == pytest.approx(ratio, rel=0.01)  # and without bias


@pytest.mark.parametrize("situation", ["quiet", "drift of 50 %", "periodic neighbour", "few rounds"])
def test_a_faster_arm_is_found(situation):
    rng = np.random.default_rng(2)
    estimates = [speedup(*timings(rng, ratio=1.3, **SITUATIONS[situation])) for _ in range(TRIALS)]
    assert np.mean([e.low > 1 for e in estimates]) >= 0.95


def test_swapping_the_arms_inverts_the_ratio():
    first, other = timings(np.random.default_rng(3), ratio=1.7)
    forth, back = speedup(first, other), speedup(other, first)
    assert forth.value == pytest.approx(1 / back.value)
    assert (forth.low, forth.high) == pytest.approx((1 / back.high, 1 / back.low))


def test_no_interval_pretends_to_resolve_less_than_a_tenth_of_a_percent():
    estimate = speedup([[1000, 1000]] * 3, [[1000, 1000]] * 3)
    assert (estimate.low, estimate.value, estimate.high) == pytest.approx((0.999, 1.0, 1.001), abs=1e-6)


def test_one_session_is_bootstrapped_with_its_seed():
    """Where openings do not differ, the bootstrap over the rounds of one session covers too."""
    rng = np.random.default_rng(4)
    runs = [timings(rng, sessions=1, session_spread=0.0) for _ in range(TRIALS)]
    assert np.mean([1.0 in speedup(*run) for run in runs]) >= 0.90
    assert speedup(*runs[0], seed=5) == speedup(*runs[0], seed=5)


def test_one_session_cannot_see_what_openings_do():
    """Why there are several: what an opening does is constant within it, so its interval is too narrow."""
    rng = np.random.default_rng(5)
    runs = [timings(rng, sessions=1, session_spread=0.01) for _ in range(TRIALS)]
    assert np.mean([1.0 in speedup(*run) for run in runs]) < 0.70


def test_sessions_that_do_not_match_are_an_error():
    with pytest.raises(ValueError, match="zip"):
        speedup([[1, 2]], [[1, 2], [1, 2]])


def test_student_t_quantiles_for_every_number_of_sessions():
    freedoms = np.array([*range(1, 130), 500, 1001])
    for confidence in (0.5, 0.95, 0.999):
        ours = [student_t(int(freedom), confidence) for freedom in freedoms]
        np.testing.assert_allclose(ours, scipy_stats.t.ppf((1 + confidence) / 2, freedoms), rtol=1e-9)


@pytest.mark.parametrize("sessions", [2, 21, 60])
def test_with_one_round_a_session_the_interval_is_student_s(sessions):
    """Which is exact where logarithms are normal, however many sessions there are."""
    for logs in np.random.default_rng().normal(0.1, 0.5, (5, sessions)):
        estimate = speedup(1e9 * np.exp(logs[:, None]), np.full((sessions, 1), 1e9))
        reference = scipy_stats.ttest_1samp(logs, 0).confidence_interval(0.95)
        assert (math.log(estimate.low), math.log(estimate.high)) == pytest.approx(reference, rel=1e-6)


def test_percentiles_are_those_of_sorted_times():
    times = np.random.default_rng().integers(1_000, 9_000_000, 1001)
    result = latency(times)
    seconds = np.sort(times) / 1e9
    assert result.median == seconds[500]
    assert result.p90 == seconds[900]
    assert result.p99 == seconds[990]
    assert result.mad == pytest.approx(np.median(np.abs(seconds - seconds[500])))


def test_stopping_when_the_interval_is_narrow_keeps_its_promise():
    """Sessions are added until the ratio is known to 0.5 %: some 93.5 % of intervals cover 1, not 95 %."""
    rng = np.random.default_rng(6)
    covered, sessions = [], []
    for _ in range(400):
        first, other = (np.exp(rng.normal(0, 0.007, (60, 1))) * 10 * MS for _ in range(2))
        count = 8
        while count < 60 and precision(speedup(first[:count], other[:count])) > 0.005:
            count += 1
        covered.append(1.0 in speedup(first[:count], other[:count]))
        sessions.append(count)
    assert np.mean(covered) >= 0.90
    assert 8 < np.median(sessions) < 60  # it did stop, and not at once


def test_intervals_of_the_typical_latency_hold_it():
    estimate = typical([[1_000_000, 2_000_000, 3_000_000], [2_000_000] * 5])
    assert estimate.value == pytest.approx(2e-3)
    rng = np.random.default_rng(7)
    estimates = [typical(timings(rng, session_spread=0.03)[0]) for _ in range(TRIALS)]
    truth = np.exp(np.mean([np.log(e.value) for e in estimates]))
    assert np.mean([truth in e for e in estimates]) >= 0.90


def test_slowdown_is_welch_s_interval():
    rng = np.random.default_rng(8)
    then, now = np.exp(rng.normal(0, 0.02, 8)), np.exp(rng.normal(0.1, 0.05, 5))
    estimate = slowdown(then, now)
    reference = scipy_stats.ttest_ind(np.log(now), np.log(then), equal_var=False)
    interval = reference.confidence_interval(0.95)
    assert math.log(estimate.value) == pytest.approx(np.log(now).mean() - np.log(then).mean())
    # Degrees of freedom are rounded down: wider, by a little.
    assert math.log(estimate.low) == pytest.approx(interval.low, abs=2e-3)
    assert math.log(estimate.low) <= interval.low
    assert math.log(estimate.high) >= interval.high


def test_slowdown_of_the_same_thing_covers_one():
    rng = np.random.default_rng(9)
    runs = [np.exp(rng.normal(0, 0.02, (2, 8))) for _ in range(1000)]
    assert np.mean([1.0 in slowdown(*run) for run in runs]) >= 0.93
    assert 1.0 in slowdown([1.0] * 3, [1.0] * 3)
