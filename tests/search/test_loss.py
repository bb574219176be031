"""What is lost of any metric: its bound holds as often as it says, on losses that are made up and known."""

import math

import numpy as np
import pytest
import torch

from nncompress.analysis.metrics.classification import F1, Top1
from nncompress.analysis.metrics.continuous import Mae, Rmse
from nncompress.analysis.metrics.resampled import ResampledScores
from nncompress.analysis.metrics.sequences import Perplexity
from nncompress.analysis.metrics.summed import MeanMetric
from nncompress.data import Batch
from nncompress.errors import DataError
from nncompress.search.loss import lost, means, shares

CLASSES = 4


def scored(metric, answers, labels):
    scores = metric.begin()
    scores.add(answers, Batch((answers,), labels), "made up")
    return scores


def numbers(generator, count):
    """Targets, answers that are off by a little, and by a little more: RMSE and MAE lose a known amount."""
    target = generator.standard_normal(count)
    off = generator.standard_normal(count)
    more = off + 0.3 * generator.standard_normal(count)
    return (torch.from_numpy(x).float() for x in (target, target + off, target + more))


def classes(generator, count):
    """Labels of which some classes are rare, class numbers right in 9 of 10, and half of a tenth of these."""
    label = generator.choice(CLASSES, size=count, p=[0.5, 0.3, 0.15, 0.05])
    first = np.where(generator.random(count) < 0.1, generator.integers(0, CLASSES, count), label)
    second = np.where(generator.random(count) < 0.02, generator.integers(0, CLASSES, count), first)
    return (torch.from_numpy(x) for x in (label, first, second))


@pytest.mark.parametrize(
    ("metric", "drawn", "records", "least"),
    [(Rmse(), numbers, 150, 0.91), (Mae(), numbers, 60, 0.91), (F1(), classes, 200, 0.92)],
)
def test_the_bound_holds_in_95_of_100(metric, drawn, records, least):
    """Against the loss on very many samples, within 2 to 3 standard errors of 250 draws."""
    generator = np.random.default_rng(records)
    label, first, second = drawn(generator, 100_000)
    truth = lost(scored(metric, first, label), scored(metric, second, label)).value
    assert truth > 0
    held = 0
    for _ in range(250):
        label, first, second = drawn(generator, records)
        held += lost(scored(metric, first, label), scored(metric, second, label)).at_most() >= truth
    assert held / 250 >= least


def test_right_and_wrong_is_counted_and_sums_are_paired():
    generator = np.random.default_rng(0)
    label, first, second = classes(generator, 500)
    found = lost(scored(Top1(), first, label), scored(Top1(), second, label))
    only_first = int(((first == label) & (second != label)).sum())
    only_second = int(((first != label) & (second == label)).sum())
    expected = shares(only_first, only_second, 500)
    assert (found.value, found.at_most(0.99), found.at_least()) == (
        expected.value,
        expected.at_most(0.99),
        expected.at_least(),
    )
    target, a, b = numbers(generator, 4000)
    found = lost(scored(Mae(), a, target), scored(Mae(), b, target))
    differences = ((b - target).abs() - (a - target).abs()).double().numpy()
    half = 1.6452 * differences.std(ddof=1) / math.sqrt(4000)  # t of 3999 degrees of freedom
    assert found.value == pytest.approx(differences.mean(), rel=1e-6)  # what rose is lost
    assert found.at_most() - found.value == pytest.approx(half, rel=0.05)
    assert found.value - found.at_least() == pytest.approx(half, rel=0.05)


def test_the_two_ends_mirror_each_other():
    target, a, b = numbers(np.random.default_rng(1), 300)
    there = lost(scored(Rmse(), a, target), scored(Rmse(), b, target))
    back = lost(scored(Rmse(), b, target), scored(Rmse(), a, target))
    assert there.at_least(0.9) == pytest.approx(-back.at_most(0.9), rel=1e-9)


def test_models_that_answer_alike_on_few_samples_are_not_promised_to_everywhere():
    label, first, _ = classes(np.random.default_rng(2), 100)
    alike = lost(scored(F1(), first, label), scored(F1(), first, label))
    assert alike.value == 0
    assert alike.at_most() > 0.027  # of a class with few samples one counts more than 1 / 100
    more = alike.needed(0.005)
    assert more is not None
    assert more > 500
    assert means(0.0, np.zeros(50), 0.0, 50).at_most() == math.inf  # not even what one sample counts is known


