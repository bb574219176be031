"""A folder with one folder of files per class."""

from __future__ import annotations

import os
from pathlib import Path

from nncompress.errors import DataError


def files_in(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    """Regular files (no pipe, no device) whose names end so, by name."""
    with os.scandir(folder) as entries:
        return sorted(
            folder / entry.name
            for entry in entries
            if entry.name.lower().endswith(suffixes) and entry.is_file()
        )


def files_by_class(
    folder: Path, suffixes: tuple[str, ...], what: str, each: str
) -> tuple[list[Path], dict[str, list[Path]]]:
    """The files without a class, and those of each class, in alphabetical order; one of both is empty.

    Args:
        what: "images"; each: "image".

    Raises:
        DataError: there are both, or it cannot be read.
    """
    try:
        with os.scandir(folder) as entries:
            folders = sorted(entry.name for entry in entries if entry.is_dir())
        by_class = {name: files for name in folders if (files := files_in(folder / name, suffixes))}
        loose = files_in(folder, suffixes)
    except OSError as problem:
        raise DataError(f"{folder} cannot be read", got=str(problem)) from problem
    if by_class and loose:
        raise DataError(
            f"{folder} holds {what} beside class folders",
            got=f"{loose[0].name} and {len(by_class)} class folders",
            remedy=f"move every {each} into the folder of its class",
        )
    return loose, by_class
