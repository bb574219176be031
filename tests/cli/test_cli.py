"""The command line, run in-process as a user would type it."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nncompress.cli import main
from nncompress.cli.app import run
from nncompress.cli.console import print_json
from nncompress.cli.table import COMMANDS, help_text
from nncompress.errors import ExitCode
from nncompress.passes import PASSES, Prune
from nncompress.results import SCHEMA


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """A directory with a model file and data, as the working directory."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4),
    )  # fmt: skip
    torch.save(model, "model.pt")
    rng = np.random.default_rng(0)
    np.savez("data.npz", x=rng.integers(0, 256, (40, 8, 8, 3), dtype=np.uint8), y=rng.integers(0, 4, 40))
    return tmp_path


def read_json(capsys) -> object:
    return json.loads(capsys.readouterr().out)


def test_a_session_without_naming_the_model(here, capsys):
    assert run(["prune", "model.pt", "--input", "1x3x8x8", "--sparsity", "0.5"]) == ExitCode.OK
    assert run(["factorize", "--err", "1e-2"]) == ExitCode.OK
    assert Path("model.prune.pt2").is_file()
    assert Path("model.prune.factorize.pt2").is_file()
    assert "using model.prune.pt2" in capsys.readouterr().err
    assert run(["inspect", "--json"]) == ExitCode.OK
    assert [record["pass"] for record in read_json(capsys)["history"]] == ["prune", "factorize"]
    assert run(["eval", "--data", "data.npz", "--json"]) == ExitCode.OK
    found = read_json(capsys)
    assert (found["schema"], found["kind"]) == (SCHEMA, "evaluation")
    original, newest = found["models"]
    assert (original["name"], newest["name"]) == ("original", "factorize")
    assert newest["paired"]["samples"] == 40
    assert newest["difference"]["outputs"][0]["cosine"] < 1


def test_an_export_is_what_eval_and_bench_measure_next(here, capsys):
    assert run(["prune", "model.pt", "--input", "1x3x8x8", "--sparsity", "0.9"]) == ExitCode.OK
    assert run(["export", "-o", "small.onnx"]) == ExitCode.OK
    assert run(["export", "-o", "weights.safetensors", "--storage", "plain"]) == ExitCode.OK
    capsys.readouterr()
    assert run(["eval", "--data", "data.npz", "--json"]) == ExitCode.OK
    assert [row["name"] for row in read_json(capsys)["models"]] == ["original", "small.onnx"]
    assert run(["prune", "--sparsity", "0.95"]) == ExitCode.OK
    assert "using model.prune.pt2" in capsys.readouterr().err
    assert run(["export", "-o", "again.onnx", "--storage", "entropy"]) == ExitCode.USAGE
    assert ".pt2 or .safetensors" in capsys.readouterr().err


def test_a_pass_starts_from_the_newest_pt2_and_not_from_an_export(here, capsys):
    assert run(["prune", "model.pt", "--input", "1x3x8x8"]) == ExitCode.OK
    assert run(["prune", "--sparsity", "0.9", "-o", "small.onnx"]) == ExitCode.OK
    assert run(["prune", "--sparsity", "0.9"]) == ExitCode.OK
    assert "using .nncompress/small.pt2" in capsys.readouterr().err


def test_after_writing_onnx_a_pass_goes_on_from_that_result(here, capsys):
    assert (
        run(
            ["compress", "model.pt", "--input", "1x3x8x8", "--pass", "prune:sparsity=0.5", "-o", "small.onnx"]
        )
        == 0
    )
    assert run(["factorize", "--err", "1e-2", "-o", "b.pt2"]) == ExitCode.OK
    capsys.readouterr()
    assert run(["inspect", "--json"]) == ExitCode.OK
    assert [record["pass"] for record in read_json(capsys)["history"]] == ["prune", "factorize"]


def test_drift_is_from_the_original_also_across_commands(here, capsys):
    assert run(["prune", "model.pt", "--input", "1x3x8x8", "--sparsity", "0.5", "--json"]) == ExitCode.OK
    first = read_json(capsys)["steps"][0]["drift"][0]["relative"]
    assert run(["prune", "--sparsity", "0.5", "--json"]) == ExitCode.OK  # changes nothing any more
    assert first > 0
    assert read_json(capsys)["steps"][0]["drift"][0]["relative"] == pytest.approx(first)


def test_a_pattern_that_names_no_layer_is_refused(here, capsys):
    assert run(["prune", "model.pt", "--input", "1x3x8x8", "--exclude", "haed*"]) == ExitCode.USAGE
    assert "haed*" in capsys.readouterr().err


def test_one_model_without_labels_cannot_be_evaluated(here, capsys):
    np.savez("nolabels.npz", x=np.zeros((4, 8, 8, 3), np.uint8))
    assert run(["eval", "model.pt", "--data", "nolabels.npz"]) == ExitCode.USAGE
    assert "no labels" in capsys.readouterr().err


