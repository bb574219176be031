"""Weights find their place in the architecture, or one message says why not."""

from __future__ import annotations

import copy
import math
import warnings
from pathlib import Path

import pytest
import safetensors.torch
import torch
import torch.nn.utils.prune
from torch import nn

import nncompress
from nncompress.errors import ModelFileError, UsageError
from nncompress.loading import load_model
from nncompress.loading.state_dict.architecture import build_architecture
from nncompress.loading.state_dict.checkpoint import find_weights
from nncompress.loading.state_dict.fill import fill, read_safetensors

PATH = Path("weights.pt")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(5, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 5, bias=False)
        self.head.weight = self.embed.weight


def test_fill_copies_the_values():
    source, target = Net(), Net()
    fill(target, source.state_dict(), PATH, "net.py:Net")
    for name, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[name], value)
    assert target.head.weight is target.embed.weight


@pytest.mark.parametrize(
    "prefix", ["module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.", "model."]
)
def test_prefixes_of_wrappers_are_taken_off(prefix):
    source, target = Net(), Net()
    fill(target, {prefix + name: value for name, value in source.state_dict().items()}, PATH, "a:b")
    assert torch.equal(target.embed.weight, source.embed.weight)


@pytest.mark.parametrize("wrapper", ["_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"])
def test_wrappers_of_single_modules_are_taken_off_within_names(wrapper):
    source, target = Net(), Net()
    names = {name: name.replace(".", f".{wrapper}.", 1) for name in source.state_dict()}
    fill(target, {f"model.{names[n]}": t for n, t in source.state_dict().items()}, PATH, "a:b")
    assert torch.equal(target.embed.weight, source.embed.weight)


def test_prefix_that_belongs_to_the_architecture_stays():
    """A network whose only child is called `model`."""
    source, target = (nn.ModuleDict({"model": nn.Linear(2, 2)}) for _ in range(2))
    fill(target, source.state_dict(), PATH, "a:b")
    assert torch.equal(target["model"].weight, source["model"].weight)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict", "net"])
def test_weights_are_found_under_the_usual_keys(key):
    weights = {"w": torch.ones(2)}
    assert find_weights({"epoch": 3, key: weights, "optimizer": {"lr": 0.1}}, PATH) == (weights, key)


@pytest.mark.parametrize(
    ("found", "described"),
    [
        ({}, "a dict"),
        ({"epoch": 3, "loss": 0.1}, "'epoch', 'loss'"),
        ([torch.ones(2)], "a list"),
        (torch.ones(2), "a Tensor"),
        ({"state_dict": {"w": "text"}}, "'state_dict'"),
        (None, "a NoneType"),
    ],
)
def test_what_holds_no_weights_is_described(found, described):
    with pytest.raises(ModelFileError, match=described):
        find_weights(found, PATH)


def test_tied_and_counted_tensors_may_be_missing():
    source, target = Net(), Net()
    weights = source.state_dict()
    del weights["head.weight"], weights["norm.num_batches_tracked"]
    fill(target, weights, PATH, "a:b")
    assert torch.equal(target.head.weight, source.embed.weight)


def test_keys_that_do_not_fit():
    weights = Net().state_dict()
    del weights["norm.weight"], weights["norm.bias"]
    weights["head.weight"] = weights["embed.weight"] = torch.zeros(6, 3)
    weights |= {f"extra.{i}": torch.zeros(1) for i in range(9)}
    with pytest.raises(ModelFileError) as caught:
        fill(Net(), weights, PATH, "net.py:Net")
    message = str(caught.value)
    assert "2 missing: norm.weight, norm.bias" in message
    assert "9 unexpected: extra.0, extra.1, extra.2, extra.3, …" in message
    assert "embed.weight (6, 3) instead of (5, 3)" in message
    assert "net.py:Net" in message
    assert len(message.splitlines()) <= 4


def test_nothing_is_copied_where_keys_do_not_fit():
    target = Net()
    before = target.embed.weight.detach().clone()
    with pytest.raises(ModelFileError):
        fill(target, {"embed.weight": torch.zeros(5, 3)}, PATH, "a:b")
    assert torch.equal(target.embed.weight, before)


def test_safetensors_come_back_with_ties_and_metadata(tmp_path):
    tensors = {"a": torch.randn(3, 2), "b": torch.arange(4), "c": torch.ones(2, dtype=torch.bfloat16)}
    safetensors.torch.save_file(tensors, tmp_path / "w.safetensors", metadata={"who": "me", "tied": "a"})
    found, header = read_safetensors(tmp_path / "w.safetensors")
    assert header["who"] == "me"
    assert all(torch.equal(found[name], value) for name, value in tensors.items())
    assert torch.equal(found["tied"], tensors["a"])


