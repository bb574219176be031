"""Options that several commands share have one definition."""

from __future__ import annotations

import inspect
from typing import Annotated, Any

import typer

from nncompress.cli import options
from nncompress.cli.app import build
from nncompress.cli.declared import PAPERS, taking


def test_a_command_takes_the_shared_options_as_keywords():
    received = {}

    @taking({"data": (options.Data, None), "limit": (options.Limit, 512)})
    def command(model: Annotated[str, typer.Argument()] = "m.pt2", **shared: Any) -> None:
        received.update(shared, model=model)

    parameters = inspect.signature(command).parameters
    assert {name: p.default for name, p in parameters.items()} == {
        "model": "m.pt2", "data": None, "limit": 512
    }  # fmt: skip
    command(model="a.pt2", data="x.npz", limit=3)
    assert received == {"model": "a.pt2", "data": "x.npz", "limit": 3}


def test_every_command_that_opens_a_model_has_the_same_options_for_it():
    commands = {c.name: inspect.signature(c.callback).parameters for c in build().registered_commands}
    opening = {name: taken for name, taken in commands.items() if "trust_pickle" in taken}
    assert set(commands) - set(opening) == {"reproduce", "doctor", "targets", "new", "report"}
    for command, taken in opening.items():
        for name, (annotation, default) in options.LOADING.items():
            if (command, name) != ("inspect", "normalize"):
                assert (taken[name].annotation, taken[name].default) == (annotation, default)


def test_what_serves_the_papers_only_stands_last_under_a_heading_of_its_own():
    found = {}
    for command in build().registered_commands:
        taken = inspect.signature(command.callback).parameters
        said = {name: getattr(p.annotation, "__metadata__", (None,))[0] for name, p in taken.items()}
        headings = {name: getattr(each, "rich_help_panel", None) for name, each in said.items()}
        found[command.name] = [name for name, heading in headings.items() if heading == PAPERS]
        assert found[command.name] == list(taken)[len(taken) - len(found[command.name]) :]
    assert found["cycle"] == ["outliers", "distort", "retries"]
    assert found["prune-nodes"] == ["outliers"]
    assert found["quantize"] == []
