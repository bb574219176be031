"""`bench --device`: what is refused at once, and what is measured."""

import networks
import pytest

from nncompress import devices, extras
from nncompress.cli.app import run
from nncompress.cli.work import bench_candidates
from nncompress.cli.work.artifacts import Artifact
from nncompress.errors import ExitCode, UsageError
from nncompress.exporting import write_pt2
from nncompress.passes import Context
from nncompress.passes.prune.options import Prune
from nncompress.passes.quantize.options import Quantize
from nncompress.progress import NullProgress


@pytest.fixture
def with_gpu(monkeypatch):
    monkeypatch.setattr(devices, "gpus", lambda: (devices.Gpu("H100", 80 << 30, (9, 0)),))
    monkeypatch.setattr(devices, "torch_has_cuda", lambda: True)
    monkeypatch.setattr(devices, "installed", lambda extra: True)


def test_without_a_gpu_one_message_and_nothing_else(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(devices, "gpus", lambda: ())
    assert run(["bench", "there-is-no-such.pt2", "--device", "cuda"]) == ExitCode.NO_DEVICE
    out, err = capsys.readouterr()
    assert out == ""
    assert err == (
        "error: bench --device cuda: there is no NVIDIA GPU on this machine, or no driver for it\n"
        "  try:      --device cpu\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_without_the_extra_one_line_and_its_own_exit_code(with_gpu, monkeypatch, capsys):
    monkeypatch.setattr(devices, "installed", lambda extra: False)
    assert run(["bench", "there-is-no-such.pt2", "--device", "cuda"]) == ExitCode.MISSING_EXTRA
    assert capsys.readouterr().err == (
        "error: bench --device cuda needs onnxruntime-gpu: pip install 'nncompress[cuda]'\n"
    )
    monkeypatch.setattr(extras, "installed", lambda extra: False)
    assert run(["bench", "there-is-no-such.pt2", "--device", "mobile"]) == ExitCode.MISSING_EXTRA


@pytest.mark.parametrize(
    "options",
    [
        ("cpu", "torch", "float16", None),
        ("mobile", "torch", None, None),
        ("cuda", "torch", "float8", None),
        ("cuda", "onnxruntime", None, "graphs"),
        ("cuda", "onnxruntime", "bfloat16", None),
        ("cuda", "onnxruntime", "float16-2:4", None),
        ("cuda", "torch", "float32-2:4", None),
        ("cuda", "torch", None, "fast"),
    ],
)
def test_options_that_do_not_go_together(with_gpu, options):
    with pytest.raises(UsageError):
        bench_candidates.target(*options)


def test_precisions_have_the_short_names_that_other_commands_take(with_gpu):
    found = bench_candidates.target("cuda", "torch", "bf16, f32,fp16,float16-2:4", None)
    assert found.precisions == ("bfloat16", "float32", "float16", "float16-2:4")


def candidates_of(model, to, tmp_path, name="m"):
    path = tmp_path / f"{name}.pt2"
    write_pt2(model, path)
    return bench_candidates.candidates_of(
        Artifact(path, model, None, name), name, to, tmp_path / name, NullProgress()
    )


def test_2_of_4_is_one_more_precision_of_models_that_are(with_gpu, tmp_path, capsys):
    to = bench_candidates.target("cuda", "torch", "float16,float16-2:4", "eager,graphs")
    model = networks.model("attention")
    names = [candidate.name for candidate in candidates_of(model, to, tmp_path)]
    assert names == ["m float16 eager", "m float16 graphs"]
    assert "no linear layer that is 2:4" in capsys.readouterr().err
    Prune(pattern="2:4").apply(model, Context())
    candidates = candidates_of(model, to, tmp_path)
    assert [candidate.name for candidate in candidates[2:]] == ["m float16-2:4 eager", "m float16-2:4 graphs"]
    assert [candidate.cuda.sparse for candidate in candidates] == [False, False, True, True]
    assert {candidate.artifact.inputs[0].dtype for candidate in candidates} == {"float16"}


def test_a_quantized_model_has_the_precision_it_has(with_gpu, tmp_path):
    model = networks.model("residual")
    Quantize(mode="weights").apply(model, Context())
    to = bench_candidates.target("cuda", "torch", "float32,float16", None)
    (candidate,) = candidates_of(model, to, tmp_path)
    assert candidate.name == "m int8"
    assert candidate.artifact is model


def test_a_profile_of_the_gpu_is_refused_at_once(with_gpu, capsys):
    assert run(["bench", "none.pt2", "--device", "cuda", "--profile"]) == ExitCode.USAGE
    assert "nsys" in capsys.readouterr().err


def test_every_model_in_every_precision_and_mode(with_gpu, tmp_path):
    model = networks.model("residual")
    path = tmp_path / "m.pt2"
    write_pt2(model, path)
    to = bench_candidates.target("cuda", "torch", "float32,float16", "eager,graphs")
    candidates = bench_candidates.candidates_of(
        Artifact(path, model, None, "m"), "m", to, tmp_path / "0", NullProgress()
    )
    assert [candidate.name for candidate in candidates] == [
        "m float32 eager", "m float32 graphs", "m float16 eager", "m float16 graphs"
    ]  # fmt: skip
    assert [candidate.artifact.inputs[0].dtype for candidate in candidates] == [
        "float32",
        "float32",
        "float16",
        "float16",
    ]
    assert {candidate.cuda.runtime for candidate in candidates} == {"torch"}
    to = bench_candidates.target("cuda", "onnxruntime", "float16", None)
    (candidate,) = bench_candidates.candidates_of(
        Artifact(path, model, None, "m"), "m", to, tmp_path / "0", NullProgress()
    )
    assert candidate.artifact.name == "0.float16.onnx"
    assert candidate.artifact.is_file()
    with pytest.raises(UsageError, match="does not run"):
        bench_candidates.candidates_of(
            Artifact(path, None, None, "m"), "m", to, tmp_path / "0", NullProgress()
        )
