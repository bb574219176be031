"""Studies: what a row says of its seeds, the plot, the command's refusals, and that few nodes are enough."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nncompress.cli.app import run
from nncompress.cycles import CycleSettings, nodes
from nncompress.data import open_data
from nncompress.errors import ExitCode
from nncompress.studies import STUDIES, Request, Row, StudyResult, Trial, autoencoder, plot, summation
from nncompress.train import TrainSettings


def test_a_row_sums_up_its_seeds():
    row = Row("ours", "", (Trial(0, (1, 4), 0.1, 5), Trial(1, (2, 4), 0.3, 6)))
    assert row.mean_nodes() == (1.5, 4.0)
    assert row.loss_spread() == pytest.approx(np.std([0.1, 0.3], ddof=1))
    assert Row("one", "", (Trial(0, (1,), 0.1, 5),)).loss_spread() == 0


@pytest.mark.parametrize("suffix", ["png", "svg"])
def test_the_plot_is_a_picture_of_that_kind(tmp_path, suffix):
    pytest.importorskip("matplotlib")
    trial = Trial(0, (1,), 0.1, 2, ((1, 100, 0.5), (2, 1, 0.1)))
    path = tmp_path / f"plot.{suffix}"
    plot(StudyResult("summation", (Row("ours", "", (trial,)),), "reached", 1.0), path)
    assert path.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml"}[suffix])


def test_a_trial_prunes_and_measures_on_fresh_samples(tmp_path, monkeypatch):
    monkeypatch.setattr(summation, "SAMPLES", 20_000)
    request = Request(tmp_path)
    data, fresh = summation._data(request)
    assert (len(data), len(fresh)) == (20_000, 2_000)
    training = TrainSettings(epochs=4, schedule="cosine", **{**summation.TRAINING, "batch": 200})
    cycling = CycleSettings(criterion="activation-variance", ratio=0.75, max_loss=0.1)
    trial = summation._trial(request, "t", cycling, training, 8, 0, data, fresh)
    assert trial.nodes[0] <= 2  # one, or two that fire on opposite halves
    assert trial.loss < 0.05
    assert [cycle for cycle, _, _ in trial.trace] == list(range(1, trial.cycles + 2))  # and the last training


def test_the_papers_recipe_is_run_in_all_its_forms(tmp_path):
    ours, random, *recipes = summation._plans(Request(tmp_path))
    assert (ours.runs, random.runs) == (10, 4)
    assert random.cycling.criterion == "random"
    forms = {
        (p.cycling.criterion, p.cycling.distort, p.training.l1, p.training.l2, p.training.schedule)
        for p in recipes
    }
    assert forms == {
        (criterion, distorted, l1, l2, "constant")
        for criterion in ("activation-count", "activation-variance")
        for distorted in (True, False)
        for l1, l2 in ((0, 0), (0.01, 0), (0, 0.01))
    }
    assert len({p.name for p in recipes}) == 12
    assert len(summation._plans(Request(tmp_path, quick=True))) == 6


@pytest.fixture
def digits(tmp_path):
    """Images of 20 random components, so that 20 values code them without loss."""
    generator = np.random.default_rng(0)
    images = np.tanh(generator.normal(size=(100, 20)) @ generator.normal(size=(20, 784)) / 10)
    np.savez(tmp_path / "digits.npz", x=images.reshape(-1, 1, 28, 28).astype(np.float32))
    return open_data(str(tmp_path / "digits.npz"), autoencoder._model((1, 1, 1), 0).inputs)


def test_the_last_cut_leaves_the_papers_nodes(digits):
    model = autoencoder._model((4, 8, 4), 0)
    cut = autoencoder._cut(model, (4, 8, 4), "activation-variance", digits, 0)
    assert tuple(nodes(cut).values()) == autoencoder.PAPER
    x = digits.batches(5)
    assert cut(*next(x).inputs).shape == (5, 1, 28, 28)


def test_the_linear_code_is_the_best_projection(digits):
    x = torch.cat([b.inputs[0] for b in digits.batches(50)]).flatten(1).double().numpy()
    centred = x - x.mean(0)
    singular = np.linalg.svd(centred, compute_uv=False)
    for values in (5, 40):
        expected = np.sqrt((singular[values:] ** 2).sum() / x.size)
        assert autoencoder._linear_code(digits, digits, values) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["sums"], "no such study"),
        (["summation", "--plot", "p.gif"], "--plot has another suffix"),
        (["autoencoder"], "needs digits"),
    ],
)
def test_mistakes_are_one_message(capsys, arguments, text):
    assert run(["reproduce", *arguments]) == ExitCode.USAGE
    assert text in capsys.readouterr().err


def test_a_plot_that_could_not_be_drawn_is_refused_before_the_study(capsys, monkeypatch):
    monkeypatch.setattr(summation, "_plans", lambda *_: pytest.fail("the study began"))
    assert run(["reproduce", "summation", "--plot", "nowhere/p.png"]) == ExitCode.OUTPUT
    assert "no folder nowhere" in capsys.readouterr().err
    monkeypatch.setattr("nncompress.extras.installed", lambda extra: False)
    assert run(["reproduce", "summation", "--plot", "p.png"]) == ExitCode.MISSING_EXTRA
    assert "pip install 'nncompress[studies]'" in capsys.readouterr().err


def test_names_are_the_keys():
    assert all(name == study.name for name, study in STUDIES.items())
