"""Every metric against an independent reference on fresh random answers; intervals against theory."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from records import Records
from scipy import stats
from sklearn import metrics as reference

from nncompress.analysis.accuracy import measure
from nncompress.analysis.intervals import bootstrap_interval, mean_interval, share_interval
from nncompress.analysis.metrics.base import Metric
from nncompress.analysis.metrics.registry import METRICS, named_metric
from nncompress.analysis.metrics.sequences import edits
from nncompress.analysis.metrics.summed import SummedScores
from nncompress.data import open_data
from nncompress.errors import DataError, UsageError
from nncompress.results import MetricDifference


def measured(outputs, labels, metric, inputs=None):
    """The metric of a model that answers `outputs`, record by record, in batches of 7."""
    number = torch.arange(len(outputs), dtype=torch.float32)[:, None] if inputs is None else inputs
    answers = torch.as_tensor(outputs)

    def predict(x, *more):
        return answers[x[:, 0].long()] if inputs is None else answers[[_row(inputs, r) for r in x]]

    given = (number,) if inputs is None else (inputs,)
    data = Records(given, None if labels is None else torch.as_tensor(labels))
    return measure(predict, data, metric=metric, batch_size=7)


def _row(inputs, record):
    return int((inputs == record).all(1).nonzero()[0, 0])


def test_every_metric_is_made_by_its_name():
    for name in METRICS:
        metric = named_metric(name)
        assert isinstance(metric, Metric)
        assert metric.name == name
        assert metric.title
        assert type(metric).__doc__


@pytest.mark.parametrize("as_scores", [True, False])
def test_f1_is_scikit_learns_macro_average(as_scores):
    rng = np.random.default_rng()
    labels = rng.choice(7, 90, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05, 0.0])
    scores = torch.randn(90, 7)
    outputs = scores if as_scores else scores.argmax(1)
    found = measured(outputs, labels, "f1").result
    expected = reference.f1_score(labels, scores.argmax(1).numpy(), average="macro", zero_division=0)
    assert found.value == pytest.approx(expected, abs=1e-12)
    assert found.interval.low < found.value < found.interval.high


@pytest.mark.parametrize("probabilities", [False, True])
@pytest.mark.parametrize("shape", [(90,), (90, 1)])
def test_one_number_per_sample_is_held_against_two_classes_by_its_threshold(probabilities, shape):
    logits = torch.randn(90).double()
    labels = (logits + torch.randn(90) > 0.2).long()
    outputs = (logits.sigmoid() if probabilities else logits).reshape(shape)
    right = reference.accuracy_score(labels, logits > 0)
    top1 = measured(outputs, labels, None).result
    assert (top1.metric, top1.threshold) == ("top1", 0.5 if probabilities else 0)
    assert top1.value == pytest.approx(right, abs=1e-12)
    assert measured(outputs, labels.float(), "top1").result.value == top1.value
    f1 = measured(outputs, labels, "f1").result.value
    assert f1 == pytest.approx(reference.f1_score(labels, logits > 0, average="macro"), abs=1e-12)
    shares = measured(outputs, labels, None).against(measured(outputs.flip(0), labels, None))
    assert shares.top1_changed == top1.value
    with pytest.raises(DataError, match="several classes"):
        measured(outputs, labels, "top5")
    if not probabilities:
        with pytest.raises(DataError, match="as probabilities"):
            measured(outputs.sigmoid(), labels, None).against(measured(outputs, labels, None))


def test_a_score_per_class_is_the_answer_rather_than_one_number():
    scores, number, labels = torch.randn(20, 2), torch.randn(20, 1), torch.randint(0, 2, (20,))
    data = Records((torch.arange(20.0)[:, None],), labels)
    found = measure(lambda x: (number[x[:, 0].long()], scores[x[:, 0].long()]), data).result
    assert found.value == pytest.approx(reference.accuracy_score(labels, scores.argmax(1)))


@pytest.mark.parametrize("kind", ["scores", "numbers", "logit", "coarse"])
def test_miou_counts_pixels_as_a_confusion_matrix_does(kind):
    rng = np.random.default_rng()
    classes = 2 if kind == "logit" else 5
    labels = rng.integers(0, classes, (20, 8, 8))
    labels[rng.random(labels.shape) < 0.1] = 255
    labels[rng.random(labels.shape) < 0.1] = -100
    scores = torch.randn(20, 1 if kind == "logit" else classes, *((4, 4) if kind == "coarse" else (8, 8)))
    full = torch.nn.functional.interpolate(scores, (8, 8), mode="bilinear") if kind == "coarse" else scores
    answers = (full[:, 0] > 0).long() if kind == "logit" else full.argmax(1)
    outputs = answers if kind == "numbers" else scores
    keep = (labels >= 0) & (labels < 255)
    matrix = reference.confusion_matrix(labels[keep], answers.numpy()[keep], labels=range(classes))
    expected = np.mean(np.diag(matrix) / (matrix.sum(0) + matrix.sum(1) - np.diag(matrix)))
    assert measured(outputs, labels, "miou").result.value == pytest.approx(expected, abs=1e-12)


def test_numbers_are_held_against_targets():
    outputs, labels = torch.randn(40, 3), torch.randn(40, 3)
    off = (outputs.double() - labels.double()).numpy()
    assert measured(outputs, labels, "rmse").result.value == pytest.approx(math.sqrt((off**2).mean()))
    assert measured(outputs, labels, "mae").result.value == pytest.approx(np.abs(off).mean())
    cosines = [
        np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(outputs.double(), labels.double())
    ]
    assert measured(outputs, labels, "cosine").result.value == pytest.approx(np.mean(cosines), rel=1e-6)


@pytest.mark.parametrize("labelled", ["no", "as the inputs", "shifted"])
def test_perplexity_is_that_of_the_next_token(labelled):
    tokens = torch.randint(0, 11, (12, 6))
    tokens[:, 0] = torch.arange(12) % 11
    scores = torch.randn(12, 6, 11)
    surprise = torch.nn.functional.cross_entropy(
        scores[:, :-1].reshape(-1, 11).double(), tokens[:, 1:].reshape(-1), reduction="none"
    ).view(12, 5)
    counted = torch.ones(12, 5, dtype=torch.bool)
    labels = None
    if labelled == "as the inputs":
        labels = tokens.clone()
        labels[3:, 4:] = -100
        counted = labels[:, 1:] >= 0
    if labelled == "shifted":
        labels = torch.cat([tokens[:, 1:], torch.full((12, 1), -100)], dim=1)
    expected = math.exp(float(surprise[counted].mean()))
    assert measured(scores, labels, "perplexity", tokens).result.value == pytest.approx(expected, rel=1e-9)


def test_word_error_rate_is_the_edit_distance_of_what_is_read():
    assert edits([], [1, 2]) == 2
    assert edits([1, 2, 3], [1, 3]) == 1
    assert edits([7, 1, 2], [1, 2, 9]) == 2

    def distance(a, b):  # by definition
        if not a or not b:
            return len(a) + len(b)
        return min(distance(a[1:], b) + 1, distance(a, b[1:]) + 1, distance(a[1:], b[1:]) + (a[0] != b[0]))

    rng = np.random.default_rng()
    for _ in range(30):
        a, b = (rng.integers(0, 3, rng.integers(0, 6)).tolist() for _ in range(2))
        assert edits(a, b) == distance(a, b)
    steps = torch.tensor([[0, 2, 2, 0, 2, 1], [3, 3, 0, 0, 0, 0]])  # blank is 0: reads 2 2 1, and 3
    labels = torch.tensor([[2, 1, 1, -1], [3, -1, -1, -1]])
    found = measured(torch.nn.functional.one_hot(steps, 4).float(), labels, "wer").result
    assert found.value == 1 / 4


def test_the_interval_of_a_mean_is_students_and_the_bootstrap_agrees():
    values = np.random.default_rng().normal(2, 3, 400)
    found = mean_interval(values)
    low, high = stats.t.interval(0.95, 399, values.mean(), stats.sem(values))
    assert (found.low, found.high) == pytest.approx((low, high))
    drawn = bootstrap_interval(lambda s: s[..., 0] / s[..., 1], np.stack([values, np.ones(400)], axis=1))
    assert drawn.value == pytest.approx(values.mean())
    # of 2000 resamples the percentiles' own error is about 4 % of the width
    assert (drawn.low, drawn.high) == pytest.approx((low, high), abs=0.15 * (high - low))


def test_a_difference_is_paired():
    """Two models that err on the same samples differ by less than their intervals say."""
    labels = torch.randint(0, 5, (300,))
    scores = torch.randn(300, 5)
    other = scores + 0.05 * torch.randn(300, 5)
    first, second = measured(scores, labels, "f1"), measured(other, labels, "f1")
    found = second.against(first)
    assert isinstance(found, MetricDifference)
    assert found.difference.value == pytest.approx(second.result.value - first.result.value)
    assert found.difference.value in found.difference
    width = first.result.interval.high - first.result.interval.low
    assert found.difference.high - found.difference.low < width / 2
    with pytest.raises(DataError, match="different metrics"):
        measured(scores, labels, "top5").against(first)


def test_samples_beyond_the_budget_are_pooled_alike(monkeypatch):
    from nncompress.analysis.metrics import summed

    labels, outputs = torch.randint(0, 4, (900,)), torch.randn(900, 4)
    whole = measured(outputs, labels, "f1")
    monkeypatch.setattr(summed, "_BYTES", 8)
    pooled = measured(outputs, labels, "f1")
    assert isinstance(pooled.scores, SummedScores)
    assert len(pooled.scores.rows) == 256
    assert pooled.result.value == pytest.approx(whole.result.value, abs=1e-12)
    a, b = (m.result.interval.high - m.result.interval.low for m in (whole, pooled))
    assert b == pytest.approx(a, rel=0.3)


OWN = """
import torch
def brier(output, batch):
    hot = torch.nn.functional.one_hot(batch.labels, output.shape[1])
    return (output.softmax(1) - hot).square().sum(1)
