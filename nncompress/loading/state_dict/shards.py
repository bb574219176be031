"""Checkpoints in safetensors, whole or in shards: their tensors one at a time, without opening the rest.

    found = open_checkpoint("llama/")          a folder, its model.safetensors.index.json, or one file
    found.tensors[0].read()                    one tensor, read from its bytes of the file

The format: eight bytes of length, a JSON header of that length, then the tensors, back to back
(https://github.com/huggingface/safetensors). Several files are listed in an index, {"weight_map": {name:
file}}, which has to tell the truth: a tensor that lies elsewhere, twice or nowhere is refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from nncompress.errors import ModelFileError
from nncompress.files.bounded_text import Unreadable, check_regular, parse_json, read_json

INDEX = "model.safetensors.index.json"
MOST_HEADER = 100_000_000  # bytes, the format's own limit
_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}


@dataclass(frozen=True)
class StoredTensor:
    """A tensor in a file.

    Attributes:
        start: where its bytes begin.
    """

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    file: Path
    start: int

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor, in memory of its own.

        Raises:
            ModelFileError: the file has become shorter, or cannot be read.
        """
        try:
            data = np.fromfile(self.file, np.uint8, self.bytes, offset=self.start)
        except OSError as error:
            raise ModelFileError(f"{self.file} cannot be read", got=str(error)) from error
        if len(data) != self.bytes:
            raise _damaged(self.file, f"{len(data)} bytes of {self.name!r}, which has {self.bytes}")
        return torch.from_numpy(data).view(self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Checkpoint:
    """The tensors of one model.

    Attributes:
        path: as it was given.
        files: the shards.
        tensors: in the order of their files and bytes.
        headers: of each file, the metadata in its header.
    """

    path: Path
    files: tuple[Path, ...]
    tensors: tuple[StoredTensor, ...]
    headers: Mapping[Path, Mapping[str, str]]


def open_checkpoint(path: str | Path) -> Checkpoint:
    """What a file, an index or a folder holds; no tensor is read.

    Raises:
        ModelFileError: it is none of these or damaged, shards are missing, or the index lies.
    """
    path = Path(path)
    listed: Mapping[str, str] | None = None
    index = path / INDEX if path.is_dir() else path
    if path.is_dir() and not index.is_file():
        files = sorted(path.glob("*.safetensors"))
        if len(files) != 1:
            raise ModelFileError(
                f"{path} holds {len(files)} .safetensors files and no {INDEX}, which says what lies where",
                remedy="name one of the files" if files else "give a folder of safetensors",
            )
    elif index.name.endswith(".json"):
        listed = _weight_map(index)
        files = [index.parent / name for name in sorted(set(listed.values()))]
    else:
        files = [index]
    tensors: list[StoredTensor] = []
    headers = {}
    for file in files:
        found, headers[file] = read_header(file)
        tensors += found
    _check(index, tensors, listed)
    return Checkpoint(path, tuple(files), tuple(tensors), headers)


def read_header(file: Path) -> tuple[list[StoredTensor], dict[str, str]]:
    """The tensors of one file in the order of their bytes, and the metadata beside them.

    Raises:
        ModelFileError: it is no safetensors file, or its header and size do not agree.
    """
    try:
        size = check_regular(file)
    except Unreadable as error:
        raise ModelFileError(
            f"{file} cannot be read", got=str(error), expected="a .safetensors file, or its index"
        ) from error
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            if not 2 <= length <= min(MOST_HEADER, size - 8):
                raise _damaged(file, "a file that was cut off, or is none of safetensors")
            header = parse_json(opened.read(length))
    except Unreadable as error:
        raise _damaged(file, str(error)) from error
    except OSError as error:
        raise ModelFileError(f"{file} cannot be read", got=error.strerror or str(error)) from error
    if not isinstance(header, dict):
        raise _damaged(file, "a header that is no object")
    metadata = header.pop("__metadata__", {})
    start, found, end = 8 + length, [], 0
    for name, entry in sorted(header.items(), key=lambda item: _offset(file, item)):
        tensor, stop = _tensor(file, name, entry, start, end)
        found.append(tensor)
        end = stop
    if start + end != size:
        raise _damaged(file, f"{size} bytes where its header tells of {start + end}")
    texts = metadata.items() if isinstance(metadata, dict) else ()
    return found, {key: value for key, value in texts if isinstance(value, str)}


def _offset(file: Path, item: tuple[str, object]) -> tuple[int, int]:
    match item[1]:
        case {"data_offsets": [int() as first, int() as last]}:
            return first, last
    raise _damaged(file, f"no offsets of {item[0]!r:.80}")


def _tensor(file: Path, name: str, entry: object, start: int, end: int) -> tuple[StoredTensor, int]:
    """The tensor of a header's entry whose bytes begin at `end`, and where they end."""
    match entry:
        case {"dtype": str() as code, "shape": [*shape], "data_offsets": [first, last]} if code in _DTYPES:
            if all(type(dim) is int and 0 <= dim < 2**48 for dim in shape):
                tensor = StoredTensor(name, _DTYPES[code], tuple(shape), file, start + first)
                if first == end and tensor.bytes == last - first:
                    return tensor, last
    raise _damaged(file, f"{name!r:.80} does not fit its bytes: {entry}"[:300])


def _weight_map(index: Path) -> dict[str, str]:
    try:
        content = read_json(index, MOST_HEADER)
    except Unreadable as error:
        raise ModelFileError(f"{index} cannot be read", got=str(error)) from error
    match content:
        case {"weight_map": dict() as listed} if listed:
            for name, file in listed.items():
                if not isinstance(file, str) or Path(file).name != file or file in ("", ".", ".."):
                    raise ModelFileError(
                        f"{index} names no file of its folder", got=f"{name}: {file!r}"[:300]
                    )
            missing = sorted({file for file in listed.values() if not (index.parent / file).is_file()})
            if missing:
                raise ModelFileError(
                    f"{index} lists shards that are not there",
                    got=", ".join(missing[:4]) + (", …" if len(missing) > 4 else ""),
                    remedy="copy the missing files beside it",
                )
            return listed
    raise ModelFileError(f"{index} is no index of shards", expected='{"weight_map": {"name": "file"}}')


def _check(index: Path, tensors: list[StoredTensor], listed: Mapping[str, str] | None) -> None:
    where: dict[str, str] = {}
    for tensor in tensors:
        if tensor.name in where:
            raise ModelFileError(
                f"{tensor.name} lies in two shards of {index}",
                got=f"{where[tensor.name]} and {tensor.file.name}",
                remedy="remove the shard that does not belong there",
            )
        where[tensor.name] = tensor.file.name
    if listed is None:
        return
    for name in [*where, *listed]:
        if listed.get(name) != where.get(name):
            raise ModelFileError(
                f"{index} and its shards do not agree on {name!r:.100}",
                got=f"in {where.get(name, 'no shard')}, listed in {listed.get(name, 'none')}",
                remedy="copy index and shards again, from one source",
            )


def _damaged(file: Path, got: str) -> ModelFileError:
    return ModelFileError(
        f"{file} is damaged", got=got[:300], expected="a .safetensors file", remedy="copy it again"
    )
