"""Pickled modules: torch.nn ones open, everything else is refused by name, and no state runs code."""

from __future__ import annotations

import argparse
import os
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from nncompress.errors import ModelFileError, UnsafeFileError
from nncompress.loading.pickle.read import read_pickle


class Own(nn.Module):
    """A class that is not torch's."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 2)

    def forward(self, x):
        return self.fc(x)


class Creates:
    """Unpickling this creates the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def save(value, path: Path) -> Path:
    torch.save(value, path)
    return path


# --- what opens --------------------------------------------------------------------------------------------

torch.manual_seed(0)

LAYERS = {
    "convolutions": (
        lambda: nn.Sequential(
            *(
                nn.Conv2d(3, 4, 3, padding=1),
                nn.BatchNorm2d(4),
                nn.Hardtanh(0, 6),
                nn.ConvTranspose2d(4, 4, 2),
            ),
            *(
                nn.InstanceNorm2d(4),
                nn.PixelShuffle(2),
                nn.Upsample(scale_factor=2),
                nn.AdaptiveAvgPool2d((2, 2)),
            ),
            *(nn.Flatten(), nn.Dropout(0.2), nn.Linear(4, 3), nn.Softmax(-1)),
        ),
        lambda: torch.randn(2, 3, 8, 8),
    ),
    "recurrent": (lambda: nn.LSTM(4, 5, 2, bidirectional=True), lambda: torch.randn(6, 2, 4)),
    "embedding": (
        lambda: nn.Sequential(nn.Embedding(9, 4), nn.GRU(4, 4)),
        lambda: torch.tensor([[1, 8], [0, 3]]),
    ),
    "transformer": (
        lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 16, activation="gelu", batch_first=True, norm_first=True), 2
        ),
        lambda: torch.randn(2, 5, 8),
    ),
    "wrapped for several devices": (lambda: nn.DataParallel(nn.Linear(4, 2)), lambda: torch.randn(3, 4)),
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("name", LAYERS)
def test_torch_modules_open(name, tmp_path):
    make, inputs = LAYERS[name]
    module = make().eval()
    loaded = read_pickle(save(module, tmp_path / "model.pt"))
    x = inputs()
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), module(x), rtol=0, atol=0)
    inner = getattr(module, "module", module)
    assert repr(loaded) == repr(inner)
    assert [(n, p.requires_grad) for n, p in loaded.named_parameters()] == [
        (n, p.requires_grad) for n, p in inner.named_parameters()
    ]


def test_sharing_is_kept(tmp_path):
    """One layer used twice and one weight used by two layers, before and after."""
    module = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 3))
    module[2].weight = module[0].weight
    module.append(module[0])
    loaded = read_pickle(save(module, tmp_path / "model.pt"))
    assert loaded[0].weight is loaded[2].weight
    assert loaded[3] is loaded[0]


def test_frozen_parameters_stay_frozen(tmp_path):
    module = nn.Linear(3, 2)
    module.bias.requires_grad_(False)
    loaded = read_pickle(save(module, tmp_path / "model.pt"))
    assert (loaded.weight.requires_grad, loaded.bias.requires_grad) == (True, False)


def test_nothing_is_left_allowed(tmp_path):
    """The names let through for one file are not let through for the next."""
    before = set(torch.serialization.get_safe_globals())
    read_pickle(save(nn.Linear(3, 2), tmp_path / "model.pt"))
    assert set(torch.serialization.get_safe_globals()) == before


def test_checkpoint_with_settings_beside_the_weights(tmp_path):
    """numpy scalars, a namespace, a path: read without importing what they name."""
    checkpoint = {
        "state_dict": {"weight": torch.ones(2)},
        "best": np.float64(0.5),
        "args": argparse.Namespace(lr=0.1, out=Path("runs")),
    }
    found = read_pickle(save(checkpoint, tmp_path / "checkpoint.pt"))
    assert torch.equal(found["state_dict"]["weight"], torch.ones(2))


