import re

import pytest

from nncompress.cli.app import run
from nncompress.cli.help_texts import filled
from nncompress.cli.table import COMMANDS
from nncompress.errors import ExitCode


def test_paragraphs_are_filled_and_examples_left_alone():
    text = "One\ntwo\n  three.\n\nWhy?\nnncompress a\nnncompress b\n\nExample:  nncompress c\n"
    assert filled(text) == "One two three.\n\nWhy?\nnncompress a\nnncompress b\n\nExample:  nncompress c"


def test_flags_are_shown_without_a_value(capsys):
    assert run(["inspect", "--help"]) == ExitCode.OK
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "--units  " in line)
    assert " ".join(line.strip("│ ").split()) == "--units show the nodes that can be removed together"


@pytest.mark.parametrize("command", [name for group in COMMANDS.values() for name in group])
def test_no_flag_or_word_is_cut_off_on_80_columns(command, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    assert run([command, "--help"]) == ExitCode.OK
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines if re.search(r"\w…", line)]


def test_square_brackets_are_text(capsys):
    assert run(["prune", "--help"]) == ExitCode.OK
    assert "[default: 0.001; less where" in " ".join(capsys.readouterr().out.replace("│", " ").split())
