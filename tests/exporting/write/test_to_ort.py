"""`.ort`: ONNX Runtime's own converter, run and compared."""

import networks
import numpy as np
import pytest
import torch
from records import images

from nncompress.errors import ModelFileError, NNCompressError, OutputError
from nncompress.exporting import write
from nncompress.passes import Context, Quantize
from nncompress.runtimes import open_artifact


@pytest.fixture(scope="module")
def model():
    return networks.model("residual")


def test_agrees_and_says_what_a_minimal_build_needs(model, tmp_path, capfd):
    report = write(model, tmp_path / "m.ort")
    assert capfd.readouterr() == ("", "")
    assert report.bytes == (tmp_path / "m.ort").stat().st_size
    inputs = networks.inputs("residual", 5, seed=4)
    runner = open_artifact(tmp_path / "m.ort")
    torch.testing.assert_close(torch.from_numpy(runner.run(*inputs)[0]), model(*inputs), rtol=1e-4, atol=1e-5)
    assert runner.inputs == model.inputs
    assert "FusedConv" in (tmp_path / "m.required_operators.config").read_text()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.ort", "m.required_operators.config"]


def test_a_list_of_operators_that_is_not_as_it_was_written_stays(model, tmp_path):
    write(model, tmp_path / "m.ort")
    write(model, tmp_path / "m.ort")
    before = (tmp_path / "m.ort").read_bytes()
    operators = tmp_path / "m.required_operators.config"
    for theirs in (operators.read_text() + "ai.onnx;1;Mul\n", "my notes", "\0" * 100):
        operators.write_text(theirs)
        with pytest.raises(OutputError, match="did not write it"):
            write(model, tmp_path / "m.ort")
        assert operators.read_text() == theirs
        assert (tmp_path / "m.ort").read_bytes() == before


def test_int8_kernels_are_in_the_file(model, tmp_path):
    quantized = model.copy()
    Quantize().apply(quantized, Context(data=images(64, None)))
    report = write(quantized, tmp_path / "m.ort")
    assert report.int8.startswith("4 of 4 in int8")  # how fast that is follows
    assert "QLinearConv" in (tmp_path / "m.required_operators.config").read_text()


@pytest.mark.parametrize("damage", ["empty", "half", "bytes"])
def test_broken_files_give_one_error_and_no_noise(model, tmp_path, capfd, damage):
    path = tmp_path / "m.ort"
    write(model, path)
    content = bytearray(path.read_bytes())
    if damage == "bytes":
        for place in np.random.default_rng(0).integers(0, len(content), 500):
            content[place] ^= 255
    path.write_bytes({"empty": b"", "half": bytes(content[: len(content) // 2])}.get(damage, bytes(content)))
    with pytest.raises(ModelFileError if damage != "bytes" else NNCompressError):
        open_artifact(path)
    assert capfd.readouterr() == ("", "")
