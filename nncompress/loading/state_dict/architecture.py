"""`--arch`: the user's own code that builds the network a state_dict belongs to."""

from __future__ import annotations

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from nncompress.errors import RAISED_BY_OTHERS, UsageError
from nncompress.files.folders import said_beside
from nncompress.loading.collections import names_architecture, of_collection
from nncompress.user_code import imported, last_line, offered

_FORM = (
    "file.py:factory or package.module:factory, where factory() returns the model; "
    "timm:NAME or torchvision:NAME"
)


def build_architecture(arch: str) -> nn.Module:
    """The module that `file.py:factory` or `package.module:factory` makes, with its own initial weights.

    Or an architecture of timm or torchvision, with settings: `timm:resnet18?num_classes=10`.

    Raises:
        UsageError: there is no such file, module or factory; it raises, needs arguments, or makes no module.
        MissingExtraError: timm or torchvision is not installed.
    """
    location, separator, name = arch.rpartition(":")
    if not separator or not location or not name:
        raise UsageError("--arch names no factory", got=arch, expected=_FORM)
    if names_architecture(arch):
        return of_collection(arch)
    module = _import(location, arch)
    factory: Any = module
    for part in name.split("."):
        factory = getattr(factory, part, None)
    if factory is None or not callable(factory):
        names = offered(module)
        raise UsageError(
            f"--arch {arch}: {location} has no {name!r}"
            + ("" if factory is None else f" that can be called, but {type(factory).__name__}"),
            expected=_FORM,
            remedy=f"it has: {', '.join(names[:8])}" if names else "",
        )
    try:
        made = factory if isinstance(factory, nn.Module) else factory()
    except RAISED_BY_OTHERS as error:  # the user's own code
        wants = isinstance(error, TypeError) and "argument" in str(error)
        raise UsageError(
            f"--arch {arch}: {name} {'cannot be called without arguments' if wants else 'raised an error'}",
            got=last_line(error),
            expected=_FORM,
            remedy=f"write a function of no arguments that returns {name}(...)" if wants else "",
        ) from error
    if not isinstance(made, nn.Module):
        raise UsageError(
            f"--arch {arch}: {name} makes no torch.nn.Module", got=f"a {type(made).__name__}", expected=_FORM
        )
    return made


def _import(location: str, arch: str) -> ModuleType:
    try:
        return imported(location)
    except FileNotFoundError as error:
        if location.endswith(".py") and not os.path.isfile(location):
            raise UsageError(
                f"--arch {arch}: there is no file {location}",
                expected=_FORM,
                remedy=said_beside(Path(location), [".py"]),
            ) from error
        raise _not_imported(location, arch, error) from error
    except RAISED_BY_OTHERS as error:  # the user's own code
        raise _not_imported(location, arch, error) from error


def _not_imported(location: str, arch: str, error: BaseException) -> UsageError:
    return UsageError(f"--arch {arch}: {location} cannot be imported", got=last_line(error), expected=_FORM)
