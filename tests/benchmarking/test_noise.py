from __future__ import annotations

import numpy as np
import pytest

from nncompress.benchmarking.machine import Meanwhile
from nncompress.benchmarking.measure import Measurement
from nncompress.benchmarking.noise import warnings
from nncompress.benchmarking.stats import latency, speedup
from nncompress.results import CandidateResult, Estimate, Samples

CALM = Estimate(1.3, 1.29, 1.31)


def candidate(name="a", *, wall=None, cpu=None, speedup=None, place=()):
    rng = np.random.default_rng(0)
    cpu = (rng.normal(1e6, 1e4, 300) if cpu is None else np.asarray(cpu)).astype(int)
    wall = cpu if wall is None else np.asarray(wall).astype(int)
    return CandidateResult(
        name=name,
        runtime="r",
        wall=latency(wall),
        cpu=latency(cpu),
        speedup=speedup,
        parity=None,
        samples=Samples(tuple(wall.tolist()), tuple(cpu.tolist()), tuple(place)),
    )


def of(other, wall_speedup=CALM, first=None):
    return warnings([first or candidate(), other], [None, wall_speedup])


def test_a_quiet_run_has_no_warnings():
    assert of(candidate("b", speedup=CALM)) == ()


def test_too_noisy_to_tell():
    (text,) = of(candidate("b", speedup=Estimate(1.05, 0.9, 1.2)), Estimate(1.05, 0.9, 1.2))
    assert "too noisy to tell whether b is faster than a" in text
    assert "between 0.90 and 1.20" in text
    assert "--time" in text
    (text,) = of(candidate("b", speedup=Estimate(2, 1.5, 2.5)), Estimate(2, 1.5, 2.5))
    assert "noisy" in text
    assert "to tell" not in text


def test_clocks_that_disagree_are_told():
    (text,) = of(candidate("b", speedup=Estimate(1.6, 1.58, 1.62)), Estimate(2.85, 2.8, 2.9))
    assert "clocks disagree on b: 1.60x" in text
    assert "2.85x by the wall" in text


def test_time_that_others_took():
    calls = np.full(300, 1e6)
    (text,) = of(candidate("b", cpu=calls, wall=calls * 1.5, speedup=CALM))
    assert "a call of b took 50 % longer by the wall clock" in text


@pytest.mark.parametrize(("end", "word"), [(1.3, "slower"), (0.7, "faster")])
def test_clocks_that_drift_are_said(end, word):
    drift = 1e6 * np.linspace(1, end, 300)
    (text,) = of(candidate("b", cpu=drift, speedup=CALM), first=candidate("a", cpu=drift))
    assert word in text
    assert "throttled" in text


def test_a_heavy_tail_of_calls_is_said():
    calls = np.full(300, 1e6)
    calls[::30] = 9e6
    (text,) = of(candidate("b", cpu=calls, speedup=CALM))
    assert "1 % of the calls of b" in text


class Waking:
    """A machine on which the first call of every round takes longer, and its clock."""

    shortest_sample_ns = 200_000

    def __init__(self, rng, slower):
        self.now, self.rng, self.slower, self.calls = 0, rng, slower, 0

    def wall(self):
        return self.now

    cpu = wall

    def call(self):
        first = self.calls % 2 == 0
        self.calls += 1
        self.now += int(1e9 * (self.slower if first else 1.0) * (1 + 0.01 * self.rng.standard_normal()))


def two_sessions_on(machine):
    """The same work twice, as two candidates, measured as `bench` does."""
    sessions = []
    for seed in range(8):
        measurement = Measurement([machine.call, machine.call], clock=machine, seed=seed)
        for _ in range(40):
            measurement.round()
        sessions.append(measurement.times)
    a, b = ([session[i].wall_ns for session in sessions] for i in (0, 1))
    return [
        candidate(
            name, cpu=np.concatenate(times), speedup=ratio, place=[p for s in sessions for p in s[i].place]
        )
        for i, (name, times, ratio) in enumerate((("a", a, None), ("b", b, speedup(a, b))))
    ]


@pytest.mark.parametrize("slower", [1.0, 1.3])
def test_an_arm_that_is_slower_only_for_being_first(slower):
    """The random order keeps the ratio at 1, and the effect is told."""
    first, other = two_sessions_on(Waking(np.random.default_rng(0), slower))
    assert 1.0 in other.speedup
    found = [text for text in warnings([first, other], [None, other.speedup]) if "first of its round" in text]
    if slower == 1.0:
        assert found == []
    else:
        (text,) = found
        assert "30 % longer" in text or "31 % longer" in text or "29 % longer" in text
        assert "ratios hold" in text.replace("\n", " ")


def test_an_arm_that_was_slow_in_the_first_session_only():
    rng = np.random.default_rng(1)
    steady, early = (rng.normal(1e6, 1e4, 240) for _ in range(2))
    early[:30] *= 1.4
    sessions = {"rounds_per_session": [30] * 8}
    candidates = [candidate("a", cpu=steady), candidate("b", cpu=early, speedup=CALM)]
    (text,) = warnings(candidates, [None, CALM], **sessions)
    assert "b was at least" in text
    assert "slower for being early" in text
    everyone = [
        candidate("a", cpu=early),
        candidate("b", cpu=early, speedup=CALM),
    ]  # the machine's start, not a candidate's
    assert warnings(everyone, [None, CALM], **sessions) == ()
    spread = [candidate("a", cpu=steady), candidate("b", cpu=early[::-1], speedup=CALM)]  # the last session
    assert warnings(spread, [None, CALM], **sessions) == ()


def test_what_the_machine_counted():
    quiet, other = candidate("a"), candidate("b", speedup=CALM)

    def said(meanwhile, **more):
        return warnings([quiet, other], [None, CALM], meanwhile=meanwhile, **more)

    assert said(Meanwhile(0.4, 0), cores=2) == ()
    assert said(Meanwhile(None, None), cores=None) == ()
    (text,) = said(Meanwhile(1.6, 0), cores=2)
    assert "other programs kept 1.6 cores busy" in text
    (text,) = said(Meanwhile(0.0, 3), cores=2)
    assert "throttled for heat 3 times" in text
    (text,) = said(Meanwhile(0.0, 0), gpu_throttled=True)
    assert "the GPU held its clock down" in text
    (text,) = said(Meanwhile(0.0, 0), cores=2, threads=4)
    assert "4 threads on 2 cores" in text
