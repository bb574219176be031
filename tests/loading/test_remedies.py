"""What a refusal says to do is right for what was refused, and works when it is typed."""

import re

import pytest
import torch
from torch import nn

import nncompress
from nncompress.data import open_data
from nncompress.errors import DataError, UnsupportedError, UsageError


@pytest.mark.parametrize("wrong", ["1x3x64x64", "1x7", "1x4,1x4"])
def test_an_input_that_runs_is_named_in_the_place_of_one_that_does_not(wrong):
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 3))
    with pytest.raises(UsageError) as refused:
        nncompress.load(net, input=wrong)
    stated = re.search(r"--input (\S+),", refused.value.remedy)[1]
    assert nncompress.load(net, input=stated).outputs


class Mode(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(4, 3)

    def forward(self, x, mode: str):
        return self.out(x)


class Count(Mode):
    def forward(self, x, mode: int):
        return self.out(x) * mode


@pytest.mark.parametrize(("kind", "number"), [(Mode, False), (Count, True)])
def test_a_number_is_asked_for_where_one_is_taken(tmp_path, kind, number):
    torch.jit.script(kind()).save(tmp_path / "m.pt")
    with pytest.raises(UnsupportedError) as refused:
        nncompress.load(tmp_path / "m.pt", input="1x4")
    assert ("--input mode=NUMBER" in refused.value.remedy) == number


def test_an_error_of_the_users_code_says_in_which_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text(
        "def build():\n    raise RuntimeError('boom')\n\n\ndef score(output, batch):\n    return batch['y']\n"
    )
    net = nn.Linear(4, 3)
    torch.save(net.state_dict(), "w.pt")
    with pytest.raises(UsageError, match=r"boom \(own.py, line 2\)"):
        nncompress.load("w.pt", arch="own.py:build")
    data = (torch.randn(8, 4), torch.arange(8) % 3)
    with pytest.raises(DataError, match=r"\(own.py, line 6\)"):
        nncompress.evaluate(net, data, metric="own.py:score")


def test_tensors_that_are_none_are_saved_as_such_files_are(tmp_path):
    torch.save({"x": "text"}, tmp_path / "d.pt")
    with pytest.raises(DataError, match=r"torch\.save\("):
        open_data(str(tmp_path / "d.pt"))
