"""`load_model`: from each kind of file to a `Model` that computes what the original computed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

import nncompress
from nncompress.errors import ModelFileError, UnsafeFileError, UnsupportedError, UsageError
from nncompress.exporting import write_pt2, write_safetensors
from nncompress.ir import Model
from nncompress.loading import load_model, load_module

ARCHITECTURE = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self, classes=5):
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.bn = nn.BatchNorm2d(8)
        self.drop = nn.Dropout(0.5)
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        return self.fc(self.drop(self.bn(self.conv(x)).relu().mean((2, 3))))

def build():
    return Net()
"""


@pytest.fixture
def arch(tmp_path):
    path = tmp_path / "net.py"
    path.write_text(ARCHITECTURE)
    return f"{path}:build"


@pytest.fixture
def net():
    namespace: dict = {"__name__": "net"}
    exec(ARCHITECTURE, namespace)
    module = namespace["build"]()
    settle(module, torch.randn(8, 3, 32, 32))
    return module.eval()


def settle(module: nn.Module, x: torch.Tensor) -> None:
    """Give batch norm statistics of its own, so that training and eval mode differ."""
    module.train()
    with torch.no_grad():
        for _ in range(3):
            module(x * 2 + 1)
    module.eval()


def plain_net() -> nn.Module:
    module = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.5)),
        *(nn.Flatten(), nn.Linear(8 * 16 * 16, 5)),
    )
    settle(module, torch.randn(8, 3, 32, 32))
    return module


