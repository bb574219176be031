"""A closed, full or abandoned stdout is one line and an exit code; signals end a command cleanly."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys

import pytest

from nncompress.cli import app, main
from nncompress.cli.app import run
from nncompress.errors import ExitCode
from nncompress.files.interrupts import held_back


class Broken:
    """A stream whose every write fails."""

    encoding = "utf-8"

    def __init__(self, code: int) -> None:
        self.code = code

    def write(self, text: str) -> int:
        raise OSError(self.code, os.strerror(self.code))

    def flush(self) -> None:
        raise OSError(self.code, os.strerror(self.code))

    def isatty(self) -> bool:
        return False


@pytest.fixture(autouse=True)
def signals_as_in_the_foreground():
    """A test run in the background may have been started with some of them ignored."""
    usual = {"SIGINT": signal.default_int_handler, "SIGHUP": signal.SIG_DFL, "SIGTERM": signal.SIG_DFL}
    numbers = {getattr(signal, name): handler for name, handler in usual.items() if hasattr(signal, name)}
    before = {number: signal.signal(number, handler) for number, handler in numbers.items()}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def given_up(monkeypatch):
    streams: list[int] = []
    for place in (
        "nncompress.cli.script.give_up",
        "nncompress.cli.app.give_up",
        "nncompress.cli.streams.give_up",
    ):
        monkeypatch.setattr(place, streams.append)
    return streams


@pytest.mark.parametrize("arguments", [["new", "--list"], ["new", "--list", "--json"]])
@pytest.mark.parametrize(
    ("code", "expected"),
    [(errno.ENOSPC, ExitCode.OUTPUT), (errno.EBADF, ExitCode.OUTPUT), (errno.EPIPE, ExitCode.OK)],
)
def test_a_stdout_that_takes_nothing(monkeypatch, capsys, given_up, arguments, code, expected):
    monkeypatch.setattr(sys, "stdout", Broken(code))
    assert run(arguments) == expected
    said = capsys.readouterr().err
    if expected == ExitCode.OK:
        assert said == ""
    else:
        assert said == f"error: cannot print the result: {os.strerror(code).lower()}\n"
    assert given_up == [1], "or the interpreter fails once more when it ends"


def test_a_stderr_that_takes_nothing_costs_no_result(monkeypatch, capsys, given_up):
    monkeypatch.setattr(sys, "stderr", Broken(errno.ENOSPC))
    assert run(["prune", "nowhere.pt2"]) == ExitCode.MODEL_FILE
    assert given_up == [2]


@pytest.mark.skipif(os.name != "posix", reason="a shell closes the streams")
@pytest.mark.parametrize(
    ("redirection", "code", "said"),
    [(">&-", 10, "cannot print"), (">&- 2>&-", 10, ""), ("<&- 2>&-", 0, ""), ("| true", 0, "")],
)
def test_streams_that_are_closed_from_the_start(redirection, code, said):
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; '{sys.executable}' -m nncompress --help {redirection}"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, said in done.stderr, "Traceback" in done.stderr) == (code, True, False)
    assert len(done.stderr.splitlines()) == (1 if said else 0)


@pytest.mark.parametrize(
    ("name", "code"),
    [("SIGINT", ExitCode.INTERRUPTED), ("SIGTERM", ExitCode.TERMINATED), ("SIGHUP", ExitCode.HUNG_UP)],
)
def test_a_signal_is_one_line_and_its_exit_code(monkeypatch, capsys, name, code):
    number = getattr(signal, name, None)
    if number is None:
        pytest.skip("not on this system")
    monkeypatch.setattr(app, "build", lambda _: os.kill(os.getpid(), number))
    assert run(["inspect", "m.pt2"]) == code
    said = capsys.readouterr().err
    assert "nothing half-written was left behind" in said
    assert len(said.splitlines()) == 1


@pytest.mark.skipif(not hasattr(signal, "SIGHUP"), reason="POSIX")
def test_under_nohup_a_command_goes_on():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with app._termination_unwinds():
            os.kill(os.getpid(), signal.SIGHUP)
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_second_interrupt_is_no_traceback(monkeypatch, capsys):
    def interrupted(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(app, "run", interrupted)
    with pytest.raises(SystemExit) as ended:
        main(["inspect", "m.pt2"])
    assert ended.value.code == ExitCode.INTERRUPTED
    assert capsys.readouterr().err == "error: interrupted\n"


def test_an_interrupt_waits_until_the_block_has_ended():
    """torch's writer ends the process where what it calls raises."""
    steps = []

    def interrupted():
        with held_back():
            os.kill(os.getpid(), signal.SIGINT)
            steps.append("written")
        steps.append("not reached")

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert steps == ["written"]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_a_deleted_working_directory_is_one_line(tmp_path, monkeypatch, capsys):
    gone = tmp_path / "gone"
    gone.mkdir()
    before = os.getcwd()
    os.chdir(gone)
    try:
        gone.rmdir()
        assert run(["new", "sine", "-o", "m.pt2"]) == ExitCode.OUTPUT
    finally:
        os.chdir(before)
    said = capsys.readouterr().err
    assert "Traceback" not in said
    assert said.startswith("error: ")


def test_nothing_is_imported_before_an_interrupt_is_answered():
    code = "import sys, nncompress.cli; print(*sorted(n for n in sys.modules if 'nncompress' in n))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["nncompress", "nncompress.cli", "nncompress.version"]
