"""Options that are given twice."""

from nncompress.cli.app import run
from nncompress.errors import ExitCode


def test_an_option_that_takes_one_value_is_given_once_and_one_that_takes_more_as_often_as_one_likes(
    capsys,
):
    assert run(["inspect", "m.pt", "--input", "1x3x8x8", "--input=1x3x4x4"]) == ExitCode.USAGE
    assert "--input is given 2 times, and takes one value" in capsys.readouterr().err
    arguments = ["prune", "m.pt", "--threshold", "1", "-o", "p.pt2", "--exclude", "a*", "--exclude", "b*"]
    run(arguments)
    assert "times" not in capsys.readouterr().err
