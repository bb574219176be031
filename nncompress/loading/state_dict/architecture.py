"""`--arch`: the user's own code that builds the network a state_dict belongs to."""

from __future__ import annotations

import difflib
import inspect
import os
from types import ModuleType
from typing import Any

from torch import nn

from nncompress.errors import RAISED_BY_OTHERS, NNCompressError, UsageError
from nncompress.extras import need
from nncompress.files.bounded_text import Unreadable, parse_json
from nncompress.user_code import imported, last_line, offered

_FORM = (
    "file.py:factory or package.module:factory, where factory() returns the model; "
    "timm:NAME or torchvision:NAME"
)
COLLECTIONS = ("timm", "torchvision")


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
    if location in COLLECTIONS:
        return _of_collection(location, name, arch)
    module = _import(location, arch)
    factory: Any = module
    for part in name.split("."):
        factory = getattr(factory, part, None)
    if factory is None:
        names = offered(module)
        raise UsageError(
            f"--arch {arch}: {location} has no {name!r}",
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


def _of_collection(package: str, text: str, arch: str) -> nn.Module:
    """A model of the package, without pretrained weights, which it would download.

    Raises:
        MissingExtraError: the package is not installed.
        UsageError: it knows no such architecture, or no such setting of it.
    """
    need(package, f"--arch {arch}")
    name, _, query = text.partition("?")
    settings = {key: _plain(value) for key, _, value in (p.partition("=") for p in query.split("&") if p)}
    try:
        known = _names(package)
        if name not in known:
            close = difflib.get_close_matches(name, known, 5, 0.5)
            raise UsageError(
                f"--arch {arch}: {package} has no architecture {name!r}",
                expected=f"one of its {len(known)}",
                remedy=f"close are: {', '.join(close)}" if close else "",
            )
        return _made(package, name, settings)
    except NNCompressError:
        raise
    except Exception as error:  # the package's own, of settings that it does not take
        raise UsageError(f"--arch {arch}: {package} cannot build it", got=last_line(error)) from error


def _names(package: str) -> list[str]:
    if package == "timm":
        import timm

        return timm.list_models()
    import torchvision

    return torchvision.models.list_models()


def _made(package: str, name: str, settings: dict[str, Any]) -> nn.Module:
    if package == "timm":
        import timm

        return timm.create_model(name, pretrained=False, **settings)
    from torchvision import models

    if "weights_backbone" in inspect.signature(models.get_model_builder(name)).parameters:
        settings = {"weights_backbone": None, **settings}  # which it would download
    return models.get_model(name, weights=None, **settings)


def _plain(text: str) -> Any:
    """A number, true, false or null as JSON has it; any other text is itself."""
    try:
        return parse_json(text)
    except Unreadable:
        return text


def _import(location: str, arch: str) -> ModuleType:
    try:
        return imported(location)
    except FileNotFoundError as error:
        if location.endswith(".py") and not os.path.isfile(location):
            raise UsageError(f"--arch {arch}: there is no file {location}", expected=_FORM) from error
        raise _not_imported(location, arch, error) from error
    except RAISED_BY_OTHERS as error:  # the user's own code
        raise _not_imported(location, arch, error) from error


def _not_imported(location: str, arch: str, error: BaseException) -> UsageError:
    return UsageError(f"--arch {arch}: {location} cannot be imported", got=last_line(error), expected=_FORM)
