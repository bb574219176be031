"""4 bits fitted to data, block by block from disk: the weights are those of memory; a kill costs little."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn import functional as F

from nncompress.analysis.observe import budget
from nncompress.api.opening import dataset, outline
from nncompress.cli import main
from nncompress.errors import ModelFileError, Told, UnsupportedError, UsageError
from nncompress.ir import Model
from nncompress.ir.layers.weights import layers
from nncompress.loading import load_model
from nncompress.loading.state_dict.shards import INDEX, open_checkpoint
from nncompress.passes import Context
from nncompress.recipe import parse_pass
from nncompress.streaming import run_layerwise
from nncompress.streaming.blocks import held_at_a_time
from nncompress.streaming.held import HeldWeights

WIDTH, VOCABULARY, LENGTH, BLOCKS = 32, 48, 6, 2
CHOSEN = "quantize:weight_bits=4,group_size=16"


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.gate, self.up = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(WIDTH, 2 * WIDTH, bias=False)
        self.down = nn.Linear(2 * WIDTH, WIDTH)

    def forward(self, x):
        read = self.norm(x)
        return x + self.down(F.silu(self.gate(read)) * self.up(read))


class Net(nn.Module):
    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.embed, self.blocks = (
            nn.Embedding(VOCABULARY, WIDTH),
            nn.ModuleList(Block() for _ in range(BLOCKS)),
        )
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.register_buffer("shift", torch.linspace(0, 1, WIDTH), persistent=False)  # in no checkpoint
        self.register_buffer("gain", torch.ones(WIDTH))  # the checkpoint's is another
        if tied:
            self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.gain * self.embed(ids) + self.shift
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


def built(tied: bool = False) -> Net:
    torch.manual_seed(0)
    net = Net(tied).eval()
    with torch.no_grad():
        for block in net.blocks:
            block.norm.weight[::5] *= 10  # inputs that matter more: their scales go into the norm
        net.get_buffer("gain").copy_(torch.linspace(3, 0.2, WIDTH))
    return net


def tied() -> Net:
    return built(tied=True)


def fresh(tied: bool = False) -> Net:
    """As --arch builds it: with none of the checkpoint's values."""
    return Net(tied).eval()


def fresh_tied() -> Net:
    return fresh(tied=True)


def saved(net: nn.Module, folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """In two shards that know nothing of blocks."""
    folder.mkdir()
    weights = {name: value.to(dtype) for name, value in net.state_dict().items()}
    if weights["head.weight"].data_ptr() == weights["embed.weight"].data_ptr():
        del weights["head.weight"]
    names, listed = sorted(weights), {}
    for file, part in (("a.safetensors", names[:7]), ("b.safetensors", names[7:])):
        save_file({name: weights[name] for name in part}, folder / file)
        listed |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": listed}))
    return folder


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("layerwise")


@pytest.fixture(scope="module")
def source(place):
    return saved(built(), place / "source")


@pytest.fixture(scope="module")
def arch(place):
    (place / "net.py").write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_layerwise import fresh as built, fresh_tied as tied\n"
    )
    return f"{place / 'net.py'}:built"


@pytest.fixture(scope="module")
def data(place):
    np.savez(place / "ids.npz", x=np.random.default_rng(0).integers(0, VOCABULARY, (12, LENGTH)))
    return str(place / "ids.npz")


@pytest.fixture(scope="module")
def whole(source, arch, data, place):
    """A run without a kill: its folder, what it said, the weights that were read, the most bytes held."""
    read, most = [], [0]
    held = HeldWeights._hold

    def counted(self, name, value):
        held(self, name, value)
        read.append(name)
        most[0] = max(most[0], sum(each.nbytes for each in self._held.values()))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(budget, "BUDGET", 5000)  # activations of some batches go to files
        patch.setattr(HeldWeights, "_hold", counted)
        done = streamed(source, place / "whole", arch, data)
    return place / "whole", done, read, most[0]


def streamed(source, out, arch, data, text=CHOSEN, **given):
    checkpoint = open_checkpoint(source)
    model = outline(checkpoint, data=data, arch=arch, notice=lambda sentence: None)
    context = Context(data=dataset(data, model), batch_size=4, **given)
    return run_layerwise(parse_pass(text), checkpoint, model, out, context)


def in_memory(net, data, text=CHOSEN) -> Model:
    model = Model.from_module(net, (torch.zeros(2, LENGTH, dtype=torch.int64),))
    parse_pass(text).apply(model, Context(data=dataset(data, model), batch_size=4))
    model.refresh()
    return model


def opened(folder, arch) -> Model:
    return load_model(folder, arch=arch, input_shapes=f"Bx{LENGTH}:int64")


def same_weights(read: Model, memory: Model) -> None:
    found = {layer.name: layer.weight.value() for layer in layers(read)}
    for layer in layers(memory):
        assert torch.equal(found[layer.name], layer.weight.value()), layer.name
    norms = {name: value for name, value in memory.graph_module.named_parameters() if "norm" in name}
    assert norms
    for name, value in norms.items():
        assert torch.equal(read.tensor(name), value), name


