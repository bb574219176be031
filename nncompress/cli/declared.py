"""Command parameters from declared options: the fields of the dataclass are the flags."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from typing import Annotated, Any, Literal, Optional

import typer

from nncompress.cli.tokenizer import encoding_texts
from nncompress.options import Options, flag_of, key_of, option_types

Parameters = dict[str, tuple[Any, Any]]  # name -> annotation, default
PAPERS = "For the papers' experiments"


def declared(options: type[Options], panel: str | None = None) -> Parameters:
    """One parameter per option of the dataclass, under the heading `panel` of the help text."""
    parameters: Parameters = {}
    types = option_types(options)
    for f in fields(options):
        kind, choices, optional = types[f.name]
        annotation: Any = Literal[choices] if choices else list[str] if kind is tuple else kind
        if optional or f.default is MISSING:
            annotation = Optional[annotation]  # noqa: UP045  typer reads the old spelling of a built Literal
        flag = flag_of(f.name)
        flags = [f"{flag}/--no-{flag[2:]}"] if kind is bool and f.default is True else [flag]
        extra = typer.Option(
            *flags,
            help=f.metadata["help"] + (f" ({', '.join(choices)})" if choices else ""),
            metavar=f.metadata["metavar"] or (key_of(f.name).upper() if choices else None),
            show_default=f.default not in (None, False, ()),
            rich_help_panel=PAPERS if f.metadata["papers"] else panel,
        )
        default = (
            None if f.default is MISSING else list(f.default) if isinstance(f.default, tuple) else f.default
        )
        parameters[f.name] = (Annotated[annotation, extra], default)
    return parameters


def taking(shared: Parameters) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Options that several commands have, for a function that takes them as `**keywords`.

    @taking(options.LOADING)
    def export(model: ModelArgument = None, **loading: Any) -> None: ...
    """

    def decorated(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command, eval_str=True).parameters.values()
        parameters = {p.name: (p.annotation, p.default) for p in own if p.kind is not p.VAR_KEYWORD}

        @functools.wraps(command)
        def called(**values: Any) -> None:
            command(**values)

        return with_parameters(called, {**parameters, **shared}, command.__name__)

    return decorated


def with_parameters(
    command: Callable[..., None], parameters: Mapping[str, tuple[Any, Any]], name: str
) -> Callable[..., None]:
    """Give a function of keywords the signature that the parser reads.

    `tokenizer`, where it is among them, belongs to the texts of data, and goes to the command with these.
    """
    command = encoding_texts(command) if "tokenizer" in parameters else command
    signature = [
        inspect.Parameter(key, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)
        for key, (annotation, default) in sorted(parameters.items(), key=_is_of_papers)
    ]
    command.__signature__ = inspect.Signature(signature)  # type: ignore[attr-defined]
    command.__annotations__ = {p.name: p.annotation for p in signature}
    command.__name__ = name
    return command


def _is_of_papers(parameter: tuple[str, tuple[Any, Any]]) -> bool:
    """Headings stand in the order of their first option: this one last."""
    said = getattr(parameter[1][0], "__metadata__", (None,))
    return getattr(said[0], "rich_help_panel", None) == PAPERS
