"""What `torch.export.save` writes comes back the same through `read_pt2`."""

from __future__ import annotations

import dataclasses
import zipfile
from collections import OrderedDict, namedtuple
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from pt2_members import GRAPH, WEIGHTS, edit_json, innocent, write
from torch import nn
from torch.export import Dim

import nncompress
from nncompress.errors import ModelFileError, UnsupportedError
from nncompress.ir import Model
from nncompress.loading.pt2.archive import read_pt2
from nncompress.loading.pt2.schema import is_parameter_name

BATCH = Dim("batch", min=1, max=64)


class Residual(nn.Module):
    """Strided convolutions, batch norm, a padded option-A shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.down = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(16, 5)

    def forward(self, x):
        x = self.bn1(self.stem(x)).relu_()
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        x = F.relu(self.bn2(self.down(x)) + shortcut)
        return self.head(self.drop(F.adaptive_avg_pool2d(x, 1).flatten(1)))


class Transformer(nn.Module):
    """Tied embeddings, attention over a mask, an int64 buffer, a scalar buffer."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(31, 16)
        self.register_buffer("positions", torch.arange(12))
        self.register_buffer("scale", torch.tensor(0.5))
        self.place = nn.Embedding(12, 16)
        self.qkv = nn.Linear(16, 48)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(16, 31, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids, mask):
        x = self.embed(ids) + self.place(self.positions[: ids.shape[1]]) * self.scale
        q, k, v = (t.reshape(*t.shape[:2], 2, 8).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None, None, :].bool())
        return self.head(self.norm(x + mixed.transpose(1, 2).flatten(2)))


