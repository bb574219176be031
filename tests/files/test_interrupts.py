"""Signals that are heard while C++ computes."""

import os
import select
import signal
import threading

import pytest

from nncompress.files.interrupts import heard

PATIENCE = 10  # seconds, after which this test has failed


@pytest.mark.skipif(not hasattr(os, "fork"), reason="processes are not forked here")
def test_the_block_ends_while_a_forked_child_lives_on():
    """Workers of data that are kept for the next epoch outlive the block, with a copy of its socket."""
    waits, go = os.pipe()
    with heard():
        child = os.fork()
        if child == 0:
            os.close(go)
            left, _, _ = select.select([waits], [], [], PATIENCE)
            os._exit(0 if left else 1)
    os.close(waits)
    os.close(go)  # which the child waits for
    assert os.waitpid(child, 0)[1] == 0


def test_a_signal_that_comes_while_an_object_is_cleared_away_is_not_lost():
    """Python ignores what is raised there."""

    class Cleared:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def clear_and_wait() -> None:
        Cleared()
        threading.Event().wait(PATIENCE)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # workers of a test run ignore it
    try:
        with heard(), pytest.raises(KeyboardInterrupt):
            clear_and_wait()
    finally:
        signal.signal(signal.SIGINT, before)