@pytest.mark.parametrize(
    "edit", [lambda b: b[:-4], lambda b: b.replace(b"F32", b"F99"), lambda b: b[:8] + b"x" + b[9:]]
)
def test_damaged_safetensors_are_refused_by_their_name(edit, tmp_path):
    path = tmp_path / "w.safetensors"
    path.write_bytes(edit(safetensors.torch.save({"a": torch.randn(3, 2)})))
    with pytest.raises(ModelFileError, match=r"w\.safetensors"):
        read_safetensors(path)


def test_weights_are_found_under_any_key_and_it_is_said(tmp_path):
    state, said = {"weight": torch.ones(2, 3)}, []
    path = tmp_path / "c.pt"
    nested = {"epoch": 3, "run": {"student": state}, "optimizer": {"m": state}}
    assert find_weights(nested, path, said.append) == (state, "run.student")
    assert find_weights({"model": state, "ema": {"weight": torch.zeros(1)}}, path, said.append) is not None
    assert "'run.student'" in said[0]
    assert "'model'; not those under 'ema'" in said[1]
    with pytest.raises(ModelFileError, match="several tables"):
        find_weights({"a": state, "b": state}, path)


@pytest.mark.parametrize("how", ["pruned", "weight_norm", "parametrized"])
def test_weights_that_a_wrapper_computes_fit_the_plain_architecture(how, tmp_path):
    source, plain = nn.Linear(4, 3), nn.Linear(4, 3)
    if how == "pruned":
        torch.nn.utils.prune.l1_unstructured(source, "weight", 0.5)
    elif how == "weight_norm":
        torch.nn.utils.weight_norm(source)
    else:
        torch.nn.utils.parametrizations.weight_norm(source)
    fill(plain, source.state_dict(), tmp_path / "c.pt", "net.py:build")
    x = torch.randn(5, 4)
    torch.testing.assert_close(plain(x), source(x))


def test_architecture_file_that_exits_is_one_message(tmp_path):
    (tmp_path / "net.py").write_text("import sys\nsys.exit(0)\n")
    with pytest.raises(UsageError, match="cannot be imported"):
        build_architecture(f"{tmp_path / 'net.py'}:build")


CONSTANTS = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear, self.scale = nn.Linear(4, 3), torch.tensor([1.0, 2.0, 3.0])
        self.register_buffer("shift", torch.arange(3.0), persistent=False)

    def forward(self, x):
        return self.linear(x) * self.scale + self.shift * torch.tensor([0.5, 1.0, 1.5])
"""


def test_weights_that_we_wrote_fit_the_class_with_constants_in_its_code(tmp_path) -> None:
    """Plain tensors and buffers that are not saved get the file's values; literals are the code's own."""
    (tmp_path / "net.py").write_text(CONSTANTS)
    space: dict = {}
    exec(CONSTANTS, space)
    net, x, told = space["Net"]().eval(), torch.randn(5, 4), []
    net.scale, net.shift = net.scale * 2, net.shift + 1
    model = nncompress.load(net, input="1x4")
    nncompress.export(model, tmp_path / "m.safetensors")
    nncompress.export(model, tmp_path / "m.pt2")
    for again in (model, load_model(tmp_path / "m.pt2")):
        nncompress.export(again, tmp_path / "n.safetensors")
        found = load_model(
            tmp_path / "n.safetensors", arch=f"{tmp_path}/net.py:Net", input_shapes="1x4", notice=told.append
        )
        torch.testing.assert_close(found(x), net(x))
        assert any("constants in the code" in sentence for sentence in told)


@pytest.mark.parametrize(("applied", "opens"), [("cluster", True), ("quantize", False)])
def test_weights_that_passes_have_changed_open_by_what_is_said_of_them(tmp_path, applied, opens) -> None:
    (tmp_path / "net.py").write_text("from torch import nn\n\n\ndef net():\n    return nn.Linear(64, 32)\n")
    given = nncompress.load(nn.Linear(64, 32), input="1x64")
    model = nncompress.compress(given, applied, data=torch.randn(128, 64), notice=lambda sentence: None)
    path = tmp_path / "n.safetensors"
    report = nncompress.export(model, path)
    assert ("" if opens else "which a .pt2 holds") in report.not_read
    with pytest.raises(UsageError, match="weights only") as caught:
        load_model(path)
    assert f"open the .pt2 that it was exported from, which has the network as it is after {applied}" in (
        caught.value.remedy
    )
    if opens:
        load_model(path, arch=f"{tmp_path}/net.py:net", input_shapes="1x64")
        return
    with pytest.raises(ModelFileError, match="do not fit") as refused:
        load_model(path, arch=f"{tmp_path}/net.py:net", input_shapes="1x64")
    assert refused.value.remedy.startswith("open the .pt2")


def _quantized(dtype: torch.dtype) -> torch.Tensor:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_channel(torch.eye(5)[:, :3], torch.ones(5), torch.zeros(5), 0, dtype)


@pytest.mark.parametrize(
    ("weight", "says"),
    [
        (torch.empty(5, 3, device="meta"), "without numbers"),
        (torch.eye(5)[:, :3].to_sparse(), "sparse"),
        (torch.eye(5)[:, :3].to_sparse_csr(), "sparse"),
        (torch.nested.nested_tensor([torch.zeros(3)] * 5), "nested"),
        (torch.full((5, 3), 1j), "complex64 instead of float32"),
        (_quantized(torch.quint8), "quantized by torch"),
        (_quantized(torch.quint4x2), "quantized by torch"),
    ],
    ids=["meta", "sparse", "csr", "nested", "complex", "uint8", "uint4"],
)
def test_weights_that_are_no_numbers_of_the_architecture_are_refused(tmp_path, weight, says):
    """Imaginary parts were dropped in silence; the others ended in a traceback."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\ndef net():\n    return nn.Linear(3, 5, bias=False)\n"
    )
    torch.save({"weight": weight}, tmp_path / "a.pt")
    with pytest.raises(ModelFileError) as refusal:
        load_model(tmp_path / "a.pt", arch=f"{tmp_path}/net.py:net", input_shapes="1x3")
    assert says in str(refusal.value)


