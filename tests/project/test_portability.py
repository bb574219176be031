"""Systems without what POSIX has: everything is imported, memory is told, nothing is bounded."""

import ast
import ctypes
import importlib.util
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from nncompress import memory

HOUSE = Path(memory.__file__).parent
POSIX = {"curses", "fcntl", "grp", "posix", "pty", "pwd", "readline", "resource", "syslog", "termios", "tty"}


def imported_when_read(body):
    """Modules that importing a file imports, in any of its branches; not those of its functions."""
    for line in body:
        if isinstance(line, ast.Import):
            yield from (alias.name.split(".")[0] for alias in line.names)
        elif isinstance(line, ast.ImportFrom):
            yield (line.module or "").split(".")[0]
        elif not isinstance(line, (ast.FunctionDef, ast.AsyncFunctionDef)):
            inner = [*getattr(line, "body", ()), *getattr(line, "orelse", ())]
            yield from imported_when_read(each for each in inner if isinstance(each, ast.stmt))


def test_no_module_needs_what_only_posix_has_to_be_imported():
    files = sorted(HOUSE.rglob("*.py"))
    assert len(files) > 400
    found = {str(file): POSIX & set(imported_when_read(ast.parse(file.read_text()).body)) for file in files}
    assert not {file: names for file, names in found.items() if names}
    assert set(imported_when_read(ast.parse("if x:\n    import fcntl").body)) == {"fcntl"}


@pytest.fixture
def on_windows(monkeypatch):
    """`nncompress.memory` as Windows reads it, whose kernel says 2¹⁰ bytes."""

    def status(pointer):
        assert pointer._obj.length == 64  # sizeof(MEMORYSTATUSEX)
        pointer._obj.physical = 1024
        return 1

    kernel = SimpleNamespace(GlobalMemoryStatusEx=status)
    monkeypatch.setattr(ctypes, "windll", SimpleNamespace(kernel32=kernel), raising=False)
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setitem(sys.modules, "resource", None)  # whose import then fails
    monkeypatch.delattr("os.sysconf")
    spec = importlib.util.spec_from_file_location("memory_on_windows", memory.__file__)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_memory_is_told_and_nothing_bounded_on_windows(on_windows):
    assert on_windows.installed() == on_windows.memory() == 1024
    with on_windows.bounded_memory("m.onnx", 1), on_windows.unbounded_memory():
        assert len(bytes(10**6)) == 10**6
