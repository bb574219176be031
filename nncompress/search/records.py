"""Results kept as files: one per measurement, named by what was measured, written whole by one process.

    FOLDER/3f0c….json    the only truth: there or not
    FOLDER/3f0c….lock    held by the process that measures, for as long as it lives

A process that is killed leaves no result and no lock, so another one measures that anew; nothing is lost, and
nothing is counted twice.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from nncompress.data import Dataset
from nncompress.errors import OutputError, UsageError, VerificationError
from nncompress.files.atomic import why_and_remedy
from nncompress.files.bounded_text import Unreadable, read_json
from nncompress.files.folders import make_folder
from nncompress.files.json_file import write_json
from nncompress.files.lock import lock
from nncompress.ir import Model
from nncompress.ir.formats.raw_bytes import raw_bytes
from nncompress.loading.json_schema import Check, Rejected, table_with

_ANY = table_with()
WAIT = 0.2  # seconds, before looking again at what others measure


class Records:
    """The results in a folder.

    Args:
        folder: None where there is none.
        admit: checks a result that was read.
        needed: others read them there; else, where the folder takes nothing, results are held in memory.

    Attributes:
        folder: where they are; None: nowhere.
        unkept: why what was measured will be measured again by the next process; "" where it is kept.

    Raises:
        OutputError: the folder is needed, and cannot be made.
    """

    def __init__(self, folder: Path | None, admit: Check = _ANY, *, needed: bool = True) -> None:
        self.folder, self._admit, self._needed = folder, admit, needed
        self._held: dict[str, dict[str, Any]] = {}
        self.unkept = "" if folder else "the user has no cache folder"
        if folder is not None:
            with self._writing():
                make_folder(folder)

    def place(self) -> Path | None:
        """The folder, where the next process finds in it what was measured."""
        return None if self.unkept else self.folder

    def get(self, key: str) -> dict[str, Any] | None:
        """A result; None where there is none (a damaged file is none: it is measured anew)."""
        if key in self._held or self.folder is None:
            return self._held.get(key)
        try:
            found: dict[str, Any] = self._admit(read_json(self.folder / f"{key}.json"))
        except (Unreadable, Rejected):
            return None
        return found

    def put(self, key: str, result: dict[str, Any]) -> None:
        """Keep a result.

        Raises:
            VerificationError: it would not be admitted, so that it would be measured again for ever.
            OutputError: the folder is needed, and cannot be written.
        """
        try:
            self._admit(result)
        except Rejected as error:
            raise VerificationError(
                f"{key} in {self.folder} is not kept: it would not be read again",
                got=str(error),
                remedy="this is a defect of nncompress; please report it",
            ) from error
        if self.folder is not None:
            with self._writing():
                write_json(self.folder / f"{key}.json", result)
                return
        self._held[key] = result

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OutputError as error:
            if self._needed:
                raise
            self.unkept = f"{error.what} ({error.got})"

    def all(self) -> dict[str, dict[str, Any]]:
        """Every result by its key."""
        names = self._held if self.folder is None else [path.stem for path in self.folder.glob("*.json")]
        found = {key: self.get(key) for key in sorted({*names, *self._held})}
        return {key: result for key, result in found.items() if result is not None}

    @contextmanager
    def claimed(self, key: str) -> Iterator[bool]:
        """Whether this process is the one to measure `key`; the claim ends with the process."""
        descriptor = self._lock_file(key)
        try:
            yield (descriptor is None or lock(descriptor) is not False) and self.get(key) is None
        finally:
            if descriptor is not None:
                os.close(descriptor)

    def _lock_file(self, key: str) -> int | None:
        """None where nobody else can put the result there either."""
        if self.folder is None:
            return None
        try:
            return os.open(self.folder / f"{key}.lock", os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            if not self._needed:
                return None
            reason, remedy = why_and_remedy(error, self.folder)
            raise OutputError(f"cannot write to {self.folder}", got=reason, remedy=remedy) from error

    def fill(
        self,
        wanted: Sequence[tuple[str, Callable[[], dict[str, Any]]]],
        told: Callable[[int, int], None],
        until: float = float("inf"),
    ) -> dict[str, dict[str, Any]]:
        """Measure what is not known yet, together with the other processes that do so in this folder.

        Args:
            wanted: key, and what measures it.
            told: how many of how many are there.
            until: `time.monotonic()` from which on nothing new is begun.

        Returns: the results there are, by key, in the order wanted.
        """
        found: dict[str, dict[str, Any]] = {}
        while len(found) < len(wanted):
            before = len(found)
            for key, measure in wanted:
                result = found.get(key) or self.get(key)
                if result is None and time.monotonic() < until:
                    with self.claimed(key) as ours:
                        if ours:
                            self.put(key, measure())
                    result = self.get(key)
                if result is not None:
                    found[key] = result
                told(len(found), len(wanted))
            if time.monotonic() >= until:
                break
            if len(found) == before:
                time.sleep(WAIT)
        return {key: found[key] for key, _ in wanted if key in found}


def key_of(*parts: Any) -> str:
    """Sixteen hexadecimal digits that stand for plain values."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:16]


def model_key(model: Model) -> str:
    """Of what a model computes and how: its graph, its tensors, its inputs."""
    digest = hashlib.sha256(model.graph_module.code.encode())
    digest.update(repr(model.inputs).encode())
    for name, value in sorted(model.state_dict().items()):
        digest.update(f"{name} {value.dtype} {list(value.shape)}".encode())
        digest.update(raw_bytes(value).numpy().tobytes())
    return digest.hexdigest()[:16]


def data_key(data: Dataset | None, limit: int | None = None) -> str:
    """Of the records that a pass may read: inputs as the model takes them, and labels."""
    digest = hashlib.sha256()
    if data is not None:
        for batch in data.batches(64, limit):
            for tensor in (*batch.inputs, *(() if batch.labels is None else (batch.labels,))):
                digest.update(f"{tensor.dtype} {list(tensor.shape)}".encode())
                digest.update(raw_bytes(tensor).numpy().tobytes())
    return digest.hexdigest()[:16]


def read(path: Path, admit: Check) -> dict[str, Any] | None:
    """A record of the search's folder; None where there is none.

    Raises:
        UsageError: it is damaged: begun anew, its search would promise more than it can.
    """
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = admit(read_json(path))
    except (Unreadable, Rejected) as error:
        raise UsageError(
            f"{path} is no record of a search",
            got=str(error),
            remedy="name another --folder, or delete this one",
        ) from error
    return found
