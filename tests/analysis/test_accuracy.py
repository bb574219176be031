from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from nncompress.analysis.accuracy import (
    compare,
    evaluate,
    evaluate_paired,
    mcnemar_p_value,
    paired_difference,
)
from nncompress.data import open_data
from nncompress.errors import DataError, UsageError, VerificationError


@pytest.fixture
def data(tmp_path):
    """Opens arrays as a dataset."""

    def opened(x, y=None):
        arrays = {"x": np.asarray(x, np.float32)} | ({} if y is None else {"y": y})
        np.savez(tmp_path / "d.npz", **arrays)
        return open_data(str(tmp_path / "d.npz"))

    return opened


def linear(weight):
    weight = torch.as_tensor(weight, dtype=torch.float32)
    return lambda x: x @ weight


def test_top1_top5_and_standard_error(data):
    rng = np.random.default_rng()
    x, w, y = rng.standard_normal((301, 6)), rng.standard_normal((6, 12)), rng.integers(0, 12, 301)
    result = evaluate(linear(w), data(x, y), batch_size=64)
    order = np.argsort(-(np.float32(x) @ np.float32(w)), axis=1)
    top1 = np.mean(order[:, 0] == y)
    assert (result.task, result.samples) == ("classification", 301)
    assert result.top1 == pytest.approx(top1, abs=1e-12)
    assert result.top5 == pytest.approx(np.mean((order[:, :5] == y[:, None]).any(1)), abs=1e-12)
    assert result.top1_standard_error == pytest.approx(math.sqrt(top1 * (1 - top1) / 301))
    assert result.rmse is None
    assert json.loads(json.dumps(result.to_json()))["kind"] == "eval"


def test_the_size_of_the_batch_does_not_matter(data):
    rng = np.random.default_rng()
    dataset = data(rng.standard_normal((50, 4)), rng.integers(0, 3, 50))
    model = linear(rng.standard_normal((4, 3)))
    assert len({evaluate(model, dataset, batch_size=b) for b in (1, 7, 50, 64)}) == 1
    assert evaluate(model, dataset, limit=20).samples == 20


def test_the_labels_decide_between_regression_and_reconstruction(data):
    rng = np.random.default_rng()
    x, w, y = rng.standard_normal((40, 4)), rng.standard_normal((4, 2)), rng.standard_normal((40, 2))
    result = evaluate(linear(w), data(x, y), batch_size=7)
    assert result.task == "regression"
    assert result.rmse == pytest.approx(np.sqrt(np.mean((x @ w - y) ** 2)), rel=1e-5)
    one = evaluate(linear(w[:, :1]), data(x, y[:, 0]), batch_size=7)  # targets [N], outputs [N, 1]
    assert one.rmse == pytest.approx(np.sqrt(np.mean((x @ w[:, 0] - y[:, 0]) ** 2)), rel=1e-5)
    result = evaluate(linear(np.eye(4) * 0.5), data(x), batch_size=7)
    assert result.task == "reconstruction"
    assert result.mse == pytest.approx(np.mean((0.5 * x) ** 2), rel=1e-5)


def test_of_several_outputs_the_chosen_one_counts(data):
    dataset = data(np.eye(3), np.arange(3))
    both = lambda x: (x.roll(1, 1), x)  # noqa: E731
    assert evaluate(both, dataset, output=0).top1 == 0
    with pytest.raises(DataError, match="fit several of the model's outputs"):
        evaluate(both, dataset)
    assert evaluate(both, dataset, output=1).top1 == 1
    with pytest.raises(UsageError, match="no output 2"):
        evaluate(both, dataset, output=2)


@pytest.mark.parametrize(
    ("labels", "model", "task", "error", "says"),
    [
        ([0, 1, 3], torch.eye(3), "auto", DataError, "sample 2 has a label that the model has no output for"),
        (None, torch.ones(3, 2), "auto", DataError, "no labels"),
        (None, torch.eye(3), "classification", DataError, "needs labels"),
        ([0.5, 1.5, 2.5], torch.eye(3), "classification", DataError, "one class number per sample"),
        ([0.5, 1.5, 2.5], torch.ones(3, 2), "regression", DataError, "differ in shape"),
        ([0, 1, 2], torch.ones(3, 1), "classification", DataError, "sample 2 .* cannot tell"),
        ([0, 1, 2], torch.eye(3) * math.nan, "auto", VerificationError, "NaN"),
        ([0, 1, 2], torch.eye(3), "guess", UsageError, "unknown task"),
    ],
)
def test_what_does_not_fit(data, labels, model, task, error, says):
    dataset = data(np.eye(3), None if labels is None else np.array(labels))
    with pytest.raises(error, match=says):
        evaluate(linear(model), dataset, task)


def test_a_model_that_loses_the_batch_is_refused(data):
    with pytest.raises(VerificationError, match="one output per sample"):
        evaluate(lambda x: x[:1], data(np.eye(3), np.arange(3)))


