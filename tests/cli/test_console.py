"""What a file or a name holds never reaches the terminal as a control sequence, nor as markup."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nncompress.cli.app import run
from nncompress.cli.console import out
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