def test_data_that_does_not_fit_names_the_data(here, capsys):
    np.savez("int64.npz", x=np.zeros((4, 8, 8, 3), np.int64))
    assert run(["prune", "model.pt", "--data", "int64.npz"]) == ExitCode.DATA
    assert "int64.npz" in capsys.readouterr().err


def test_compress_by_recipe_and_by_pass_give_the_same_file(here, capsys):
    Path("r.toml").write_text(
        '[[pass]]\nname = "prune"\nsparsity = 0.5\n[[pass]]\nname = "factorize"\nerr = 1e-2\n'
    )
    shared = ["--input", "1x3x8x8"]
    assert run(["compress", "model.pt", "--recipe", "r.toml", "-o", "a.safetensors", *shared]) == ExitCode.OK
    passes = ["--pass", "prune:sparsity=0.5", "--pass", "factorize:err=1e-2"]
    assert run(["compress", "model.pt", *passes, "-o", "b.safetensors", *shared]) == ExitCode.OK
    from safetensors.torch import load_file

    a, b = load_file("a.safetensors"), load_file("b.safetensors")
    assert a.keys() == b.keys()
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_the_input_shape_comes_from_the_data(here, capsys):
    assert run(["inspect", "model.pt", "--data", "data.npz", "--json"]) == ExitCode.OK
    assert read_json(capsys)["inputs"][0]["shape"] == ["batch", 3, 8, 8]


def test_json_has_no_number_that_json_cannot_hold(capsys):
    print_json({"a": [1.5, float("nan")], "b": {"c": -float("inf")}})
    assert read_json(capsys) == {"a": [1.5, None], "b": {"c": None}}


def test_onnx_files_are_compared_without_data(here, capsys):
    assert run(["export", "model.pt", "--input", "1x3x8x8", "-o", "a.onnx"]) == ExitCode.OK
    capsys.readouterr()
    assert run(["eval", "a.onnx", "a.onnx", "--json"]) == ExitCode.OK
    first, second = read_json(capsys)["models"]
    assert (first["name"], second["name"]) == ("a.onnx", "a.onnx (2)")
    assert second["difference"]["outputs"][0]["max_abs"] == 0


def test_a_guessed_input_shape_is_said(here, capsys):
    assert run(["inspect", "model.pt", "--json"]) == ExitCode.OK
    assert "guessed" in capsys.readouterr().err


def test_json_of_a_pass_holds_every_change(here, capsys):
    assert run(["prune", "model.pt", "--input", "1x3x8x8", "--json"]) == ExitCode.OK
    report = read_json(capsys)
    assert {change["where"] for change in report["steps"][0]["changes"]} == {"0", "2", "6"}
    assert Path(report["output"]["path"]).stat().st_size == report["output"]["bytes"]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["prune", "nowhere.pt"], ExitCode.MODEL_FILE, "nowhere.pt"),
        (["prune", "text.pt"], ExitCode.MODEL_FILE, "text.pt"),
        (["prune", "model.pt", "--std", "-1"], ExitCode.USAGE, "out of range"),
        (["prune", "model.pt", "--std", "lots"], ExitCode.USAGE, "valid number"),
        (["prune", "model.pt", "--std", "1", "--sparsity", "0.5"], ExitCode.USAGE, "one way"),
        (["prune", "model.pt", "--bogus"], ExitCode.USAGE, "--bogus"),
        (["prunes"], ExitCode.USAGE, "prune"),
        (["prune"], ExitCode.USAGE, "MODEL was left out"),
        (["prune", "model.pt", "-o", "out.txt"], ExitCode.USAGE, "format"),
        (["prune", "model.pt", "-o", "no/such/folder/out.pt2"], ExitCode.OUTPUT, "no/such/folder"),
        (["prune", "model.pt", "--data", "nowhere.npz"], ExitCode.DATA, "nowhere.npz"),
        (["prune", "model.pt", "--input", "threeby3"], ExitCode.USAGE, "threeby3"),
        (["compress", "model.pt"], ExitCode.USAGE, "--recipe"),
        (["compress", "model.pt", "--pass", "prun"], ExitCode.USAGE, "did you mean prune"),
        (["eval", "model.pt"], ExitCode.USAGE, "--data"),
        (["eval"], ExitCode.USAGE, "nncompress eval model.pt2"),
        (["cluster"], ExitCode.USAGE, "nncompress cluster model.pt"),
        (
            ["inspect", "model.pt", "--units", "--spectrum"],
            ExitCode.USAGE,
            "--units, --spectrum and --target",
        ),
        (["prune-nodes", "model.pt", "--scope", "all"], ExitCode.USAGE, "--scope': 'all' is not one of"),
    ],
)
def test_a_mistake_is_one_message_and_its_exit_code(here, capsys, arguments, code, message):
    Path("text.pt").write_text("I am no model\n")
    before = {p.name for p in here.iterdir()}
    assert run(arguments) == code
    shown = capsys.readouterr().err
    assert message in shown
    assert shown.count("error: ") == 1
    assert "Traceback" not in shown
    assert {p.name for p in here.iterdir()} == before, "a refused command left something behind"


