"""`optimize --finetune`: which cuts are trained, for how long, and that it can be done again."""

import json
import shlex
import shutil

import pytest
import torch

from nncompress.api import dataset
from nncompress.cli.app import run
from nncompress.errors import ExitCode, UsageError
from nncompress.loading import load_model
from nncompress.passes import Context, PruneNodes
from nncompress.search import finetune
from nncompress.search.finetune import bisected, trained_key


def answer(capsys, *arguments):
    code = run(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_cuts_that_are_too_strong_are_trained_and_made_again_by_the_commands(here, effects, capsys):
    shutil.copytree(effects, "m.optimize/sensitivity")
    search = ["optimize", "m.pt2", "--data", "val.npz", "--max-drop", "3", "--goal", "macs", "--trials", "1"]
    # how many epochs a budget allows, the machine says, unless it is settled
    key = trained_key((PruneNodes(macs=0.525),), 20.0)
    (here / "m.optimize/trained").mkdir()
    settled = {"epochs": 12, "teacher_weight": 0.9}
    (here / f"m.optimize/trained/{key}.json").write_text(json.dumps(settled))
    code, out, err = answer(capsys, *search, "--finetune", "1", "--json")
    assert code == 0, err
    assert "learns the half of --data that chooses" in err
    assert "train (12 epochs)" in err
    found = json.loads(out)
    assert found["best"]["trained"] == settled
    (untrained,) = (row for row in found["trials"].values() if "trained" not in row)
    assert untrained["at_most"] > 0.03
    assert found["best"]["lost"] < untrained["lost"]
    assert found["promise"]["kept"]
    for command in found["commands"]:
        again = shlex.split(command.replace("-o m.optimize.pt2", "-o again.pt2"))[1:]
        assert answer(capsys, *again, *(["--no-timing"] if "compress" in again else []))[0] == 0
    made, again = (load_model(name).state_dict() for name in ("m.optimize.pt2", "again.pt2"))
    assert all(torch.equal(made[name], again[name]) for name in made)
    code, out, _ = answer(capsys, *search, "--finetune", "1", "--json")
    assert json.loads(out)["trials"] == found["trials"]  # resumed: nothing is trained twice


@pytest.mark.parametrize("strongest", range(8))
def test_the_strongest_that_training_saves_is_found_by_bisection(strongest):
    """`strongest` of seven candidates hold; three trainings say how many."""
    tried = []

    def holds(candidate):
        tried.append(int(candidate))
        return int(candidate) < strongest

    bisected([str(i) for i in range(7)], holds)
    assert len(tried) <= 3
    assert max((each for each in tried if each < strongest), default=-1) == strongest - 1


def test_the_time_of_a_few_steps_says_how_much_is_trained(here, monkeypatch):
    original = load_model("m.pt2")
    seconds = iter([100.0, 5.0, 5.0 + 4 * 128 * 0.01] * 2)  # 10 ms per sample, after a start of 5 s
    monkeypatch.setattr(finetune.Trainer, "_timed", lambda *_: next(seconds))
    context = Context(data=dataset("val.npz", original), limit=512)
    trainer = finetune.Trainer(here / "folder", original, "rmse", context)
    assert trainer.settings("a", original, 95.0) == {"epochs": 3, "teacher_weight": 1.0}  # of 3,000 samples
    assert trainer.settings("a", original, 1.0) == {"epochs": 3, "teacher_weight": 1.0}  # settled
    assert trainer.settings("b", original, 6.0) == {"epochs": 1, "limit": 512, "teacher_weight": 1.0}
    (here / "folder/trained/a.json").write_text('{"epochs": 0}')
    with pytest.raises(UsageError, match="does not say how to train"):
        trainer.settings("a", original, 1.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-size", "1kB", "--finetune", "1"], "--max-drop"),
        (["--max-drop", "1", "--finetune", "x"], "dur"),
    ],
)
def test_finetuning_that_cannot_be_is_told(here, capsys, arguments, said):
    code, _, err = answer(capsys, "optimize", "m.pt2", "--data", "val.npz", *arguments)
    assert (code, said in err) == (ExitCode.USAGE, True)
