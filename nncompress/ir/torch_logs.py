"""torch logs, with a traceback, what it then raises, and prints the graph that it had so far.

The exception alone is told to the user, in one line.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from typing import Any, TextIO, cast


@contextmanager
def unlogged() -> Iterator[None]:
    """Meanwhile torch's own handlers print nothing, unless TORCH_LOGS asks for it; others still do."""
    loggers = [logging.getLogger("torch")]
    loggers += [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if name.startswith("torch.") and isinstance(logger, logging.Logger) and logger.handlers
    ]
    handlers = [h for logger in loggers for h in logger.handlers if isinstance(h, logging.StreamHandler)]
    before = [handler.level for handler in handlers]
    try:
        if "TORCH_LOGS" not in os.environ:
            for handler in handlers:
                handler.setLevel(logging.CRITICAL + 1)
        with redirect_stderr(cast(TextIO, _WithoutGraphs(sys.stderr))):
            yield
    finally:
        for handler, level in zip(handlers, before):
            handler.setLevel(level)


class _WithoutGraphs:
    """A stream without the graph of an export that failed, which torch prints while the error passes it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        if hasattr(sys.exc_info()[1], "partial_fx_graph") and "TORCH_LOGS" not in os.environ:
            return len(text)
        return self._stream.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