def assert_same(model: Model, module: nn.Module, x: torch.Tensor) -> None:
    with torch.no_grad():
        torch.testing.assert_close(model(x), module(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("was_training", [False, True])
def test_a_pickled_module_loads_in_eval_mode_and_says_its_input(was_training, tmp_path):
    module = plain_net().train(was_training)
    torch.save(module, tmp_path / "model.pt")
    heard: list[str] = []
    model = load_model(tmp_path / "model.pt", notice=heard.append)
    assert_same(model, module.eval(), torch.randn(3, 3, 32, 32))
    assert model.inputs[0].shape == ("batch", 3, 32, 32)
    (sentence,) = heard
    assert "1x3x32x32" in sentence
    assert "--input" in sentence


def test_state_dict_with_arch(net, arch, tmp_path):
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    model = load_model(tmp_path / "weights.pth", arch=arch, input_shapes="1x3x24x24")
    assert model.inputs[0].shape == ("batch", 3, 24, 24)
    assert_same(model, net, torch.randn(4, 3, 24, 24))


def test_safetensors_fill_the_network_of_arch(net, arch, tmp_path):
    safetensors.torch.save_file(net.state_dict(), tmp_path / "weights.safetensors")
    model = load_model(tmp_path / "weights.safetensors", arch=arch)
    assert_same(model, net, torch.randn(4, 3, 32, 32))


def test_example_inputs_give_the_shape(net, arch, tmp_path):
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    batch = torch.randn(2, 3, 20, 28)
    heard: list[str] = []
    model = load_model(tmp_path / "weights.pth", arch=arch, example_inputs=(batch,), notice=heard.append)
    assert model.inputs[0].shape == ("batch", 3, 20, 28)
    assert heard == []


def test_weights_alone_are_refused_and_the_message_names_arch(net, tmp_path):
    torch.save(net.state_dict(), tmp_path / "weights.pth")
    with pytest.raises(UsageError, match="--arch"):
        load_model(tmp_path / "weights.pth")


@pytest.mark.parametrize("suffix", [".pt2", ".pt"])
def test_arch_for_a_whole_model(suffix, arch, tmp_path):
    path = tmp_path / f"model{suffix}"
    if suffix == ".pt":
        torch.save(plain_net(), path)
    else:
        write_pt2(Model.from_module(plain_net(), (torch.randn(2, 3, 32, 32),)), path)
    with pytest.raises(UsageError, match="leave --arch out"):
        load_model(path, arch=arch)


def test_what_we_save_comes_back(tmp_path):
    module = nn.Sequential(nn.Embedding(40, 6), nn.LSTM(6, 5, batch_first=True)).eval()
    model = Model.from_module(module, (torch.randint(0, 40, (2, 7)),), metadata={"normalize": "0.5/0.25"})
    model.history.append({"pass": "prune", "std": 0.5})
    write_pt2(model, tmp_path / "model.pt2")
    back = load_model(tmp_path / "model.pt2")
    assert (back.inputs, back.outputs, back.dynamic) == (model.inputs, model.outputs, model.dynamic)
    assert back.history == [{"pass": "prune", "std": 0.5}]
    assert back.metadata == {"normalize": "0.5/0.25"}
    xs = model.example_inputs(batch=3)
    for found, expected in zip(back.outputs_of(*xs), model.outputs_of(*xs), strict=True):
        torch.testing.assert_close(found, expected)


def test_history_of_our_safetensors_comes_back(net, arch, tmp_path):
    model = Model.from_module(net, (torch.randn(2, 3, 32, 32),), metadata={"source": "unit test"})
    model.history.append({"pass": "prune"})
    write_safetensors(model, tmp_path / "weights.safetensors")
    back = load_model(tmp_path / "weights.safetensors", arch=arch)
    assert back.history == [{"pass": "prune"}]
    assert back.metadata == {"source": "unit test"}
    assert_same(back, net, torch.randn(3, 3, 32, 32))


@pytest.mark.parametrize(
    "content",
    [
        {"history": "prune"},
        {"history": [1]},
        {"metadata": []},
        {"inputs": [{"name": "x", "dtype": "load", "shape": [1]}]},
        {"inputs": [{"name": "x y", "dtype": "float32", "shape": [1]}]},
        {"inputs": [{"name": "input", "dtype": "float32", "shape": ["batch"]}]},
        {"inputs": [{"name": "input", "dtype": "float32", "shape": [2, 3], "high": 2**70}]},
        {"surprise": 1},
    ],
)
def test_a_damaged_record_is_refused(content, tmp_path):
    program = torch.export.export(nn.Linear(3, 2), (torch.randn(2, 3),))
    torch.export.save(program, tmp_path / "m.pt2", extra_files={"nncompress.json": json.dumps(content)})
    with pytest.raises(ModelFileError, match="record of nncompress"):
        load_model(tmp_path / "m.pt2")


def test_module_that_does_not_trace(tmp_path):
    path = tmp_path / "branching.py"
    path.write_text(
        "import torch\n"
        "class Net(torch.nn.Module):\n"
        "    def __init__(self):\n"
        "        super().__init__()\n"
        "        self.fc = torch.nn.Linear(4, 2)\n"
        "    def forward(self, x):\n"
        "        return self.fc(x) if x.sum() > 0 else x\n"
    )
    torch.save({"fc.weight": torch.ones(2, 4), "fc.bias": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(UnsupportedError, match=r"torch\.export") as caught:
        load_model(tmp_path / "w.pt", arch=f"{path}:Net", input_shapes="1x4")
    assert len(str(caught.value).splitlines()) <= 4


def test_checkpoint_is_not_run(tmp_path):
    """A pickle that would create a marker is refused, whatever else is asked for."""
    marker = tmp_path / "marker"

    class Boom:
        def __reduce__(self):
            return open, (str(marker), "w")

    torch.save({"state_dict": {"fc.weight": torch.ones(2)}, "extra": Boom()}, tmp_path / "ckpt.pt")
    with pytest.raises(UnsafeFileError, match=r"io\.open.*|builtins\.open"):
        load_model(tmp_path / "ckpt.pt", arch="whatever.py:build")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("dim", "bounds"),
    [
        (torch.export.Dim("batch"), (1, 4096)),
        (torch.export.Dim("batch", min=4), (4, 4096)),
        (torch.export.Dim("batch", max=9), (1, 9)),
        (torch.export.Dim.AUTO, (2, 4096)),  # torch: 0 and 1 are never dynamic
    ],
)
def test_a_batch_keeps_the_bounds_that_the_file_says(dim, bounds, tmp_path):
    """As people export: no maximum means infinity in the file."""
    program = torch.export.export(nn.Linear(3, 2), (torch.randn(4, 3),), dynamic_shapes=({0: dim},))
    torch.export.save(program, tmp_path / "model.pt2")
    assert load_model(tmp_path / "model.pt2").dynamic == {"batch": bounds}


def test_a_length_that_is_a_multiple_keeps_its_bounds_in_what_we_write(tmp_path):
    net = nn.Sequential(nn.Unflatten(1, (-1, 16)), nn.Linear(16, 3)).eval()
    length = 16 * torch.export.Dim("steps", min=10, max=100)
    program = torch.export.export(net, (torch.randn(2, 320),), dynamic_shapes=({1: length},))
    torch.export.save(program, tmp_path / "model.pt2")
    model = load_model(tmp_path / "model.pt2")
    write_pt2(model, tmp_path / "written.pt2")  # and reads it back
    assert load_model(tmp_path / "written.pt2").dynamic == model.dynamic == {"dim0": (160, 1600)}


def test_input_does_not_contradict_a_pt2(tmp_path):
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.randn(2, 3),)), tmp_path / "m.pt2")
    assert load_model(tmp_path / "m.pt2", input_shapes="1x3").inputs[0].shape == (2, 3)
    with pytest.raises(UsageError, match="--input contradicts"):
        load_model(tmp_path / "m.pt2", input_shapes="1x7")


