"""Which lines of the package the tests run, by room: `python -m pytest -p tests.support.line_coverage`.

slipcover counts, in every worker of pytest-xdist; lines that run in processes which a test starts do not
count. Its own plugin writes functions anew whenever some of their lines were seen, which took a fifth of the
time of all tests: here the probes stay in.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest
import slipcover

PACKAGE = Path(__file__).resolve().parents[2] / "nncompress"
NEVER = 2**31 - 1  # lines seen again before probes are taken out

# torch's dynamo traces these where a network uses torch.cond, and takes no probe for a constant
UNCOUNTED = [PACKAGE / "ir" / "free_sizes.py"]

_lines = slipcover.Slipcover(source=[str(PACKAGE)], d_miss_threshold=NEVER)
slipcover.ImportManager(
    _lines, slipcover.FileMatcher(sources=[PACKAGE], omit=[str(path) for path in UNCOUNTED])
).__enter__()  # before conftest imports
_of_workers: list[dict[str, Any]] = []
_lost: list[str] = []


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--missing-lines", action="store_true", help="of each file, those that no test runs")


def pytest_sessionfinish(session: pytest.Session) -> None:
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput["lines"] = json.dumps(_lines.get_coverage())


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    found = getattr(node, "workeroutput", {}).get("lines")
    if found is None:
        _lost.append(node.gateway.id)
    else:
        _of_workers.append(json.loads(found))


def pytest_terminal_summary(terminalreporter: Any) -> None:
    found = _of_workers[0] if _of_workers else _lines.get_coverage()
    for other in _of_workers[1:]:
        found = slipcover.merge_coverage(found, other)
    terminalreporter.section("lines of the package that ran")
    if terminalreporter.config.getoption("--missing-lines"):
        slipcover.print_coverage(found, outfile=terminalreporter._tw, skip_covered=True)
    for line in table(found["files"]):
        terminalreporter.write_line(line)
    for worker in _lost:
        terminalreporter.write_line(f"{worker} ended without saying which lines it ran: they are not counted")


def table(files: dict[str, dict[str, list[int]]]) -> list[str]:
    """A line per room, and the total.

    Args:
        files: path -> executed_lines, missing_lines.
    """
    rooms: dict[str, list[int]] = defaultdict(lambda: [0, 0])
    for path, lines in files.items():
        inside = Path(path).resolve().relative_to(PACKAGE).parts
        for room in (inside[0] if len(inside) > 1 else "nncompress/*.py", "total"):
            rooms[room][0] += len(lines["executed_lines"])
            rooms[room][1] += len(lines["missing_lines"])
    last = rooms.pop("total", [0, 0])
    rows = [*sorted(rooms.items()), ("total", last)]
    return [f"{room:16}{a:7} of {a + b:6}{a / (a + b or 1):8.1%}" for room, (a, b) in rows]
