"""Values for which memory has no room, in temporary files without a name: nothing is left of these, whatever
happens to the process."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import partial
from shutil import disk_usage
from tempfile import TemporaryFile, gettempdir
from typing import IO
from weakref import finalize

import numpy as np
import torch
from torch import Tensor, fx

from nncompress.analysis.observe.budget import ByteBudget
from nncompress.analysis.observe.walk import Env
from nncompress.errors import OutputError, Told
from nncompress.memory import most_bytes


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
        if self._budget.fits(tensor.nbytes):
            return self._in_memory(tensor)
        try:
            return self._written(tensor)
        except OutputError as error:
            self._budget.limit = most_bytes()
            if not self._budget.fits(tensor.nbytes):
                raise
            line = f"{error.what}: {error.got}; up to {self._budget.limit / 2**30:.1f} GiB of memory instead"
            warnings.warn(line, Told, stacklevel=2)
            return self._in_memory(tensor)

    def _in_memory(self, tensor: Tensor) -> Callable[[], Tensor]:
        def given() -> Tensor:
            return tensor

        finalize(given, self._budget.leave, tensor.nbytes)
        return given

    def _written(self, tensor: Tensor) -> Callable[[], Tensor]:
        values = np.ascontiguousarray(tensor.numpy())
        rest, place = values.data.cast("B"), 0
        try:
            self._file = file = self._file or _file_of(self, buffering=0)
            place = file.seek(0, 2)
            while rest:
                rest = rest[file.write(rest) :]
        except OSError as error:
            raise _no_room(error, f"{place + tensor.nbytes} bytes") from error
        return partial(self._read, place, tuple(tensor.shape), values.dtype)

    def _read(self, place: int, shape: tuple[int, ...], dtype: np.dtype) -> Tensor:
        assert self._file is not None
        self._file.seek(place)
        return torch.from_numpy(np.fromfile(self._file, dtype, math.prod(shape)).reshape(shape))


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
