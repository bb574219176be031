"""`--arch`: the user's own code that builds the network a state_dict belongs to."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch import nn

from nncompress.errors import UsageError

_FORM = "file.py:factory or package.module:factory, where factory() returns the model"


def build_architecture(arch: str) -> nn.Module:
    """The module that `file.py:factory` or `package.module:factory` makes, with its own initial weights.

    Raises:
        UsageError: there is no such file, module or factory; it raises, needs arguments, or makes no module.
    """
    location, separator, name = arch.rpartition(":")
    if not separator or not location or not name:
        raise UsageError("--arch names no factory", got=arch, expected=_FORM)
    module = _import(location, arch)
    factory: Any = module
    for part in name.split("."):
        factory = getattr(factory, part, None)
    if factory is None:
        offered = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        offered = [n for n in offered if getattr(vars(module)[n], "__module__", None) == module.__name__]
        raise UsageError(
            f"--arch {arch}: {location} has no {name!r}",
            expected=_FORM,
            remedy=f"it has: {', '.join(offered[:8])}" if offered else "",
        )
    try:
        made = factory if isinstance(factory, nn.Module) else factory()
    except (Exception, SystemExit) as error:  # the user's own code
        wants = isinstance(error, TypeError) and "argument" in str(error)
        raise UsageError(
            f"--arch {arch}: {name} {'cannot be called without arguments' if wants else 'raised an error'}",
            got=_last_line(error),
            expected=_FORM,
            remedy=f"write a function of no arguments that returns {name}(...)" if wants else "",
        ) from error
    if not isinstance(made, nn.Module):
        raise UsageError(
            f"--arch {arch}: {name} makes no torch.nn.Module", got=f"a {type(made).__name__}", expected=_FORM
        )
    return made


def _import(location: str, arch: str) -> Any:
    try:
        with import_from_here():
            if not location.endswith(".py"):
                return importlib.import_module(location)
            path = Path(location)
            if not path.is_file():
                raise UsageError(f"--arch {arch}: there is no file {location}", expected=_FORM)
            spec = importlib.util.spec_from_file_location(f"architecture_file_{path.stem}", path)
            assert spec is not None
            assert spec.loader is not None
            module = importlib.util.module_from_spec(spec)
            sys.modules[spec.name] = module  # dataclasses look their module up there
            with import_from_here(path.parent):  # it may import what lies beside it
                spec.loader.exec_module(module)
            return module
    except UsageError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code
        raise UsageError(
            f"--arch {arch}: {location} cannot be imported", got=_last_line(error), expected=_FORM
        ) from error


def _last_line(error: BaseException) -> str:
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text[:300]}"


@contextmanager
def import_from_here(folder: Path | None = None) -> Iterator[None]:
    """The user's modules are importable from `folder`, by default the current one, as with `python -m`."""
    entry = str(folder.resolve()) if folder else ""
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
