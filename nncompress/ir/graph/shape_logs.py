"""torch logs what it cannot tell of a size before it raises; where that is expected, no user need read it."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager

_LOGS = ("torch.fx.experimental.symbolic_shapes", "torch._subclasses.fake_tensor")


@contextmanager
def unlogged() -> Iterator[None]:
    """What raises meanwhile is told by the exception alone."""
    logs = [logging.getLogger(name) for name in _LOGS]
    before = [log.disabled for log in logs]
    try:
        for log in logs:
            log.disabled = True
        yield
    finally:
        for log, disabled in zip(logs, before):
            log.disabled = disabled
