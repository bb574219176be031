"""`.pt2`, `.safetensors`, and how files are written."""

import errno
import json
import zipfile
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_model
from torch import nn

from nncompress.errors import OutputError, UnsupportedError, UsageError
from nncompress.exporting import write, write_pt2, write_safetensors
from nncompress.exporting.write import ort, pte, xml
from nncompress.files.atomic import replacing, why_and_remedy
from nncompress.ir import Model
from tests.exporting.networks import Language, convolutional, language


@pytest.mark.parametrize("make", [convolutional, language])
def test_pt2_round_trip_is_exact(tmp_path, make):
    model = make()
    model.history.append({"pass": "x"})
    model.metadata["normalize"] = "imagenet"
    write_pt2(model, tmp_path / "m.pt2")
    extra = {"nncompress.json": ""}
    loaded = Model.from_exported(torch.export.load(tmp_path / "m.pt2", extra_files=extra))
    for got, expected in zip(
        loaded.outputs_of(*model.example_inputs(3)), model.outputs_of(*model.example_inputs(3))
    ):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    record = json.loads(extra["nncompress.json"])
    assert record["schema"] == 1
    assert record["inputs"] == [spec.to_json() for spec in model.inputs]
    assert record["outputs"] == list(model.outputs)
    assert record["dynamic"] == {"batch": [1, 4096]}
    assert record["history"] == [{"pass": "x"}]
    assert record["metadata"] == {"normalize": "imagenet"}


def test_pt2_holds_no_sample_inputs(tmp_path):
    write_pt2(convolutional(), tmp_path / "m.pt2")
    with zipfile.ZipFile(tmp_path / "m.pt2") as archive:
        samples = [i for i in archive.infolist() if "sample_inputs" in i.filename]
        assert all(info.file_size == 0 for info in samples)


def test_safetensors_store_tied_weights_once_and_load_into_the_class(tmp_path):
    model = language()
    report = write_safetensors(model, tmp_path / "m.safetensors")
    with safe_open(tmp_path / "m.safetensors", "pt") as file:
        assert len(list(file.keys())) == 3
    assert report.bytes < 4 * (60 * 16 + 16 * 16 + 16) + 1024
    fresh = Language().eval()
    load_model(fresh, tmp_path / "m.safetensors")
    inputs = model.example_inputs(2)
    torch.testing.assert_close(fresh(*inputs)["logits"], model(*inputs)[0])


def test_suffix_chooses_the_format(tmp_path):
    with pytest.raises(UsageError, match="cannot tell a format"):
        write(convolutional(), tmp_path / "m.tflite")
    assert write(convolutional(), tmp_path / "m.PT2").bytes > 0


def test_failure_leaves_what_was_there(tmp_path):
    target = tmp_path / "m.bin"
    target.write_bytes(b"old")

    def write_half():
        with replacing(target) as temporary:
            temporary.write_bytes(b"half")
            raise ValueError("stop")

    with pytest.raises(ValueError, match="stop"):
        write_half()
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["m.bin"]


@pytest.fixture
def full():
    """No file may have more than 500 bytes, which stops C++ writers too."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.parametrize("name", ["m.pt2", "m.onnx", "m.safetensors"])
def test_a_full_disk_is_one_error(tmp_path, name, full):
    full()
    with pytest.raises(OutputError, match="cannot write"):
        write(convolutional(), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_no_model_that_has_no_ort(tmp_path, full):
    write(convolutional(), tmp_path / "m.onnx")
    full()
    with pytest.raises(OSError, match="ONNX Runtime cannot write"):
        ort._convert(tmp_path / "m.onnx")


def test_of_a_copy_the_disk_that_is_written_to_is_full(tmp_path):
    error = OSError(errno.ENOSPC, "No space left on device", "/tmp/tmp1/m.ort", None, str(tmp_path / "m.ort"))
    assert why_and_remedy(error, tmp_path) == (
        "No space left on device", "check the folder's permissions and free space"
    )  # fmt: skip


def test_a_full_disk_is_no_op_that_a_runtime_lacks(tmp_path):
    """What their libraries make of it: a cause far down, a C++ stream that does not say why."""
    lowering = RuntimeError("lowering failed")
    lowering.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert pte._refusal(lowering).errno == errno.ENOSPC
    assert isinstance(pte._refusal(ValueError("no such op")), UnsupportedError)

    def save(error):
        def refuse(*arguments, **options):
            raise RuntimeError(error)

        return SimpleNamespace(save_model=refuse)

    with pytest.raises(OSError, match="OpenVINO cannot write"):
        xml._save(save("basic_ios::clear: iostream error"), None, tmp_path / "m.xml")
    with pytest.raises(RuntimeError, match="no such op"):
        xml._save(save("no such op"), None, tmp_path / "m.xml")


def test_missing_and_unwritable_folders(tmp_path, monkeypatch):
    with pytest.raises(OutputError, match="cannot write"):
        write_pt2(convolutional(), tmp_path / "none" / "m.pt2")
    with pytest.raises(OutputError, match="cannot write"):
        write_pt2(convolutional(), tmp_path)
    from nncompress.files import atomic

    def refuse(**options):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(atomic.tempfile, "mkdtemp", refuse)
    with pytest.raises(OutputError, match="cannot write") as caught:
        write_pt2(convolutional(), tmp_path / "m.pt2")
    assert caught.value.got == "Permission denied"


def test_the_file_tells_nothing_of_where_the_graph_was_traced(tmp_path):
    model = Model.from_module(nn.Sequential(nn.Linear(3, 4), nn.ReLU()).eval(), (torch.randn(2, 3),))
    sizes = []
    for _ in range(3):
        model.refresh()
        write_pt2(model, tmp_path / "m.pt2")
        sizes.append((tmp_path / "m.pt2").stat().st_size)
    assert len(set(sizes)) == 1, "tracing again must not make the file grow"
    content = (tmp_path / "m.pt2").read_bytes()
    assert b"stack_trace" not in content
    assert __file__.rpartition("/")[2].encode() not in content
