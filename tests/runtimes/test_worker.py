"""Runs in a process of their own: answers, errors, and processes that end."""

import os
import signal

import networks
import numpy as np
import pytest

from nncompress.errors import DataError, UnsupportedError
from nncompress.exporting import write
from nncompress.runtimes import worker


def test_a_runtime_that_ends_its_process_is_one_message_and_the_next_run_works(tmp_path):
    model = networks.model("two-outputs")
    write(model, tmp_path / "m.onnx")
    inputs = networks.inputs("two-outputs", 3)
    expected = [each.detach().numpy() for each in model(*inputs)]
    for _ in range(2):
        got = worker.run_apart(tmp_path / "m.onnx", inputs)
        np.testing.assert_allclose(got[0], expected[0], atol=1e-5)
        np.testing.assert_allclose(got[1], expected[1], atol=1e-5)
        os.kill(worker._worker(os.getpid()).pid, signal.SIGABRT)
        with pytest.raises(UnsupportedError, match=r"\.onnx files cannot run this program") as caught:
            worker.run_apart(tmp_path / "m.onnx", inputs)
        assert caught.value.got == "its process ended with SIGABRT"
    with pytest.raises(DataError, match="wrong number of inputs"):
        worker.run_apart(tmp_path / "m.onnx", ())
    ours = worker._worker(os.getpid())
    child = os.fork()
    if child == 0:  # one of ours would take its answers, and end it when it ends
        os._exit(int(worker._worker(os.getpid()).pid == ours.pid))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert ours.poll() is None
