"""`optimize --finetune`: which cuts are trained, for how long, and that it can be done again."""

import json
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from nncompress import exporting, pipeline
from nncompress.analysis.cost import cost
from nncompress.api import dataset
from nncompress.cli.app import run
from nncompress.cli.work.search import made_again
from nncompress.devices import Processor
from nncompress.errors import (
    ExitCode,
    OutputError,
    PromiseError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from nncompress.ir import Model
from nncompress.loading import load_model
from nncompress.passes import Context, Factorize, PruneNodes, Quantize
from nncompress.search import finetune
from nncompress.search.candidates import SHARES, Family
from nncompress.search.finetune import Trainer, Training, bisected, trained_key
from nncompress.search.optimize import Search
from nncompress.search.trial import Bounds, Judge
from nncompress.search.worth_training import WorthTraining
from nncompress.train.loss import remembered
from nncompress.train.loss.remembered import ASKING


def answer(capsys, *arguments):
    code = run(list(arguments))
    out, err = capsys.readouterr()
    return code, out, err


def test_cuts_that_are_too_strong_are_trained_and_made_again_by_the_commands(here, effects, placed, capsys):
    shutil.copytree(effects, "m.optimize/sensitivity")
    search = ["optimize", "m.pt2", "--data", "val.npz", "--max-drop", "3", "--goal", "macs", "--trials", "1"]
    # how many epochs a budget allows, the machine says, unless it is settled
    key = trained_key((PruneNodes(macs=0.525),), Training(60.0))  # one candidate has the whole budget
    settled = {"epochs": 12, "teacher_weight": 0.9}
    placed(f"trained/{key}.json", settled)
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


@pytest.mark.parametrize("candidates", [1, 2, 3, 5, 7])
def test_the_strongest_that_training_saves_is_found_by_bisection(candidates):
    """However many hold, as few trainings as can tell say how many, in the time that is given."""
    for strongest in range(candidates + 1):
        tried = {}

        def holds(candidate, seconds, tried=tried, strongest=strongest):
            tried[int(candidate)] = seconds
            return int(candidate) < strongest

        bisected([str(i) for i in range(candidates)], 70.0, holds)
        assert len(tried) <= candidates.bit_length()
        assert max((each for each in tried if each < strongest), default=-1) == strongest - 1
        assert sum(tried.values()) <= 70.0 + 1e-9
        times = list(tried.values())
        assert times == pytest.approx([times[0] * 2**k for k in range(len(times))])
    assert times[0] == pytest.approx(70.0 / (2 ** candidates.bit_length() - 1))


@pytest.mark.parametrize("bfloat16", [1.0, 0.95, 0.5])
def test_the_time_of_a_few_steps_says_how_much_is_trained_and_how_precisely(here, monkeypatch, bfloat16):
    """A step takes 1 s, for each batch that the teacher answers half as long; in bf16 that times `bfloat16`,
    which is taken where it gains much."""
    original = load_model("m.pt2")

    def speed(trainer, cut, settings):
        return tuple(part * (bfloat16 if settings["precision"] == "bf16" else 1) for part in (0.5, 1.0))

    monkeypatch.setattr(finetune.Trainer, "_speed", speed)
    monkeypatch.setattr(finetune, "processor", lambda: Processor("one", 1, frozenset({"avx512_bf16"})))
    context = Context(data=dataset("val.npz", original), limit=512)
    trainer = finetune.Trainer(here / "folder", original, "rmse", context)
    share, how = (0.5, {"precision": "bf16"}) if bfloat16 < 0.9 else (1, {})
    three = {"epochs": 3, "teacher_weight": 1.0, **how}
    steps = 3000 / 128
    assert trainer.settings("a", original, Training(3.6 * steps * share)) == three
    assert trainer.settings("a", original, Training(1.0)) == three  # settled
    few = {"epochs": 1, "limit": 512, "teacher_weight": 1.0, **how}
    assert trainer.settings("b", original, Training(4.1 * 1.5 * share)) == few
    context = replace(context, data=dataset("few.npz", original))  # all 60 samples are one batch
    few = finetune.Trainer(here / "few", original, "top1", context)
    assert few.settings("c", original, Training(10.6 * share)) == {"epochs": 10, "teacher_weight": 0.9, **how}
    (here / "folder/trained/a.json").write_text('{"epochs": 0}')
    with pytest.raises(UsageError, match="does not say how to train"):
        trainer.settings("a", original, Training(1.0))


def test_steps_are_timed_and_what_the_teacher_is_asked_for_once(here, monkeypatch):
    """Of the steps that a training tells of, the median of each kind: what others take is not in."""
    original = load_model("m.pt2")
    times = iter([0.0, 7.0, 7.5, 8.0, 8.5, 10.0, 11.0, 30.0, 31.0])
    told = ["epoch 1 of 3", *[ASKING] * 3, "epoch 1 of 3", *["epoch 1 of 3, loss 2"] * 4]

    def train(*_, progress, **__):
        for description in told:
            progress.step(description, 0, None)

    monkeypatch.setattr(finetune, "train", train)
    monkeypatch.setattr(finetune.time, "monotonic", lambda: next(times))
    trainer = finetune.Trainer(here / "s", original, "top1", Context(data=dataset("few.npz", original)))
    assert trainer._speed(original, {"limit": 60}) == (0.5, 1.25)
    told = ["epoch 1 of 3"] * 3  # asked in every step
    times = iter([0.0, 2.0, 4.0])
    assert trainer._speed(original, {"limit": 60}) == (0.0, 2.0)


def test_what_the_teacher_is_asked_for_in_every_epoch_and_the_timing_itself_are_in_the_budget(
    here, monkeypatch
):
    """A step takes 1 s, an answer half as long, to tell so 100 s."""
    original = load_model("m.pt2")
    now = iter([0.0, 100.0] * 3)
    monkeypatch.setattr(finetune.Trainer, "_speed", lambda *_: (0.5, 1.0))
    monkeypatch.setattr(finetune.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(finetune, "processor", lambda: Processor("one", 1, frozenset()))
    trainer = finetune.Trainer(here / "f", original, "rmse", Context(data=dataset("val.npz", original)))
    steps = 3000 / 128
    assert trainer.settings("kept", original, Training(100 + 4.6 * steps))["epochs"] == 4
    bytes_of_all = 3000 * original.output_shapes()[0][1] * 4
    monkeypatch.setattr(
        remembered, "MOST", bytes_of_all - 1
    )  # more than are kept, unlike those of a few steps
    assert trainer.settings("anew", original, Training(100 + 4.6 * steps))["epochs"] == 3
    assert trainer.settings("none", original, Training(50.0)) == {
        "epochs": 1,
        "limit": 128,
        "teacher_weight": 1.0,
    }


def test_a_model_that_diverges_in_16_bits_is_trained_in_32(here, monkeypatch):
    original = load_model("m.pt2")

    def speed(trainer, cut, settings):
        if settings["precision"] == "bf16":
            raise VerificationError("training diverged")
        return 0.0, 1.0

    monkeypatch.setattr(finetune.Trainer, "_speed", speed)
    monkeypatch.setattr(finetune, "processor", lambda: Processor("one", 1, frozenset({"avx512_bf16"})))
    trainer = finetune.Trainer(here / "f", original, "rmse", Context(data=dataset("few.npz", original)))
    assert trainer.settings("a", original, Training(10.6)) == {"epochs": 10, "teacher_weight": 1.0}


def judged(here, rows, **bounds):
    """A search in which these were tried, each with its goal and loss."""
    original = load_model("m.pt2")
    data = dataset("few.npz", original)
    bounds = Bounds(**{"drop": 0.01, "size": None, "latency": None, "goal": "size", **bounds})
    search = Search(here / "s", original, data, Context(data=data, limit=60), bounds)
    for number, (size, lost, at_most, recipe) in enumerate(rows):
        row = {"recipe": recipe, "worker": "w", "macs": 0.5, "size": size, "seconds": 1.0, "samples": 60}
        search.trials.put(f"{number:02}", {**row, "lost": lost, "at_most": at_most})
    return search


def candidates(search, told=print):
    return WorthTraining(search.judge, search.trials, search.families, told).found(search.best())


CUT, ROUNDED = [{"name": "prune-nodes", "macs": 0.5}], [{"name": "quantize"}]


def test_worse_misses_do_not_hide_a_better_one_and_what_is_too_large_or_uncut_is_not_trained(here):
    worse = [(900, 0.02 + i / 1000, 0.05, CUT) for i in range(9)]
    rows = [(500, 0.0, 0.005, CUT), *worse, (400, 0.04, 0.06, CUT), (300, 0.03, 0.06, ROUNDED)]
    assert candidates(judged(here, rows)) == ["10"]


def test_what_is_larger_than_is_asked_is_not_trained(here):
    found = judged(here, [(500, 0.02, 0.05, CUT), (90, 0.04, 0.06, CUT)], size=100)
    assert candidates(found) == ["01"]
    assert not judged(here / "none", [(500, 0.02, 0.05, CUT)], size=100).finetune(
        Training(1.0), lambda row: None
    )


def test_a_cut_whose_time_cannot_be_measured_is_told_and_left_out(here, monkeypatch):
    def latency(judge, model):
        raise UnsupportedError("no kernel")

    monkeypatch.setattr(Judge, "latency", latency)
    told = []
    search = judged(here, [(500, 0.02, 0.05, CUT)], goal="latency", target="ort-cpu")
    assert candidates(search, told.append) == []
    assert [row["failed"] for row in told] == ["no kernel"]
    assert search.trials.get("00")["failed"] == "no kernel"
    assert candidates(search, told.append) == []
    assert len(told) == 1


def test_where_a_size_is_asked_for_a_cut_whose_time_cannot_be_measured_is_left_out_too(here, monkeypatch):
    def latency(judge, model):
        raise UnsupportedError("no kernel")

    monkeypatch.setattr(Judge, "latency", latency)
    search = judged(here, [(80, 0.02, 0.05, CUT)], size=100, goal="latency", target="ort-cpu")
    assert candidates(search) == []
    assert search.trials.get("00")["failed"] == "no kernel"


def test_where_no_trial_is_small_enough_the_weakest_cut_that_is_has_the_whole_budget(here, monkeypatch):
    original = load_model("m.pt2")
    wanted = 0.35 * cost(original).bytes
    search = judged(here, [(wanted * 2, 0.001, 0.005, CUT)], size=wanted)
    search.families = [
        Family("factorize", lambda share: (Factorize(params=share),)),
        Family("prune-nodes", lambda share: (PruneNodes(macs=share),)),
    ]
    trained = []
    monkeypatch.setattr(Trainer, "check_data", lambda *_: None)

    def learn(trainer, key, recipe, training):
        trained.append((recipe, training.seconds))
        return trainer._run(trainer._original, recipe), {"trained": {"epochs": 1, "teacher_weight": 0.9}}

    monkeypatch.setattr(Trainer, "trained", learn)
    assert search.finetune(Training(9.0), lambda row: None)
    (((only,), seconds),) = trained
    assert seconds == 9.0
    sizes = {share: cost(pruned(original, share)).bytes for share in SHARES}
    assert only.macs == max(share for share, size in sizes.items() if size <= wanted)
    assert not judged(here / "held", [(wanted, 0.001, 0.005, CUT)], size=wanted).finetune(
        Training(1.0), print
    )


def test_a_trial_that_is_too_large_is_not_the_closest_that_is_told(here):
    rows = [(90, 0.04, 0.06, CUT), (500, 0.02, 0.05, CUT)]
    with pytest.raises(PromiseError, match="as small and as fast") as caught:
        judged(here, rows, size=100).promise(None)
    assert "the closest loses 4.00 points" in str(caught.value)
    with pytest.raises(PromiseError, match="keeps the bounds on size and latency"):
        judged(here / "none", rows, size=50).promise(None)


def pruned(model, share):
    small, _ = pipeline.run(
        model, [PruneNodes(macs=share)], Context(data=dataset("few.npz", model), limit=60)
    )
    return small


def test_a_full_disk_is_no_result_of_a_recipe(here, monkeypatch):
    def compressed(judge, recipe):
        raise OutputError("no room for a temporary file")

    monkeypatch.setattr(Judge, "compressed", compressed)
    with pytest.raises(OutputError):
        judged(here, []).judge.run((Quantize(),))


def test_labels_are_learnt_only_where_there_are_some_and_other_samples_are_refused(here):
    original = load_model("m.pt2")
    x = np.random.default_rng(0).standard_normal((70, 12)).astype(np.float32)
    np.savez("bare.npz", x=x)
    trainer = finetune.Trainer(here / "f", original, "top1", Context(data=dataset("bare.npz", original)))
    assert trainer._teacher_weight == 1.0
    trainer.check_data(Training(1.0))
    trainer.check_data(Training(1.0))
    x[69] += 1  # beyond what passes take
    np.savez("bare.npz", x=x)
    context = Context(data=dataset("bare.npz", original), limit=8)
    trainer = finetune.Trainer(here / "f", original, "top1", context)
    with pytest.raises(UsageError, match=r"other samples than bare\.npz"):
        trainer.check_data(Training(1.0))


def test_a_damaged_record_of_a_training_ends_the_search_and_is_no_trial(here):
    search = judged(here, [(500, 0.02, 0.05, CUT)])
    (here / "s/trained").mkdir(exist_ok=True)
    key = trained_key((PruneNodes(macs=0.5),), Training(3.0))
    (here / f"s/trained/{key}.json").write_text("{")
    with pytest.raises(UsageError, match="does not say how to train"):
        search.finetune(Training(3.0), lambda row: None)
    assert list(search.trials.all()) == ["00"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--max-size", "1kB", "--finetune", "1"], "--max-drop"),
        (["--max-drop", "1", "--finetune", "x"], "dur"),
        (["--max-drop", "1", "--flip"], "--finetune"),
        (["--max-drop", "1", "--finetune", "1", "--crop", "2"], "augmentation is for images"),
    ],
)
def test_finetuning_that_cannot_be_is_told(here, capsys, arguments, said):
    code, _, err = answer(capsys, "optimize", "m.pt2", "--data", "val.npz", *arguments)
    assert (code, said in err) == (ExitCode.USAGE, True)
    assert not list((here / "m.optimize").rglob("trials/*.json"))  # before anything is tried


def test_images_are_shown_as_train_shows_them(here):
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Conv2d(1, 4, 3), torch.nn.Flatten(), torch.nn.Linear(64, 3)).eval()
    original = Model.from_module(net, (torch.randn(2, 1, 6, 6),))
    np.savez("images.npz", x=np.random.default_rng(0).random((40, 1, 6, 6), np.float32))
    recipe, shown = (PruneNodes(ratio=0.25),), Training(1.0, crop=2, flip=True)
    data = dataset("images.npz", original)
    trainer = finetune.Trainer(here / "f", original, "agreement", Context(data=data))
    settled = {"epochs": 3, "teacher_weight": 1.0, **shown.images}
    key = trained_key(recipe, shown)
    assert key != trained_key(recipe, Training(1.0))
    (here / "f/trained").mkdir(parents=True)
    (here / f"f/trained/{key}.json").write_text(json.dumps(settled))
    made, said = trainer.trained(key, recipe, shown)
    assert said == {"trained": settled}
    loading = dict.fromkeys(("normalize", "arch", "weights_key", "input", "trust_pickle"))
    exporting.write(original, "images.pt2")
    _, commands = made_again.write(
        here / "small.pt2",
        recipe,
        settled,
        original=Path("images.pt2"),
        fit="images.npz",
        loading=loading,
        settings={"limit": 512, "seed": 0},
        target=None,
        reads=(),
    )
    for command in commands:
        assert run([*shlex.split(command)[1:], *(["--no-timing"] if " compress " in command else [])]) == 0
    again = load_model("small.pt2").state_dict()
    assert all(torch.equal(value, again[name]) for name, value in made.state_dict().items())
