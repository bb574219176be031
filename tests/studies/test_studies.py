"""Studies: what a row says of its seeds, the plot, the command's refusals, and that few nodes are enough."""

from __future__ import annotations

import numpy as np
import pytest

from nncompress.cli.app import run
from nncompress.cycles import CycleSettings
from nncompress.errors import ExitCode
from nncompress.studies import STUDIES, Request, Row, StudyResult, Trial, plot, summation
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
    assert [cycle for cycle, _, _ in trial.trace] == list(range(1, trial.cycles + 1))


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


def test_names_are_the_keys():
    assert all(name == study.name for name, study in STUDIES.items())
