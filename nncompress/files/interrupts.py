"""Ctrl-C and SIGTERM held back for a moment that must not be torn, or heard while C++ computes.

Held back: when files are moved into place or a temporary folder is removed; and while C++ calls into Python:
torch's archive writer ends the process (abort) where the Python that it calls for every write raises.

Heard: Python answers a signal when the main thread is back from C++, which a run of a model may be in for
minutes. What can be stopped from another thread is told at once. And while it clears away an object, Python
ignores whatever is raised: a signal that is answered just then is sent once more.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from types import FrameType
from typing import Any, Protocol
from weakref import WeakSet

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


class Stoppable(Protocol):
    def stop(self) -> None:
        """End what it is computing, in whatever thread; the caller of this is another one."""


_STOPPABLE: WeakSet[Stoppable] = WeakSet()
_TOLD: set[int] = set()  # descriptors
_BY_SIGNAL = 128  # and its number: the exit code of what a signal ended
_A_MOMENT = 0.02  # seconds


def stop_at_signals(each: Stoppable) -> None:
    """From now on, as long as it is there and signals are `heard`."""
    _STOPPABLE.add(each)


@contextmanager
def heard() -> Iterator[None]:
    """A signal that arrives in the block ends what is being computed, so that Python comes to handle it."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    listening, told = socket.socketpair()
    told.setblocking(False)
    before = signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    _TOLD.add(told.fileno())
    listener = threading.Thread(target=_listen, args=(listening,), daemon=True)
    listener.start()
    ignored = sys.unraisablehook
    sys.unraisablehook = partial(_once_more, ignored)
    try:
        yield
    finally:
        sys.unraisablehook = ignored
        signal.set_wakeup_fd(before)
        if told.fileno() in _TOLD:  # not in a child, whose listener is its parent's
            _TOLD.remove(told.fileno())
            told.shutdown(socket.SHUT_WR)  # which ends the listener, whatever child has a copy of the socket
        told.close()
        listener.join()


def _once_more(otherwise: Callable[[Any], None], ignored: Any) -> None:
    """A signal whose exception Python ignored, from another thread: here it would be ignored again."""
    code = 130 if ignored.exc_type is KeyboardInterrupt else getattr(ignored.exc_value, "exit_code", 0)
    if issubclass(ignored.exc_type, Exception) or code <= _BY_SIGNAL:
        otherwise(ignored)
        return
    again = threading.Timer(_A_MOMENT, _send, [code - _BY_SIGNAL])
    again.daemon = True
    again.start()


def _send(number: int) -> None:
    """To the main thread, which may be waiting."""
    if sys.platform == "win32":
        signal.raise_signal(number)
    else:
        signal.pthread_kill(threading.main_thread().ident or 0, number)


def _listen(listening: socket.socket) -> None:
    with listening:
        while numbers := listening.recv(64):
            if any(number in numbers for number in HELD):
                for each in list(_STOPPABLE):
                    each.stop()


def _only_here() -> None:
    """A signal to a child is none to its parent, whose descriptor it has."""
    descriptor = signal.set_wakeup_fd(-1)
    if descriptor not in _TOLD:
        signal.set_wakeup_fd(descriptor)
    _TOLD.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_only_here)
