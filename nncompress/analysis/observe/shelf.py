"""Values for which memory has no room, in temporary files without a name: nothing is left of these, whatever
happens to the process."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection
from functools import partial
from shutil import disk_usage
from tempfile import TemporaryFile, gettempdir
from typing import IO
from weakref import finalize

import numpy as np
import torch
from torch import Tensor, fx

from nncompress.analysis.observe.budget import ByteBudget, Item, in_runs
from nncompress.analysis.observe.walk import Env
from nncompress.errors import OutputError, Told
from nncompress.memory import most_bytes

OF_ROWS = 8  # rows that wait to be summed up take at most this part of the memory that moments take


class Shelf:
    """Tensors that are needed again and again, in any order: in memory within the budget, beyond it in a
    file, or in memory all the same where files have no room. What gives them keeps them.

    Args:
        beside: another that lives at the same time, whose budget this one shares.
    """

    def __init__(self, budget: ByteBudget | None = None, *, beside: Shelf | None = None) -> None:
        self._budget: ByteBudget = budget or (ByteBudget() if beside is None else beside._budget)
        self._file: IO[bytes] | None = None

    def keep(self, tensor: Tensor) -> Callable[[], Tensor]:
        """What gives the tensor, the same bits, as often as it is asked.

        Raises:
            OutputError: neither files nor memory have room for it.
        """
        place = self._put_away(tensor)
        if place is not None:
            return partial(self._read, place, tuple(tensor.shape), tensor.numpy().dtype)

        def given() -> Tensor:
            return tensor

        finalize(given, self._budget.leave, tensor.nbytes)
        return given

    def _put_away(self, tensor: Tensor) -> int | None:
        """Where in the file it is; None: there is room in memory, which is taken."""
        if self._budget.fits(tensor.nbytes):
            return None
        try:
            return self._written(tensor)
        except OutputError as error:
            self._budget.limit = most_bytes()
            if not self._budget.fits(tensor.nbytes):
                raise
            line = f"{error.what}: {error.got}; up to {self._budget.limit / 2**30:.1f} GiB of memory instead"
            warnings.warn(line, Told, stacklevel=2)
            return None

    def _written(self, tensor: Tensor, place: int | None = None) -> int:
        """Where in the file it is from now on; None: at its end."""
        rest = np.ascontiguousarray(tensor.numpy()).data.cast("B")
        try:
            self._file = file = self._file or _file_of(self, buffering=0)
            place = file.seek(0, 2) if place is None else file.seek(place)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise _no_room(error, f"{(place or 0) + tensor.nbytes} bytes") from error
        return place

    def _read(self, place: int, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
        assert self._file is not None
        self._file.seek(place)
        return torch.from_numpy(np.fromfile(self._file, dtype, math.prod(shape)).reshape(shape))


class Slot:
    """A tensor that is replaced again and again by others of its shape: on a shelf, or without one in memory.

    Attributes:
        value: it, or None before the first. What the file holds is read at every look: assign what was
            changed.
    """

    def __init__(self, shelf: Shelf | None = None) -> None:
        self._shelf = shelf
        self._held: Tensor | None = None
        self._filed: tuple[int, tuple[int, ...], np.dtype] | None = None

    @property
    def filed(self) -> bool:
        """It is in the file: every look reads another copy."""
        return self._filed is not None

    @property
    def value(self) -> Tensor | None:
        if self._filed is None or self._shelf is None:
            return self._held
        return self._shelf._read(*self._filed)

    @value.setter
    def value(self, tensor: Tensor) -> None:
        shelf, first = self._shelf, self._held is None and self._filed is None
        if shelf is not None and self._filed is not None:
            shelf._written(tensor, self._filed[0])
        elif shelf is not None and first and (place := shelf._put_away(tensor)) is not None:
            self._filed = place, tuple(tensor.shape), tensor.numpy().dtype
        else:
            if shelf is not None and first:
                finalize(self, shelf._budget.leave, tensor.nbytes)
            self._held = tensor


class SpilledValues:
    """Values of nodes, in a file of their own.

    Attributes:
        size: their bytes.
    """

    def __init__(self) -> None:
        self.size = 0
        self._file: IO[bytes] | None = None
        self._nodes: tuple[fx.Node, ...] = ()

    def write(self, env: Env, size: int) -> None:
        """Hold these values, of so many bytes, instead of those before.

        Raises:
            OutputError: there is no room for them; those before are lost.
        """
        self._nodes, self.size = tuple(env), size
        try:
            self._file = file = self._file or _file_of(self)
            file.seek(0)
            file.truncate()
            torch.save(list(env.values()), file)
            file.flush()
        except (OSError, RuntimeError) as error:  # torch's writer says so of a disk that is full
            raise _no_room(error) from error

    def read(self) -> Env:
        """The values, bit for bit."""
        assert self._file is not None
        self._file.seek(0)
        return dict(zip(self._nodes, torch.load(self._file, weights_only=True), strict=True))


def room_for_files() -> ByteBudget:
    """What temporary files may take: a quarter of what is free, as runs go side by side.

    Raises:
        OutputError: there is no folder for them.
    """
    try:
        return ByteBudget(disk_usage(gettempdir()).free // 4)
    except OSError as error:
        raise _no_room(error) from error


def moments_in_runs(
    items: Collection[Item], bytes_of: Callable[[Item], dict[str, int]], *, filed: bool = True
) -> tuple[list[list[Item]], bool]:
    """The items, cut into runs whose moments can be gathered by one pass over the data, and whether these go
    to files: where files have room for all of them, memory need hold no more than the rows that wait.

    Args:
        bytes_of: the moments of an item, see `in_runs`.
        filed: they may.
    """
    runs = in_runs(items, bytes_of)
    if len(runs) == 1 or not filed:
        return runs, False
    held: dict[str, int] = {}
    for item in items:
        held |= bytes_of(item)
    if not _files_take(sum(held.values())):
        return runs, False
    return in_runs(items, lambda item: {k: size // OF_ROWS for k, size in bytes_of(item).items()}), True


def _files_take(size: int) -> bool:
    try:
        return size <= room_for_files().limit
    except OutputError:
        return False


def _file_of(owner: object, buffering: int = -1) -> IO[bytes]:
    """A temporary file that is closed with its owner."""
    file: IO[bytes] = TemporaryFile(buffering=buffering)  # noqa: SIM115
    finalize(owner, file.close)
    return file


def _no_room(error: Exception, expected: str = "") -> OutputError:
    try:
        where = f" in {gettempdir()}"
    except OSError:  # there is none: the error says which were tried
        where = ""
    return OutputError(
        f"no room for a temporary file{where}",
        got=getattr(error, "strerror", None) or str(error)[:300],
        expected=expected,
        remedy="make room and run it again, or name another folder: TMPDIR=FOLDER nncompress ...",
    )
