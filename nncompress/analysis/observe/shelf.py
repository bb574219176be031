"""Tensors that are needed again and again, in any order: in memory within the budget, beyond it in a file."""

from __future__ import annotations

from collections.abc import Callable
from tempfile import TemporaryFile, gettempdir
from weakref import finalize

import numpy as np
import torch
from torch import Tensor

from nncompress.analysis.observe.budget import ByteBudget
from nncompress.errors import OutputError


class Shelf:
    """The file has no name, so that nothing is left of it whatever happens to the process."""

    def __init__(self, budget: ByteBudget | None = None) -> None:
        self._budget = budget or ByteBudget()
        self._file = TemporaryFile()  # noqa: SIM115
        finalize(self, self._file.close)

    def keep(self, tensor: Tensor) -> Callable[[], Tensor]:
        """What gives the tensor, the same bits, as often as it is asked.

        Raises:
            OutputError: there is no room for it.
        """
        if self._budget.fits(tensor.nbytes):
            return lambda: tensor
        values = tensor.numpy()
        shape, dtype, size = values.shape, values.dtype, values.size
        place = self._file.seek(0, 2)
        try:
            values.tofile(self._file)
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"no room for a temporary file in {gettempdir()}",
                got=error.strerror or str(error),
                expected=f"{place + tensor.nbytes} bytes",
                remedy="name another folder: TMPDIR=FOLDER nncompress ...",
            ) from error

        def read() -> Tensor:
            self._file.seek(place)
            return torch.from_numpy(np.fromfile(self._file, dtype, size).reshape(shape))

        return read
