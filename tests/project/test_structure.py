"""How the house is built: what import-linter cannot say of it."""

import ast
import inspect
import re
from collections import Counter
from functools import cache
from pathlib import Path

import pytest

from nncompress.extensions import named
from nncompress.passes import PASSES, Pass

HOUSE = Path(__file__).parents[2] / "nncompress"
SLOW = {"torch", "onnx", "onnxruntime", "onnxscript", "onnx_ir"}  # seconds to import, or nearly
# read for every --help, and for every line that is typed wrong
QUICK = sorted(
    ".".join(path.relative_to(HOUSE.parent).with_suffix("").parts).removesuffix(".__init__")
    for path in (
        *HOUSE.glob("cli/*.py"),
        *HOUSE.glob("cli/commands/**/*.py"),
        *HOUSE.glob("passes/*/options.py"),
        HOUSE / "recipe.py",
    )
)


CONTRACT = ("requires", "apply", "ensures", "contributions")


@pytest.mark.parametrize("name", [name for name in PASSES if not PASSES.origin(name)])
def test_the_steps_of_a_pass_are_functions_that_take_what_the_pass_is_called_with(name):
    for step in CONTRACT:
        method = vars(PASSES[name]).get(step)
        if method is not None:
            contract = list(inspect.signature(getattr(Pass, step)).parameters)
            assert list(inspect.signature(named(method.place)).parameters)[1:] == contract[1:]


def test_a_step_of_a_pass_takes_the_values_that_it_needs_not_the_options():
    taking = []
    for path in HOUSE.glob("passes/*/**/*.py"):
        tree = ast.parse(path.read_text())
        imported = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
        of_passes = [
            node for node in imported if re.fullmatch(r"nncompress\.passes\..*\.options", f"{node.module}")
        ]
        declared = {alias.name for node in of_passes for alias in node.names}
        for function in ast.walk(tree):
            if isinstance(function, ast.FunctionDef) and function.name not in CONTRACT:
                given = [each.annotation for each in function.args.args + function.args.kwonlyargs]
                if declared & {ast.unparse(annotation) for annotation in given if annotation is not None}:
                    taking.append(f"{path.relative_to(HOUSE)}: {function.name}")
    assert not taking


def test_what_a_command_declares_is_imported_without_torch():
    assert len(QUICK) > 30
    assert not {module: slow for module in QUICK if (slow := SLOW & imported_at_once(module))}


def imported_at_once(module: str) -> set[str]:
    """What the import of a module of ours imports, as the files say it: ours and others', by full name."""
    found, ahead = set(), [module]
    while ahead:
        each = ahead.pop()
        if each in found:
            continue
        found.add(each)
        if each.split(".")[0] == HOUSE.name:
            ahead += [each.rpartition(".")[0]] * ("." in each)
            ahead += _named_at_the_top(each)
        else:
            found.add(each.split(".")[0])
    return found


@cache
def _named_at_the_top(module: str) -> list[str]:
    path = HOUSE.parent.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.exists():
        return []  # a name in a module, not a module
    found = []
    for line in ast.parse(file.read_text()).body:
        if isinstance(line, ast.Import):
            found += [alias.name for alias in line.names]
        elif isinstance(line, ast.ImportFrom) and line.module:
            found += [line.module, *(f"{line.module}.{alias.name}" for alias in line.names)]
    return found


def test_torch_would_be_found_out():
    assert "torch" in imported_at_once("nncompress.passes.prune.apply")


def test_a_room_has_no_more_files_than_one_can_keep_in_mind():
    rooms = Counter(
        path.parent
        for top in ("nncompress", "tests", "benchmarks", "fixtures")
        for path in HOUSE.with_name(top).rglob("*.py")
    )
    assert not {str(room): count for room, count in rooms.items() if count > 15}


def test_a_file_is_read_in_one_sitting():
    most = {"nncompress": 360, "tests": 400, "benchmarks": 400, "fixtures": 360}
    lines = {
        path: path.read_text().count("\n") for top in most for path in HOUSE.with_name(top).rglob("*.py")
    }
    assert not {
        str(path): count
        for path, count in lines.items()
        if count > most[path.relative_to(HOUSE.parent).parts[0]]
    }


@pytest.mark.parametrize("folder", ["nncompress", "tests", "benchmarks", "fixtures"])
def test_what_a_function_imports_of_ours_exists(folder):
    """Imports at the top fail at once; those in functions would fail when somebody needs them."""
    wrong = []
    for path in HOUSE.with_name(folder).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("nncompress."):
                wrong += [
                    f"{path.name}:{node.lineno} {node.module}.{alias.name}"
                    for alias in node.names
                    if not _exists(node.module, alias.name)
                ]
    assert not wrong


def test_only_what_help_reads_imports_ours_inside_functions():
    """Help reads names and options without torch; whatever else a function imports belongs at the top."""
    names = {f"{package}/__init__.py" for package in ("cli", "cycles", "runtimes", "targets")}
    names |= {
        "analysis/metrics/registry.py",
        "cli/script.py",
        "cli/table.py",
        "passes/base.py",
        "zoo/registry.py",
    }
    names |= {"runtimes/worker.py"}  # a process of its own: its parent needs the file for the way it talks
    found = {
        path.relative_to(HOUSE).as_posix()
        for path in HOUSE.rglob("*.py")
        for function in ast.walk(ast.parse(path.read_text()))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.ImportFrom) and f"{node.module}.".startswith("nncompress.")
    }
    assert found == names


def test_the_work_that_a_command_names_exists():
    places = [
        place
        for path in HOUSE.glob("cli/commands/**/*.py")
        for place in re.findall(r'later\("(.+)"\)', path.read_text())
    ]
    assert len(places) > 12
    assert all(callable(named(f"nncompress.cli.work.{place}")) for place in places)


@cache
def _exists(module: str, name: str) -> bool:
    path = HOUSE.parent.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    if not file.exists():
        return False
    if (path / f"{name}.py").exists() or (path / name).is_dir():
        return True
    tree = ast.parse(file.read_text())
    known = {found.id for found in ast.walk(tree) if isinstance(found, ast.Name)}
    for found in ast.walk(tree):
        if isinstance(found, ast.FunctionDef | ast.ClassDef):
            known.add(found.name)
        elif isinstance(found, ast.alias):
            known.add(found.asname or found.name)
    return name in known or "__getattr__" in known
