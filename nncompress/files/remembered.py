"""Measurements of this machine, kept in the user's cache folder: one JSON file per kind and key.

    ~/.cache/nncompress/layer-latency-1f0c….json    ($XDG_CACHE_HOME; on macOS ~/Library/Caches, on Windows
                                                     %LOCALAPPDATA%)

Deleting the folder makes everything be measured anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nncompress.errors import OutputError
from nncompress.files.bounded_text import Unreadable, read_json
from nncompress.files.folders import cache_folder, make_folder
from nncompress.files.json_file import write_json


class Remembered:
    """One file of measurements.

    Args:
        kind: the beginning of its name.
        key: what the measurements depend on; another key is another file.
        folder: where it is kept; default the user's cache folder. Where that cannot be written, it is
            not kept.

    Attributes:
        unkept: why what was measured will be measured again by the next process; "" where it is kept.
    """

    def __init__(self, kind: str, key: Mapping[str, Any], folder: Path | None = None) -> None:
        self.key = dict(key)
        digest = hashlib.sha256(json.dumps(self.key, sort_keys=True).encode()).hexdigest()[:16]
        folder = folder or cache_folder()
        self.path = None if folder is None else folder / f"{kind}-{digest}.json"
        self.unkept = "" if self.path else "the user has no cache folder"

    def read(self) -> dict[str, Any]:
        """What is in the file; nothing where there is none, or where it is no JSON object."""
        if self.path is None:
            return {}
        try:
            content = read_json(self.path)
        except Unreadable:
            return {}
        return content if isinstance(content, dict) else {}

    def write(self, content: Mapping[str, Any]) -> None:
        """The key and this, whole."""
        if self.path is None:
            return
        try:
            make_folder(self.path.parent)
            write_json(self.path, {**self.key, **content})
        except OutputError as error:  # a read-only home: it is measured anew next time
            self.unkept = f"{error.what} ({error.got})"