brier.higher_is_better = False
brier.title = "Brier"
class Hits:
    share = True
    def __init__(self):
        self.right = self.count = 0
    def update(self, output, batch):
        self.right += int((output.argmax(1) == batch.labels).sum())
        self.count += len(batch)
    def compute(self):
        return self.right / self.count
def wrong(output, batch):
    return output
def broken(output, batch):
    raise KeyError("nothing")
class Half:
    def update(self, output, batch):
        pass
"""


@pytest.mark.parametrize(("right", "count"), [(0, 1), (1, 1), (0, 3), (7, 7), (3, 11), (700, 846)])
def test_the_interval_of_a_share_is_wilsons(right, count):
    found = share_interval(right, count)
    expected = stats.binomtest(right, count).proportion_ci(method="wilson")
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("metric", ["top1", "top5"])
def test_models_that_are_always_right_are_not_certain(metric):
    outputs = torch.eye(12)[:4]
    both = [measured(outputs, torch.arange(4), metric) for _ in range(2)]
    assert both[0].result.value == 1
    assert both[0].result.interval.low == pytest.approx(0.51, abs=0.01)
    assert both[1].against(both[0]).difference.low < -0.1


def test_a_metric_of_the_users_own(tmp_path):
    path = tmp_path / "own.py"
    path.write_text(OWN)
    labels, outputs = torch.randint(0, 3, (200,)), torch.randn(200, 3)
    found = measured(outputs, labels, f"{path}:brier")
    hot = np.eye(3)[labels]
    expected = ((outputs.softmax(1).numpy() - hot) ** 2).sum(1)
    assert found.result.value == pytest.approx(expected.mean(), rel=1e-6)
    low, high = stats.t.interval(0.95, 199, expected.mean(), stats.sem(expected))
    assert (found.result.interval.low, found.result.interval.high) == pytest.approx((low, high), rel=1e-5)
    metric = named_metric(f"{path}:brier")
    assert (metric.title, metric.higher_is_better) == ("Brier", False)
    assert metric.lost(0.5, 0.7) == pytest.approx(0.2)

    hits, top1 = measured(outputs, labels, f"{path}:Hits"), measured(outputs, labels, "top1")
    assert hits.result.value == top1.result.value
    half = (hits.result.interval.high - hits.result.interval.low) / 2
    assert half == pytest.approx(1.96 * top1.result.top1_standard_error, rel=0.4)
    other = measured(outputs + 0.01 * torch.randn(200, 3), labels, f"{path}:Hits").against(hits)
    assert other.difference.high - other.difference.low < half

    for name, message in (("wrong", "one score per sample"), ("broken", "KeyError")):
        with pytest.raises(DataError, match=message):
            measured(outputs, labels, f"{path}:{name}")
    for name, message in (("Half", "no compute"), ("nothing", "it has: brier")):
        with pytest.raises(UsageError) as problem:
            measured(outputs, labels, f"{path}:{name}")
        assert message in str(problem.value) + str(problem.value.remedy)
    with pytest.raises(UsageError, match="unknown metric"):
        measured(outputs, labels, "accuracy")


MISBEHAVING = {  # the value that a function gives for a batch, or an object for all; what is told of each
    "sys.exit(0)": ("SystemExit", "SystemExit"),
    "torch.ones(len(output), dtype=torch.complex64)": ("not real numbers", "not real numbers"),
    "['good'] * len(output)": ("not real numbers", "not real numbers"),
    "torch.ones(len(output), 2)": ("one score per sample", "numbers"),
    "None": ("not real numbers", "not real numbers"),
    "float('nan') * torch.ones(len(output))": ("NaN or infinity for sample 0", "gives"),
    "float('nan')": ("one score per sample", "gives NaN"),
}


@pytest.mark.parametrize("value", MISBEHAVING)
def test_what_is_no_metric_is_told_in_one_line(value, tmp_path):
    path = tmp_path / "own.py"
    path.write_text(
        f"import sys, torch\ndef score(output, batch): return {value}\n"
        "class Whole:\n    def update(self, output, batch): self.output = output\n"
        f"    def compute(self):\n        output = self.output\n        return {value}\n"
        "class Never(Whole):\n    def __init__(self): sys.exit(0)\n"
    )
    labels, outputs = torch.randint(0, 3, (64,)), torch.randn(64, 3)
    for name, message in zip(("score", "Whole", "Never"), (*MISBEHAVING[value], "SystemExit")):
        with pytest.raises(DataError) as problem:
            measured(outputs, labels, f"{path}:{name}")
        assert message in str(problem.value)


def test_a_metric_that_writes_over_the_answers_is_given_its_own(tmp_path):
    (tmp_path / "own.py").write_text(
        "class Mean:\n    total = 0\n    def update(self, output, batch):\n"
        "        output.sub_(output)\n        self.total += len(output)\n"
        "    def compute(self): return self.total\n"
    )
    outputs = torch.randn(50, 3)
    before = outputs.clone()
    measured(outputs, torch.randint(0, 3, (50,)), f"{tmp_path}/own.py:Mean")
    assert torch.equal(outputs, before)


def test_a_metric_chooses_the_output_that_it_can_measure():
    masks, scores = torch.randn(9, 4, 6, 6), torch.randn(9, 4)
    labels = torch.randint(0, 4, (9, 6, 6))
    number = torch.arange(9.0)[:, None]
    both = measure(
        lambda x: (scores[x[:, 0].long()], masks[x[:, 0].long()]), Records((number,), labels), metric="miou"
    )
    assert both.result.value == measured(masks, labels, "miou").result.value
    with pytest.raises(DataError, match="does not fit") as problem:
        measured(scores, torch.randint(0, 4, (9,)), "perplexity")
    assert problem.value.expected.endswith("of scores [N, T, V].")
    with pytest.raises(DataError, match="fit none"):
        measure(lambda x: (scores, scores), Records((number,), labels), metric="miou")


def test_labels_may_leave_out_pixels_but_not_records(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 2), np.float32), y=np.array([[1, -100], [0, 1], [-1, 1]]))
    assert next(open_data(str(tmp_path / "d.npz")).batches(3)).labels.tolist()[0] == [1, -100]
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 2), np.float32), y=np.array([1, -1, 0]))
    with pytest.raises(DataError, match="negative label"):
        open_data(str(tmp_path / "d.npz"))
