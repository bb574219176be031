from nncompress.cli.app import run
from nncompress.cli.help_texts import filled
from nncompress.errors import ExitCode


def test_paragraphs_are_filled_and_examples_left_alone():
    text = "One\ntwo\n  three.\n\nWhy?\nnncompress a\nnncompress b\n\nExample:  nncompress c\n"
    assert filled(text) == "One two three.\n\nWhy?\nnncompress a\nnncompress b\n\nExample:  nncompress c"


def test_flags_are_shown_without_a_value(capsys):
    assert run(["inspect", "--help"]) == ExitCode.OK
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "--units  " in line)
    assert " ".join(line.strip("│ ").split()) == "--units show the nodes that can be removed together"


def test_square_brackets_are_text(capsys):
    assert run(["prune", "--help"]) == ExitCode.OK
    assert "[default: 0.001; less where" in " ".join(capsys.readouterr().out.replace("│", " ").split())
