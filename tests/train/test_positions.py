"""Cross-entropy per pixel, per token, of the next token, and of two classes by one logit."""

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nncompress.api import dataset
from nncompress.data import Batch
from nncompress.errors import DataError
from nncompress.loading import load_module
from nncompress.train.loop import train
from nncompress.train.loss.objective import Task
from nncompress.train.settings import TrainSettings


def chosen(output, inputs, labels, **settings):
    batch = Batch((inputs,), labels)
    task = Task.choose(TrainSettings(**settings), output, batch, "data")
    return task, task.mean(output, task.target(output, batch))


def log_likelihoods(scores):
    """Of scores [M, C], by NumPy."""
    shifted = scores - scores.max(1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(1, keepdims=True))


def expected(scores, classes):
    """The mean of -log p of the class over all that have one; [M, C] and [M]."""
    kept = classes >= 0
    rows = log_likelihoods(scores.double().numpy()[kept])
    return -rows[np.arange(len(rows)), classes[kept]].mean()


def test_pixels_have_classes_and_void_ones_count_for_nothing():
    output, labels = torch.randn(3, 4, 5, 6), torch.randint(0, 4, (3, 5, 6))
    labels[0, :2], labels[1, 3] = 255, -1
    task, loss = chosen(output, torch.randn(3, 4, 5, 6), labels)  # shaped as the input: no reconstruction
    assert task.why.startswith("labels are a class number per pixel, and the output has 4 scores for each")
    classes = np.where((labels == 255) | (labels < 0), -1, labels).reshape(-1)
    assert float(loss) == pytest.approx(expected(output.movedim(1, -1).reshape(-1, 4), classes), rel=1e-5)


def test_scores_of_fewer_pixels_are_interpolated_which_is_said():
    output, labels = torch.randn(2, 3, 4, 4), torch.randint(0, 3, (2, 8, 8))
    task, loss = chosen(output, torch.randn(2, 3, 8, 8), labels)
    assert "interpolated" in task.why
    larger = F.interpolate(output, (8, 8), mode="bilinear").movedim(1, -1).reshape(-1, 3)
    assert float(loss) == pytest.approx(expected(larger, labels.reshape(-1).numpy()), rel=1e-5)


def test_tokens_have_classes():
    output, labels = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    labels[0, 3:] = -100
    task, loss = chosen(output, torch.randint(0, 20, (2, 5)), labels)
    assert task.positions == "tokens"
    flat = labels.reshape(-1).numpy()
    assert float(loss) == pytest.approx(expected(output.reshape(-1, 7), flat), rel=1e-5)


@pytest.mark.parametrize("labelled", ["not", "whole", "in part"])
def test_where_labels_are_the_tokens_a_language_model_learns_the_next_one(labelled):
    output, tokens = torch.randn(2, 5, 7), torch.randint(0, 7, (2, 5))
    classes = tokens.clone()
    if labelled == "in part":  # as padding is marked
        classes[0, 3:] = -100
    task, loss = chosen(output, tokens, None if labelled == "not" else classes)
    assert "the one that comes next" in task.why
    want = expected(output[:, :-1].reshape(-1, 7), classes[:, 1:].reshape(-1).numpy())
    assert float(loss) == pytest.approx(want, rel=1e-5)


@pytest.mark.parametrize("shape", [(6,), (6, 1)])
def test_one_logit_tells_two_classes_apart(shape):
    output, labels = 3 * torch.randn(shape), torch.tensor([0, 1, 1, 0, 1, 0])
    by_default, _ = chosen(output, torch.randn(6, 2), labels)
    assert by_default.loss == "binary-cross-entropy"  # it leaves 0 … 1, and `eval` takes it for a logit
    assert "--task regression" in by_default.why
    likely, _ = chosen(output.sigmoid(), torch.randn(6, 2), labels)
    assert likely.loss == "mse"
    assert "--loss binary-cross-entropy" in likely.why
    amounts, _ = chosen(output, torch.randn(6, 2), labels, task="regression")
    assert amounts.loss == "mse"
    counted = Task.choose(TrainSettings(), output, Batch((torch.randn(6, 2),), labels), "data", classes=9)
    assert counted.loss == "mse"  # of all the labels, some are beyond 0 and 1
    task, loss = chosen(output, torch.randn(6, 2), labels, loss="binary-cross-entropy")
    assert "one logit" in task.why
    likely = 1 / (1 + np.exp(-output.double().numpy().reshape(-1)))
    want = -np.log(np.where(labels == 1, likely, 1 - likely)).mean()
    assert float(loss) == pytest.approx(want, rel=1e-5)
    _, smoothed = chosen(output, torch.randn(6, 2), labels, loss="binary-cross-entropy", label_smoothing=0.2)
    both = torch.stack([torch.zeros(6), output.reshape(-1)], 1)  # the same as two scores
    want = F.cross_entropy(both, labels, label_smoothing=0.2)
    assert float(smoothed) == pytest.approx(float(want), rel=1e-5)


def test_one_logit_per_pixel_is_of_two_classes():
    output, labels = torch.randn(2, 1, 3, 3), torch.randint(0, 2, (2, 3, 3))
    labels[0, 0] = 255
    task, loss = chosen(output, torch.randn(2, 3, 3, 3), labels)
    assert task.loss == "binary-cross-entropy"
    kept = (labels != 255).numpy()
    likely = 1 / (1 + np.exp(-output[:, 0].double().numpy()[kept]))
    want = -np.log(np.where(labels.numpy()[kept] == 1, likely, 1 - likely)).mean()
    assert float(loss) == pytest.approx(want, rel=1e-5)


def test_a_step_in_which_nothing_has_a_class_learns_nothing():
    output = torch.randn(2, 3, 4, 4, requires_grad=True)
    _, loss = chosen(output, torch.randn(2, 3, 4, 4), torch.full((2, 4, 4), 255))
    loss.backward()
    assert float(loss) == 0
    assert not output.grad.any()


@pytest.mark.parametrize(
    ("output", "labels", "settings", "said"),
    [
        (torch.randn(2, 3, 4, 4), torch.full((2, 4, 4), 3), {}, "sample 0 has a label"),
        (torch.randn(2, 1), torch.tensor([0, 2]), {"loss": "binary-cross-entropy"}, "sample 1 (.|\n)*0 or 1"),
        (torch.randn(2, 3), torch.tensor([0, 1]), {"loss": "binary-cross-entropy"}, "one logit"),
        (torch.randn(2, 1, 4, 4), torch.ones(2, 4, 4).long(), {"loss": "cross-entropy"}, "does not fit"),
        (torch.randn(2, 3, 4, 4), torch.ones(2, 4, 4).long(), {"loss": "mse"}, "classification of pixels"),
    ],
)
def test_labels_that_no_score_is_for_are_refused(output, labels, settings, said):
    with pytest.raises(DataError, match=said):
        chosen(output, torch.randn(2, 3, 4, 4), labels, **settings)


def test_a_segmentation_network_learns_its_masks():
    torch.manual_seed(0)
    x = torch.rand(32, 3, 6, 6)
    y = x.argmax(1)  # which channel is brightest
    model = load_module(nn.Conv2d(3, 3, 1), example_inputs=(x[:2],))
    data = dataset((x, y), model)
    settings = TrainSettings(epochs=6, batch=8, lr=0.5)
    result = train(model, data, settings, validation=data)[1]
    losses = [row["validation"]["loss"] for row in result.epochs]
    assert losses[-1] < 0.7 * losses[0]
    assert "top1" not in result.epochs[0]["validation"]
