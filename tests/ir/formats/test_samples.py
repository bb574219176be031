"""Samples kept with a model: how many, how they are stored, and what of a stranger's file is refused."""

import base64
import json
import zipfile

import numpy as np
import pytest
import torch
from records import Records
from torch import nn

from nncompress.cli.app import run
from nncompress.errors import ModelFileError
from nncompress.exporting import write_onnx, write_pt2
from nncompress.ir import InputSpec, Model
from nncompress.ir.formats.samples import (
    MOST_BYTES,
    from_text,
    samples_of,
    to_text,
    verification_inputs,
    with_samples,
)
from nncompress.loading import load_model
from nncompress.passes import Context, Prune, Quantize

IMAGE, TOKENS = InputSpec("x", "float32", ("batch", 3, 4)), InputSpec("ids", "int64", ("batch", "length"))
TABLE = InputSpec("table", "float32", (5,), fixed_dim=None)
ANY = {"batch": (1, None), "length": (2, 512)}


def test_samples_are_spread_over_the_data_and_halved_where_that_is_near_enough():
    x = torch.arange(64.0)[:, None, None].expand(64, 3, 4)
    ids, table = torch.arange(64)[:, None].expand(64, 7), torch.full((5,), 1e6)
    kept = samples_of(with_samples((IMAGE, TOKENS, TABLE), (x, ids, table)))
    assert kept[0][:, 0, 0].tolist() == [0, 8, 16, 24, 32, 40, 48, 56]
    assert torch.equal(kept[1][:, 0], kept[0][:, 0, 0].long())
    assert [t.dtype for t in kept] == [torch.float16, torch.int64, torch.float32]  # 1e6 is none of 16 bits


@pytest.mark.parametrize(("values", "count"), [(2**15, 8), (2**17, 4), (2**19, 1), (2**20, 0)])
def test_samples_are_bounded_in_bytes(values, count):
    spec = InputSpec("x", "float32", ("batch", values))
    kept = samples_of(with_samples((spec,), (torch.ones(8, values),)))
    assert sum(len(t) for t in kept) == count
    assert sum(t.nbytes for t in kept) <= MOST_BYTES


def test_samples_that_are_not_finite_are_not_kept():
    assert not samples_of(with_samples((IMAGE,), (torch.full((8, 3, 4), torch.nan),)))


def test_text_comes_back():
    given = with_samples((IMAGE, TOKENS), (torch.randn(9, 3, 4), torch.randint(9, (9, 7))))
    back = from_text(to_text(given).encode(), (IMAGE, TOKENS), ANY)
    for ours, read in zip(samples_of(given), samples_of(back), strict=True):
        assert torch.equal(ours, read)


def of_type(name: str) -> bytes:
    header = json.dumps({"0": {"dtype": name, "shape": [2, 2], "data_offsets": [0, 2]}}).encode()
    return base64.b64encode(len(header).to_bytes(8, "little") + header + bytes(2))


def text(**tensors):
    """A safetensors file, by its specification, in base 64."""
    header, data = {}, b""
    kinds = {"float32": "F32", "float64": "F64", "int64": "I64", "float16": "F16"}
    for name, array in tensors.items():
        span = [len(data), len(data) + array.nbytes]
        header[name] = {"dtype": kinds[array.dtype.name], "shape": array.shape, "data_offsets": span}
        data += array.tobytes()
    head = json.dumps(header).encode()
    return base64.b64encode(len(head).to_bytes(8, "little") + head + data)


X, IDS = np.ones((2, 3, 4), np.float32), np.ones((2, 7), np.int64)


