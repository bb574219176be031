"""Two gloo processes take the same steps as one process on the joined batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from nncompress.data import Batch, open_data
from nncompress.train import Group, train
from tests.train.two_processes import gradients, network, settings, two_heads

ROOT = Path(__file__).resolve().parents[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_two_processes_agree_with_one_on_the_joined_batch(tmp_path):
    """33 records in batches of 10: the last has 3, so the two halves weigh 2/3 and 1/3."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(33, 6)).astype(np.float32)
    np.savez(tmp_path / "d.npz", x=x, y=np.stack([x.sum(1), x[:, 0] * x[:, 1]], 1))
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    launch += ["--master-addr", "127.0.0.1", "--master-port", str(free_port())]
    script = [Path(__file__).with_name("two_processes.py"), tmp_path / "d.npz", tmp_path / "out"]
    environment = {
        **os.environ,
        "OMP_NUM_THREADS": "1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests/support'}",
    }
    process = subprocess.Popen(
        [*launch, *map(str, script)], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        _, said = process.communicate(timeout=900)
    finally:
        process.terminate()  # torchrun ends its workers with it
    assert process.returncode == 0, said
    for loss in ("mse", "rmse"):
        model = network()
        dataset = open_data(str(tmp_path / "d.npz"), model.inputs)
        alone, result = train(model, dataset, settings(loss))
        found = torch.load(f"{tmp_path}/out.{loss}", weights_only=True)
        assert found["size"] == 2
        expected = gradients(dataset, loss)
        assert len(found["gradients"]) == len(expected) == 4
        for step, reference in zip(found["gradients"], expected):
            assert [*step] == [*reference] == ["0.weight", "0.bias", "2.weight", "2.bias"]
            for name, gradient in reference.items():
                torch.testing.assert_close(step[name], gradient, rtol=1e-4, atol=1e-6)
        assert found["loss"] == pytest.approx(result.loss, rel=1e-5)
        for name, tensor in alone.state_dict().items():
            torch.testing.assert_close(found["weights"][name], tensor, rtol=1e-4, atol=1e-6)
            assert not torch.equal(tensor, model.tensor(name))
        forked, _ = train(two_heads(), dataset, settings(loss))
        for name, tensor in forked.state_dict().items():  # the second head is moved by --l2 alone
            torch.testing.assert_close(found["forked"][name], tensor, rtol=1e-4, atol=1e-6)
            assert torch.equal(tensor, two_heads().tensor(name)) == (name == "other.bias")


def test_parts_of_a_batch_cover_it_once_with_their_weight():
    batch = Batch((torch.arange(7.0)[:, None],), torch.arange(7))
    parts = [Group(rank, 3).part(batch) for rank in range(3)]
    assert sorted(int(v) for part, _ in parts for v in part.labels) == list(range(7))
    weighted = sum(share * part.inputs[0].mean() for part, share in parts) / 3
    assert float(weighted) == pytest.approx(3.0)
    assert Group(0, 3).part(Batch((torch.zeros(2, 1),), None)) is None
    assert Group(0, 3).part(batch, least=3) is None  # the third process would get two
