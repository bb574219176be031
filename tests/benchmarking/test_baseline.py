"""Regressions, on synthetic timings whose truth is known."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from nncompress.benchmarking import baseline
from nncompress.benchmarking.stats import latency
from nncompress.errors import DataError, UsageError
from nncompress.results import BenchResult, BenchSuite, CandidateResult, Samples

MACHINE = {
    "cpu": "A CPU", "architecture": "x86_64", "cores": 2, "instruction_sets": ["avx2"], "cores_usable": 2,
    "versions": {"torch": "2.13", "onnxruntime": "1.31"},
}  # fmt: skip
SESSIONS, ROUNDS = 8, 30


def measured(rng, times, *, machine=1.0, environment=MACHINE, batch=1, threads=1, clock="wall", digests=None):
    """A suite of one run: `times` in ms per name; `machine` slows all of it, openings differ by 1 %."""
    state = machine * np.exp(
        rng.normal(0, 0.02, SESSIONS * ROUNDS)
    )  # of the moment, the same for all candidates
    candidates = []
    for name, milliseconds in times.items():
        opening = np.repeat(np.exp(rng.normal(0, 0.01, SESSIONS)), ROUNDS)
        noise = 1 + rng.exponential(0.02, SESSIONS * ROUNDS)
        ns = tuple((milliseconds * 1e6 * state * opening * noise).astype(int).tolist())
        digest = (digests or {}).get(name, f"digest of {name}")
        candidates.append(
            CandidateResult(
                name, "ONNX Runtime 1.31 CPU", latency(ns), None, None, None, Samples(ns), sha256=digest
            )
        )
    run = BenchResult(
        tuple(candidates), batch, threads, clock, (ROUNDS,) * SESSIONS, 0, 0, environment=environment
    )
    return BenchSuite((run,))


def stored(suite, tmp_path):
    """As `bench -o` writes it, read back."""
    path = tmp_path / "base.json"
    path.write_text(json.dumps(suite.to_json()))
    return baseline.read(path)


def compare(then, now, tmp_path, **options):
    return baseline.compare(stored(then, tmp_path), now, name="base.json", **options)


BOTH = {"original": 10.0, "small": 5.0}


def test_a_slower_machine_is_no_regression_of_a_model_that_has_a_control(tmp_path):
    """Same models, a machine 30 % slower: never a regression; 10 % slower models: always."""
    rng = np.random.default_rng(0)
    false, missed = 0, 0
    for _ in range(40):
        then = measured(rng, BOTH)
        result = compare(then, measured(rng, BOTH, machine=1.3), tmp_path)
        false += bool(result.regressions)
        assert "1.3" in result.notes[0] or "1.2" in result.notes[0]  # the control's own change is told
        slower = measured(rng, {**BOTH, "small": 5.5}, machine=0.8)
        missed += not compare(then, slower, tmp_path).regressions
    assert (false, missed) == (0, 0)


def test_within_the_tolerance_is_ok_and_beyond_it_is_not(tmp_path):
    rng = np.random.default_rng(1)
    then, now = measured(rng, BOTH), measured(rng, {**BOTH, "small": 5.2})
    (change,) = compare(then, now, tmp_path).changes
    assert (change.name, change.batch, change.measure) == ("small", 1, "ratio to original")
    assert change.slowdown.value == pytest.approx(1.04, abs=0.02)
    assert not change.regressed
    assert compare(then, now, tmp_path, tolerance=0.01).changes[0].regressed
    faster = measured(rng, {**BOTH, "small": 4.0})
    assert compare(then, faster, tmp_path).changes[0].slowdown.high < 1


def test_one_model_is_compared_by_latency(tmp_path):
    rng = np.random.default_rng(2)
    then, now = measured(rng, {"m": 10.0}), measured(rng, {"m": 12.0})
    (change,) = compare(then, now, tmp_path).changes
    assert change.measure == "latency"
    assert change.regressed
    assert not compare(then, measured(rng, {"m": 10.1}), tmp_path).regressions


def test_another_first_file_is_no_control(tmp_path):
    rng = np.random.default_rng(3)
    then = measured(rng, BOTH)
    now = measured(rng, {**BOTH, "original": 20.0}, digests={"original": "another"})
    result = compare(then, now, tmp_path)
    assert "original is not the file that was first" in result.notes[0]
    assert {c.name: c.regressed for c in result.changes} == {"original": True, "small": False}
    assert {c.measure for c in result.changes} == {"latency"}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"environment": {**MACHINE, "cpu": "Another CPU"}}, "another machine: cpu differs"),
        ({"environment": {**MACHINE, "instruction_sets": []}}, "instruction_sets differs"),
        ({"threads": 2}, "other threads"),
        ({"clock": "GPU"}, "another clock"),
        ({"environment": {**MACHINE, "gpu": {"before": {"name": "A GPU"}}}}, "another GPU"),
        ({"times": {"original": 10.0}}, "holds small, which is not measured now"),
    ],
)
def test_what_cannot_be_compared_is_refused(change, message, tmp_path):
    rng = np.random.default_rng(4)
    now = measured(rng, **{"times": BOTH, **change})
    with pytest.raises(UsageError, match=message):
        compare(measured(rng, BOTH), now, tmp_path)


def test_before_the_measurement_what_cannot_be_compared_after(tmp_path):
    suite = measured(np.random.default_rng(5), BOTH)
    old = stored(suite, tmp_path)
    plan = {"batches": (1, 8), "threads": 1, "clock": "wall", "names": ["original", "small", "new"]}
    plan["name"] = "base.json"
    baseline.check_plan(old, MACHINE, **plan)
    for change, message in (
        ({"environment": {**MACHINE, "cores": 64}}, "another machine: cores differs"),
        ({"threads": 2}, "other threads"),
        ({"clock": "cpu"}, "another clock"),
        ({"names": ["original"]}, "holds small"),
        ({"batches": (8, 32)}, "no batch size in common"),
    ):
        with pytest.raises(UsageError, match=message):
            baseline.check_plan(old, **{"environment": MACHINE, **plan, **change})
    single = BenchSuite((replace(suite.runs[0], rounds_per_session=(SESSIONS * ROUNDS,)),))
    with pytest.raises(UsageError, match="single session"):
        baseline.check_plan(stored(single, tmp_path), MACHINE, **plan)


def test_a_batch_that_is_new_is_noted(tmp_path):
    rng = np.random.default_rng(10)
    now = BenchSuite((measured(rng, BOTH).runs[0], measured(rng, BOTH, batch=8).runs[0]))
    result = compare(measured(rng, BOTH), now, tmp_path)
    assert [change.batch for change in result.changes] == [1]
    assert "batch 8 is not in base.json" in result.notes[0]


def test_other_versions_and_new_models_are_noted(tmp_path):
    rng = np.random.default_rng(6)
    newer = {**MACHINE, "versions": {"torch": "2.13", "onnxruntime": "1.32"}, "cores_usable": 1}
    now = measured(rng, {**BOTH, "new": 1.0}, environment=newer)
    notes = compare(measured(rng, BOTH), now, tmp_path).notes
    assert "onnxruntime was 1.31, is 1.32" in notes
    assert "cores_usable was 2, is 1" in notes
    assert "new is not in base.json" in notes


def test_another_runtime_and_a_single_session_are_refused(tmp_path):
    rng = np.random.default_rng(7)
    then = measured(rng, BOTH)
    now = measured(rng, BOTH).runs[0]
    other = replace(
        now, candidates=tuple(replace(candidate, runtime="torch 2.13 CPU") for candidate in now.candidates)
    )
    with pytest.raises(UsageError, match="another runtime"):
        compare(then, BenchSuite((other,)), tmp_path)
    single = replace(now, rounds_per_session=(SESSIONS * ROUNDS,))
    with pytest.raises(UsageError, match="single session"):
        compare(BenchSuite((single,)), BenchSuite((now,)), tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "cannot read"),
        ("{", "cannot read"),
        ("[]", "no result of bench"),
        ('{"kind": "eval"}', "no result of bench"),
        ('{"kind": "bench-suite", "schema": 99}', "another version"),
        ('{"kind": "bench-suite", "schema": 2, "runs": [{}]}', "damaged"),
        ('{"kind": "bench-suite", "schema": 2, "runs": 3}', "damaged"),
        ('{"kind": "bench-suite", "schema": 2, "runs": []}', "damaged"),
    ],
)
def test_a_file_that_is_no_baseline(content, message, tmp_path):
    path = tmp_path / "base.json"
    if content is not None:
        path.write_text(content)
    with pytest.raises(DataError, match=message):
        baseline.read(path)


@pytest.mark.parametrize(
    "wrong",
    [
        {"environment": 3},
        {"environment": {"versions": "abc"}},
        {"environment": {"gpu": 5}},
        {"rounds_per_session": [-1, 30]},
        {"rounds_per_session": [float("inf")]},
        {"batch": "many"},
        {"threads": None},
        {"clock": 7},
        {"candidates": {"a": 1}},
        {"candidates": [3]},
    ],
)
def test_fields_of_another_type_are_damage(wrong, tmp_path):
    content = measured(np.random.default_rng(8), BOTH).to_json()
    content["runs"][0].update(wrong)
    (tmp_path / "base.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"damaged|cannot read"):
        baseline.read(tmp_path / "base.json")


def test_samples_that_do_not_fill_the_sessions_are_damage(tmp_path):
    content = measured(np.random.default_rng(8), BOTH).to_json()
    content["runs"][0]["candidates"][1]["samples"]["wall_ns"].pop()
    (tmp_path / "base.json").write_text(json.dumps(content))
    with pytest.raises(DataError, match="damaged"):
        baseline.read(tmp_path / "base.json")
