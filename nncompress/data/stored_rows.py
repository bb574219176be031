"""An array in a file, of which only the rows that are asked for are read.

Read, not mapped: a file that is cut short under a mapping ends the process without a word.
"""

from __future__ import annotations

import struct
import zipfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from shutil import copyfileobj, disk_usage
from tempfile import TemporaryFile, gettempdir
from typing import IO
from weakref import finalize

import numpy as np

from nncompress.errors import DataError

CHUNK = 2**24  # bytes read at a time where all is gone through
LOCAL_HEADER = 30  # bytes of a zip member's own header, before its name


class StoredRows:
    """The rows of an array, in C order from some offset of a file on.

    Attributes:
        shape, dtype, ndim: as of the array.

    Raises:
        ValueError: numpy has no arrays of that shape.
    """

    def __init__(self, path: Path, offset: int, shape: tuple[int, ...], dtype: np.dtype) -> None:
        self._path, self._offset = path, offset
        self._version = _version(path)
        self.shape, self.dtype, self.ndim = shape, dtype, len(shape)
        self._row = np.empty((1, *shape[1:]), dtype).nbytes

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: np.ndarray | slice) -> np.ndarray:
        """Rows by their numbers [n], from 0; or a slice of them: [n, *shape[1:]].

        Raises:
            DataError: the file is no longer what it was.
        """
        numbers = np.arange(len(self))[rows] if isinstance(rows, slice) else np.asarray(rows)
        found = np.empty((len(numbers), *self.shape[1:]), self.dtype)
        content = found.reshape(-1).view(np.uint8).data
        if _version(self._path) != self._version or not self._fill(content, numbers):
            raise DataError(f"{self._path} was written to while it was read", remedy="run the command again")
        return found

    def _opened(self) -> AbstractContextManager[IO[bytes]]:
        return self._path.open("rb", buffering=0)

    def _fill(self, content: memoryview, numbers: np.ndarray) -> bool:
        """Read these rows; False where the file ends before."""
        try:
            with self._opened() as file:
                for start, stop in _runs(numbers):
                    file.seek(self._offset + int(numbers[start]) * self._row)
                    part = content[start * self._row : stop * self._row]
                    while part and (got := file.readinto(part)):  # type: ignore[attr-defined]
                        part = part[got:]
                    if part:
                        return False
        except OSError as problem:
            raise DataError(f"{self._path} cannot be read", got=str(problem)) from problem
        return True


class UnpackedRows(StoredRows):
    """The rows of an array that is compressed, unpacked into a temporary file without a name.

    Args:
        path: of the archive.
        member: of it, at the array's first byte.

    Raises:
        DataError: there is no room for it.
        zipfile.BadZipFile: its checksum is another.
    """

    def __init__(self, path: Path, member: IO[bytes], shape: tuple[int, ...], dtype: np.dtype) -> None:
        super().__init__(path, 0, shape, dtype)
        folder, size = gettempdir(), len(self) * self._row
        if size > disk_usage(folder).free // 2:
            raise DataError(
                f"{path} has no room to be unpacked in {folder}",
                got=f"{disk_usage(folder).free / 2**30:.1f} GiB free",
                expected=f"twice the {size / 2**30:.1f} GiB of its array",
                remedy="write it with numpy.savez, which is read where it lies; or name another folder: "
                "TMPDIR=FOLDER nncompress ...",
            )
        self._unpacked = TemporaryFile(buffering=0)  # noqa: SIM115
        finalize(self, self._unpacked.close)
        copyfileobj(member, self._unpacked, CHUNK)

    def _opened(self) -> AbstractContextManager[IO[bytes]]:
        return nullcontext(self._unpacked)


def member_offset(path: Path, info: zipfile.ZipInfo) -> int:
    """Where the bytes of an uncompressed member of a zip archive start in the file."""
    with path.open("rb") as file:
        file.seek(info.header_offset)
        name, extra = struct.unpack_from("<HH", file.read(LOCAL_HEADER), LOCAL_HEADER - 4)
    return info.header_offset + LOCAL_HEADER + int(name) + int(extra)


def check_content(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> None:
    """Go through a member once, so that its checksum is compared.

    Raises:
        zipfile.BadZipFile: it is another.
    """
    with archive.open(info) as member:
        while member.read(CHUNK):
            pass


def _runs(numbers: np.ndarray) -> Iterator[tuple[int, int]]:
    """Stretches [start, stop) of positions whose numbers follow on each other."""
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    starts = [0, *breaks.tolist()] if len(numbers) else []
    yield from zip(starts, [*starts[1:], len(numbers)])


def _version(path: Path) -> tuple[int, int, int]:
    """Changes where the file is written anew."""
    try:
        now = path.stat()
    except OSError as problem:
        raise DataError(f"{path} cannot be read", got=str(problem)) from problem
    return now.st_ino, now.st_size, now.st_mtime_ns