def test_a_stated_input_that_does_not_run_is_said(tmp_path):
    torch.save(nn.Sequential(nn.Conv2d(3, 4, 3)), tmp_path / "model.pt")
    with pytest.raises(UsageError, match="does not run on an input of shape 1x5x8x8"):
        load_model(tmp_path / "model.pt", input_shapes="1x5x8x8")


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 3)

    def forward(self, x):
        return self.head(x).cumsum(0)


@pytest.mark.parametrize("form", ["pt", "pt2", "onnx"])
def test_a_batch_that_is_stated_wrongly_is_refused_and_a_right_one_is_taken(form, tmp_path):
    """Time lies first, records second."""
    file = tmp_path / f"m.{form}"
    net = TimeFirst().eval()
    if form == "pt":
        torch.save(net, file)
    else:
        model = nncompress.load(net, input="5xBx4")
        if form == "pt2":
            batch, time = torch.export.Dim("n", min=2, max=64), torch.export.Dim("t", min=2, max=64)
            program = torch.export.export(net, (torch.randn(5, 3, 4),), dynamic_shapes=({0: time, 1: batch},))
            torch.export.save(program, file)
        else:
            nncompress.export(model, file)
    name = load_model(file, input_shapes="5xBx4", trust_pickle=True).inputs[0].name
    for stated in ("5xBx4", f"{name}:5xBx4"):
        assert load_model(file, input_shapes=stated, trust_pickle=True).inputs[0].batch_dim == 1
    for stated in ("Bx3x4", f"{name}:Bx3x4"):
        with pytest.raises(UsageError, match=r"not independent|contradicts"):
            load_model(file, input_shapes=stated, trust_pickle=True)


class Average(nn.Module):
    """What it keeps between calls is a mean over the records of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(4, 4)
        self.register_buffer("calls", torch.zeros(()))
        self.register_buffer("mean", torch.zeros(4))

    def forward(self, x):
        self.calls += 1
        self.mean.mul_(0.5).add_(x.mean(0))
        return self.head(x) + self.mean / self.calls


def test_a_dim_whose_size_is_fixed_is_not_taken_for_the_batch(tmp_path):
    """Records act on each other, and no other dim can be asked: the batch stays free, which is said."""
    told = []
    model = load_module(Average().eval(), input_shapes="1x4", notice=told.append)
    assert model.dynamic.keys() == {"batch"}
    assert told[-1].startswith("samples in one batch, along dim 0 of x, change each other's outputs")
    nncompress.export(model, tmp_path / "m.onnx")  # the counter is an input of no dims


class NamedAsGraphsDo(nn.Module):
    """Modules whose names are attributes of torch's own graphs."""

    def __init__(self) -> None:
        super().__init__()
        self.code, self.graph = nn.Linear(6, 8), nn.Linear(8, 8)
        self.print_readable = nn.Linear(8, 3)

    def forward(self, x):
        return self.print_readable(self.graph(self.code(x).relu()).relu())


def test_layers_called_by_words_of_python(tmp_path):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads = nn.ModuleDict({"class": nn.Linear(6, 4), "from": nn.Linear(6, 2)})

        def forward(self, x):
            return self.heads["class"](x), self.heads["from"](x.relu())

    net, x = Heads().eval(), torch.randn(2, 6)
    torch.export.save(torch.export.export(net, (x,)), tmp_path / "a.pt2")
    model = load_model(tmp_path / "a.pt2")
    assert model.state_dict().keys() == net.state_dict().keys()
    with torch.no_grad():
        torch.testing.assert_close(model(x), net(x))
        torch.testing.assert_close(model.to_module()(x), net(x))


def test_names_that_graphs_have_themselves(tmp_path):
    net = NamedAsGraphsDo().eval()
    x = torch.randn(2, 6)
    torch.export.save(torch.export.export(net, (x,)), tmp_path / "a.pt2")
    model = load_model(tmp_path / "a.pt2")
    write_safetensors(model, tmp_path / "a.safetensors")
    (tmp_path / "net.py").write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        f"from {Path(__file__).stem} import NamedAsGraphsDo\n"
    )
    again = load_model(
        tmp_path / "a.safetensors", arch=f"{tmp_path / 'net.py'}:NamedAsGraphsDo", input_shapes="1x6"
    )
    with torch.no_grad():
        torch.testing.assert_close(model(x), net(x))
        torch.testing.assert_close(again(x), net(x))