def test_a_fraction_is_not_dropped_to_fit_an_integer():
    source = Net().state_dict()
    fill(Net(), source | {"norm.num_batches_tracked": torch.tensor(7.0)}, PATH, "a:b")
    with pytest.raises(ModelFileError, match="do not fit"):
        fill(Net(), source | {"norm.num_batches_tracked": torch.tensor(7.5)}, PATH, "a:b")


@pytest.mark.parametrize(
    ("dtype", "stored", "said"),
    [
        (torch.float32, torch.randint(-128, 128, (5, 3), dtype=torch.int8), "codes"),
        (torch.float32, torch.randint(0, 256, (5, 3), dtype=torch.uint8), "codes"),
        (torch.float32, torch.rand(5, 3) > 0.5, "codes"),
        (torch.float32, torch.arange(15).reshape(5, 3), "codes"),
        (torch.float32, torch.rand(5, 3).to(torch.float8_e4m3fn), "codes"),
        (torch.float32, torch.full((5, 3), 2**24 + 1), "refused"),
        (torch.float32, torch.full((5, 3), 2**63 + 1, dtype=torch.uint64), "refused"),
        (torch.float32, torch.full((5, 3), 1e300, dtype=torch.float64), "refused"),
        (torch.bfloat16, torch.full((5, 3), torch.finfo(torch.float32).min), "refused"),
        (torch.float16, torch.full((5, 3), 1e6), "refused"),
        (torch.float32, torch.rand(5, 3, dtype=torch.float64), "rounded"),
        (torch.float16, torch.rand(5, 3), "rounded"),
        (torch.float32, torch.full((5, 3), math.nan, dtype=torch.float64), ""),
        (torch.float32, torch.full((5, 3), -math.inf, dtype=torch.float64), ""),
        (torch.float32, torch.rand(5, 3).double(), ""),
        (torch.float32, torch.rand(5, 3).bfloat16(), ""),
    ],
    ids=lambda each: str(getattr(each, "dtype", each)),
)
def test_weights_of_another_dtype_are_taken_with_a_word_or_refused(dtype, stored, said):
    """They were cast in silence, also where that changed them: 2^24 + 1, 10^6 in float16."""
    module, told = nn.Linear(3, 5, bias=False).to(dtype), []
    if said == "refused":
        with pytest.raises(ModelFileError, match="1 that would lose their values: weight "):
            fill(module, {"weight": stored}, PATH, "a:b")
        return
    fill(module, {"weight": stored}, PATH, "a:b", notice=told.append)
    torch.testing.assert_close(module.weight.data, stored.to(dtype), equal_nan=True, rtol=0, atol=0)
    assert [said in sentence for sentence in told] == ([True] if said else [])


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("shape", [(4, 6, 3), (5, 5, 5)])
def test_a_spectral_norm_along_any_dim(dim, shape, tmp_path):
    """It was left out without a word where the dim was not the first."""
    torch.manual_seed(0)
    plain = nn.Conv1d(shape[1], shape[0], shape[2])
    source = torch.nn.utils.parametrizations.spectral_norm(copy.deepcopy(plain), dim=dim)
    x = torch.randn(3, shape[1], 9)
    for _ in range(3):
        source(x)
    fill(plain, source.eval().state_dict(), tmp_path / "c.pt", "net.py:build")
    torch.testing.assert_close(plain(x), source(x))


