"""Sessions of artifacts that take as long as they are told."""

from __future__ import annotations

import numpy as np
import pytest

from nncompress.benchmarking import sessions
from nncompress.benchmarking.measure import CandidateTimes, Measurement
from nncompress.benchmarking.sessions import Candidate, Plan, measure_sessions, widest
from nncompress.progress import NullProgress

ROUNDS = Plan(1.0, rounds=12, sessions=4)


@pytest.fixture
def opened(monkeypatch):
    """The names of what was opened; every call counts, and may raise."""
    log = {"opened": [], "calls": 0, "interrupt_at": None}

    class Runner:
        def bind(self, *inputs):
            def call():
                log["calls"] += 1
                if log["calls"] == log["interrupt_at"]:
                    raise KeyboardInterrupt

            return call

    def open_artifact(artifact, threads, **how):
        log["opened"].append(artifact)
        return Runner()

    monkeypatch.setattr(sessions, "open_artifact", open_artifact)
    monkeypatch.setattr(sessions.gc, "collect", lambda: 0)  # nothing here is worth the time that it takes
    monkeypatch.setattr(Measurement, "warm_up", lambda self: (0, True))
    monkeypatch.setattr(sessions, "inputs_for", lambda runner, inputs, name: inputs)
    return log


def run(plan, candidates="ab"):
    return measure_sessions(
        [Candidate(a, a) for a in candidates], (np.zeros(1),), 1, plan, seed=0, progress=NullProgress()
    )


def test_every_order_of_opening_is_followed_by_its_reverse(opened):
    measured = run(ROUNDS, "abc")
    orders = [opened["opened"][i : i + 3] for i in range(0, 12, 3)]
    assert orders[1] == orders[0][::-1]
    assert orders[3] == orders[2][::-1]
    assert [len(session[0].wall_ns) for session in measured.times] == [3] * 4
    assert [len(each) for each in measured.load_s] == [4] * 3


def test_an_interrupt_keeps_whole_rounds(opened):
    """Wherever it strikes, all candidates have the same rounds, or there is nothing and it is passed on."""
    run(ROUNDS)
    assert opened["calls"] == 24  # 4 sessions of 3 rounds of 2 candidates
    for at in range(1, 25, 3):
        opened.update(calls=0, interrupt_at=at)
        whole = (at - 1) // 2
        if not whole:
            with pytest.raises(KeyboardInterrupt):
                run(ROUNDS)
            continue
        measured = run(ROUNDS)
        assert measured.interrupted
        assert "interrupted after" in measured.warnings[0]
        for candidate in (0, 1):
            for kept in ("wall_ns", "cpu_ns", "place"):
                assert sum(len(getattr(session[candidate], kept)) for session in measured.times) == whole


def test_without_an_interrupt_nothing_is_said_of_one(opened):
    measured = run(ROUNDS)
    assert not measured.interrupted
    assert not any("interrupted" in text for text in measured.warnings)


def times(spread, count):
    """Sessions of two candidates whose ratio differs by `spread` from session to session."""
    rng = np.random.default_rng(0)
    made = []
    for _ in range(count):
        away = np.exp(rng.normal(0, spread))
        made.append(
            [CandidateTimes([10**6] * 9, [10**6] * 9), CandidateTimes([int(10**6 * away)] * 9, [0] * 9)]
        )
    return made


def test_how_widely_a_ratio_is_known():
    assert widest(times(0.0, 8), by_cpu=False) == pytest.approx(0.001, abs=1e-5)
    assert widest(times(0.05, 8), by_cpu=False) > 3 * widest(times(0.05, 200), by_cpu=False)
    assert widest([session[:1] for session in times(0.0, 8)], by_cpu=True) == pytest.approx(0.001, abs=1e-5)


def test_a_target_adds_sessions_until_it_is_met_or_time_is_up():
    plan = Plan(10.0, rounds=None, sessions=8, target_error=0.01)
    enough = sessions._enough
    assert not enough(times(0.0, 7), plan, 1.0, False)  # never fewer than without a target
    assert enough(times(0.0, 8), plan, 1.0, False)
    assert not enough(times(0.05, 8), plan, 99.0, False)
    assert enough(times(0.05, 400), plan, 99.0, False)
    assert enough(times(0.05, 8), plan, 100.1, False)


def test_a_target_that_was_missed_is_said(opened, monkeypatch):
    monkeypatch.setattr(sessions, "widest", lambda times, by_cpu: 0.034)
    measured = run(Plan(1.0, rounds=4, sessions=2, target_error=0.01))
    assert "still ±3.4 % and not ±1 %" in measured.warnings[-1]
