from __future__ import annotations

import numpy as np
import pytest

from nncompress.bench.noise import warnings
from nncompress.bench.stats import latency
from nncompress.results import ArmResult, Estimate, Samples

CALM = Estimate(1.3, 1.29, 1.31)


def arm(name="a", *, wall=None, cpu=None, speedup=None):
    rng = np.random.default_rng(0)
    cpu = (rng.normal(1e6, 1e4, 300) if cpu is None else np.asarray(cpu)).astype(int)
    wall = cpu if wall is None else np.asarray(wall).astype(int)
    return ArmResult(
        name=name,
        runtime="r",
        wall=latency(wall),
        cpu=latency(cpu),
        speedup=speedup,
        parity=None,
        samples=Samples(tuple(wall.tolist()), tuple(cpu.tolist())),
    )


def of(other, wall_speedup=CALM, first=None):
    return warnings([first or arm(), other], [None, wall_speedup])


def test_a_quiet_run_has_no_warnings():
    assert of(arm("b", speedup=CALM)) == ()


def test_too_noisy_to_tell():
    (text,) = of(arm("b", speedup=Estimate(1.05, 0.9, 1.2)), Estimate(1.05, 0.9, 1.2))
    assert "too noisy to tell whether b is faster than a" in text
    assert "between 0.90 and 1.20" in text
    assert "--time" in text
    (text,) = of(arm("b", speedup=Estimate(2, 1.5, 2.5)), Estimate(2, 1.5, 2.5))
    assert "noisy" in text
    assert "to tell" not in text


def test_clocks_that_disagree():
    (text,) = of(arm("b", speedup=Estimate(1.6, 1.58, 1.62)), Estimate(2.85, 2.8, 2.9))
    assert "clocks disagree on b: 1.60x" in text
    assert "2.85x by the wall" in text


def test_time_that_others_took():
    calls = np.full(300, 1e6)
    (text,) = of(arm("b", cpu=calls, wall=calls * 1.5, speedup=CALM))
    assert "a call of b took 50 % longer by the wall clock" in text


@pytest.mark.parametrize(("end", "word"), [(1.3, "slower"), (0.7, "faster")])
def test_drift(end, word):
    drift = 1e6 * np.linspace(1, end, 300)
    (text,) = of(arm("b", cpu=drift, speedup=CALM), first=arm("a", cpu=drift))
    assert word in text
    assert "throttled" in text


def test_heavy_tail():
    calls = np.full(300, 1e6)
    calls[::30] = 9e6
    (text,) = of(arm("b", cpu=calls, speedup=CALM))
    assert "1 % of the calls of b" in text
