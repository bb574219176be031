"""One command per pass, made from the pass's dataclass: its fields are the flags."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal, Optional

import typer

from nncompress.cli import options
from nncompress.cli.compress import run_passes
from nncompress.passes import PASSES, Pass
from nncompress.passes.base import option_types

_SHARED: dict[str, tuple[Any, Any]] = {
    "output": (options.Output, None),
    "data": (options.Data, None),
    "normalize": (options.Normalize, None),
    "limit": (options.Limit, 512),
    "arch": (options.Arch, None),
    "input": (options.Input, None),
    "trust_pickle": (options.TrustPickle, False),
    "seed": (options.Seed, 0),
    "json": (options.Json, False),
}


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
        settings = {k: tuple(v) if isinstance(v, list) else v for k, v in settings.items()}
        run_passes([pass_class(**settings)], values.pop("model"), **values)

    parameters = [_parameter("model", options.ModelArgument, None)]
    types = option_types(pass_class)
    for f in fields(pass_class):
        kind, choices, optional = types[f.name]
        annotation: Any = Literal[choices] if choices else list[str] if kind is tuple else kind
        if optional or f.default is MISSING:
            annotation = Optional[annotation]  # noqa: UP045  typer reads the old spelling of a built Literal
        flag = f"--{f.name.replace('_', '-')}"
        flags = [f"{flag}/--no-{flag[2:]}"] if kind is bool and f.default is True else [flag]
        extra = typer.Option(
            *flags,
            help=f.metadata["help"],
            metavar=f.metadata["metavar"],
            show_default=f.default not in (None, False, ()),
        )
        default = (
            None if f.default is MISSING else list(f.default) if isinstance(f.default, tuple) else f.default
        )
        parameters.append(_parameter(f.name, Annotated[annotation, extra], default))
    for name, (annotation, default) in _SHARED.items():
        if name not in own:
            parameters.append(_parameter(name, annotation, default))
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in parameters}
    command.__name__ = pass_class.name
    return command


def _parameter(name: str, annotation: Any, default: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _body(pass_class: type[Pass]) -> str:
    """The docstring up to its sections for programmers."""
    text = inspect.getdoc(pass_class) or ""
    return text.split("\n\nRaises:")[0].split("\n\nArgs:")[0]
