"""Mistakes in the user's factory each give one message that says what to do."""

from __future__ import annotations

import pytest
import torch

from nncompress.errors import UsageError
from nncompress.loading.state_dict.architecture import build_architecture

SOURCE = """
from __future__ import annotations
from dataclasses import dataclass
from torch import nn
import beside_it

@dataclass
class Settings:
    width: int = beside_it.WIDTH

def build():
    return nn.Linear(Settings().width, 2)

def needs(width):
    return nn.Linear(width, 2)

def broken():
    raise RuntimeError("no such option")

def dictionary():
    return {"weight": 1}

class Net(nn.Linear):
    def __init__(self):
        super().__init__(3, 4)

class zoo:
    build = build

number = 3
"""


@pytest.fixture
def source(tmp_path, monkeypatch):
    (tmp_path / "beside_it.py").write_text("WIDTH = 7\n")
    (tmp_path / "unparsable.py").write_text("def build(:\n")
    path = tmp_path / "architecture_of_mine.py"
    path.write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    return path


def test_factory_in_a_file(source):
    module = build_architecture(f"{source}:build")
    assert isinstance(module, torch.nn.Linear)
    assert module.in_features == 7  # it imports what lies beside it


def test_class_and_attribute_path(source):
    assert build_architecture(f"{source}:Net").in_features == 3
    assert build_architecture(f"{source}:zoo.build").in_features == 7


def test_factory_in_a_package(source):
    """Found from the current directory, also when started as a console script."""
    assert build_architecture("architecture_of_mine:build").in_features == 7


@pytest.mark.parametrize(
    ("arch", "message"),
    [
        ("build", "names no factory"),
        (":build", "names no factory"),
        ("architecture_of_mine.py:", "names no factory"),
        ("missing.py:build", r"no file missing.py(.|\n)*beside it there is: architecture_of_mine.py"),
        ("missing_package.net:build", "ModuleNotFoundError"),
        ("unparsable.py:build", "SyntaxError"),
        ("architecture_of_mine.py:biuld", r"has no 'biuld'(.|\n)*build, needs"),
        ("architecture_of_mine.py:needs", r"without arguments(.|\n)*width(.|\n)*function of no arguments"),
        ("architecture_of_mine.py:broken", r"raised an error(.|\n)*no such option"),
        ("architecture_of_mine.py:dictionary", r"no torch\.nn\.Module(.|\n)*a dict"),
        ("architecture_of_mine.py:number", "that can be called, but int"),
    ],
)
def test_mistakes_in_arch_are_named_in_few_lines(arch, message, source):
    with pytest.raises(UsageError, match=message) as caught:
        build_architecture(arch)
    assert arch in str(caught.value)
    assert len(str(caught.value).splitlines()) <= 4


def test_path_is_left_as_it_was(source):
    import sys

    before = list(sys.path)
    build_architecture(f"{source}:build")
    with pytest.raises(UsageError):
        build_architecture("unparsable.py:build")
    assert sys.path == before
