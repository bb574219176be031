"""Every `nncompress …` line of the docs is one that the commands take: its options exist, its values fit."""

from __future__ import annotations

import re
from dataclasses import fields

import pytest
import typer
from documents import ROOT, arguments_of, lines_of

from nncompress.cli.app import build
from nncompress.cli.table import COMMANDS
from nncompress.errors import ExitCode
from nncompress.passes import PASSES
from nncompress.recipe import parse_pass, read_recipe

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
KNOWN = {name for group in COMMANDS.values() for name in group}
OWN_TEST = ("extending.md",)  # its package is installed and run by tests/test_extensions.py


LINES = [
    (page.name, line) for page in PAGES if page.name not in OWN_TEST for line in lines_of(page.read_text())
]


@pytest.fixture(scope="module")
def commands():
    return typer.main.get_command(build()).commands


def test_lines_are_found():
    assert len(LINES) > 100


@pytest.mark.parametrize(("page", "line"), LINES, ids=[f"{page}: {line[11:60]}" for page, line in LINES])
def test_every_command_line_in_the_docs_parses(page, line, commands):
    name, *arguments = arguments_of(line)
    assert name in KNOWN
    given = commands[name].make_context(f"nncompress {name}", arguments).params
    if name in PASSES:
        kind = PASSES[name]
        kind(**{f.name: given[f.name] for f in fields(kind) if given.get(f.name) not in (None, (), [])})
    for text in given.get("passes") or ():
        parse_pass(text)


def test_recipes_that_the_docs_show_are_read(tmp_path):
    shown = [
        text for page in PAGES for text in re.findall(r"^```toml\n(.+?)```", page.read_text(), re.M | re.S)
    ]
    recipes = [text for text in shown if not text.startswith("[project")]
    assert recipes
    for text in recipes:
        (tmp_path / "r.toml").write_text(text)
        assert read_recipe(tmp_path / "r.toml")


def test_a_line_with_a_wrong_option_would_be_found(commands):
    for line in ("nncompress prune model.pt --stdd 0.5", "nncompress prune model.pt --std half"):
        name, *arguments = arguments_of(line)
        with pytest.raises(Exception, match=r"stdd|valid number"):
            commands[name].make_context(name, arguments)


def test_the_list_of_exit_codes_is_the_enum():
    _, _, after = (ROOT / "docs" / "architecture.md").read_text().partition("## Exit codes\n")
    said = re.findall(r"(?:^|[\s,;:])(\d+) (?=[a-z])", after.partition("\n## ")[0])
    assert sorted(map(int, said)) == sorted(ExitCode)
