"""Folders of the datasets library as tables: what `save_to_disk` wrote of a `Dataset` or `DatasetDict`, and
parquet files named after their split, as they lie on the Hub.

    FOLDER?x=tokens&y=label                                 state.json and data-*.arrow
    FOLDER?split=train&text=review&tokenizer=DIR            dataset_dict.json, and such a folder per split
    FOLDER?split=validation                                 validation-*.parquet, there or in data/

The Arrow files hold streams of record batches, which pyarrow reads one after the other.
"""

from __future__ import annotations

import glob
from pathlib import Path
from typing import Any

from nncompress.data.sources.arrow import Batches, check_file, open_streams
from nncompress.errors import DataError
from nncompress.extras import need
from nncompress.files.bounded_text import Unreadable, parse_json, read_json

STATE, SPLITS = "state.json", "dataset_dict.json"


def is_saved_dataset(folder: Path) -> bool:
    return (folder / STATE).is_file() or (folder / SPLITS).is_file() or bool(_parquet(folder))


def table_of(folder: Path, split: str | None) -> Path:
    """What of the folder holds the samples of a split: a folder with `STATE`, or a pattern of parquet files.

    Raises:
        DataError: there is no such split, or several and none was named.
    """
    if (folder / STATE).is_file():
        found = {"": folder}
    elif (folder / SPLITS).is_file():
        names = _read(folder / SPLITS).get("splits")
        if not isinstance(names, list) or not names or not all(map(_is_name, names)):
            raise DataError(f"{folder / SPLITS} names no splits", got=repr(names)[:80])
        found = {name: folder / name for name in names}
    else:
        found = _parquet(folder)
    if split is None and len(found) == 1:
        return next(iter(found.values()))
    if split is None or split not in found:
        named = ", ".join(filter(None, found)) or "no splits"
        raise DataError(
            f"{folder} has no split {split}" if split else f"{folder} has several splits",
            got=named,
            remedy=f"{folder}?split={next(iter(found))}" if all(found) else "leave ?split out",
        )
    return found[split]


def _parquet(folder: Path) -> dict[str, Path]:
    """Per split, the pattern of its files: train.parquet, train-00000-of-00002.parquet, not train_2.parquet.

    Raises:
        DataError: a split is both, one file and several.
    """
    for place in (folder, folder / "data"):
        found: dict[str, Path] = {}
        for file in sorted(place.glob("*.parquet")):
            name, several, _ = file.stem.partition("-")
            pattern = place / f"{glob.escape(name)}-*.parquet" if several else file
            if found.setdefault(name, pattern) != pattern:
                raise DataError(
                    f"{place} has {name}-….parquet and {name}.parquet",
                    remedy=f"name the file: --data {place / name}.parquet, or move one of the two away",
                )
        if found:
            return found
    return {}


def open_arrow(folder: Path) -> tuple[list[str], Batches]:
    """The names of its columns, and their batches.

    Raises:
        DataError: it cannot be read.
        MissingExtraError: pyarrow is not installed.
    """
    return open_streams(_files(folder))


def schema_of(table: Path) -> Any:
    """pyarrow's schema of a folder with `STATE` or of .parquet (of a pattern the first file's); None of text.

    Raises:
        DataError: it cannot be read.
        MissingExtraError: pyarrow is not installed.
    """
    arrow = table.is_dir()
    if not arrow and table.suffix != ".parquet":
        return None
    part = _files(table)[0] if arrow else table if table.exists() else min(table.parent.glob(table.name))
    need("parquet", str(table))
    check_file(part, "Arrow" if arrow else ".parquet")
    import pyarrow
    from pyarrow import parquet

    try:
        if not arrow:
            return parquet.read_schema(part)
        with pyarrow.memory_map(str(part)) as source, pyarrow.ipc.open_stream(source) as reader:
            return reader.schema
    except (pyarrow.ArrowException, OSError, UnicodeDecodeError) as problem:
        kind = "Arrow" if arrow else ".parquet"
        raise DataError(f"{part} cannot be read as {kind}", got=str(problem)[:300]) from problem


def class_names_of(table: Path, column: str) -> tuple[str, ...] | None:
    """Those that the datasets library keeps of a column of class numbers."""
    names = feature_of(table, column).get("names")
    return tuple(map(str, names)) if isinstance(names, list) and names else None


def feature_of(table: Path, column: str) -> dict[str, Any]:
    """What the datasets library says of a column, beside the schema; empty where it says nothing."""
    schema = schema_of(table)
    stated = (schema.metadata or {}).get(b"huggingface") if schema is not None else None
    try:
        found = parse_json(stated.decode()) if stated else {}
    except (Unreadable, UnicodeDecodeError) as problem:
        raise DataError(f"{table}: its description cannot be read", got=str(problem)[:200]) from problem
    for key in ("info", "features", column):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, dict) else {}


def _files(folder: Path) -> list[Path]:
    """The Arrow files of a folder with `STATE`.

    Raises:
        DataError: it lists none, or some elsewhere, or only some of their rows.
    """
    state = _read(folder / STATE)
    listed = state.get("_data_files")
    files = listed if isinstance(listed, list) else []
    names = [str(each.get("filename")) if isinstance(each, dict) else "" for each in files]
    if not names or not all(map(_is_name, names)):
        raise DataError(
            f"{folder / STATE} lists no files beside it",
            got=repr(listed)[:80],
            expected="what save_to_disk() of the datasets library writes",
            remedy="copy the whole folder again",
        )
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise DataError(
            f"{folder} holds a selection of its rows by their numbers",
            remedy="dataset.flatten_indices() before save_to_disk()",
        )
    return [folder / name for name in names]


def _is_name(name: object) -> bool:
    return isinstance(name, str) and name not in ("", ".", "..") and Path(name).name == name


def _read(path: Path) -> dict[str, Any]:
    try:
        found = read_json(path)
    except (OSError, Unreadable) as problem:
        raise DataError(f"{path} cannot be read", got=str(problem)[:200]) from problem
    if not isinstance(found, dict):
        raise DataError(f"{path} is no object", got=repr(found)[:80])
    return found
