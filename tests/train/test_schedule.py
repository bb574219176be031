"""Learning rates at the steps where their value is known."""

from __future__ import annotations

import pytest

from nncompress.errors import UsageError
from nncompress.train import TrainSettings
from nncompress.train.schedule import learning_rate


def rates(**options):
    settings = TrainSettings(epochs=10, lr=0.8, **options)
    return [learning_rate(settings, step, 20) for step in range(200)]


def test_a_constant_rate_stays_and_a_warmup_climbs_to_it():
    assert set(rates(schedule="constant")) == {0.8}
    warm = rates(schedule="constant", warmup=2.0)
    assert warm[0] == pytest.approx(0.8 / 40)
    assert warm[39] == warm[199] == 0.8


def test_step_falls_at_its_milestones():
    found = rates(schedule="step", milestones=("5,8",), gamma=0.1)
    assert [found[i] for i in (0, 99, 100, 159, 160, 199)] == pytest.approx(
        [0.8, 0.8, 0.08, 0.08, 0.008, 0.008]
    )


def test_cosine_halves_in_the_middle_and_ends_near_zero():
    found = rates(schedule="cosine")
    assert found[0] == 0.8
    assert found[100] == pytest.approx(0.4)
    assert found == sorted(found, reverse=True)
    assert found[-1] < 1e-3


def test_one_cycle_peaks_at_its_rise():
    found = rates(schedule="one-cycle")
    assert found[0] == pytest.approx(0.8 / 25)
    assert max(found) == found[60] == pytest.approx(0.8)
    assert found[-1] < 1e-3


@pytest.mark.parametrize(
    "options",
    [
        {"milestones": ("3",)},
        {"schedule": "step"},
        {"schedule": "step", "milestones": ("soon",)},
        {"task": "classification", "loss": "rmse"},
        {"task": "regression", "loss": "cross-entropy"},
        {"lr": 0},
    ],
)
def test_settings_that_do_not_fit_are_refused(options):
    with pytest.raises(UsageError):
        TrainSettings(**options)