class TwoInTwoOut(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Conv1d(2, 3, 3)
        self.table = torch.linspace(0, 1, 6)  # a constant, neither parameter nor buffer

    def forward(self, x, y):
        joined = torch.cat([self.a(x) + self.table, self.b(y).flatten(1)], 1)
        return joined, joined.sum(1)


class Quantized(nn.Module):
    """Quantize and dequantize nodes, per tensor and per channel."""

    def __init__(self) -> None:
        super().__init__()
        import torch.ao.quantization.fx._decomposed

        self.register_buffer("weight", torch.randint(-127, 128, (6, 4), dtype=torch.int8))
        self.register_buffer("scales", torch.rand(6) / 50)
        self.register_buffer("zeros", torch.zeros(6, dtype=torch.int64))

    def forward(self, x):
        ops = torch.ops.quantized_decomposed
        x = ops.quantize_per_tensor.default(x, 0.03, 5, -128, 127, torch.int8)
        x = ops.dequantize_per_tensor.default(x, 0.03, 5, -128, 127, torch.int8)
        weight = ops.dequantize_per_channel.default(
            self.weight, self.scales, self.zeros, 0, -127, 127, torch.int8
        )
        return F.linear(x, weight)


class Autograd(nn.Module):
    """A region without gradients exports as a nested graph."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        with torch.no_grad():
            x = self.a(x).sin()
        return self.b(x)


class Strided(nn.Module):
    """Weights that are views: transposed, offset into one storage, repeated, empty."""

    def __init__(self) -> None:
        super().__init__()
        whole = torch.randn(10, 4)
        self.transposed = nn.Parameter(torch.randn(4, 3).t())
        self.register_buffer("top", whole[:4])
        self.register_buffer("rest", whole[4:])
        self.register_buffer("repeated", torch.randn(1, 4).expand(3, 4))
        self.register_buffer("empty", torch.zeros(0, 4))

    def forward(self, x):
        kept = torch.cat([self.rest, self.empty])
        return x @ self.transposed.T @ self.repeated @ self.top.T, x @ kept.T


def ids(*shape: int) -> torch.Tensor:
    return torch.randint(0, 31, shape)


MODELS = {
    "residual": (Residual, lambda n: (torch.randn(n, 3, 16, 16),)),
    "transformer": (Transformer, lambda n: (ids(n, 7), torch.ones(n, 7, dtype=torch.int64))),
    "two inputs, two outputs": (TwoInTwoOut, lambda n: (torch.randn(n, 4), torch.randn(n, 2, 9))),
    "quantized": (Quantized, lambda n: (torch.randn(n, 4),)),
    "nested graph": (Autograd, lambda n: (torch.randn(n, 4),)),
    "strided weights": (Strided, lambda n: (torch.randn(n, 4),)),
}


def save(module: nn.Module, inputs: tuple, path, **kwargs):
    shapes = tuple({0: BATCH} for _ in inputs)
    program = torch.export.export(module.eval(), inputs, dynamic_shapes=shapes)
    torch.export.save(program, path, **kwargs)
    return path


@pytest.mark.filterwarnings("ignore:No complete tensor found")  # torch, of two views into one storage
@pytest.mark.parametrize("name", MODELS)
def test_round_trip_is_exact(name, tmp_path):
    make, inputs = MODELS[name]
    module = make()
    program, _ = read_pt2(save(module, inputs(2), tmp_path / "model.pt2"))
    loaded = program.module()
    for batch in (1, 5):
        xs = inputs(batch)
        with torch.no_grad():
            torch.testing.assert_close(loaded(*xs), module(*xs), rtol=0, atol=0)
    expected = module.state_dict()
    assert {k: (v.dtype, v.shape) for k, v in program.state_dict.items()} == {
        k: (v.dtype, v.shape) for k, v in expected.items()
    }
    for key, value in expected.items():
        assert torch.equal(program.state_dict[key], value), key


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_weights_of_every_floating_dtype_come_back(dtype, tmp_path):
    module = nn.Linear(4, 3).to(dtype)
    program, _ = read_pt2(save(module, (torch.randn(2, 4, dtype=dtype),), tmp_path / "model.pt2"))
    assert program.state_dict["weight"].dtype == dtype
    assert torch.equal(program.state_dict["weight"], module.weight)


def test_tied_weights_share_storage(tmp_path):
    program, _ = read_pt2(save(Transformer(), MODELS["transformer"][1](2), tmp_path / "tied.pt2"))
    embed, head = (program.state_dict[name] for name in ("embed.weight", "head.weight"))
    assert embed.data_ptr() == head.data_ptr()


def test_bounds_of_the_batch_are_kept(tmp_path):
    program, _ = read_pt2(save(Residual(), (torch.randn(2, 3, 16, 16),), tmp_path / "model.pt2"))
    (bounds,) = program.range_constraints.values()
    assert (bounds.lower, bounds.upper) == (1, 64)


def test_image_sizes_that_depend_on_each_other(tmp_path):
    """Dynamic height and width make floor divisions of symbols."""
    module = nn.Sequential(nn.Conv2d(3, 4, 3, stride=2), nn.MaxPool2d(2), nn.AdaptiveAvgPool2d(1)).eval()
    shapes = ({0: BATCH, 2: Dim("height", min=16, max=256), 3: Dim("width", min=16, max=256)},)
    program = torch.export.export(module, (torch.randn(2, 3, 32, 40),), dynamic_shapes=shapes)
    torch.export.save(program, tmp_path / "sizes.pt2")
    loaded = read_pt2(tmp_path / "sizes.pt2")[0].module()
    x = torch.randn(3, 3, 51, 64)
    torch.testing.assert_close(loaded(x), module(x), rtol=0, atol=0)


Pair = namedtuple("Pair", "first second")


@dataclasses.dataclass
class Output:
    logits: torch.Tensor
    hidden: torch.Tensor | None = None


class Container(OrderedDict):
    """As HuggingFace's ModelOutput: an ordered dict with a class of its own."""


class Structured(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(3, 4)

    def forward(self, x, *, extra):
        y = self.fc(x["pixels"]) + extra
        return Container(logits=y, inner=Output(y + 1), pair=Pair(y, y * 2), rest=[y * 3, None, 7])


def test_custom_containers_become_plain_ones(tmp_path):
    """Their classes are neither needed nor looked up."""
    pytree = torch.utils._pytree
    if Container not in pytree.SUPPORTED_NODES:
        torch.export.register_dataclass(Output, serialized_type_name="tests.Output")
        pytree._register_namedtuple(Pair, serialized_type_name="tests.Pair")
        pytree.register_pytree_node(
            Container,
            lambda c: (list(c.values()), list(c.keys())),
            lambda values, keys: Container(zip(keys, values)),
            serialized_type_name="tests.Container",
        )
    module = Structured().eval()
    x, extra = torch.randn(2, 3), torch.randn(2, 4)
    torch.export.save(torch.export.export(module, ({"pixels": x},), {"extra": extra}), tmp_path / "out.pt2")
    found = read_pt2(tmp_path / "out.pt2")[0].module()({"pixels": x}, extra=extra)
    y = module.fc(x) + extra
    assert type(found) is dict
    assert type(found["inner"]) is dict
    assert type(found["pair"]) is tuple
    assert found["rest"][1:] == [None, 7]
    expected = [y, y + 1, y, y * 2, y * 3]
    tensors = [found["logits"], found["inner"]["logits"], *found["pair"], found["rest"][0]]
    for value, wanted in zip(tensors, expected, strict=True):
        torch.testing.assert_close(value, wanted)


def test_record_comes_back(tmp_path):
    record = '{"history": [{"pass": "prune", "std": 0.5}], "metadata": {"normalize": "imagenet"}}'
    path = save(
        nn.Linear(4, 3),
        (torch.randn(2, 4),),
        tmp_path / "model.pt2",
        extra_files={"nncompress.json": record, "notes.txt": "ignored"},
    )
    assert read_pt2(path)[1] == {
        "history": [{"pass": "prune", "std": 0.5}],
        "metadata": {"normalize": "imagenet"},
    }


def test_weights_saved_on_another_device_load_on_the_cpu(tmp_path):
    path = save(nn.Linear(4, 3), (torch.randn(2, 4),), tmp_path / "model.pt2")
    elsewhere = tmp_path / "cuda.pt2"
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(elsewhere, "w", zipfile.ZIP_STORED) as new:
        for name in old.namelist():
            content = old.read(name)
            if name.endswith(".json"):
                content = content.replace(b'{"type": "cpu", "index": null}', b'{"type": "cuda", "index": 0}')
            new.writestr(name, content)
        assert b"cuda" in content or any(b"cuda" in new.read(n) for n in new.namelist())
    program, _ = read_pt2(elsewhere)
    assert program.state_dict["weight"].device.type == "cpu"
    assert program.module()(torch.randn(3, 4)).shape == (3, 3)


@pytest.mark.parametrize("value", [float("-inf"), float("inf"), float("nan")])
def test_literals_that_are_no_numbers_of_json_come_back(value, tmp_path):
    """Every causal mask fills with -inf."""

    class Filled(nn.Module):
        def forward(self, x):
            return x.masked_fill(x > 0, value), torch.nn.functional.pad(x, (1, 1), value=value)

    each = Model.from_module(Filled(), (torch.randn(2, 5),))
    nncompress.export(each, tmp_path / "m.pt2")
    x = torch.randn(3, 5)
    for ours, wanted in zip(nncompress.load(tmp_path / "m.pt2").outputs_of(x), Filled()(x)):
        torch.testing.assert_close(ours, wanted, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("place", ["top", "node", "graph", "weight"])
def test_a_key_of_a_newer_torch_is_left_out_where_it_is_empty_and_refused_where_it_is_not(place, tmp_path):
    members = innocent(tmp_path / "m.pt2")
    read, said = read_pt2(tmp_path / "m.pt2")[0], []

    def put(value: object) -> Path:
        def edit(document):
            graph = document.get("graph_module", {}).get("graph")
            at = {"top": document, "graph": graph, "node": graph and graph["nodes"][0]}.get(place)
            (document["config"]["fc.weight"] if place == "weight" else at)["newer"] = value

        changed = dict(members)
        edit_json(changed, WEIGHTS if place == "weight" else GRAPH, edit)
        return write(changed, tmp_path / "newer.pt2")

    for nothing in (None, [], {}, ""):
        program, _ = read_pt2(put(nothing), said.append)
        x = torch.randn(3, 4)
        assert torch.equal(program.module()(x)["y"], read.module()(x)["y"])
    assert said == ["newer.pt2 is of a newer torch: keys without content were left out ('newer')"] * 4
    for something in (True, False, 0, "x", [0], {"a": None}):
        with pytest.raises(ModelFileError, match="unknown key 'newer'"):
            read_pt2(put(something))


@pytest.mark.parametrize(
    ("name", "admitted"),
    [
        ("__a.weight", True),
        ("a.__b.weight", True),
        ("__dict__", False),
        ("a.__class__.weight", False),
        ("a.__init__", False),
    ],
)
def test_names_are_the_models_and_none_of_pythons_own(name, admitted):
    assert is_parameter_name(name) is admitted


def test_a_layer_whose_name_begins_with_two_underscores_comes_back(tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.add_module("__a", nn.Linear(4, 3))

        def forward(self, x):
            return getattr(self, "__a")(x)

    model = Model.from_module(Net().eval(), (torch.randn(2, 4),))
    nncompress.export(model, tmp_path / "m.pt2")
    x = torch.randn(5, 4)
    assert torch.equal(nncompress.load(tmp_path / "m.pt2")(x), model(x))


def test_a_layer_called_as_pythons_own_attributes_is_refused_before_a_file_is_written(tmp_path):
    net = nn.Sequential()
    net.add_module("__c__", nn.Linear(4, 3))
    model = Model.from_module(net.eval(), (torch.randn(2, 4),))
    with pytest.raises(UnsupportedError, match="of this name") as caught:
        nncompress.export(model, tmp_path / "m.pt2")
    assert caught.value.got == "__c__.weight"
    assert not list(tmp_path.iterdir())
    nncompress.export(model, tmp_path / "m.onnx")  # as the remedy says
