"""`nncompress new`, run in-process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nncompress.cli.app import run
from nncompress.errors import ExitCode
from nncompress.zoo import ARCHITECTURES


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_new_model_is_where_the_next_command_starts(capsys):
    assert run(["new", "summation", "-o", "net.pt2"]) == ExitCode.OK
    capsys.readouterr()
    assert run(["inspect", "--json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["totals"]["macs"] == ARCHITECTURES["summation"].macs


def test_list_names_every_architecture_in_80_columns(capsys):
    assert run(["new", "--list"]) == ExitCode.OK
    shown = capsys.readouterr().out
    assert all(name in shown for name in ARCHITECTURES)
    assert max(map(len, shown.splitlines())) <= 80
    assert run(["new", "--list", "--json"]) == ExitCode.OK
    assert len(json.loads(capsys.readouterr().out)["architectures"]) == len(ARCHITECTURES)


def test_an_architecture_takes_other_inputs_and_classes(capsys):
    arguments = ["new", "alternatives-separable", "--input", "1x1x28x28", "--classes", "7"]
    assert run(arguments) == ExitCode.OK
    capsys.readouterr()
    assert run(["inspect", "alternatives-separable.pt2", "--json"]) == ExitCode.OK
    shown = json.loads(capsys.readouterr().out)
    assert shown["inputs"][0]["shape"] == ["batch", 1, 28, 28]
    assert shown["layers"][-1]["shape"] == [7, 128]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["new"], "no NAME"),
        (["new", "--list", "resnet20"], "nncompress new resnet20"),
        (["new", "resnet2"], "did you mean"),
        (["new", "sine", "--input", "1x1,1x1"], "one input"),
        (["new", "sine", "-o", "a.txt"], "format"),
        (["new", "sine", "-o", "a.pt2/"], "mkdir -p a.pt2; then --output a.pt2/model.pt2"),
        (["new", "sine", "-o", "."], "names a folder"),
        (["new", "resnet20", "--input", "3x32x32"], "--input 1x3x32x32"),
    ],
)
def test_mistakes_leave_nothing_behind(capsys, arguments, message):
    assert run(arguments) == ExitCode.USAGE
    assert message in capsys.readouterr().err
    assert not list(Path().iterdir())


def test_the_list_does_not_import_torch():
    code = """import sys
from nncompress.cli.app import run
run(['new', '--list'])
print('torch' in sys.modules)
"""
    root = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=root)
    assert done.stdout.splitlines()[-1] == "False"