def test_data_that_the_model_cannot_run_on(data):
    table = torch.zeros(2, 3)
    with pytest.raises(DataError, match="could not run on this data"):
        evaluate(lambda x: table[x[:, 0].long()], data([[0.0], [1.0], [2.0]], np.arange(3)))


def test_progress_reaches_the_end(data):
    steps = []

    class Listener:
        def step(self, description, done, total):
            steps.append((done, total))

    evaluate(linear(torch.eye(3)), data(np.eye(3), np.arange(3)), batch_size=2, progress=Listener())
    assert steps == [(2, 3), (3, 3)]


def test_compare_against_float64_reference():
    rng = np.random.default_rng()
    x = rng.standard_normal((33, 5))
    a, b = rng.standard_normal((5, 7)), rng.standard_normal((5, 7))
    b = a + 0.1 * b
    batches = [(torch.tensor(x[i : i + 8], dtype=torch.float32),) for i in range(0, 33, 8)]
    result = compare(linear(a), linear(b), batches, names=("logits",))
    ya, yb = x @ a, x @ b
    (output,) = result.outputs
    assert (output.name, result.samples) == ("logits", 33)
    assert output.agreement == pytest.approx(np.mean(ya.argmax(1) == yb.argmax(1)), abs=1e-9)
    cosines = (ya * yb).sum(1) / np.linalg.norm(ya, axis=1) / np.linalg.norm(yb, axis=1)
    assert output.cosine == pytest.approx(cosines.mean(), abs=1e-6)
    assert output.sqnr_db == pytest.approx(10 * np.log10((ya**2).sum() / ((ya - yb) ** 2).sum()), abs=1e-3)
    assert output.max_abs == pytest.approx(np.abs(ya - yb).max(), rel=1e-4)


def test_compare_of_equals_and_of_strangers():
    x = (torch.randn(4, 3),)
    same = compare(linear(torch.eye(3)), linear(torch.eye(3)), [x]).outputs[0]
    assert (same.agreement, same.sqnr_db, same.max_abs) == (1, math.inf, 0)
    assert same.cosine == pytest.approx(1)
    with pytest.raises(VerificationError, match="other outputs"):
        compare(linear(torch.eye(3)), linear(torch.ones(3, 2)), [x])
    with pytest.raises(DataError, match="nothing to compare"):
        compare(linear(torch.eye(3)), linear(torch.eye(3)), [])


def test_a_pair_counts_the_samples_that_only_one_gets_right(data):
    rng = np.random.default_rng()
    x, y = rng.standard_normal((200, 4)), rng.integers(0, 4, 200)
    a, b = rng.standard_normal((4, 4)), rng.standard_normal((4, 4))
    dataset = data(x, y)
    result = evaluate_paired(linear(a), linear(b), dataset, batch_size=33)
    hit_a, hit_b = ((np.float32(x) @ np.float32(w)).argmax(1) == y for w in (a, b))
    assert result.only_original == (hit_a & ~hit_b).sum()
    assert result.only_changed == (~hit_a & hit_b).sum()
    assert result.top1_original == pytest.approx(evaluate(linear(a), dataset).top1)
    assert result.top1_changed == pytest.approx(evaluate(linear(b), dataset).top1)
    assert result.difference.value == pytest.approx(hit_b.mean() - hit_a.mean())
    assert result.difference.value in result.difference


@pytest.mark.parametrize(("k", "m"), [(0, 0), (3, 9), (9, 3), (0, 12), (5, 5), (400, 460)])
def test_mcnemar_is_the_exact_binomial_test(k, m):
    reference = stats.binomtest(k, k + m, 0.5).pvalue if k + m else 1.0
    assert mcnemar_p_value(k, m) == pytest.approx(reference, rel=1e-9)


@pytest.mark.parametrize(
    "cells", [(0.90, 0.02, 0.02), (0.85, 0.05, 0.02), (0.5, 0.1, 0.3), (0.97, 0.01, 0.0)]
)
def test_the_paired_interval_covers(cells):
    """Simulated test sets of 846: the 95 % interval holds the true difference in >= 93 % of them."""
    both, only_original, only_changed = cells
    rng = np.random.default_rng(0)
    counts = rng.multinomial(846, [both, only_original, only_changed, 1 - sum(cells)], size=4000)
    truth = only_changed - only_original
    covered = np.mean([truth in paired_difference(int(c[1]), int(c[2]), 846) for c in counts])
    assert covered >= 0.93


def test_pairing_narrows_the_interval():
    """Models that err on the same records: far narrower than two independent standard errors."""
    interval = paired_difference(8, 6, 846)
    unpaired = 1.96 * math.sqrt(2 * 0.917 * 0.083 / 846)
    assert (interval.high - interval.low) / 2 < unpaired / 2
