"""A small net that was trained, and what each of its layers bears."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nncompress.api import dataset
from nncompress.cli.work.search import search_folder
from nncompress.files.folders import make_folder
from nncompress.files.json_file import write_json
from nncompress.loading import load_model
from nncompress.passes import Context
from nncompress.search.layers.sensitivity import RECORD, probes, sensitivity
from nncompress.search.records import Records


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """A folder with a model that is right on nearly all of 3,000 samples, and these."""
    folder = tmp_path_factory.mktemp("trained")
    torch.manual_seed(0)
    x = torch.randn(3000, 12)
    y = (x[:, :4] + 0.3 * x[:, 4:8]).argmax(1)
    net = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 4))
    optimizer = torch.optim.Adam(net.parameters(), 1e-2)
    for _ in range(200):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    dim = torch.export.Dim("batch", min=1, max=4096)
    torch.export.save(torch.export.export(net.eval(), (x[:2],), dynamic_shapes=({0: dim},)), folder / "m.pt2")
    np.savez(folder / "val.npz", x=x.numpy(), y=y.numpy())
    np.savez(folder / "few.npz", x=x[:60].numpy(), y=y[:60].numpy())
    return folder


@pytest.fixture
def placed(monkeypatch):
    """Writes a record to the folder of a search as soon as it has begun: before, that has to be empty."""

    def later(name, record):
        def begin(path, settings):
            write_json(path, settings)
            if path.name == "search.json":
                write_json(make_folder((path.parent / name).parent) / Path(name).name, record)

        monkeypatch.setattr(search_folder, "write_json", begin)

    return later


@pytest.fixture
def here(trained, tmp_path, monkeypatch):
    for name in ("m.pt2", "val.npz", "few.npz"):
        os.link(trained / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def effects(trained, tmp_path_factory):
    """What each layer bears, measured once for all searches on val.npz."""
    folder = tmp_path_factory.mktemp("effects")
    original = load_model(trained / "m.pt2")
    context = Context(data=dataset(f"{trained / 'val.npz'}?half=1", original), limit=512)
    sensitivity(original, probes(original, ("prune-nodes", "factorize")), context, Records(folder, RECORD))
    return folder
