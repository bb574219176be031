"""Layers and inputs whose names are words of Python.

`torch.nn.ModuleDict({"class": …, "box": …})` is a usual way to name heads. torch.fx writes the code of a
graph with `self.heads.class.weight` in it, which does not parse, so that no such model could be loaded; here
it is `getattr(self.heads, 'class').weight`.
"""

from __future__ import annotations

import keyword

from torch import fx

# what the code of a graph means by these names, an argument must not hide
_MEANT = frozenset(
    {"self", "torch", "device", "inf", "nan", "NoneType", "getattr", "operator", "math", "pytree"}
)


def is_argument_name(name: str) -> bool:
    """An input may be called so in the code of a graph."""
    return name.isidentifier() and not keyword.iskeyword(name) and name not in _MEANT


def attribute(base: str, target: str) -> str:
    """Code that reads the attribute of dotted name `target` of the expression `base`."""
    for name in target.split("."):
        plain = name.isidentifier() and not keyword.iskeyword(name)
        base = f"{base}.{name}" if plain else f"getattr({base}, {name!r})"
    return base


def correct_fx() -> None:
    """Let torch.fx write all attributes so, in this process."""
    fx.graph._format_target = attribute
