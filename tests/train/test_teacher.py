"""Distillation: what is imitated, by which formula, and which teachers are refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kills import Kill, Killed
from networks import built_once
from torch import nn
from torch.nn import functional as F

from nncompress import pipeline
from nncompress.data import open_data
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.passes import Context, PruneNodes
from nncompress.train import TrainSettings, train
from nncompress.train.loss import remembered
from nncompress.train.loss.remembered import Remembered
from nncompress.train.loss.teacher import Teacher, imitation
from tests.train.corners import same, small


@built_once
def perceptron(*widths: int, seed: int = 0) -> Model:
    torch.manual_seed(seed)
    module = nn.Sequential(nn.Linear(widths[0], widths[1]), nn.ReLU(), nn.Linear(widths[1], widths[2]))
    return Model.from_module(module.eval(), (torch.randn(2, widths[0]),))


def test_distillation_brings_the_student_to_the_teacher(data):
    _, teacher = small(seed=5)
    teacher.tensor("head.weight").data.mul_(20)
    _, student = small(seed=6)
    dataset = open_data(str(data), student.inputs)
    settings = TrainSettings(
        epochs=15, batch=8, optimizer="adam", lr=0.02, teacher_weight=1.0, match=("conv",)
    )
    trained, _ = train(student, dataset, settings, teacher=teacher)
    x = next(dataset.batches(40)).inputs[0]

    def apart(model: Model) -> float:
        with torch.no_grad():
            a, b = (F.log_softmax(m(x), 1) for m in (model, teacher))
        return float(F.kl_div(a, b, reduction="batchmean", log_target=True))

    assert apart(trained) < 0.2 * apart(student)
    narrow, _ = pipeline.run(student, [PruneNodes(ratio=0.5)], Context(data=dataset))
    with pytest.raises(UsageError, match="differ in shape"):
        train(narrow, dataset, TrainSettings(match=("conv",)), teacher=teacher)
    with pytest.raises(UsageError, match="needs a teacher"):
        train(student, dataset, settings)


def test_imitation_is_the_published_formula():
    rng = np.random.default_rng(0)
    s, t = rng.normal(size=(5, 7)), rng.normal(size=(5, 7))

    def softmax(z):
        e = np.exp(z - z.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)

    p, q = softmax(t / 3), softmax(s / 3)
    expected = 9 * (p * np.log(p / q)).sum(1).mean()
    found = imitation(torch.from_numpy(s), torch.from_numpy(t), 3.0, True)
    assert float(found) == pytest.approx(expected)


@pytest.mark.parametrize("options", [{"task": "reconstruction"}, {}, {"teacher_weight": 1.0}])
def test_vectors_that_are_no_scores_are_imitated_as_they_are(tmp_path, options):
    """Softmax forgets a constant added to all outputs; an autoencoder or a regression of vectors must not."""
    x = np.random.default_rng(0).normal(size=(64, 5)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=x @ np.ones((5, 5), np.float32))
    student, teacher = perceptron(5, 8, 5, seed=1), perceptron(5, 8, 5, seed=2)
    with torch.no_grad():
        teacher.tensor("2.bias").add_(3.0)
    dataset = open_data(str(tmp_path / "d.npz"), student.inputs)
    options = {"teacher_weight": 0.99, **options}
    settings = TrainSettings(epochs=30, batch=16, optimizer="adam", lr=0.03, **options)
    trained, _ = train(student, dataset, settings, teacher=teacher)
    with torch.no_grad():
        before, after, wanted = (m(torch.from_numpy(x)) for m in (student, trained, teacher))
    assert F.mse_loss(after, wanted) < 0.1 * F.mse_loss(before, wanted)


def test_teachers_of_another_task_are_refused(tmp_path):
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(8) % 3)
    student = perceptron(4, 8, 3)
    dataset = open_data(str(tmp_path / "d.npz"), student.inputs)
    with pytest.raises(UsageError, match="gives other outputs") as caught:
        train(student, dataset, TrainSettings(), teacher=perceptron(4, 8, 7))
    assert "7 there, 3 here" in str(caught.value)
    with pytest.raises(UsageError, match="takes other inputs"):
        train(student, dataset, TrainSettings(), teacher=perceptron(6, 8, 3))


def test_a_teacher_of_other_pixels_is_refused(data):
    (_, student), (_, teacher) = small(seed=1), small(seed=2)
    student.metadata["normalize"], teacher.metadata["normalize"] = "imagenet", "0.5/0.5"
    dataset = open_data(str(data), student.inputs)
    with pytest.raises(UsageError, match="normalised otherwise"):
        train(student, dataset, TrainSettings(epochs=1), teacher=teacher)
    teacher.metadata["normalize"] = "0.485,0.456,0.406/0.229,0.224,0.225"  # the same in numbers
    train(student, dataset, TrainSettings(epochs=1), teacher=teacher)


def test_a_run_is_not_continued_with_another_teacher(tmp_path):
    x = np.random.default_rng(0).normal(size=(8, 4)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=np.arange(8) % 3)
    student = perceptron(4, 8, 3)
    dataset = open_data(str(tmp_path / "d.npz"), student.inputs)
    kept = {"checkpoint": tmp_path / "c", "resume": True}
    train(student, dataset, TrainSettings(epochs=1), teacher=perceptron(4, 8, 3, seed=1), **kept)
    with pytest.raises(UsageError, match=r"another run.*\n.*teacher"):
        train(student, dataset, TrainSettings(epochs=1), teacher=perceptron(4, 8, 3, seed=2), **kept)


def asked(monkeypatch, **settings):
    """How many samples a teacher was asked for in a training on 40 samples, and what came of it."""
    _, teacher = small(seed=5)
    _, student = small(seed=6)
    seen = []
    given = Teacher._given

    def counted(self, inputs):
        seen.append(len(inputs[0]))
        return given(self, inputs)

    monkeypatch.setattr(Teacher, "_given", counted)
    dataset = open_data(settings.pop("data"), student.inputs)
    settings = {"epochs": 4, "batch": 8, "teacher_weight": 0.9, **settings}
    trained, _ = train(student, dataset, TrainSettings(**settings), teacher=teacher)
    return sum(seen), trained


def test_a_teacher_is_asked_once_for_what_every_epoch_shows_it(data, monkeypatch):
    once, trained = asked(monkeypatch, data=str(data))
    assert once == 40 + 8  # two halves of a batch tell that an answer is that of its sample alone
    monkeypatch.setattr(Remembered, "of_run", lambda *_: None)
    always, expected = asked(monkeypatch, data=str(data))
    assert always == 4 * 40
    for name, value in expected.state_dict().items():  # the same numbers, in batches of other samples
        assert torch.allclose(trained.state_dict()[name], value, atol=1e-5), name


@pytest.mark.parametrize("settings", [{"epochs": 1}, {"flip": True}, {"match": ("conv",)}])
def test_a_teacher_is_asked_anew_where_it_sees_other_samples(data, monkeypatch, settings):
    assert asked(monkeypatch, data=str(data), **settings)[0] == 40 * settings.get("epochs", 4)


class OfItsBatch(nn.Module):
    """Centres what it answers by the other samples of the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)

    def forward(self, x):
        y = self.layer(x)
        return y - y.mean(0)


