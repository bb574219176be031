"""`--with-past`: a decoder and its decoder with past by one command."""

import pytest
import torch
from torch.export import Dim

import nncompress
from nncompress import exporting
from nncompress.cli.app import run
from nncompress.errors import ExitCode, OutputError
from nncompress.ir.edit.pair import Pair
from tests.ir.edit.decoders import HEADS, SIZE, decoder_pair
from tests.support.kills import half_moved


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    _, prompt, step = decoder_pair()
    nncompress.export(prompt, "decoder.pt2")
    nncompress.export(step, "with_past.pt2")
    return tmp_path


def ran(*words, command="prune-nodes"):
    return run([command, "decoder.pt2", "--with-past", "with_past.pt2", *words])


def test_both_files_are_written_and_fit_each_other(folder):
    assert ran("--mode", "weights", command="quantize") == 0
    pair = Pair(*(nncompress.load(f"{name}.quantize.pt2") for name in ("decoder", "with_past")))
    rounded = [name for name, value in pair.step.state_dict().items() if value.dtype == torch.int8]
    assert len(rounded) == 9
    assert all(pair.prompt.tensor(name).equal(pair.step.tensor(name)) for name in rounded)


def test_a_file_of_the_user_is_not_replaced_by_the_second_result(folder, capsys):
    (folder / "out").mkdir()
    kept = folder / "out" / "with_past.pt2"
    kept.write_bytes(b"mine")
    assert ran("--mode", "weights", "-o", "out/new.pt2", command="quantize") == ExitCode.OUTPUT
    assert "nncompress did not write it" in " ".join(capsys.readouterr().err.split())
    assert kept.read_bytes() == b"mine"


def test_what_does_not_go_is_refused_with_its_remedy(folder, capsys):
    assert ran("--latency", "0.5") == ExitCode.USAGE
    assert "try:      --macs or --params" in capsys.readouterr().err
    assert ran("--ratio", "0.5", "-o", "new.pt2") == ExitCode.OUTPUT  # the second's would be with_past.pt2
    assert not (folder / "new.pt2").exists()
    assert run(["prune-nodes", "with_past.pt2", "--with-past", "decoder.pt2"]) == ExitCode.USAGE
    assert "takes no cache" in capsys.readouterr().err


def test_second_weights_that_are_ours_are_replaced(folder):
    (folder / "out").mkdir()
    for _ in range(2):
        assert ran("--ratio", "0.5", "-o", "out/new.safetensors") == 0
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "new.safetensors",
        "with_past.safetensors",
    ]


@pytest.mark.parametrize("suffix", ["pt2", "onnx"])
def test_where_the_second_cannot_be_written_both_stay_as_they_were(folder, suffix, monkeypatch):
    (folder / "out").mkdir()
    assert ran("--mode", "weights", "-o", f"out/new.{suffix}", command="quantize") == 0
    before = {path.name: path.read_bytes() for path in (folder / "out").iterdir()}
    writer, written = exporting.WRITERS[f".{suffix}"], []

    def full(model, path, **how):
        written.append(path)
        if len(written) == 2:
            raise OutputError(f"cannot write {path}", got="No space left on device")
        return writer(model, path, **how)

    monkeypatch.setitem(exporting.WRITERS, f".{suffix}", full)
    assert ran("--ratio", "0.5", "-o", f"out/new.{suffix}") == ExitCode.OUTPUT
    assert {path.name: path.read_bytes() for path in (folder / "out").iterdir()} == before
    assert len(before) == len(written) == 2


def test_a_pair_of_which_one_was_left_by_a_killed_run_is_completed_by_the_next_which_says_so(folder, capsys):
    (folder / "out").mkdir()
    assert ran("--mode", "weights", "-o", "out/new.pt2", command="quantize") == 0
    before = (folder / "out" / "with_past.pt2").read_bytes()
    (folder / "new").mkdir()
    for name, added in (("with_past.pt2", b"new"), ("decoder.pt2", b"")):
        (folder / "new" / name).write_bytes(before + added)
    half_moved(folder / "out", folder / "new" / "with_past.pt2", folder / "new" / "decoder.pt2")
    assert (folder / "out" / "with_past.pt2").read_bytes() == before
    assert ran("--mode", "weights", "-o", "out/other.safetensors", command="quantize") == 0
    assert "with_past.pt2: put in place now" in " ".join(capsys.readouterr().err.split())
    assert (folder / "out" / "with_past.pt2").read_bytes() == before + b"new"


class Scaled(torch.nn.Module):
    """A graph of a decoder whose logits are multiplied by one more input."""

    def __init__(self, graph):
        super().__init__()
        self.graph = graph

    def forward(self, ids, mask, past, rate):
        logits, *cache = self.graph(ids, mask, *past)
        return logits * rate, *cache


def test_a_constant_of_input_is_one_of_both_files(folder, capsys):
    net, _, _ = decoder_pair()
    batch, length, past = Dim("batch", max=64), Dim("length", min=2, max=60), Dim("past", min=2, max=60)
    ids, mask, cached = torch.zeros(2, 5, dtype=torch.int64), torch.ones(2, 6), torch.zeros(2, HEADS, 5, SIZE)
    text, kept = {0: batch, 1: length}, {0: batch, 2: past}
    for file, given, shapes in (
        ("decoder", (ids, torch.ones(2, 5), ()), (text, text, ())),
        (
            "with_past",
            (ids[:, :1], mask, (cached, cached + 1)),
            ({0: batch}, {0: batch, 1: past + 1}, (kept, kept)),
        ),
    ):
        made = torch.export.export(Scaled(net), (*given, torch.tensor(1.0)), dynamic_shapes=(*shapes, None))
        torch.export.save(made, f"{file}.pt2")
    assert ran("--ratio", "0.5", "--input", "rate=2.0") == 0
    for file in ("decoder", "with_past"):
        assert "rate" not in [spec.name for spec in nncompress.load(f"{file}.prune-nodes.pt2").inputs]
