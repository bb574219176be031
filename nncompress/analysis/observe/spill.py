"""What a batch is to be gone on with from, in a file instead of in memory."""

from __future__ import annotations

from tempfile import TemporaryFile, gettempdir
from weakref import finalize

import torch

from nncompress.analysis.observe.walk import Env
from nncompress.errors import OutputError


class SpilledValues:
    """The values of nodes, in a temporary file without a name: nothing is left of it whatever happens.

    Args:
        folder: where the file lies; None: where temporary files do.
    """

    def __init__(self, folder: str | None = None) -> None:
        self._folder = folder
        self._file = TemporaryFile(dir=folder)  # noqa: SIM115
        finalize(self, self._file.close)
        self._nodes: tuple = ()

    def write(self, env: Env) -> None:
        """Hold these values instead of those before.

        Raises:
            OutputError: there is no room for them.
        """
        self._nodes = tuple(env)
        try:
            self._file.seek(0)
            self._file.truncate()
            torch.save(list(env.values()), self._file)
            self._file.flush()
        except (OSError, RuntimeError) as error:  # torch's writer says so of a disk that is full
            raise OutputError(
                f"no room for activations in {self._folder or gettempdir()}",
                got=str(error)[:300],
                remedy="make room and run it again, or name another folder: TMPDIR=FOLDER nncompress ...",
            ) from error

    def read(self) -> Env:
        """The values, bit for bit."""
        self._file.seek(0)
        return dict(zip(self._nodes, torch.load(self._file, weights_only=True), strict=True))
