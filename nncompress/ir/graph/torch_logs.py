"""torch logs, with a traceback, what it then raises; the exception alone is told to the user, in one line."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager


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
        yield
    finally:
        for handler, level in zip(handlers, before):
            handler.setLevel(level)