def test_nan_data_is_refused_before_work(here, capsys):
    x = np.zeros((4, 3, 8, 8), np.float32)
    x[2, 0, 0, 0] = np.nan
    np.savez("nan.npz", x=x)
    assert run(["prune", "model.pt", "--data", "nan.npz"]) == ExitCode.DATA
    assert "sample 2" in capsys.readouterr().err


def test_a_result_is_reported_although_the_session_cannot_be_kept(here, capsys):
    Path(".nncompress").write_text("a file where the folder would be")
    assert run(["prune", "model.pt", "--input", "1x3x8x8", "-o", "a.pt2"]) == ExitCode.OK
    shown = capsys.readouterr()
    assert "wrote a.pt2" in shown.out
    assert "the next command has to name its MODEL" in shown.err


def test_the_input_file_is_never_overwritten(here, capsys):
    assert run(["prune", "model.pt", "--input", "1x3x8x8", "-o", "a.pt2"]) == ExitCode.OK
    content = Path("a.pt2").read_bytes()
    assert run(["prune", "a.pt2", "-o", "a.pt2"]) == ExitCode.OUTPUT
    assert Path("a.pt2").read_bytes() == content


def test_interrupting_leaves_nothing_behind(here, capsys, monkeypatch):
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Prune, "apply", interrupted)
    before = {p.name for p in here.iterdir()}
    assert run(["prune", "model.pt"]) == ExitCode.INTERRUPTED
    assert "interrupted" in capsys.readouterr().err
    assert {p.name for p in here.iterdir()} == before


@pytest.mark.parametrize("module", ["app", "script"])
def test_interrupting_before_a_command_began_is_one_line(module, monkeypatch, capsys):
    class Importing:
        def __getattr__(self, name: str) -> object:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, f"nncompress.cli.{module}", Importing())
    with pytest.raises(SystemExit) as ended:
        main(["prune", "model.pt"])
    assert ended.value.code == ExitCode.INTERRUPTED
    assert capsys.readouterr().err == "error: interrupted\n"


def test_terminating_while_writing_leaves_nothing_behind(here, capsys, monkeypatch):
    def killed(*_: object, **__: object) -> None:
        assert list(here.glob(".*.part"))
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("torch.export.save", killed)
    before = {p.name for p in here.iterdir()}
    assert run(["prune", "model.pt", "--input", "1x3x8x8"]) == ExitCode.TERMINATED
    assert "terminated" in capsys.readouterr().err
    assert {p.name for p in here.iterdir()} == before


def test_code_of_the_user_that_ends_the_process_is_no_success(here, capsys):
    """Its exit(0) would be taken for that of the command."""
    Path("net.py").write_text(
        "import sys\nfrom torch import nn\nclass Net(nn.Linear):\n"
        "    def forward(self, x):\n        sys.exit(0)\ndef build(): return Net(2, 2)\n"
    )
    torch.save(nn.Linear(2, 2).state_dict(), "weights.pt")
    assert run(["inspect", "weights.pt", "--arch", "net.py:build", "--input", "1x2"]) == ExitCode.USAGE
    assert "net.py, line 5, ended the command by exit(0)" in capsys.readouterr().err


def test_traceback_on_request(here, capsys):
    assert run(["--traceback", "prune", "nowhere.pt"]) == ExitCode.MODEL_FILE
    assert "Traceback" in capsys.readouterr().err


def test_a_defect_of_ours_keeps_its_traceback(here, capsys, monkeypatch):
    def broken(*_: object) -> None:
        raise ZeroDivisionError("boom")

    monkeypatch.setattr(Prune, "apply", broken)
    assert run(["prune", "model.pt"]) == ExitCode.INTERNAL
    shown = capsys.readouterr().err
    assert "ZeroDivisionError: boom" in shown
    assert "defect" in shown


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EFBIG])
def test_a_full_disk_is_no_defect(here, capsys, monkeypatch, code):
    """Also where it is met outside of what replaces a file."""

    def broken(*_: object) -> None:
        raise OSError(code, "no more", f"{tempfile.gettempdir()}/half")

    monkeypatch.setattr(Prune, "apply", broken)
    assert run(["prune", "model.pt"]) == ExitCode.OUTPUT
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert "TMPDIR=" in said


