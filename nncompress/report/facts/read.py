"""RUNs as they are named: files that commands printed or wrote, folders that they keep."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from nncompress.errors import DataError, ModelFileError, UnsupportedError
from nncompress.files.bounded_text import Unreadable, parse_json, read_json, read_text
from nncompress.files.leftovers import complete
from nncompress.loading.file_kind import file_kind
from nncompress.loading.json_schema import Rejected
from nncompress.report.facts.content import Section
from nncompress.report.facts.limits import clipped
from nncompress.report.facts.runs import (
    bench,
    evaluation,
    model,
    optimize,
    passes,
    sensitivity,
    spectra,
    training,
)
from nncompress.results import SCHEMA
from nncompress.search.promise import RESULT

MOST_BYTES = 64 * 2**20  # a benchmark has its raw samples
MOST_TRIALS = 10_000
_MAKE_ONE = "nncompress COMMAND … --json > run.json; or the folder of optimize or cycle, or a log of train"

Reader = Callable[[dict[str, Any], str], Section]
READERS: Mapping[str, Reader] = {  # by the kind that a document says it is
    "passes": passes.section,
    "bench-suite": bench.section,
    "evaluation": evaluation.section,
    "sensitivity": sensitivity.section,
    "optimize": optimize.section,
    "train": training.train,
    "cycle": training.cycle,
    "spectra": spectra.section,
}


def section_of(path: str) -> Section:
    """What one RUN says.

    Raises:
        DataError: it is missing, damaged, or nothing that a command leaves behind.
    """
    complete(Path(path))
    try:
        if os.path.isdir(path):
            return _folder(Path(path), path)
        if _is_model(path):
            return _admitted(lambda: model.section(path), path)
        text = read_text(path, MOST_BYTES)
    except Unreadable as problem:
        raise DataError(
            f"cannot read {path}", got=str(problem), expected=_EXPECTED, remedy=_MAKE_ONE
        ) from problem
    try:
        document = parse_json(text)
    except Unreadable as problem:
        lines = _lines(text)
        if lines is None:
            raise DataError(
                f"{path} is nothing that a command leaves behind",
                got=str(problem),
                expected=_EXPECTED,
                remedy=_MAKE_ONE,
            ) from problem
        return _log(lines, path)
    if isinstance(document, dict) and "kind" not in document:  # a log of one line
        return _log([document], path)
    return section_in(document, path)


def _is_model(path: str) -> bool:
    """Whether it is a model file; a text is none, and what is no file is told of when it is read."""
    try:
        file_kind(path)
    except UnsupportedError:  # a program of a runtime: what loads it says what to do
        return True
    except ModelFileError:
        return False
    return True


def section_in(document: Any, source: str) -> Section:
    """What a document says that a command prints with --json.

    Args:
        source: what it is called in the report and in messages.

    Raises:
        DataError: it is none of these, or damaged.
    """
    kind = document.get("kind") if isinstance(document, dict) else None
    if not isinstance(kind, str) or kind not in READERS:
        raise DataError(
            f"{source} is nothing that a report is made of",
            got=clipped(f"kind {kind!r}") if kind is not None else type(document).__name__,
            expected=_EXPECTED,
            remedy=_MAKE_ONE,
        )
    if document.get("schema") != SCHEMA:
        raise DataError(
            f"{source} was written by another version",
            got=clipped(f"schema {document.get('schema')!r}"),
            expected=f"schema {SCHEMA}",
            remedy="run the command again",
        )
    return _admitted(lambda: READERS[kind](document, source), source)


_EXPECTED = f"a model file, or a document of kind {', '.join(READERS)}"


def _admitted(make: Callable[[], Section], source: str) -> Section:
    try:
        return make()
    except Rejected as rejected:
        raise DataError(
            f"{source} is damaged", got=str(rejected), remedy="run the command again"
        ) from rejected


def _lines(text: str) -> list[Any] | None:
    """The values of a file with one per line; a last line that is still being written is left out."""
    found: list[Any] = []
    lines = text.splitlines()
    for position, line in enumerate(lines):
        try:
            found.append(parse_json(line))
        except Unreadable:
            if position == 0 or position + 1 < len(lines):
                return None
    return found or None


def _log(rows: list[Any], path: str) -> Section:
    keys = set(rows[0]) if isinstance(rows[0], dict) else set()
    if {"cycle", "nodes"} <= keys:
        return _admitted(lambda: training.cycle_log(rows, path), path)
    if {"epoch", "loss"} <= keys:
        return _admitted(lambda: training.log(rows, path), path)
    raise DataError(
        f"{path} is nothing that a command leaves behind",
        got=clipped(f"keys {', '.join(map(repr, sorted(keys)[:8]))}" if keys else "no record"),
        expected=_EXPECTED,
        remedy=_MAKE_ONE,
    )


def _folder(folder: Path, name: str) -> Section:
    """That of `optimize` or of `cycle`, told by what they keep in it."""
    try:
        if (folder / "search.json").is_file():
            files = sorted((folder / "trials").glob("*.json"))[: MOST_TRIALS + 1]
            if len(files) > MOST_TRIALS:
                raise Unreadable(f"more than {MOST_TRIALS} trials")
            rows = {file.stem: read_json(file) for file in files}
            metric = _metric(read_json(folder / "search.json"))
            if (folder / RESULT).is_file():
                return _ended(read_json(folder / RESULT), rows, name)
            return _admitted(lambda: optimize.trials(rows, metric, name), name)
        if (folder / "cycles.jsonl").is_file():
            lines = _lines(read_text(folder / "cycles.jsonl", MOST_BYTES))
            if lines is None:
                raise Unreadable("no JSON lines in cycles.jsonl")
            return _log(lines, name)
    except Unreadable as problem:
        raise DataError(f"cannot read {name}", got=str(problem), remedy=_MAKE_ONE) from problem
    raise DataError(
        f"{name} is no folder of optimize or cycle",
        got="neither search.json nor cycles.jsonl in it",
        remedy=_MAKE_ONE,
    )


def _ended(document: Any, rows: dict[str, Any], name: str) -> Section:
    """What a search has promised, among all its trials."""
    match document:
        case {"kind": "optimize", "schema": schema, "trials": dict(known)} if schema == SCHEMA:
            since = len(set(rows) - set(known))
            return _admitted(lambda: optimize.section({**document, "trials": rows}, name, since), name)
    raise Unreadable(f"{RESULT} is no result of optimize")


def _metric(settings: Any) -> str | None:
    """By which a search measures, where its `search.json` says so."""
    match settings:
        case {"bounds": {"metric": str(name)}}:
            return name
    return None
