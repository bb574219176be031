"""One command per pass, made from the pass's dataclass: its fields are the flags."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import typer

from nncompress.cli import options
from nncompress.cli.compress import run_passes
from nncompress.cli.declared import declared, with_parameters
from nncompress.passes import PASSES, Pass


def register(app: typer.Typer) -> None:
    """Add a command for every registered pass."""
    for pass_class in PASSES.values():
        text = f"{pass_class.summary[0].upper()}{pass_class.summary[1:]}.\n\n{_body(pass_class)}"
        if pass_class.example:
            text += f"\n\nExample:  {pass_class.example}"
        app.command(pass_class.name, help=text)(command_of(pass_class))


def command_of(pass_class: type[Pass]) -> Callable[..., None]:
    """A function with one parameter per option of the pass and the shared ones, which runs the pass."""
    own = [f.name for f in fields(pass_class)]

    def command(**values: Any) -> None:
        settings = {name: values.pop(name) for name in own}
        run_passes([pass_class(**settings)], values.pop("model"), **values)

    shared = {name: pair for name, pair in options.RUNNING.items() if name not in own}
    parameters = {"model": (options.ModelArgument, None), **declared(pass_class), **shared}
    return with_parameters(command, parameters, pass_class.name)


def _body(pass_class: type[Pass]) -> str:
    """The docstring up to its sections for programmers."""
    text = inspect.getdoc(pass_class) or ""
    return text.split("\n\nRaises:")[0].split("\n\nArgs:")[0]