def test_files_of_the_legacy_format_are_read(tmp_path):
    torch.save({"weight": torch.arange(3.0)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_pickle(tmp_path / "old.pt")["weight"], torch.arange(3.0))


# --- what needs code ---------------------------------------------------------------------------------------


def test_other_classes_are_named(tmp_path):
    path = save(nn.Sequential(Own(), nn.ReLU()), tmp_path / "model.pt")
    with pytest.raises(UnsafeFileError) as caught:
        read_pickle(path)
    message = str(caught.value)
    assert f"{Own.__module__}.Own" in message
    assert "ReLU" not in message  # torch's own classes are not the reason
    assert "--trust-pickle" in message


def test_trusted_module_opens(tmp_path):
    module = Own()
    loaded = read_pickle(save(module, tmp_path / "model.pt"), trust_pickle=True)
    x = torch.randn(4, 3)
    assert type(loaded) is Own
    assert torch.equal(loaded(x), module(x))


def test_trusted_module_of_a_package_in_the_current_directory(tmp_path, monkeypatch):
    (tmp_path / "net_beside_the_file.py").write_text(
        "import torch\n"
        "class Net(torch.nn.Linear):\n"
        "    def forward(self, x):\n"
        "        return -super().forward(x)\n"
    )
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    import net_beside_the_file  # type: ignore[import-not-found]

    module = net_beside_the_file.Net(3, 2)
    save(module, tmp_path / "model.pt")
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "net_beside_the_file")
    loaded = read_pickle(tmp_path / "model.pt", trust_pickle=True)
    x = torch.randn(2, 3)
    assert torch.equal(loaded(x), module(x))


def test_trusted_module_whose_class_is_gone(tmp_path, monkeypatch):
    path = save(Own(), tmp_path / "model.pt")
    monkeypatch.delattr(sys.modules[__name__], "Own")
    with pytest.raises(ModelFileError, match="Own"):
        read_pickle(path, trust_pickle=True)


@pytest.mark.parametrize("legacy", [False, True])
def test_pickle_that_runs_code_is_refused(legacy, tmp_path):
    marker = tmp_path / "marker"
    path = tmp_path / "model.pt"
    torch.save({"weight": Creates(marker)}, path, _use_new_zipfile_serialization=not legacy)
    torch.load(path, weights_only=False)
    assert marker.exists()  # the file is what it claims to be
    marker.unlink()
    with pytest.raises(UnsafeFileError, match="open"):
        read_pickle(path)
    assert not marker.exists()


def test_names_are_found_without_running(tmp_path):
    marker = tmp_path / "marker"
    path = save([Creates(marker), nn.Linear(1, 1), Own()], tmp_path / "model.pt")
    with pytest.raises(UnsafeFileError) as refused:
        read_pickle(path)
    assert all(name in str(refused.value) for name in ("io.open", f"{__name__}.Own"))
    assert not marker.exists()


def test_function_from_os_is_refused(tmp_path):
    class System:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'marker'}",)

    with pytest.raises(UnsafeFileError, match="system"):
        read_pickle(save(System(), tmp_path / "model.pt"))
    assert not (tmp_path / "marker").exists()


# --- state of allowed classes cannot carry code -------------------------------------------------------------


def test_classes_of_torch_nn_are_never_called(tmp_path, monkeypatch):
    """A pickle may call what it may name: `Linear(2**40, 2**40)` would fill the memory."""

    class Calls:
        def __reduce__(self):
            return nn.Linear, (3, 2)

    called = []
    monkeypatch.setattr(nn.Linear, "__init__", lambda self, *a: called.append(a))
    with pytest.raises(UnsafeFileError, match="not pickled as a module"):
        read_pickle(save(Calls(), tmp_path / "model.pt"))
    assert called == []


def hooked() -> nn.Module:
    module = nn.Linear(3, 2)
    module.register_forward_hook(torch.nn.functional.relu)
    return module


def pre_hooked() -> nn.Module:
    module = nn.Linear(3, 2)
    module._forward_pre_hooks[0] = nn.ReLU()
    return module


def with_state(**state) -> nn.Module:
    module = nn.Linear(3, 2)
    module.__dict__.update(state)
    return module


def submodule_named(name: str) -> nn.Module:
    module = nn.Sequential(nn.ReLU())
    module._modules[name] = nn.ReLU()
    return module


def parameter_named(name: str) -> nn.Module:
    module = nn.Linear(3, 2)
    module._parameters[name] = nn.Parameter(torch.ones(2))
    return module


