"""A pass over shards, one weight at a time: the same numbers as in memory, resumed after a kill."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from nncompress import pipeline
from nncompress.cli import main
from nncompress.errors import ModelFileError, NNCompressError, OutputError, UsageError
from nncompress.files.ledger import Ledger
from nncompress.files.lock import alone_in
from nncompress.ir import Model
from nncompress.ir.layers.weights import layers
from nncompress.loading import load_model
from nncompress.loading.state_dict.shards import INDEX, open_checkpoint
from nncompress.passes import Context
from nncompress.recipe import parse_pass
from nncompress.streaming import run
from nncompress.streaming.shards import alone_at

WIDTH, VOCABULARY = 64, 80
SHARD = 40_000  # bytes: three shards


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.norm = nn.Embedding(VOCABULARY, WIDTH), nn.LayerNorm(WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 2 * WIDTH), nn.Linear(2 * WIDTH, WIDTH)
        self.conv = nn.Conv1d(WIDTH, 8, 3)

    def forward(self, ids):
        x = self.embed(ids)
        return self.conv((x + self.down(self.up(self.norm(x)).relu())).transpose(1, 2))


def built():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture
def folder(tmp_path):
    """Its weights in two shards, with a configuration beside them."""
    folder = tmp_path / "source"
    folder.mkdir()
    weights = built().state_dict()
    names = list(weights)
    listed = {}
    for file, part in (("a.safetensors", names[:3]), ("b.safetensors", names[3:])):
        save_file({name: weights[name] for name in part}, folder / file)
        listed |= dict.fromkeys(part, file)
    (folder / INDEX).write_text(json.dumps({"weight_map": listed}))
    (folder / "settings.json").write_text("{}")
    return folder


@pytest.fixture
def arch(tmp_path):
    (tmp_path / "net.py").write_text(
        f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\nfrom test_run import built\n"
    )
    return f"{tmp_path / 'net.py'}:built"


def streamed(text, folder, out):
    return run(parse_pass(text), open_checkpoint(folder), out, shard=SHARD)


@pytest.mark.parametrize(
    "text",
    [
        "quantize:weight_bits=4,group_size=32,asymmetric=true,keep=up",
        "quantize:mode=weights,weight_bits=3",
        "prune:std=0.7",
        "prune:pattern=2:4",
        "cluster:codebook=16",
        "factorize:rank=8,exclude=embed+conv",
    ],
)
def test_every_weight_becomes_what_it_becomes_in_memory(text, folder, arch, tmp_path):
    done = streamed(text, folder, tmp_path / "out")
    assert done.shards == 3
    read = load_model(tmp_path / "out", arch=arch, input_shapes="Bx5:int64")
    ids = torch.randint(0, VOCABULARY, (2, 5))
    memory, _ = pipeline.run(Model.from_module(built(), (ids,)), [parse_pass(text)], Context())
    found = {layer.name: layer.weight.value() for layer in layers(read)}
    if text.startswith("factorize"):
        with torch.no_grad():
            torch.testing.assert_close(read(ids), memory(ids), rtol=1e-4, atol=1e-5)
    else:
        for layer in layers(memory):
            assert torch.equal(layer.weight.value(), found[layer.name]), layer.name
    changed = {row.name for row in done.rows if row.applied}
    assert changed
    assert {"norm.weight", "up.bias"}.isdisjoint(changed)
    original = built().state_dict()
    for row in done.rows:
        if not row.applied:
            assert row.error == 0
            continue
        now = found.get(row.name.removesuffix(".weight"), original[row.name])
        moved = float((now - original[row.name]).norm() / original[row.name].norm())
        assert row.error == pytest.approx(moved, rel=1e-4, abs=1e-6)


def test_a_killed_run_goes_on_where_it_was(folder, tmp_path):
    class Killed(Exception):
        pass

    class Kill:
        def step(self, description, done, total):
            if done > SHARD:
                raise Killed

    chosen = parse_pass("quantize:mode=weights")
    with pytest.raises(Killed):
        run(chosen, open_checkpoint(folder), tmp_path / "out", progress=Kill(), shard=SHARD)
    assert not (tmp_path / "out" / INDEX).exists()
    again = run(chosen, open_checkpoint(folder), tmp_path / "out", shard=SHARD)
    whole = run(chosen, open_checkpoint(folder), tmp_path / "whole", shard=SHARD)
    assert 0 < again.resumed < again.shards
    assert whole.resumed == 0
    assert again.rows == whole.rows
    for file in (tmp_path / "whole").glob("*.safetensors*"):
        assert file.read_bytes() == (tmp_path / "out" / file.name).read_bytes()


def test_other_settings_or_another_source_are_not_taken_for_the_same(folder, tmp_path):
    out = tmp_path / "out"
    streamed("quantize:mode=weights", folder, out)
    assert streamed("quantize:mode=weights", folder, out).resumed == 3
    assert streamed("quantize:mode=weights,weight_bits=7", folder, out).resumed == 0
    weights = load_file(folder / "a.safetensors")
    save_file({name: 2 * weight for name, weight in weights.items()}, folder / "a.safetensors")
    assert streamed("quantize:mode=weights,weight_bits=7", folder, out).resumed < 3
    one = run(parse_pass("prune:std=0.5"), open_checkpoint(folder), out)
    assert one.shards == 1
    assert sorted(file.name for file in out.glob("*.safetensors")) == ["model-00001-of-00001.safetensors"]


@pytest.mark.parametrize(
    "record",
    ["[]", "{", "[" * 5000, '{"made_from": [], "rows": []}', '{"made_from": {}, "rows": [{"name": 1}]}'],
)
def test_a_shard_whose_record_is_none_is_made_anew(record, folder, tmp_path):
    out = tmp_path / "out"
    streamed("quantize:mode=weights", folder, out)
    shard = sorted(out.glob("*.safetensors"))[0]
    whole = load_file(shard)
    save_file(whole, shard, {"streamed": record})
    Ledger(out).adopt(shard.name)
    assert streamed("quantize:mode=weights", folder, out).resumed == 2
    assert load_file(shard).keys() == whole.keys()


def test_half_precision_stays_half(tmp_path):
    weight = torch.randn(64, 32).to(torch.bfloat16)
    save_file({"a.weight": weight, "scale": torch.ones(3).half()}, tmp_path / "a.safetensors")
    done = streamed("prune:sparsity=0.1,scope=layer", tmp_path / "a.safetensors", tmp_path / "out")
    read, _ = _weights(tmp_path / "out")
    assert read["a.weight"].dtype == torch.bfloat16
    assert read["scale"].dtype == torch.float16
    assert int((read["a.weight"] == 0).sum()) == 204
    kept = read["a.weight"] != 0
    assert torch.equal(read["a.weight"][kept], weight[kept])
    assert [row.what for row in done.rows] == ["10.0% of 2048 weights are zero", "kept: no weight of a layer"]
    streamed("quantize:mode=weights", tmp_path / "a.safetensors", tmp_path / "int8")
    read, _ = _weights(tmp_path / "int8")
    reach = weight.float().abs().amax(1, keepdim=True)
    assert ((read["a.weight"] - weight.float()).abs() <= reach / 127 / 2 + 1e-6).all()


def _weights(folder):
    from nncompress.loading.state_dict.fill import read_shards

    return read_shards(folder)


def _missing(folder):
    (folder / "b.safetensors").unlink()


def _twice(folder):
    shutil.copy(folder / "b.safetensors", folder / "c.safetensors")
    _relist(folder, lambda listed: listed | {"more": "c.safetensors"})


def _elsewhere(folder):
    _relist(folder, lambda listed: listed | {"embed.weight": "b.safetensors"})


def _nowhere(folder):
    _relist(folder, lambda listed: listed | {"other.weight": "b.safetensors"})


def _unlisted(folder):
    _relist(folder, lambda listed: {k: v for k, v in listed.items() if k != "conv.bias"})


def _outside(folder):
    _relist(folder, lambda listed: listed | {"embed.weight": "../source/a.safetensors"})


def _cut(folder):
    file = folder / "b.safetensors"
    file.write_bytes(file.read_bytes()[:-7])


def _no_index(folder):
    (folder / INDEX).unlink()


def _relist(folder, change):
    listed = json.loads((folder / INDEX).read_text())["weight_map"]
    (folder / INDEX).write_text(json.dumps({"weight_map": change(listed)}))


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (_missing, "lists shards that are not there"),
        (_twice, "lies in two shards"),
        (_elsewhere, "do not agree on 'embed.weight'"),
        (_nowhere, "do not agree on 'other.weight'"),
        (_unlisted, "do not agree on 'conv.bias'"),
        (_outside, "names no file of its folder"),
        (_cut, "is damaged"),
        (_no_index, "holds 2 .safetensors files and no"),
    ],
)
def test_shards_and_an_index_that_do_not_belong_together(spoil, told, folder, arch, tmp_path):
    spoil(folder)
    with pytest.raises(ModelFileError, match=told):
        open_checkpoint(folder)
    if spoil is not _no_index:
        with pytest.raises(ModelFileError, match=told):
            load_model(folder / INDEX, arch=arch, input_shapes="Bx5:int64")


@pytest.mark.parametrize(
    "header",
    [
        b"[]",
        b'{"a": {"dtype": "F32", "shape": [4], "data_offsets": [0, 12]}}',
        b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [4, 16]}}',
        b'{"a": {"dtype": "F32", "shape": [-3], "data_offsets": [0, 12]}}',
        b'{"a": {"dtype": "F99", "shape": [3], "data_offsets": [0, 12]}}',
        b'{"a": {"dtype": "F32", "shape": [3], "data_offsets": [0, 12.0]}}',
        b'{"a": 3}',
        b"{",
        b'{"a":' * 50_000,
    ],
)
def test_headers_that_lie_are_told_as_damage(header, tmp_path):
    file = tmp_path / "a.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + bytes(12))
    with pytest.raises(ModelFileError, match="damaged"):
        open_checkpoint(file)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("quantize", "add --mode weights"),
        ("quantize:weight_bits=4,group_size=128", "does not divide the inputs of embed"),
        ("quantize:mode=weights,max_drift=0.1", "--max-drift looks at the network as a whole"),
        ("prune:sparsity=0.5", "--scope layer"),
        ("prune:std=1,exclude=head*", "--exclude head\\* names no layer"),
        ("factorize:macs=0.5", "--macs looks at the network"),
        ("cluster:codebook=4,weighting=fisher", "--weighting looks at the network"),
        ("prune-nodes:ratio=0.5", "looks at the network as a whole"),
    ],
)
def test_what_needs_the_network_is_refused_before_anything_is_written(text, told, folder, tmp_path):
    with pytest.raises(UsageError, match=told):
        streamed(text, folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_weight_that_is_refused_leaves_no_empty_folder(tmp_path):
    weight = torch.full((8, 8), torch.nan)
    save_file({"up.weight": weight}, tmp_path / "a.safetensors")
    with pytest.raises(NNCompressError, match="up"):
        streamed("quantize:mode=weights", tmp_path / "a.safetensors", tmp_path / "made" / "out")
    assert not (tmp_path / "made").exists()


def test_a_file_that_is_not_there_is_not_called_damaged(tmp_path):
    with pytest.raises(ModelFileError, match="cannot be read") as caught:
        open_checkpoint(tmp_path / "a.safetensors")
    assert "no such file" in str(caught.value)


def test_a_folder_with_other_files_is_left_alone(folder, tmp_path):
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    with pytest.raises(OutputError, match="did not write"):
        streamed("quantize:mode=weights", folder, folder)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before


def test_two_processes_that_begin_together_do_not_both_begin(tmp_path):
    """Before the first shard, and its record, is there."""
    with (
        alone_at(tmp_path),
        pytest.raises(OutputError, match="another process is writing"),
        alone_at(tmp_path),
    ):
        pass


def test_two_processes_do_not_make_one_result_together(folder, tmp_path):
    out = tmp_path / "out"
    streamed("quantize:mode=weights", folder, out)
    with alone_in(out), pytest.raises(OutputError, match="another process is writing"):
        streamed("quantize:mode=weights", folder, out)
    assert streamed("quantize:mode=weights", folder, out).resumed == 3


def test_the_command_says_what_it_wrote_and_did_not_measure(folder, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    command = ["quantize", str(folder), "--stream", "--group-size", "64", "--weight-bits", "4"]
    with pytest.raises(SystemExit) as ended:
        main([*command, "-o", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert not ended.value.code, printed.err
    assert "weights of 4 bits in groups of 64" in printed.out
    assert "copied settings.json" in printed.out
    assert "how far the outputs of the network moved was not measured" in printed.err
    for more, told in (
        (["--timing", "--target", "ort-cpu"], "goes without --target"),
        (["--arch", "a.py:b"], "goes without --arch"),
        (["-o", "a.pt2"], "writes a folder"),
        ([], "writes a folder"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*command, *more])
        assert ended.value.code == 2
        assert told in capsys.readouterr().err