def test_parts_of_a_norm_that_do_not_fit_together_are_no_weight(tmp_path):
    """The direction was taken for the weight."""
    weights = torch.nn.utils.weight_norm(nn.Linear(4, 3)).state_dict()
    weights["weight_g"] = torch.ones(2, 1)
    with pytest.raises(ModelFileError, match="weight_g"):
        fill(nn.Linear(4, 3), weights, tmp_path / "c.pt", "net.py:build")


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(5, 4), nn.Linear(4, 5, bias=False)
        self.head.weight = self.table.weight


def test_two_values_for_one_tensor_are_refused(tmp_path):
    """The network of the file is another: the last of them was taken without a word."""
    weights = {name: value.clone() for name, value in Tied().state_dict().items()}
    fill(Tied(), weights, tmp_path / "c.pt", "net.py:build")
    weights["head.weight"] = torch.randn(5, 4)
    with pytest.raises(ModelFileError, match=r"tied in --arch.*table\.weight and head\.weight"):
        fill(Tied(), weights, tmp_path / "c.pt", "net.py:build")
    said: list[str] = []
    net = Tied()
    fill(net, weights, tmp_path / "c.pt", "net.py:build", strict=False, notice=said.append)
    assert torch.equal(net.table.weight, weights["head.weight"])
    assert "the last is taken" in said[0]


@pytest.mark.parametrize("names", [("lora_A", "lora_B"), ("lora_A.default.weight", "lora_B.default.weight")])
def test_adapters_are_to_be_merged_not_left_out(names, tmp_path):
    weights = nn.Sequential(nn.Linear(4, 3)).state_dict()
    weights |= {f"0.{name}": torch.zeros(2, 4) for name in names}
    with pytest.raises(ModelFileError, match="merge_and_unload") as refused:
        fill(nn.Sequential(nn.Linear(4, 3)), weights, tmp_path / "c.pt", "net.py:build")
    assert "--no-strict" not in str(refused.value)


def test_what_computes_a_weight_is_to_be_registered_or_left_out_when_saving(tmp_path):
    def orthogonal() -> nn.Module:
        return nn.Sequential(nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)))

    trained = orthogonal()
    with pytest.raises(
        ModelFileError, match=r"register what computes these(.|\n)*remove_parametriz"
    ) as refused:
        fill(nn.Sequential(nn.Linear(4, 4)), trained.state_dict(), tmp_path / "c.pt", "net.py:build")
    assert "--no-strict" not in str(refused.value)
    net = orthogonal()  # as that says
    fill(net, trained.state_dict(), tmp_path / "c.pt", "net.py:build")
    assert torch.equal(net[0].weight, trained[0].weight)
    nn.utils.parametrize.remove_parametrizations(trained[0], "weight")
    net = nn.Sequential(nn.Linear(4, 4))
    fill(net, trained.state_dict(), tmp_path / "c.pt", "net.py:build")
    assert torch.equal(net[0].weight, trained[0].weight)


@pytest.mark.parametrize("wrap", [nn.utils.spectral_norm, nn.utils.parametrizations.spectral_norm])
@pytest.mark.parametrize("make", [lambda: nn.Linear(8, 8), lambda: nn.ConvTranspose1d(6, 6, 6)])
def test_a_spectral_norm_whose_vectors_are_none_yet_is_along_the_usual_dim(make, wrap, tmp_path):
    """Of weights whose sizes fit along several dims, and that no training has seen, or that moved since."""
    for seed in range(10):
        torch.manual_seed(seed)
        source = wrap(make()).eval()
        x = torch.randn(2, 8) if isinstance(source, nn.Linear) else torch.randn(2, 6, 9)
        with torch.no_grad():
            if seed > 4:
                original = next(each for name, each in source.named_parameters() if "orig" in name)
                original.add_(torch.randn_like(original) / 10)
            expected = source(x)
            net = nn.Sequential(make())
            fill(net, nn.Sequential(source).state_dict(), tmp_path / "c.pt", "net.py:build")
            torch.testing.assert_close(net[0](x), expected, rtol=1e-4, atol=1e-4)


def test_one_tensor_in_two_precisions_is_one_tensor(tmp_path):
    weights = {name: value.clone() for name, value in Tied().state_dict().items()}
    weights["table.weight"] = weights["table.weight"].half()
    fill(Tied(), weights, tmp_path / "c.pt", "net.py:build")
