"""Recipe text to passes.

A recipe file:                         The same on the command line:

    [[pass]]                               --pass prune:std=0.5 --pass factorize:err=1e-3
    name = "prune"
    std = 0.5

    [[pass]]
    name = "factorize"
    err = 1e-3
"""

from __future__ import annotations

import difflib
import json
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from nncompress.errors import UsageError, VerificationError
from nncompress.files.bounded_text import Unreadable, bounded, read_text
from nncompress.files.signed_text import signed
from nncompress.options import key_of, option_types, shown
from nncompress.passes import PASSES, Pass

MOST_BYTES = 2**15  # the longest in practice have a few hundred
_LONG_KEY = re.compile(r"(?:\.[^.=\n\[\]{},#]*+){32}")
_FORM = 'a list of [[pass]] entries, each with a "name"'


def read_recipe(path: str | Path) -> list[Pass]:
    """The passes of a recipe file, in order.

    Raises:
        UsageError: the file is missing or no TOML, or an entry names an unknown pass or option.
    """
    try:
        text = read_text(path, MOST_BYTES)
        if _LONG_KEY.search(text):  # tomllib takes time quadratic in the parts
            raise Unreadable("a key of more than 32 parts")
        document = bounded(tomllib.loads(text))
    except Unreadable as error:
        raise UsageError(f"cannot read the recipe {path}", got=str(error), expected=_FORM) from error
    except RecursionError as error:
        raise UsageError(f"{path} is not a recipe", got="values nested too deep", expected=_FORM) from error
    except ValueError as error:  # TOMLDecodeError, and what int() says of numbers of thousands of digits
        raise UsageError(f"{path} is not a TOML recipe", got=str(error)[:300], expected=_FORM) from error
    entries = document.get("pass")
    if not isinstance(entries, list) or not entries or set(document) - {"pass"}:
        raise UsageError(
            f"{path} is not a recipe",
            got=f"top-level keys {', '.join(map(repr, sorted(document)[:8])) or 'none'}",
            expected=_FORM,
        )
    passes = []
    for number, entry in enumerate(entries, 1):
        where = f"{path}, pass {number}"
        if not isinstance(entry, dict) or not isinstance(entry.get("name"), str):
            raise UsageError(f'{where} has no "name"', expected=", ".join(PASSES))
        passes.append(make_pass(entry["name"], {k: v for k, v in entry.items() if k != "name"}, where))
    return passes


def recipe_text(passes: Sequence[Pass]) -> str:
    """The recipe file of these passes, which `read_recipe` reads back as the same."""
    entries = []
    for each in passes:
        lines = ["[[pass]]", f"name = {_toml(each.name)}"]
        lines += [f"{key} = {_toml(value)}" for key, value in each.settings().items()]
        entries.append("\n".join(lines))
    return "\n\n".join(entries) + "\n"


def write_recipe(file: Path, passes: Sequence[Pass], comment: str) -> None:
    """Write a new recipe file, signed, and read it back.

    Args:
        comment: lines of TOML that come first.

    Raises:
        VerificationError: it is not read back as these passes.
    """
    file.write_text(signed(comment + recipe_text(passes)), encoding="utf-8")
    if read_recipe(file) != list(passes):
        raise VerificationError(
            f"{file.name} is not kept: read back, it holds other passes",
            remedy="this is a defect of nncompress; please report it",
        )


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value, ensure_ascii=False) if isinstance(value, bool | str) else repr(value)


def parse_pass(text: str) -> Pass:
    """A pass from `name` or `name:option=value,option=value`; a repeatable option's values are joined by "+".

    Raises:
        UsageError: unknown pass or option, or no value.
    """
    name, _, rest = text.partition(":")
    options: dict[str, Any] = {}
    for item in filter(None, rest.split(",")):
        key, equals, value = item.partition("=")
        options[key.strip()] = value.strip() if equals else True  # a flag, as `remove-dead`
    name = name.strip()
    types = option_types(PASSES[name]) if name in PASSES else {}
    for key, value in options.items():
        if value is True and types.get(key.replace("-", "_"), (bool,))[0] is not bool:
            raise UsageError(f"--pass {text}: {key} has no value", remedy=f"{name}:{key}=VALUE")
    return make_pass(name, options, f"--pass {text}")


def make_pass(name: str, options: Mapping[str, Any], where: str) -> Pass:
    """The pass `name` with `options` (dashes or underscores); `where` begins the message of a refusal.

    Raises:
        UsageError: unknown pass or option, or a value that the option refuses.
    """
    if name not in PASSES:
        raise UsageError(
            f"{where}: no pass is called {shown(name)}",
            expected=", ".join(PASSES),
            remedy=_closest(name, PASSES),
        )
    pass_class = PASSES[name]
    known = {key_of(f.name): f.name for f in fields(pass_class)}
    settings = {key.replace("-", "_"): value for key, value in options.items()}
    for key in settings:
        if key not in known:
            raise UsageError(
                f"{where}: {name} has no option {shown(key)}",
                expected=", ".join(k.replace("_", "-") for k in known) or "no options",
                remedy=_closest(key, known),
            )
    return pass_class(**{known[key]: value for key, value in settings.items()})


def _closest(word: str, known: Any) -> str:
    near = difflib.get_close_matches(word, list(known), 1)
    return f"did you mean {near[0].replace('_', '-')}?" if near else ""