def contains_itself() -> nn.Module:
    module = nn.Sequential(nn.Linear(2, 2))
    module._modules["again"] = module
    return module


HOSTILE = {
    "a forward hook": (hooked, "_forward_hooks is not empty"),
    "a module as a hook": (pre_hooked, "_forward_pre_hooks is not empty"),
    "hooks on saving": (lambda: with_state(_state_dict_hooks=OrderedDict({0: 1})), "_state_dict_hooks"),
    "backward hooks": (lambda: with_state(_backward_hooks={0: "relu"}), "_backward_hooks is not empty"),
    "a function for forward": (lambda: with_state(forward=torch.relu_), "replace a method|getattr"),
    "a string for forward": (lambda: with_state(forward="__import__('os')"), "replace a method"),
    "a module for forward": (lambda: with_state(forward=nn.ReLU()), "replace a method"),
    "a class for __class__": (lambda: with_state(__class__=nn.ReLU), "__class__ would replace"),
    "_call_impl": (lambda: with_state(_call_impl=1), "replace a method"),
    "an activation where none belongs": (
        lambda: with_state(activation=torch.nn.functional.relu),
        r"activation is a torch\.nn\.functional\.relu",
    ),
    "a function as an attribute": (lambda: with_state(note=torch.nn.functional.relu), "note is a"),
    "a class as an attribute": (lambda: with_state(note=nn.ReLU), "note is a"),
    "a module as an attribute": (lambda: with_state(note=nn.ReLU()), "note is a"),
    "a namespace as an attribute": (lambda: with_state(note=argparse.Namespace(a=1)), "Namespace"),
    "source in a submodule's name": (
        lambda: submodule_named('a"),__import__("os").getpid(),("'),
        "a member of the name",
    ),
    "a dot in a submodule's name": (lambda: submodule_named("a.b"), "a member of the name"),
    "source in a parameter's name": (lambda: parameter_named("w)\nimport os\n("), "a member of the name"),
    "itself inside": (contains_itself, "contains itself"),
    "no dict of modules": (lambda: with_state(_modules=[nn.ReLU()]), "lists its members in a list"),
    "a string as a parameter": (lambda: with_state(_parameters={"weight": "w"}), "not a tensor"),
    "a sparse parameter": (
        lambda: with_state(_parameters={"weight": torch.eye(2).to_sparse()}),
        "sparse_coo tensor",
    ),
    "a lazy module": (lambda: nn.LazyLinear(3), "LazyLinear"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_state_that_is_more_than_settings_is_refused(name, tmp_path):
    make, reason = HOSTILE[name]
    module, path = make(), tmp_path / "model.pt"
    with pytest.MonkeyPatch.context() as patch:
        if "__class__" in module.__dict__:  # pickle itself would stumble over it
            patch.setattr(nn.Linear, "__reduce_ex__", _reduced)
        torch.save(module, path)
    with pytest.raises(UnsafeFileError, match=reason):
        read_pickle(path)


def _reduced(self, protocol):
    import copyreg

    return copyreg.__newobj__, (nn.Linear,), dict(self.__dict__)


def test_attributes_of_tensors_are_dropped(tmp_path):
    """Attributes that the file sets on a parameter could hide its methods."""
    module = nn.Linear(3, 2)
    module.weight.detach = "not a method"
    module.weight.note = "kept by torch, not by us"
    loaded = read_pickle(save(module, tmp_path / "model.pt"))
    assert loaded.weight.__dict__ == {}
    assert torch.equal(loaded.weight, torch.Tensor.detach(module.weight))


def test_a_class_of_the_script_that_saved_it_is_known_nowhere_else(tmp_path, monkeypatch):
    class Lone(nn.Module):
        pass

    Lone.__module__, Lone.__qualname__ = "__main__", "Lone"
    with monkeypatch.context() as there:
        there.setattr(sys.modules["__main__"], "Lone", Lone, raising=False)
        torch.save(Lone(), tmp_path / "m.pt")
    with pytest.raises(
        ModelFileError, match=r"of the script that saved it(?s:.*)--arch THAT_SCRIPT\.py:CLASS"
    ):
        read_pickle(tmp_path / "m.pt", trust_pickle=True)
