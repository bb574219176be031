import json
import subprocess
import sys

from nncompress import extras
from nncompress.cli.app import run
from nncompress.results import SCHEMA


def test_says_what_is_there_and_what_runs(capsys):
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == SCHEMA
    assert found["versions"]["torch"] == extras.version("torch")
    assert {row["device"] for row in found["devices"]} >= {"CPU", "mobile"}
    assert run(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "ONNX Runtime" in text
    assert max(map(len, text.splitlines())) <= 80


def test_one_command_adds_what_is_missing(monkeypatch, capsys):
    monkeypatch.setattr(extras, "installed", lambda extra: extra not in ("mobile", "train"))
    assert run(["doctor", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["command"] == "pip install 'nncompress[train,mobile]'"


def test_loads_no_runtime():
    code = (
        "import sys; from nncompress.cli.commands.doctor import examination; examination();"
        "print([m for m in ('torch', 'onnxruntime', 'executorch', 'onnx') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
