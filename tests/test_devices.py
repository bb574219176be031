"""What a machine can run, on machines that are made up."""

import pytest

from nncompress import devices, extras
from nncompress.errors import DeviceError, MissingExtraError

H100 = devices.Gpu("H100", 80 << 30, (9, 0))


@pytest.fixture
def machine(monkeypatch):
    """machine(gpus=..., installed=..., torch=...) makes this machine one with these."""

    def make(gpus=(), installed=(), torch="2.13.0+cu130", broken=()):
        monkeypatch.setattr(devices, "fault", lambda module: "no libtbb.so" if module in broken else "")
        monkeypatch.setattr(devices, "gpus", lambda: tuple(gpus))
        monkeypatch.setattr(devices, "installed", lambda extra: extra in installed)
        real = extras.version
        monkeypatch.setattr(devices, "version", lambda name: torch if name == "torch" else real(name))

    return make


def test_cpuinfo_is_read(monkeypatch):
    text = "processor : 0\nmodel name : Fast CPU\nflags : fpu avx2 avx512_vnni\n\nprocessor : 1\n"
    monkeypatch.setattr(devices.Path, "read_text", lambda self: text)
    found = devices.processor()
    assert found.name == "Fast CPU"
    assert found.int8 == ("AVX512-VNNI",)
    assert found.vector == ("AVX2",)


@pytest.mark.parametrize(("flag", "said"), [("amx_bf16", True), ("avx512_bf16", True), ("avx512f", False)])
def test_openvino_computes_floats_in_bfloat16_where_the_processor_can(flag, said, machine, monkeypatch):
    machine(installed=("openvino",))
    found = devices.Processor("made up", 2, frozenset({flag}))
    monkeypatch.setattr(devices, "processor", lambda: found)
    (row,) = (row for row in devices.abilities() if row.runtime.startswith("OpenVINO"))
    assert ("bfloat16 unless told otherwise" in row.note) == said == ("bfloat16" in row.runs)


def test_what_cannot_be_imported_runs_nothing(machine, tmp_path, monkeypatch):
    machine(installed=("openvino",), broken=("openvino",))
    (row,) = (row for row in devices.abilities() if row.runtime.startswith("OpenVINO"))
    assert row.runs == ()
    assert row.note == "cannot be imported (no libtbb.so): pip install --force-reinstall openvino"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "colorsys.py").write_text("raise RuntimeError")
    assert not extras.fault("colorsys")  # Python's own, not a file of the folder
    assert extras.fault("nothing.of_this_name") == "ModuleNotFoundError: No module named 'nothing'"
    assert extras.fault("os, signal; os.kill(os.getpid(), signal.SIGSEGV)").startswith("exit code")


def test_a_gpu_without_its_runtimes(machine):
    machine([H100], torch="2.13.0+cpu")
    assert [row.runs for row in devices.abilities() if row.device == "H100"] == [(), ()]
    machine([H100])
    on_gpu = {row.runtime.split()[0]: row for row in devices.abilities() if row.device == "H100"}
    assert "bfloat16" in on_gpu["torch"].runs
    assert on_gpu["ONNX"].note == "onnxruntime-gpu is not installed"
    machine([devices.Gpu("T4", 16 << 30, (7, 5))])
    assert on_gpu["torch"].note == "linear layers also in int8 and 2:4"
    older = next(row for row in devices.abilities() if row.device == "T4")
    assert "bfloat16" not in older.runs
    assert "2:4" not in older.note


def test_what_is_missing_is_told_apart(machine):
    machine()
    with pytest.raises(DeviceError, match="no NVIDIA GPU"):
        devices.need_cuda("torch", "bench --device cuda")
    machine([H100])
    devices.need_cuda("torch", "bench --device cuda")
    with pytest.raises(MissingExtraError, match=r"pip install 'nncompress\[cuda\]'"):
        devices.need_cuda("onnxruntime", "bench --device cuda")
    machine([H100], installed=("cuda",), torch="2.13.0+cpu")
    with pytest.raises(MissingExtraError, match=r"torch 2\.13\.0\+cpu is for CPUs"):
        devices.need_cuda("onnxruntime", "bench --device cuda")
