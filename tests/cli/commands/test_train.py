"""`train` as a user would type it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from torch import nn

import nncompress
from nncompress import api
from nncompress.analysis.cost import cost
from nncompress.cli.app import run
from nncompress.errors import ExitCode
from nncompress.train.run import Run


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save(nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3)), "model.pt")
    x = np.random.default_rng(0).normal(size=(90, 4)).astype(np.float32)
    np.savez("data.npz", x=x, y=x[:, :3].argmax(1))
    return tmp_path


def test_prune_then_train_then_eval(here, capsys):
    assert run(["prune", "model.pt", "--input", "1x4", "--sparsity", "0.5"]) == ExitCode.OK
    train = [
        "train",
        "--data",
        "data.npz",
        "--val",
        "data.npz",
        "--epochs",
        "20",
        "--batch",
        "10",
        "--teacher-weight",
        "0.1",
    ]
    assert run([*train, "--lr", "0.1", "--teacher", "model.prune.pt2"]) == ExitCode.OK
    assert "top-1" in capsys.readouterr().out
    assert not Path("model.prune.train.pt2.checkpoint").exists()
    rows = [json.loads(line) for line in Path("model.prune.train.pt2.jsonl").read_text().splitlines()]
    assert [row["epoch"] for row in rows] == list(range(1, 21))
    assert rows[-1]["validation"]["top1"] > 0.9
    trained = nncompress.load("model.prune.train.pt2")
    assert [record["pass"] for record in trained.history] == ["prune", "train"]
    assert trained.history[1]["settings"] == {
        "epochs": 20, "batch": 10, "lr": 0.1, "teacher_weight": 0.1
    }  # fmt: skip
    zeros = sum(int((t == 0).sum()) for n, t in trained.state_dict().items() if n.endswith("weight"))
    assert zeros == 56
    assert run(["eval", "--data", "data.npz", "--json"]) == ExitCode.OK
    newest = json.loads(capsys.readouterr().out)["models"][1]
    assert newest["result"]["top1"] == pytest.approx(rows[-1]["validation"]["top1"])


def test_a_quantized_model_learns_from_an_original_of_unknown_input_shape(here, capsys):
    """`model.pt` carries no input shape: the data tells it, for the teacher too."""
    quantize = ["quantize", "model.pt", "--data", "data.npz", "--weight-bits", "3", "-o", "q.pt2"]
    assert run(quantize) == ExitCode.OK
    train = ["train", "q.pt2", "--data", "data.npz", "--teacher", "model.pt", "--teacher-weight", "1"]
    assert run([*train, "--epochs", "3", "--batch", "10", "-o", "better.pt2"]) == ExitCode.OK
    better = nncompress.load("better.pt2")
    assert [record["pass"] for record in better.history] == ["quantize", "train"]
    assert better.tensor("0.weight_int8").dtype == torch.int8


@pytest.mark.parametrize(("command", "kept"), [("train", "out.pt2.checkpoint"), ("cycle", "model.cycles")])
def test_an_interrupted_run_says_how_to_go_on(here, capsys, monkeypatch, command, kept):
    run_it = [command, "model.pt", "--input", "1x4", "--data", "data.npz", "--epochs", "2", "-o", "out.pt2"]
    run_it += ["--batch", "45"]
    real, steps = Run.step, iter(range(3))

    def interrupted(*arguments: object) -> None:
        if next(steps, None) is None:
            raise KeyboardInterrupt
        real(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(Run, "step", interrupted)
        assert run(run_it) == ExitCode.INTERRUPTED
    assert f"{kept} has the run until its last epoch or minute" in capsys.readouterr().err
    assert run([*run_it, "--resume"]) == ExitCode.OK


def test_a_checkpoint_is_neither_overwritten_nor_missed(here, capsys):
    command = ["train", "model.pt", "--input", "1x4", "--data", "data.npz", "--epochs", "1", "-o", "out.pt2"]
    Path("out.pt2.checkpoint").write_bytes(b"of another day")
    assert run(command) == ExitCode.USAGE
    assert "--resume continues it" in capsys.readouterr().err
    assert run([*command, "--resume"]) == ExitCode.MODEL_FILE
    assert "is not a checkpoint" in capsys.readouterr().err
    Path("out.pt2.checkpoint").unlink()
    assert run([*command, "--resume"]) == ExitCode.OK
    assert "starting from the beginning" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        ([], ExitCode.USAGE, "train needs data"),
        (["--data", "data.npz", "--lr", "0"], ExitCode.USAGE, "--lr is out of range"),
        (["--data", "data.npz", "--flip"], ExitCode.USAGE, "augmentation is for images"),
        (["--data", "none.npz"], ExitCode.DATA, "none.npz"),
        (["--data", "data.npz", "-o", "out.txt"], ExitCode.USAGE, "cannot tell the format"),
    ],
)
def test_mistakes_are_one_message(here, capsys, options, code, text):
    assert run(["train", "model.pt", "--input", "1x4", *options]) == code
    said = capsys.readouterr().err
    assert text in said
    assert "Traceback" not in said


@pytest.mark.parametrize("command", ["train", "cycle"])
@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["-o", "start.pt2"], "start.pt2 is the input"),
        (["-o", "nowhere/out.pt2"], "no folder nowhere"),
        (["-o", "folder.pt2"], "a folder of that name"),
    ],
)
def test_an_output_that_could_not_be_written_is_refused_before_training(
    here, capsys, monkeypatch, command, options, text
):
    _refused_before_training(
        capsys, monkeypatch, [command, "start.pt2", "--data", "data.npz", *options], text
    )


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--teacher", "teacher.pt2", "-o", "teacher.pt2"], "teacher.pt2 is the input"),
        (["--log", "nowhere/log.jsonl"], "no folder nowhere"),
        (["--log", "data.npz"], "data.npz is the input"),
        (["--log", "start.pt2"], "start.pt2 is the input"),
        (["--log", "./out.pt2", "-o", "out.pt2"], "is written by this training, too"),
    ],
)
def test_training_overwrites_neither_teacher_nor_data(here, capsys, monkeypatch, options, text):
    _refused_before_training(
        capsys, monkeypatch, ["train", "start.pt2", "--data", "data.npz", *options], text
    )


def test_cycles_are_not_recorded_under_a_file(here, capsys, monkeypatch):
    command = ["cycle", "start.pt2", "--data", "data.npz", "--folder", "data.npz"]
    _refused_before_training(capsys, monkeypatch, command, "cannot make the folder data.npz")


def _refused_before_training(capsys, monkeypatch, command: list[str], text: str) -> None:
    """The mistake is told with exit code 10, no step was trained, and every file is what it was."""
    model = nncompress.load("model.pt", input="1x4")
    nncompress.export(model, "start.pt2")
    nncompress.export(model, "teacher.pt2")
    Path("folder.pt2").mkdir()
    before = {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}
    monkeypatch.setattr(Run, "step", lambda *_: pytest.fail("a step was trained"))
    assert run([*command, "--epochs", "1"]) == ExitCode.OUTPUT
    said = capsys.readouterr().err
    assert text in said
    assert "Traceback" not in said
    assert before == {path: path.read_bytes() for path in Path().iterdir() if path.is_file()}


def test_cycles_prune_and_are_not_overwritten(here, capsys):
    cycle = ["cycle", "model.pt", "--input", "1x4", "--data", "data.npz"]
    cycle += ["--ratio", "0.5", "--max-cycles", "2"]
    assert run([*cycle, "--epochs", "2", "--json"]) == ExitCode.OK
    result = json.loads(capsys.readouterr().out)
    assert [list(c["nodes"].values()) for c in result["cycles"]] == [[16], [8], [4]]
    assert result["stopped"] == "max cycles"
    assert len(Path("model.cycles/cycles.jsonl").read_text().splitlines()) == 3
    assert nncompress.load("model.cycle.pt2").history[-1]["pass"] == "cycle"
    assert run([*cycle, "--epochs", "2"]) == ExitCode.USAGE
    assert "--resume continues it" in capsys.readouterr().err
    assert run([*cycle, "--epochs", "2", "--resume", "-o", "again.pt2"]) == ExitCode.OK
    assert "cycle" in capsys.readouterr().out


def test_cycles_take_a_teacher_and_one_process(here, capsys, monkeypatch):
    cycle = ["cycle", "model.pt", "--input", "1x4", "--data", "data.npz", "--ratio", "0.5", "--epochs", "1"]
    assert run([*cycle, "--max-cycles", "1", "--teacher", "model.pt", "--json"]) == ExitCode.OK
    result = json.loads(capsys.readouterr().out)
    assert [list(c["nodes"].values()) for c in result["cycles"]] == [[16], [8]]
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run([*cycle, "--folder", "other"]) == ExitCode.USAGE
    assert "cycle runs in one process" in capsys.readouterr().err
    assert not Path("other").exists()


def test_growing_up_to_a_budget(here, capsys):
    """The table tells what grew, the budget is kept, and the file holds the grown model."""
    train = ["train", "model.pt", "--input", "1x4", "--data", "data.npz", "--epochs", "4", "--lr", "1e-6"]
    assert run([*train, "--grow", "plateau", "--grow-patience", "1", "--max-params", "300"]) == ExitCode.OK
    told = capsys.readouterr().out
    grown = nncompress.load("model.train.pt2")
    assert "grown to" in told
    assert f"{cost(grown).macs} MACs" in told
    assert 16 < len(grown.tensor("0.weight")) <= 37
    assert grown.history[-1]["growth"] == {"grow": "plateau", "grow_patience": 1, "max_params": 300}
    assert run([*train, "--grow-by", "4"]) == ExitCode.USAGE
    assert "belongs to --grow" in capsys.readouterr().err


def test_a_teacher_may_be_weights_alone(here, capsys):
    Path("net.py").write_text(
        "from torch import nn\n"
        "def wide(): return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))\n"
        "def narrow(): return nn.Sequential(nn.Linear(4, 3))\n"
    )
    torch.save(torch.load("model.pt", weights_only=False).state_dict(), "weights.pt")
    torch.save(nn.Sequential(nn.Linear(4, 3)).state_dict(), "narrow.pt")
    rest = ["--data", "data.npz", "--teacher", "weights.pt", "--epochs", "1", "--arch"]
    assert run(["train", "model.pt", *rest, "net.py:wide", "-o", "a.pt2"]) == ExitCode.OK
    assert run(["train", "weights.pt", *rest, "net.py:wide", "-o", "b.pt2"]) == ExitCode.OK
    both = [*rest, "net.py:narrow", "--teacher-arch", "net.py:wide", "-o", "c.pt2"]
    assert run(["train", "narrow.pt", *both]) == ExitCode.OK
    assert run(["train", *rest, "net.py:wide", "-o", "d.pt2"]) == ExitCode.OK  # what the last one wrote
    capsys.readouterr()
    assert run(["train", "model.pt", *rest[:2], "--teacher-arch", "net.py:wide"]) == ExitCode.USAGE
    assert "--teacher-arch is for a teacher" in capsys.readouterr().err


def test_an_output_without_a_gradient_is_refused(here, capsys):
    class Chosen(nn.Module):
        def __init__(self):
            super().__init__()
            self.scores = nn.Linear(4, 3)

        def forward(self, x):
            return self.scores(x).argmax(-1)

    torch.export.save(torch.export.export(Chosen().eval(), (torch.randn(2, 4),)), "chosen.pt2")
    assert run(["train", "chosen.pt2", "--data", "data.npz", "--epochs", "1"]) == ExitCode.UNSUPPORTED
    assert "the output has no gradient" in capsys.readouterr().err


def test_a_label_that_does_not_fit_is_told_of_the_file_it_is_in(here, capsys):
    x = np.zeros((30, 4), np.float32)
    np.savez("val.npz", x=x, y=np.where(np.arange(30) == 25, 7, 0))
    train = ["train", "model.pt", "--data", "data.npz", "--val", "val.npz", "--batch", "10", "--epochs", "1"]
    assert run(train) == ExitCode.DATA
    assert "val.npz: sample 25 has a label" in capsys.readouterr().err


def test_a_last_step_that_diverges_is_told_and_nothing_is_written(here, capsys):
    train = ["train", "model.pt", "--data", "data.npz", "--batch", "90", "--epochs", "1", "--lr", "1e30"]
    assert run([*train, "-o", "wrecked.pt2"]) == ExitCode.VERIFICATION
    assert "training diverged in its last steps" in capsys.readouterr().err
    assert not Path("wrecked.pt2").exists()


def test_a_metric_is_measured_after_every_epoch_and_decides_which_is_kept(here, capsys):
    """Against scikit-learn on the model that was kept; its rate is so high that epochs go up and down."""
    data = ["--data", "data.npz", "--val", "data.npz?half=1", "--batch", "10", "--epochs", "6"]
    command = ["train", "model.pt", *data, "--lr", "0.5", "--metric", "f1", "--patience", "6", "-o", "t.pt2"]
    assert run(command) == ExitCode.OK
    assert "F1" in capsys.readouterr().out.splitlines()[0]
    rows = [json.loads(line)["validation"] for line in Path("t.pt2.jsonl").read_text().splitlines()]
    best = max(row["f1"] for row in rows)
    trained = nncompress.load("t.pt2")
    assert trained.history[-1]["validation"]["f1"] == best
    assert len({row["f1"] for row in rows}) > 1
    held_out = api.dataset("data.npz?half=1", trained)
    (batch,) = held_out.batches(90)
    answers = trained.outputs_of(*batch.inputs)[0].argmax(1)
    assert best == pytest.approx(f1_score(batch.labels, answers, average="macro"))


def test_epochs_are_judged_by_the_metric_and_not_by_the_loss(here):
    """A metric that falls while the loss falls too: the first epoch is the best one."""
    Path("own.py").write_text(
        "seen = []\n"
        "def falling(output, batch):\n"
        "    seen.append(0)\n"
        "    return output.new_full((len(output),), -float(len(seen)))\n"
    )
    own = ["--metric", "own.py:falling", "--patience", "2", "--epochs", "9", "--lr", "0.05"]
    assert run(["train", "model.pt", "--data", "data.npz", "--val", "data.npz", *own, "-o", "t.pt2"]) == 0
    rows = [json.loads(line)["validation"] for line in Path("t.pt2.jsonl").read_text().splitlines()]
    assert len(rows) == 3
    assert rows[2]["loss"] < rows[0]["loss"]
    assert nncompress.load("t.pt2").history[-1]["validation"] == rows[0]


def test_with_the_teacher_alone_the_held_out_data_needs_the_labels_of_its_metric_only(here):
    """Labels that are no classes of this model: what is learnt are the teacher's answers."""
    x = np.load("data.npz")["x"]
    np.savez("targets.npz", x=x, y=x[:, :3])
    teach = ["--teacher", "model.pt", "--teacher-weight", "1", "--data", "data.npz", "--epochs", "1"]
    assert run(["train", "model.pt", *teach, "--val", "targets.npz", "--metric", "rmse", "-o", "t.pt2"]) == 0
    (row,) = map(json.loads, Path("t.pt2.jsonl").read_text().splitlines())
    assert set(row["validation"]) == {"rmse"}
    answers = nncompress.load("t.pt2").outputs_of(torch.from_numpy(x))[0].detach().numpy()
    assert row["validation"]["rmse"] == pytest.approx(np.sqrt(np.square(answers - x[:, :3]).mean()), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "code", "text"),
    [
        (["--metric", "f1"], ExitCode.USAGE, "add --val DATA"),
        (["--metric", "f2", "--val", "data.npz"], ExitCode.USAGE, "unknown metric"),
        (["--metric", "f1", "--val", "unlabelled.npz"], ExitCode.DATA, "--metric f1"),
        (["--metric", "miou", "--val", "data.npz"], ExitCode.DATA, "--metric miou does not fit"),
        (["--val", "other.npz"], ExitCode.DATA, "sample 0 has a label that the model has no output for"),
    ],
)
def test_held_out_data_that_does_not_fit_is_told_before_an_epoch_is_spent(here, capsys, options, code, text):
    x = np.zeros((4, 4), np.float32)
    np.savez("unlabelled.npz", x=x)
    np.savez("other.npz", x=x, y=np.full(4, 7))
    assert run(["train", "model.pt", "--data", "data.npz", *options, "-o", "t.pt2"]) == code
    assert text in capsys.readouterr().err
    assert not Path("t.pt2.checkpoint").exists()