class ByChance(OfItsBatch):
    def forward(self, x):
        return self.layer(x) * torch.rand_like(x[:, :1])


class OfThoseBefore(OfItsBatch):
    def forward(self, x):
        return self.layer(x).cumsum(0)


class OfThoseBehind(OfItsBatch):
    def forward(self, x):
        return self.layer(x).flip(0).cumsum(0).flip(0)


class OfItsNeighbours(OfItsBatch):
    def forward(self, x):
        y = self.layer(x)
        return y - y.unflatten(0, (-1, 4)).mean(1, keepdim=True).expand(-1, 4, -1).flatten(0, 1)


@pytest.mark.parametrize("module", [OfItsBatch, ByChance, OfThoseBefore, OfThoseBehind, OfItsNeighbours])
def test_answers_that_are_not_of_their_sample_alone_are_asked_anew(tmp_path, monkeypatch, module):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.normal(size=(1024, 6)).astype(np.float32))
    torch.manual_seed(0)
    teacher = Model.from_module(module(), (torch.randn(8, 6),))
    student = perceptron(6, 8, 3)
    seen = []
    given = Teacher._given
    monkeypatch.setattr(Teacher, "_given", lambda self, x: (seen.append(len(x[0])), given(self, x))[1])
    dataset = open_data(str(tmp_path / "d.npz"), student.inputs)
    train(student, dataset, TrainSettings(epochs=3, batch=512, teacher_weight=1.0), teacher=teacher)
    assert seen == [512, 256, *[512] * 6]


def test_answers_that_take_too_much_room_are_asked_anew(data, monkeypatch):
    monkeypatch.setattr(remembered, "MOST", 40 * 4 * 4 - 1)  # 40 samples, 4 classes, 4 bytes
    assert asked(monkeypatch, data=str(data))[0] == 4 * 40 + 8 + 8
    monkeypatch.setattr(remembered, "MOST", 40 * 4 * 4)
    assert asked(monkeypatch, data=str(data))[0] == 40 + 8


def test_a_taught_run_goes_on_bit_for_bit(data, tmp_path):
    (_, teacher), (_, student) = small(seed=5), small(seed=6)
    dataset, settings = open_data(str(data), student.inputs), TrainSettings(epochs=3, batch=8)
    whole, _ = train(student, dataset, settings, teacher=teacher)
    kept = {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0.0, "resume": True, "teacher": teacher}
    with pytest.raises(Killed):
        train(student, dataset, settings, progress=Kill(13), **kept)
    assert same(whole, train(student, dataset, settings, **kept)[0])
