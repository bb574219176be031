"""The folder of a result, shard by shard: what is finished stays, so that a killed run goes on from there.

OUT/model-00001-of-00048.safetensors   a unit of the source's tensors each; its header says from what it is
OUT/model.safetensors.index.json       written last: which shard holds which tensor
OUT/.nncompress.json                   which of these files are ours
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from nncompress.errors import ModelFileError, OutputError
from nncompress.exporting.check.read_back import read_back_tensors
from nncompress.exporting.write.safetensors import write_tensors
from nncompress.files.bounded_text import Unreadable, parse_json
from nncompress.files.ledger import NAME, OWN, Ledger
from nncompress.files.lock import alone_in
from nncompress.loading.json_schema import Rejected, finite, listed, plain, record, table_with
from nncompress.loading.state_dict.shards import INDEX, Checkpoint, StoredTensor, open_checkpoint
from nncompress.passes import Pass
from nncompress.version import __version__

_COMPANIONS = (".json", ".txt", ".model", ".jinja", ".md")  # beside the weights: configuration, tokenizer
_MOST_COMPANION = 64 * 2**20


@dataclass(frozen=True)
class Row:
    """What became of one tensor.

    Attributes:
        what: what the pass did, or why it did nothing.
        error: distance of the weight from what it was, as a share of its length; 0 where it was kept.
    """

    name: str
    what: str
    bytes_before: int
    bytes: int
    error: float
    applied: bool


_SIZE = plain(int, lambda size: 0 <= size < 2**63)
_ROW = record(
    name=plain(str), what=plain(str), bytes_before=_SIZE, bytes=_SIZE, error=finite, applied=plain(bool)
)
_STREAMED = record(made_from=table_with(), rows=listed(_ROW))  # in the header of a shard


@dataclass(frozen=True)
class Streamed:
    """What a run did.

    Attributes:
        rows: a row per tensor of the source, in the order of the shards.
        resumed: how many of the shards were finished by an earlier run.
        copied: names of the files beside the weights that were copied.
    """

    folder: Path
    rows: tuple[Row, ...]
    shards: int
    resumed: int
    copied: tuple[str, ...]

    @property
    def bytes_before(self) -> int:
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "bytes_before": self.bytes_before,
            "bytes": self.bytes,
            "shards": self.shards,
            "resumed": self.resumed,
            "copied": list(self.copied),
            "tensors": [asdict(row) for row in self.rows],
        }


@contextmanager
def alone_at(folder: Path) -> Iterator[None]:
    """Only one process at a time makes a result in a folder; one of other files, refused later, gets no lock.

    Raises:
        OutputError: another one is at it.
    """
    if not (folder / NAME).exists() and any(each.name not in OWN for each in folder.iterdir()):
        yield
        return
    with alone_in(folder):
        yield


class Shards:
    """A result in the making.

    Args:
        units: which tensors of the source become one shard.
        made_by: what else the content of a shard follows from; of JSON.

    Raises:
        OutputError: the folder holds files that are not ours.
    """

    def __init__(
        self,
        folder: Path,
        source: Checkpoint,
        units: Sequence[Sequence[StoredTensor]],
        each: Pass,
        made_by: Mapping[str, Any] | None = None,
    ) -> None:
        self._ledger, self._source, self._units, self._pass = Ledger(folder), source, units, each
        self._made_by = {"pass": str(each), "version": __version__, **(made_by or {})}
        others = self._ledger.others()
        if others:
            raise OutputError(
                f"{folder} holds files that nncompress did not write",
                got=", ".join(others[:4]) + (", …" if len(others) > 4 else ""),
                remedy="-o with a folder that is new or empty",
            )
        self._rows: dict[int, list[Row]] = {}
        for number in range(len(units)):
            found = self._found(number)
            if found is not None:
                self._rows[number] = found
        self.finished = frozenset(self._rows)
        """Numbers of the units that an earlier run made of the same."""

    def file(self, number: int) -> Path:
        return self._ledger.folder / f"model-{number + 1:05d}-of-{len(self._units):05d}.safetensors"

    def write(
        self,
        number: int,
        tensors: Mapping[str, Tensor],
        shapes: Mapping[str, Sequence[int]],
        rows: Sequence[Row],
    ) -> None:
        """Write the shard of a unit, read it back, and only then give it its name.

        Args:
            tensors: what is stored: tensors under their names, or the parts of packed ones.
            shapes: of the packed ones.
        """
        done = {
            "pass": self._pass.name,
            "settings": self._pass.settings(),
            "before": {},
            "after": {},
            "version": __version__,
        }
        of_what = {"made_from": self._made_from(number), "rows": [asdict(row) for row in rows]}
        header = {
            "format": "pt",
            "history": json.dumps([done]),
            "metadata": "{}",
            "streamed": json.dumps(of_what),
        }
        if shapes:
            header["packed"] = json.dumps({name: list(shape) for name, shape in shapes.items()})
        self._ledger.remove(INDEX)  # of another run: with some of its shards and some of ours, it would lie
        with self._ledger.writing(self.file(number).name) as temporary:
            write_tensors(tensors, header, temporary)
            read_back_tensors(tensors, header, temporary)
        self._rows[number] = list(rows)

    def complete(self) -> Streamed:
        """Copy what lies beside the source, write the index, and remove what earlier runs have left."""
        places: dict[str, str] = {}
        size = 0
        for number in range(len(self._units)):
            file = self.file(number)
            for tensor in open_checkpoint(file).tensors:
                places[tensor.name] = file.name
                size += tensor.bytes
        copied = self._copied()
        with self._ledger.writing(INDEX) as temporary:
            index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
            temporary.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        for name in self._ledger.names:  # of a run with other settings, or on other files
            if name not in {*places.values(), *copied, INDEX}:
                self._ledger.remove(name)
        rows = tuple(row for number in range(len(self._units)) for row in self._rows[number])
        folder = self._ledger.folder
        return Streamed(folder, rows, len(self._units), len(self.finished), tuple(copied))

    def _made_from(self, number: int) -> dict[str, Any]:
        return {**self._made_by, "source": [identity(tensor) for tensor in self._units[number]]}

    def _found(self, number: int) -> list[Row] | None:
        """What an earlier run recorded of the shard, where it made it of the same; else None."""
        file = self.file(number)
        if not self._ledger.owns(file.name):
            return None
        try:
            kept = _STREAMED(parse_json(open_checkpoint(file).headers[file].get("streamed", "{}")))
        except (ModelFileError, Unreadable, Rejected):
            return None
        if kept["made_from"] != self._made_from(number):
            return None
        return [Row(**row) for row in kept["rows"]]

    def _copied(self) -> list[str]:
        """Copy what lies beside the shards of a folder and says what they are: configuration, tokenizer."""
        source = self._source
        if not source.path.is_dir() and source.path.suffix != ".json":
            return []
        copied = []
        for file in sorted(source.files[0].parent.iterdir()):
            if (
                file.suffix not in _COMPANIONS
                or file.name.endswith(".index.json")
                or file.name.startswith(".")
            ):
                continue
            if not file.is_file() or file.stat().st_size > _MOST_COMPANION:
                continue
            with self._ledger.writing(file.name) as temporary:
                temporary.write_bytes(file.read_bytes())
            copied.append(file.name)
        return copied


def identity(tensor: StoredTensor) -> list[Any]:
    """What changes where the tensor does, without reading it."""
    file = tensor.file.stat()
    return [tensor.name, str(tensor.dtype), list(tensor.shape), tensor.start, file.st_size, file.st_mtime_ns]
