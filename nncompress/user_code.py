"""The user's own code, named as `file.py:function` or `package.module:function`."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType


def imported(location: str) -> ModuleType:
    """The module that a file's path (`….py`) or a dotted name means, seen from the current folder.

    Raises:
        FileNotFoundError: there is no such file.
        RAISED_BY_OTHERS: whatever the user's code raises.
    """
    with import_from_here():
        if not location.endswith(".py"):
            return importlib.import_module(location)
        path = Path(location)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"there is no file {location}")
        name = f"user_code_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module  # dataclasses look their module up there
        with import_from_here(path.parent):  # it may import what lies beside it
            spec.loader.exec_module(module)
        return module


def offered(module: ModuleType) -> list[str]:
    """The names of what can be called in the user's module and is its own."""
    own = {k: v for k, v in vars(module).items() if callable(v) and not k.startswith("_")}
    return [k for k, v in own.items() if getattr(v, "__module__", None) == module.__name__]


def last_line(error: BaseException) -> str:
    """An error of the user's code in one line, and where it was raised there."""
    text = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {text[:300]}{_place(error)}"


def _place(error: BaseException) -> str:
    """The innermost line that is neither ours nor an installed package's; "" where there is none."""
    others = (str(Path(__file__).parent), *{sysconfig.get_path(name) for name in ("stdlib", "purelib")})
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if f.filename.endswith(".py") and not f.filename.startswith(others)]
    return f" ({Path(own[-1].filename).name}, line {own[-1].lineno})" if own else ""


@contextmanager
def import_from_here(folder: Path | None = None) -> Iterator[None]:
    """The user's modules are importable from `folder`, by default the current one, as with `python -m`."""
    entry = str(folder.resolve()) if folder else ""
    sys.path.insert(0, entry)
    try:
        yield
    finally:
        sys.path.remove(entry)