def test_help_fits_80_columns_and_names_every_command():
    text = help_text()
    assert max(map(len, text.splitlines())) <= 80
    listed = {name: summary for group in COMMANDS.values() for name, summary in group.items()}
    for name, pass_class in PASSES.items():
        assert listed[name] == pass_class.summary
    from nncompress.cli.app import build

    commands = {command.name for command in build().registered_commands}
    assert commands == set(listed)


@pytest.mark.parametrize(
    "arguments", [["--help"], ["--version"], ["prune", "--help"], ["compress", "--help"]]
)
def test_help_does_not_import_torch(arguments):
    code = f"""import sys
from nncompress.results import SCHEMA
from nncompress.cli import main
try:
    main({arguments})
finally:
    print('torch' in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "False"
    assert len(done.stdout) > 10


def test_every_pass_shows_an_example_in_its_help(capsys):
    for name, pass_class in PASSES.items():
        assert run([name, "--help"]) == ExitCode.OK
        assert pass_class.example.split()[1] == name
        assert "Example" in capsys.readouterr().out


def test_units_say_what_one_node_spans_and_saves(here, capsys):
    assert run(["inspect", "model.pt", "--units", "--input", "1x3x8x8", "--json"]) == ExitCode.OK
    first, second = read_json(capsys)["groups"]
    assert (first["units"], first["layers"]) == (16, ["0", "2"])
    assert first["parameters"] == 3 * 9 + 1 + 16 * 9  # its filter and bias, and what reads it
    assert first["macs"] == 8 * 8 * (3 * 9 + 16 * 9)
    assert second["layers"] == ["2", "6"]


def test_a_dry_run_checks_everything_and_writes_nothing(here, capsys):
    before = sorted(here.rglob("*"))
    command = ["compress", "model.pt", "--input", "1x3x8x8", "--dry-run", "--pass", "prune:sparsity=0.5"]
    assert run([*command, "--pass", "quantize", "--data", "data.npz", "-o", "small.onnx"]) == ExitCode.OK
    said = capsys.readouterr()
    assert said.out.splitlines()[:2] == ["1. prune:sparsity=0.5", "2. quantize"]
    assert "would write small.onnx" in said.out
    assert "not as the passes before it leave it" in said.err
    assert run([*command, "--pass", "quantize"]) == ExitCode.USAGE  # which needs data
    assert "--data" in capsys.readouterr().err
    assert run([*command, "--pass", "factorize:err=0.1,exclude=none*"]) == ExitCode.USAGE
    assert run([*command, "-o", "small.txt"]) == ExitCode.USAGE
    assert run([*command, "-o", "model.pt"]) != ExitCode.OK
    assert sorted(here.rglob("*")) == before


def test_bench_of_the_session_and_of_named_files(here, capsys):
    assert run(["prune", "model.pt", "--input", "1x3x8x8", "-o", "a.pt2"]) == ExitCode.OK
    capsys.readouterr()
    assert run(["bench", "--time", "0.2", "--data", "data.npz", "--json"]) == ExitCode.OK
    original, pruned = read_json(capsys)["runs"][0]["candidates"]
    assert original["speedup"] is None
    assert pruned["speedup"]["low"] <= pruned["speedup"]["value"] <= pruned["speedup"]["high"]
    assert original["accuracy"]["samples"] == 40
    assert run(["bench", "a.pt2", "--time", "0.2"]) == ExitCode.OK
    assert "a.pt2" in capsys.readouterr().out
    assert run(["bench", "a.pt2", "--device", "cuda"]) == ExitCode.NO_DEVICE


@pytest.mark.parametrize("typed", [["--sparsity", "30%"], ["--sparsity=30%"]])
def test_a_value_that_the_parser_refuses_is_shown(here, capsys, typed):
    assert run(["prune", "model.pt", *typed]) == ExitCode.USAGE
    assert "got:      '30%'" in capsys.readouterr().err


def test_labels_that_do_not_fit_are_told_before_a_search_or_a_measurement_begins(here, capsys, monkeypatch):
    assert run(["export", "model.pt", "--input", "1x3x8x8", "-o", "m.pt2"]) == ExitCode.OK
    x = np.zeros((20, 3, 8, 8), np.float32)
    np.savez("wrong.npz", x=x, y=np.where(np.arange(20) == 15, 9, 0))
    assert run(["optimize", "m.pt2", "--data", "wrong.npz", "--max-drop", "1"]) == ExitCode.DATA
    assert "label 9" in capsys.readouterr().err
    assert not Path("m.optimize").exists()
    monkeypatch.setattr("nncompress.cli.work.bench.benchmark", None)  # it is not reached
    assert run(["bench", "m.pt2", "--data", "wrong.npz"]) == ExitCode.DATA
    assert "label 9" in capsys.readouterr().err
