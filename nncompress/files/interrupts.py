"""Ctrl-C and SIGTERM held back for a moment that must not be torn.

When files are moved into place or a temporary folder is removed; and while C++ calls into Python: torch's
archive writer ends the process (abort) where the Python that it calls for every write raises.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

HELD = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


@contextmanager
def held_back() -> Iterator[None]:
    """A signal that arrives in the block is handled when the block has ended."""
    if threading.current_thread() is not threading.main_thread():  # signals do not reach the others
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    before = {}
    try:
        for number in HELD:
            if callable(signal.getsignal(number)):  # neither ignored nor the system's to handle
                before[number] = signal.signal(number, lambda *what: arrived.append(what))
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    for number, frame in arrived[:1]:
        handler = before[signal.Signals(number)]
        assert callable(handler)
        handler(number, frame)
