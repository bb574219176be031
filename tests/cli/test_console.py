"""What a file or a name holds never reaches the terminal as a control sequence, nor as markup."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nncompress.cli.app import run
from nncompress.cli.console import _Lines, out
from nncompress.errors import MOST_SHOWN, ModelFileError, printable
from nncompress.report.tables import plain

EVIL = "a\x1b[2J\x1b]0;x\x07\r\x9b31m\u202eb"


def test_a_message_is_bounded_and_free_of_controls() -> None:
    said = str(ModelFileError(f"{EVIL} is bad", got=EVIL * 1000, remedy=EVIL))
    assert printable(said) == said
    assert "\\x1b[2J" in said
    assert max(map(len, said.splitlines())) < 3 * MOST_SHOWN


def test_what_is_no_control_stays() -> None:
    assert printable("größe\t×\n日本 🦊\u200d") == "größe\t×\n日本 🦊\u200d"


def test_tables_print_names_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    table = plain("layer", "weight")
    table.add_row("[red]x[/blue]", EVIL)
    out.print(table)
    out.print(EVIL)
    said = capsys.readouterr().out
    assert "[red]x[/blue]" in said
    assert printable(said) == said


def test_no_command_lets_a_name_out(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    net = nn.Sequential()
    for name in ("a\x1b[31m", "[red]b[/blue]"):
        net.add_module(name, nn.Linear(4, 4))
    torch.save(net, "m\x1b[2J[bold].pt")
    codes = [
        run(["inspect", "m\x1b[2J[bold].pt", "--input", "1x4"]),
        run(["prune", "m\x1b[2J[bold].pt", "--input", "1x4", "--sparsity", "0.5"]),
        run(["inspect", "no\x1b[2J.pt"]),
        run(["eval", "--no-such-\x1b[2J"]),
    ]
    said = capsys.readouterr()
    assert codes[2:] == [3, 2]
    assert codes[0] == codes[1]
    assert "\x1b" not in said.out + said.err
    assert "[bold].pt" in said.out + said.err


@pytest.mark.parametrize(
    ("option", "code"),
    [
        (["--data", "{}"], 5),
        (["--data", "{}.npz"], 5),
        (["--data", "mnist:{}"], 5),
        (["--data", "cifar10:{}"], 5),
        (["--arch", "{}.py:build"], 2),
        (["{}.onnx"], 3),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_names_that_are_too_long_are_missing_files(
    option: list[str],
    code: int,
    tmp_path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Linear(4, 4).state_dict(), "m.pt")
    torch.save(nn.Sequential(nn.Linear(4, 4)), "n.pt")
    model = ["m.pt"] if "--arch" in option else ["n.pt"]
    given = [each.format("y" * 300) for each in option]
    assert run(["eval", *model, *given, "--input", "1x4"]) == code
    assert "Traceback" not in capsys.readouterr().err


def test_a_name_with_a_newline_or_colons_stays_in_its_line(
    tmp_path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    net = nn.Sequential()
    for name in ("a\nFAKE b", ":key:", "[red]c"):
        net.add_module(name, nn.Linear(4, 4))
    torch.save(net, "m\nFAKE n.pt")
    trusted = ["--input", "1x4", "--trust-pickle"]
    for command in (
        ["inspect", "m\nFAKE n.pt", *trusted],
        ["inspect", "m\nFAKE n.pt", *trusted, "--units"],
        ["prune", "m\nFAKE n.pt", *trusted, "--sparsity", "0.5", "-o", "p\nFAKE q.pt2"],
        ["eval", "p\nFAKE q.pt2", "--data", "no\nFAKE d.npz"],
        ["inspect", "no\nFAKE n.pt"],
        ["inspect", "odd\n.pt", "--no\nFAKE x"],
    ):
        run(command)
    said = capsys.readouterr()
    lines = [each.strip() for each in (said.out + said.err).splitlines()]
    assert not any(each.startswith("FAKE") for each in lines)
    assert ":key:" in said.out
    assert "_red_c" in said.out  # what no file of ours could be read with


def test_a_message_quoted_in_another_goes_on_in_its_line() -> None:
    inner = ModelFileError("x\ny is bad", got="1\n2", remedy="z")
    assert str(ModelFileError("no", got=str(inner))).splitlines() == [
        "no",
        r"  got:      x\ny is bad; got: 1\n2; try: z",
    ]


@pytest.fixture
def table_file(tmp_path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Sequential(nn.Linear(4, 4)), "m.pt")
    return "m.pt"


def test_less_and_more_is_said_when_asked(table_file: str, capsys: pytest.CaptureFixture[str]) -> None:
    line = ["prune", table_file, "--sparsity", "0.5", "--input", "1x4"]
    assert run(line) == 0
    usual = capsys.readouterr()
    assert run([*line, "-q"]) == 0
    quiet = capsys.readouterr()
    assert run(["-v", *line]) == 0
    verbose = capsys.readouterr()
    assert quiet.err == ""
    assert "loading m.pt" not in usual.err
    assert "loading m.pt" in verbose.err
    assert "verifying prune: 1 to do" in verbose.err
    assert "prune" in quiet.out
    assert run([*line, "-q", "--verbose"]) == 2
    assert "-q and -v" in capsys.readouterr().err


def test_an_error_is_said_with_q_too(tmp_path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["inspect", str(tmp_path / "none.pt"), "--quiet"]) == 3
    assert "error:" in capsys.readouterr().err


def test_lines_tell_how_far_and_how_long(capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter([100.0, 105.0, 130.0, 131.0, 200.0])
    lines = _Lines(lambda: next(clock))
    for description, done, total in [("a", 0, 4), ("a", 1, 4), ("a", 2, 4), ("b", 0, None), ("b", 7, None)]:
        lines.step(description, done, total)
    assert capsys.readouterr().err.splitlines() == ["a: 4 to do", "a: 2 of 4, 0:00:30 left", "b", "b: 7"]