@pytest.mark.parametrize(
    ("stored", "why"),
    [
        (b"!!!", "do not unpack"),
        (b"AAAA", "do not unpack"),
        (of_type("F4"), "do not unpack"),  # a type of the format that torch has not
        (text(**{"0": X, "1": IDS})[:-40], "do not unpack"),
        (b"A" * (2 * MOST_BYTES + 4), "bytes of samples"),
        (text(**{"0": X}), "of 1 inputs, for 2"),
        (text(**{"0": X, "2": IDS}), "of 2 inputs, for 2"),
        (text(**{"0": X.astype(np.float64), "1": IDS}), "for x"),
        (text(**{"0": IDS, "1": IDS}), "for x"),
        (text(**{"0": X[:, :2].copy(), "1": IDS}), "for x"),
        (text(**{"0": X[:1], "1": IDS}), "for ids"),
        (text(**{"0": X[:0], "1": IDS[:0]}), "batch = 0"),
        (text(**{"0": np.ones((9, 3, 4), np.float32), "1": np.ones((9, 7), np.int64)}), "batch = 9"),
        (text(**{"0": X, "1": np.ones((2, 513), np.int64)}), "length = 513"),
        (text(**{"0": X * np.nan, "1": IDS}), "not finite"),
        (text(**{"0": X * np.inf, "1": IDS}), "not finite"),
    ],
)
def test_samples_of_a_stranger_are_checked(stored, why):
    with pytest.raises(ValueError, match=why):
        from_text(stored, (IMAGE, TOKENS), ANY)


def test_the_file_of_a_stranger_is_known_to_be_read():
    assert samples_of(from_text(text(**{"0": X, "1": IDS}), (IMAGE, TOKENS), ANY))[1].shape == (2, 7)


class Looks(nn.Module):
    def __init__(self):
        super().__init__()
        self.table, self.head = nn.Embedding(20, 16), nn.Linear(16, 3)

    def forward(self, ids):
        return self.head(self.table(ids).relu().mean(1))


@pytest.fixture(scope="module")
def quantized():
    torch.manual_seed(0)
    model = Model.from_module(Looks().eval(), (torch.randint(20, (2, 6)),))
    Quantize().apply(model, Context(data=Records((torch.randint(20, (32, 6)),))))
    return model


def test_samples_live_in_the_pt2_alone_and_outlive_other_passes(quantized, tmp_path):
    write_pt2(quantized, tmp_path / "m.pt2")
    loaded = load_model(tmp_path / "m.pt2")
    assert torch.equal(*samples_of((*quantized.inputs, *loaded.inputs)))
    pruned = loaded.copy()
    Prune(sparsity=0.5).apply(pruned, Context())
    assert torch.equal(verification_inputs(pruned)[0], verification_inputs(quantized)[0])
    write_onnx(quantized, tmp_path / "m.onnx")
    (kept,) = samples_of(quantized.inputs)
    assert kept.numpy().tobytes() not in (tmp_path / "m.onnx").read_bytes()
    assert not samples_of(load_model(tmp_path / "m.onnx").inputs)


def test_none_are_kept_where_none_are_wanted(tmp_path):
    model = Model.from_module(Looks().eval(), (torch.randint(20, (2, 6)),))
    context = Context(data=Records((torch.randint(20, (32, 6)),)))
    Quantize(no_samples=True).apply(model, context)
    assert not samples_of(model.inputs)
    assert not any("samples of the data" in note for note in context.notes)
    write_pt2(model, tmp_path / "m.pt2")
    with zipfile.ZipFile(tmp_path / "m.pt2") as archive:
        assert not any(name.endswith("nncompress.samples") for name in archive.namelist())


def test_export_takes_them_out_again(quantized, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_pt2(quantized, tmp_path / "m.pt2")
    assert run(["export", "m.pt2", "--no-samples", "-o", "bare.pt2"]) == 0
    assert samples_of(load_model(tmp_path / "m.pt2").inputs)
    assert not samples_of(load_model(tmp_path / "bare.pt2").inputs)
    with zipfile.ZipFile(tmp_path / "bare.pt2") as archive:
        assert not any(name.endswith("nncompress.samples") for name in archive.namelist())


@pytest.mark.parametrize("rows", [20, -1])
def test_a_pt2_with_samples_that_the_model_does_not_take_is_refused(quantized, tmp_path, rows):
    """Numbers of rows that the table does not have."""
    write_pt2(quantized, tmp_path / "good.pt2")
    with zipfile.ZipFile(tmp_path / "good.pt2") as good, zipfile.ZipFile(tmp_path / "m.pt2", "w") as bad:
        for name in good.namelist():
            other = text(**{"0": np.full((2, 6), rows, np.int64)}) if name.endswith(".samples") else None
            bad.writestr(name, other or good.read(name))
    with pytest.raises(ModelFileError, match="samples on which the model does not run"):
        load_model(tmp_path / "m.pt2")