def test_bounds_of_tokens_hold_what_samples_may_be_missing():
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, 5, (80, 12), generator=generator)
    sure = torch.nn.functional.one_hot(tokens, 5) * 3.0
    noise = torch.randn(sure.shape, generator=generator)
    labels = tokens
    found = lost(scored(Perplexity(), sure, labels), scored(Perplexity(), sure + noise, labels))
    assert 0 < found.value < found.at_most() < found.at_most(0.99)
    assert found.at_least() > 0
    assert "fewer than 3.68% of all samples may be missing" in found.how  # 0.9632 ** 80 = 0.05
    assert "missing" not in means(0.1, np.ones(80), 1.0, 80, whole=1.0).how

    class Mean:
        def __init__(self):
            self.sum, self.count = 0.0, 0

        def update(self, output, batch):
            self.sum, self.count = self.sum + float(output.sum()), self.count + len(output)

        def compute(self):
            return self.sum / self.count

    a = torch.randn(400, generator=generator).double()
    b = a - 0.1 + 0.2 * torch.randn(400, generator=generator).double()
    drawn = [ResampledScores(Top1(), Mean, lambda each: each.compute()) for _ in range(3)]
    for scores, output in zip(drawn, (a, b, a)):
        scores.add(output, Batch((output,), None), "made up")
    found = lost(drawn[0], drawn[1])
    exact = means(float((a - b).mean()), (a - b).numpy(), 1.0, 400)
    assert found.value == pytest.approx(exact.value)
    assert found.at_most() - found.value == pytest.approx(
        exact.at_most() - exact.value, rel=0.35
    )  # of 64 draws
    assert lost(drawn[0], drawn[2]).at_most() == math.inf


def test_no_number_is_told():
    label, first, second = classes(np.random.default_rng(3), 20)
    with pytest.raises(DataError, match="different numbers of samples"):
        lost(scored(F1(), first, label), scored(F1(), second[:10], label[:10]))


class Share(MeanMetric):
    """A share within each sample, as agreement on tokens is."""

    name, title, needs_labels = "share", "share", False

    def fits(self, output, batch, classes):
        return True

    def sums(self, output, batch, origin, first_sample):
        return np.stack([output.numpy(), np.ones(len(output))], axis=1)


@pytest.mark.parametrize("little", [0, 1, 10, 100])
def test_however_many_lose_a_little_of_a_share_a_few_may_lose_all_of_it(little):
    """Of 200 samples none loses everything in 13 of 100 draws where each hundredth does."""
    before, after = torch.ones(200).double(), torch.ones(200).double()
    after[:little] = 0.999
    found = lost(scored(Share(), before, None), scored(Share(), after, None))
    assert found.value == pytest.approx(little * 0.001 / 200)
    assert 0.01 + little * 0.001 / 200 < found.at_most() < 0.02
    assert found.at_least() < -0.01
    needed = found.needed(0.001)
    assert needed is not None
    assert 2000 < needed < 8000


@pytest.mark.parametrize("wrong", [1, 2, 5, 20])
def test_draws_of_a_share_know_what_one_sample_counts(wrong):
    """As wide as the score interval of right and wrong, to what 64 draws tell; and it is said to be about."""

    class Right:
        def __init__(self):
            self.right, self.count = 0.0, 0

        def update(self, output, batch):
            self.right, self.count = self.right + float(output.sum()), self.count + len(output)

        def compute(self):
            return self.right / self.count

    before, after = (ResampledScores(Top1(), Right, lambda each: each.compute()) for _ in range(2))
    answers = torch.ones(100).double()
    before.add(answers, Batch((answers,), None), "made up")
    answers = answers.clone()
    answers[torch.randperm(100, generator=torch.Generator().manual_seed(0))[:wrong]] = 0
    after.add(answers, Batch((answers,), None), "made up")
    found, exact = lost(before, after), shares(wrong, 0, 100)
    assert found.at_most() - found.value == pytest.approx(exact.at_most() - exact.value, rel=0.25)
    assert "approximate" in found.how
