"""Every `nncompress …` line of the docs is one that the commands take: its options exist, its values fit."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest
import typer

from nncompress.cli.app import build
from nncompress.cli.commands import COMMANDS
from nncompress.passes import PASSES
from nncompress.recipe import parse_pass

ROOT = Path(__file__).resolve().parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
KNOWN = {name for group in COMMANDS.values() for name in group}
PLACEHOLDER = re.compile(r"\b[A-Z]+\b|…")  # `--max-macs N` stands for a line
OWN_TEST = ("extending.md",)  # its package is installed and run by tests/test_extensions.py


def lines_of(text: str) -> list[str]:
    """Those that begin a line (indented, in a session, in a block), and those in a sentence with options."""
    joined = re.sub(r"\\\n\s*", "", text)
    shown = re.findall(r"^(?: {4,}|\$ )?(nncompress [a-z].*)$", joined, re.M)
    inline = re.findall(r"`(nncompress [a-z][^`\n]* [^`\n]*)`", text)
    return shown + [line for line in inline if not PLACEHOLDER.search(line)]


def arguments_of(line: str) -> list[str]:
    """Without the explanation beside it, which two spaces, a # or a pipe begin."""
    return shlex.split(re.split(r" {2,}| #| \| ", line)[0])[1:]


LINES = [
    (page.name, line) for page in PAGES if page.name not in OWN_TEST for line in lines_of(page.read_text())
]


@pytest.fixture(scope="module")
def commands():
    return typer.main.get_command(build()).commands


def test_lines_are_found():
    assert len(LINES) > 100


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{page}: {line[11:60]}" for page, line in LINES])
def test_it_parses(page, line, commands):
    name, *arguments = arguments_of(line)
    assert name in KNOWN
    given = commands[name].make_context(f"nncompress {name}", arguments).params
    if name in PASSES:
        kind = PASSES[name]
        kind(**{f.name: given[f.name] for f in fields(kind) if given.get(f.name) not in (None, (), [])})
    for text in given.get("passes") or ():
        parse_pass(text)


def test_a_line_with_a_wrong_option_would_be_found(commands):
    for line in ("nncompress prune model.pt --stdd 0.5", "nncompress prune model.pt --std half"):
        name, *arguments = arguments_of(line)
        with pytest.raises(Exception, match=r"stdd|valid number"):
            commands[name].make_context(name, arguments)