def test_the_weights_are_those_of_memory(whole, arch, data):
    folder, done, _, _ = whole
    assert done.shards == BLOCKS + 1  # what is in no block is the last
    same_weights(opened(folder, arch), in_memory(built(), data))
    changed = {row.name for row in done.rows if row.applied}
    assert {"blocks.0.norm.weight", "blocks.0.up.weight", "head.weight"} <= changed
    assert "blocks.0.down.bias" not in changed


def test_halves_are_computed_in_float32_and_norms_stay_so(arch, data, place):
    text = f"{CHOSEN},asymmetric=true,keep=blocks.1.*+embed"
    source = saved(built(), place / "half", torch.bfloat16)
    done = streamed(source, place / "half-out", arch, data, text)
    half = built()
    half.load_state_dict({name: value.bfloat16().float() for name, value in half.state_dict().items()})
    same_weights(opened(place / "half-out", arch), in_memory(half, data, text))
    assert not any(row.applied for row in done.rows if row.name.startswith(("blocks.1.", "embed")))


@pytest.mark.parametrize("twice", [False, True])
def test_a_table_that_is_the_output_layer_too(twice, arch, data, tmp_path):
    arch = arch.replace("built", "tied")
    stored = saved(tied(), tmp_path / "tied")
    if twice:  # under both names
        weights = load_file(stored / "b.safetensors") | load_file(stored / "a.safetensors")
        save_file(weights | {"head.weight": weights["embed.weight"].clone()}, stored / "b.safetensors")
        (stored / "a.safetensors").unlink()
        (stored / INDEX).unlink()
        (stored / "b.safetensors").rename(stored / "model.safetensors")
    done = streamed(stored, tmp_path / "out", arch, data)
    second = [row.what for row in done.rows if row.name == "head.weight"]
    assert second == ["is embed.weight, stored once"] * twice
    same_weights(opened(tmp_path / "out", arch), in_memory(tied(), data))


def test_few_weights_are_held_and_none_is_read_for_every_batch(whole):
    _, _, read, most = whole
    assert most <= 4 * (4 * 2 * WIDTH * WIDTH)
    assert max(map(read.count, set(read))) <= 4


def test_a_large_table_does_not_let_more_weights_of_blocks_be_held():
    named = {"embed.weight": torch.zeros(1000, 8), "blocks.0.up.weight": torch.zeros(16, 8)}
    assert held_at_a_time(named) == 4 * 4 * 16 * 8
    assert held_at_a_time({"embed.weight": torch.zeros(1000, 8)}) == 4 * 4 * 8000


class Killed(Exception):
    pass


class Kill:
    def step(self, description, done, total):
        if description == "rounding" and done == 5:  # in the second block
            raise Killed


def test_a_killed_run_rounds_no_finished_block_anew(whole, source, arch, data, tmp_path):
    with pytest.raises(Killed):
        streamed(source, tmp_path / "out", arch, data, progress=Kill())
    assert [file.name[:11] for file in (tmp_path / "out").glob("*.safetensors")] == ["model-00001"]
    again = streamed(source, tmp_path / "out", arch, data)
    folder, done, _, _ = whole
    assert (again.resumed, done.resumed) == (1, 0)
    assert again.rows == done.rows
    for file in folder.glob("*.safetensors*"):
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()


def test_a_run_on_other_data_keeps_nothing(whole, source, arch, place):
    np.savez(place / "other.npz", x=np.zeros((2, LENGTH), np.int64))
    out = shutil.copytree(whole[0], place / "other")
    with pytest.raises(Killed):
        streamed(source, out, arch, str(place / "other.npz"), progress=Kill())
    assert not (out / INDEX).exists()  # else shards of both runs would open as one checkpoint
    assert streamed(source, out, arch, str(place / "other.npz")).resumed == 1


def _rewritten(source, change):
    for file in source.glob("*.safetensors"):
        save_file(change(load_file(file)), file)
    names = {n: f.name for f in source.glob("*.safetensors") for n in load_file(f)}
    (source / INDEX).write_text(json.dumps({"weight_map": names}))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda w: {n: v for n, v in w.items() if n != "blocks.1.up.weight"}, "lacks weights of its network"),
        (lambda w: {n: v[:-1] if n == "head.weight" else v for n, v in w.items()}, "has in another shape"),
        (lambda w: {n: v * torch.nan if n == "blocks.1.up.weight" else v for n, v in w.items()}, "NaN"),
        (lambda w: {n: v.double() if n == "blocks.1.up.weight" else v for n, v in w.items()}, "is float64"),
        (lambda w: {n: v.char() if n == "blocks.1.gate.bias" else v for n, v in w.items()}, "is int8"),
    ],
)
def test_a_checkpoint_that_is_not_its_networks(change, told, source, arch, data, tmp_path):
    source = shutil.copytree(source, tmp_path / "source")
    _rewritten(source, change)
    with pytest.raises((ModelFileError, UnsupportedError), match=told):
        streamed(source, tmp_path / "out", arch, data)


