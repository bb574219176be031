import json
import subprocess
import sys

import pytest

from nncompress import extras
from nncompress.cli.app import run
from nncompress.cli.commands import doctor
from nncompress.results import SCHEMA
from nncompress.targets import speed

TOLD = {"computes_in": "float32", "seconds_in": {"float32": 1.0, "int8": 0.5}}


def test_says_what_is_there_and_what_runs(capsys):
    assert run(["doctor", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["schema"] == SCHEMA
    assert found["versions"]["torch"] == extras.version("torch")
    assert {row["device"] for row in found["devices"]} >= {"CPU", "mobile"}
    timed = {each["name"]: set(each["seconds_in"]) for each in found["speeds"]}
    assert timed["ort-cpu"] == {"float32", "int8"}
    assert found["untimed"] == ""
    assert run(["doctor"]) == 0
    text = capsys.readouterr().out
    assert "ONNX Runtime" in text
    assert "fastest here: " in text
    assert max(map(len, text.splitlines())) <= 80


class Started:
    """Processes that `doctor` starts to have runtimes timed, where nothing is remembered."""

    def __init__(self, monkeypatch, tmp_path, faults, ends):
        self.commands = []
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
        monkeypatch.setattr(extras, "fault", lambda module: faults.get(module, ""))
        monkeypatch.setattr(doctor.subprocess, "run", self.run)
        self._ends = ends

    def run(self, command, **how):
        self.commands.append(command)
        return subprocess.CompletedProcess(command, *self._ends)


def test_what_was_timed_before_is_told_without_a_measurement(monkeypatch, tmp_path):
    started = Started(monkeypatch, tmp_path, {}, (0, "", ""))
    there = speed.timeable()
    speed.remember(
        there, {each.name: speed.Speed("float32", {"float32": 1.0, "int8": 0.5}) for each in there}
    )
    timed, untimed = doctor.speeds(timing=False)
    assert {each["seconds"] for each in timed} == {1.0}
    assert untimed == ""
    assert not started.commands


def test_a_runtime_that_ends_its_process_ends_neither_doctor_nor_the_measurement_of_others(
    monkeypatch, tmp_path
):
    told = json.dumps({"ort-cpu": TOLD})
    started = Started(monkeypatch, tmp_path, {"openvino": "exit code -11"}, (0, f"{told}\n", ""))
    timed, untimed = doctor.speeds(timing=True)
    assert [(each["name"], each["seconds"], untimed) for each in timed] == [("ort-cpu", 1.0, "")]
    (command,) = started.commands
    assert command[-1] == "ort-cpu"
    assert "openvino" not in command


@pytest.mark.parametrize(
    "told",
    [
        "",
        "OpenVINO says good-bye",
        json.dumps([1]),
        json.dumps({"ort-cpu": TOLD | {"computes_in": ["float32"]}, "openvino": TOLD}),
        json.dumps({"ort-cpu": TOLD | {"seconds_in": 3}, "openvino": TOLD}),
    ],
)
def test_what_another_than_us_printed_or_kept_is_no_time(monkeypatch, tmp_path, told):
    Started(monkeypatch, tmp_path, {}, (0, told, ""))
    assert doctor.speeds(timing=True) == ([], "its process said nothing of them")
    there = speed.timeable()
    monkeypatch.setattr(speed.Remembered, "read", lambda _: {"speeds": told and json.loads(told)})
    if not told.startswith("Open"):
        assert speed.remembered(there) == {}


def test_why_no_runtime_is_timed_is_said(monkeypatch, tmp_path, capsys):
    Started(monkeypatch, tmp_path, {}, (-11, "", ""))
    assert run(["doctor"]) == 0
    assert "no runtime is timed: exit code -11" in capsys.readouterr().out


def test_nothing_is_timed_where_that_is_not_wanted(monkeypatch, tmp_path, capsys):
    started = Started(monkeypatch, tmp_path, {}, (0, "[]\n", ""))
    assert run(["doctor", "--no-timing"]) == 0
    assert "no runtime is timed: --no-timing" in capsys.readouterr().out
    assert not started.commands


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
