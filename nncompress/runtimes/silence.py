"""Libraries that write to the process's own stdout and stderr, kept off the user's screen."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from io import StringIO


@contextmanager
def silent() -> Iterator[None]:
    """Meanwhile nothing reaches the screen: neither what Python prints, logs or warns, nor what C++ writes.

    Works on the file descriptors, so it holds for the whole process. A message of ours that is to be seen
    must leave the block first, as an exception does.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    kept = [os.dup(descriptor) for descriptor in (1, 2)]
    nowhere = os.open(os.devnull, os.O_WRONLY)
    disabled = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        for descriptor in (1, 2):
            os.dup2(nowhere, descriptor)
        with warnings.catch_warnings(), redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        for descriptor, original in zip((1, 2), kept):
            os.dup2(original, descriptor)
            os.close(original)
        os.close(nowhere)
        logging.disable(disabled)