@pytest.mark.parametrize(
    ("outputs", "labels", "options", "said"),
    [
        (
            3,
            "classes",
            [],
            "cross-entropy (labels are class numbers, and the output has 3 scores",
        ),
        (
            1,
            "classes",
            [],
            "squared error (labels are whole numbers, and the output is one number per",
        ),
        (3, "numbers", [], "the mean squared error (labels are numbers with a point"),
        (4, "none", [], "the mean squared error (there are no labels, and the output is shaped as the input"),
        (3, "numbers", ["--loss", "rmse"], "the root of the mean squared error (labels are numbers"),
        (3, "classes", ["--task", "classification"], "cross-entropy (--task classification)"),
        (
            3,
            "classes",
            ["--teacher", "net.pt"],
            "90% the distance to the teacher's answers, 10% cross-entropy",
        ),
        (3, "none", ["--teacher", "net.pt", "--teacher-weight", "1"], "answers; labels are not used"),
    ],
)
def test_the_loss_that_was_chosen_is_said_with_its_reason(here, capsys, outputs, labels, options, said):
    torch.save(nn.Sequential(nn.Linear(4, outputs)), "net.pt")
    x = np.load("data.npz")["x"][:8]
    y = {"classes": {"y": x[:, :3].argmax(1)}, "numbers": {"y": x[:, :3]}, "none": {}}[labels]
    np.savez("some.npz", x=x, **y)
    assert run(["train", "net.pt", "--data", "some.npz", "--epochs", "1", *options]) == ExitCode.OK
    assert said in capsys.readouterr().err