def test_activations_that_find_no_room_are_computed_again(source, arch, data, tmp_path, monkeypatch):
    streamed(source, tmp_path / "usual", arch, data)
    monkeypatch.setattr(budget, "BUDGET", 100)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.warns(Told, match=r"no room for a temporary file.*computed again instead"):
        streamed(source, tmp_path / "out", arch, data)
    usual, found = (matrices_of(opened(tmp_path / name, arch)) for name in ("usual", "out"))
    assert usual.keys() == found.keys()
    assert all(torch.equal(usual[name], found[name]) for name in usual)


def matrices_of(model: Model) -> dict[str, torch.Tensor]:
    """By the name of the linear layer; of factors their product."""
    weights = {layer.name: layer.weight.value() for layer in layers(model)}
    first = [name.removesuffix(".0") for name in weights if f"{name.removesuffix('.0')}.1" in weights]
    return weights | {name: weights[f"{name}.1"] @ weights[f"{name}.0"] for name in first if "block" in name}


@pytest.mark.parametrize(
    "text", ["prune:pattern=2:4,exclude=head", "factorize:ratio=0.6,minimize=layer,refit=false"]
)
def test_other_passes_make_of_weights_what_they_make_in_memory(text, source, arch, data, tmp_path):
    done = streamed(source, tmp_path / "out", arch, data, text)
    read = opened(tmp_path / "out", arch)
    memory = in_memory(built(), data, text)
    found, wanted = matrices_of(read), matrices_of(memory)
    for name in ("blocks.0.gate", "blocks.1.down", "blocks.1.gate"):
        assert torch.equal(found[name], wanted[name]), name
        weights = read.tensor(f"{name}.bias"), biases(memory)[name]
        assert torch.equal(*weights), name
    assert {row.name for row in done.rows if row.applied} >= {"blocks.0.gate.weight", "blocks.1.down.weight"}
    told = {row.name: row.what for row in done.rows}
    assert not any("no weight" in told[name] for name in ("embed.weight", "head.weight"))


def biases(model: Model) -> dict[str, torch.Tensor]:
    return {
        layer.name.removesuffix(".1"): layer.bias.value() for layer in layers(model) if layer.bias is not None
    }


def test_factors_on_data_err_less_than_without(source, arch, data, tmp_path):
    (x,) = (torch.from_numpy(np.load(data)["x"]),)
    whole = opened(source, arch).outputs_of(x)[0]
    command = ["factorize", str(source), "--stream", "--ratio", "0.6"]
    errors = []
    for name, more in (("data", ["--data", data, "--arch", arch]), ("weights", [])):
        with pytest.raises(SystemExit) as ended:
            main([*command, *more, "-o", str(tmp_path / name), "--exclude", "embed"])
        assert not ended.value.code
        errors.append(float((opened(tmp_path / name, arch).outputs_of(x)[0] - whole).norm()))
    assert errors[0] < errors[1]


@pytest.mark.parametrize("text", ["prune:pattern=2:4", "factorize:ratio=0.6"])
def test_a_killed_run_of_other_passes_goes_on(text, source, arch, data, tmp_path):
    class Early:
        def step(self, description, done, total):
            if description in ("pruning connections", "factorizing") and done == 5:
                raise Killed

    with pytest.raises(Killed):
        streamed(source, tmp_path / "out", arch, data, text, progress=Early())
    again = streamed(source, tmp_path / "out", arch, data, text)
    once = streamed(source, tmp_path / "once", arch, data, text)
    assert (again.resumed, once.resumed) == (1, 0)
    assert again.rows == once.rows
    for file in (tmp_path / "once").glob("*.safetensors*"):
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("prune:std=0.5", "no --pattern"),
        ("factorize:ratio=0.6,minimize=model", "--minimize model"),
        ("factorize:macs=0.6", "--macs looks at the network"),
    ],
)
def test_options_that_data_does_not_go_with(text, told, source, arch, data, tmp_path):
    with pytest.raises(UsageError, match="--stream") as refused:
        streamed(source, tmp_path / "out", arch, data, text)
    assert told in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_without_a_network_or_a_group_size(source, arch, data, tmp_path):
    with pytest.raises(UsageError, match="--arch"):
        streamed(source, tmp_path / "out", None, data)
    with pytest.raises(UsageError, match="--group-size"):
        streamed(source, tmp_path / "out", arch, data, "quantize:mode=weights")


def test_the_command_rounds_shards_on_data_and_says_so(source, arch, data, tmp_path, capsys):
    command = f"quantize {source} --stream --weight-bits 4 --group-size 16 --data {data}".split()
    command += ["--arch", arch, "-o", str(tmp_path / "out"), "--limit", "8"]
    with pytest.raises(SystemExit) as ended:
        main(command)
    printed = capsys.readouterr()
    assert not ended.value.code, printed.err
    assert "3 shards and their index" in " ".join(printed.out.split())
    assert "changed for what it multiplies on the data" in printed.err
    for more, told in (
        (["--target", "ort-cpu"], "goes without --target"),
        (["--rounding", "nearest"], "--rounding looks at the network"),
        (["--keep", "none*"], "names no layer"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*command, *more])
        assert ended.value.code == 2
        assert told in capsys.readouterr().err
