"""One command per pass, made from the pass's dataclass: its fields are the flags."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import typer

from nncompress.cli import options
from nncompress.cli.console import say
from nncompress.cli.declared import declared, with_parameters
from nncompress.cli.later import later
from nncompress.cli.output_format import check_output
from nncompress.options import flag_of
from nncompress.passes import PASSES, Pass

run_passes = later("passes.run_passes:run_passes")
run_streamed = later("passes.stream:run_streamed")


def register(app: typer.Typer, name: str) -> None:
    """Add the command of a pass.

    Raises:
        ExtensionError: it is another package's, and what it declares cannot be a command.
    """
    pass_class = PASSES[name]
    text = f"{pass_class.summary[0].upper()}{pass_class.summary[1:]}.\n\n{_body(pass_class)}"
    if pass_class.example:
        text += f"\n\nExample:  {pass_class.example}"
    if PASSES.origin(name):
        text += f"\n\nA pass of {PASSES.origin(name)}."
    for package in PASSES.shadowed(name):
        say(f"{package} adds a pass called {name}, too: it is not used, the name is nncompress's own")
    try:
        app.command(name, help=text)(command_of(pass_class))
    except Exception as error:
        if PASSES.origin(name):
            raise PASSES.broken(name, f"{type(error).__name__}: {error}"[:300]) from error
        raise


def command_of(pass_class: type[Pass]) -> Callable[..., None]:
    """A function with one parameter per option of the pass and the shared ones, which runs the pass."""
    own = [f.name for f in fields(pass_class)]
    taken = [flag_of(name) for name in own if name in ("model", "stream", *options.RUNNING)]
    if taken:
        raise TypeError(f"every pass has {', '.join(taken)}: it cannot be an option of its own")

    def command(**values: Any) -> None:
        settings = {name: values.pop(name) for name in own}
        stream, model = values.pop("stream", False), values.pop("model")
        if stream:
            defaults = {name: default for name, (_, default) in options.RUNNING.items()}
            run_streamed(pass_class(**settings), model, values, defaults)
        else:
            check_output(values["output"], values["target"])
            run_passes([pass_class(**settings)], model, **values)

    parameters = {"model": (options.ModelArgument, None), **declared(pass_class), **options.RUNNING}
    if pass_class.tensorwise is not None:
        parameters["stream"] = (options.Stream, False)
    return with_parameters(command, parameters, pass_class.name)


def _body(pass_class: type[Pass]) -> str:
    """The docstring up to its sections for programmers."""
    text = inspect.getdoc(pass_class) or ""
    return text.split("\n\nRaises:")[0].split("\n\nArgs:")[0]
