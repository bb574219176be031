"""Quantized files that choose: what is compared, and what is told."""

import onnx_ir
import pytest
import torch
from records import images
from torch import nn

from nncompress import extras
from nncompress.errors import VerificationError
from nncompress.exporting import write_onnx
from nncompress.exporting.check import compare as verify
from nncompress.exporting.check import onnxruntime as verify_onnx
from nncompress.exporting.write import onnx as writer
from nncompress.exporting.write import pte
from nncompress.ir import Model
from nncompress.passes import Context, Quantize


class Chooses(nn.Module):
    """The best five of 40 positions by a ranking in which many are nearly equal; and their mean, unranked."""

    def __init__(self):
        super().__init__()
        self.conv, self.rank, self.head = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 1, 1), nn.Linear(16, 4)

    def forward(self, x):
        x = torch.relu(self.conv(x)).flatten(2)  # [N, 16, 36]
        best = self.rank(x[..., None])[:, 0, :, 0].topk(5, 1).indices
        chosen = x.gather(2, best[:, None].expand(-1, 16, -1))
        return self.head(chosen.transpose(1, 2)), self.head(x.mean(2))


@pytest.fixture(scope="module")
def quantized():
    torch.manual_seed(0)
    model = Model.from_module(Chooses().eval(), (torch.randn(2, 3, 8, 8),))
    Quantize(no_samples=True).apply(model, Context(data=images(64, None)))  # among which none ties
    return model


@pytest.fixture(scope="module")
def compiled_once():
    """ExecuTorch's compiler, which takes seconds, for each graph once."""
    compiler, made = pte._compile, {}

    def compiled(lowered, record):
        key = lowered.graph_module.code, record
        if key not in made:
            made[key] = compiler(lowered, record)
        return made[key]

    return compiled


def other_kernels(monkeypatch, noise):
    """Runs with optimisations are off by `noise`, as if integer kernels rounded that much otherwise."""
    run = verify_onnx.run

    def off(session, inputs):
        optimised = session.get_session_options().graph_optimization_level.value > 0
        return run(session, tuple(x + noise * torch.sin(1e3 * x) if optimised else x for x in inputs))

    monkeypatch.setattr(verify_onnx, "run", off)


def test_what_choices_are_made_from_is_compared_and_agreement_is_told(tmp_path, quantized):
    """Ranks of 8 bits tie, and runtimes break ties differently."""
    report = write_onnx(quantized, tmp_path / "m.onnx")
    assert report.choices.startswith("topk inside, from values that agree: ")
    assert "of 4 samples" in report.choices
    assert [path.name for path in tmp_path.iterdir()] == ["m.onnx"]


def test_values_before_a_choice_may_not_be_wrong(tmp_path, quantized, monkeypatch):
    other_kernels(monkeypatch, 1.0)
    with pytest.raises(VerificationError, match=r"disagrees with the graph on output '(output_1|choice_0)'"):
        write_onnx(quantized, tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())


def test_a_small_mistake_in_the_file_shows_when_it_is_run_as_written(tmp_path, quantized, monkeypatch):
    """Within what integer kernels may differ by, a scale that is off by 5 % would pass for rounding."""
    tidy = writer.tidy

    def spoil(onnx_model, model):
        tidy(onnx_model, model)
        scale = next(n.inputs[1] for n in onnx_model.graph if n.op_type == "DequantizeLinear")
        scale.const_value = onnx_ir.tensor(scale.const_value.numpy() * 1.05, name=scale.name)

    monkeypatch.setattr(writer, "tidy", spoil)
    with pytest.raises(VerificationError, match="without optimisations disagrees with the graph"):
        write_onnx(quantized, tmp_path / "m.onnx")


def test_an_error_that_all_values_share_is_bounded():
    expected = torch.randn(10_000)
    expected[0] = 1e5  # next to it, the relative error of the others is small
    with pytest.raises(VerificationError, match="median"):
        verify.distance("here", expected, expected + 1, "float32")


def test_files_are_compared_on_inputs_like_the_calibration_data(quantized):
    (spec,) = quantized.inputs
    (x,) = next(iter(images(64, None).batches(64))).inputs
    drawn = quantized.example_inputs(batch=500, seed=3)[0]
    torch.testing.assert_close(drawn.mean((0, 2, 3)), x.mean((0, 2, 3)), atol=0.05, rtol=0)
    torch.testing.assert_close(drawn.std((0, 2, 3)), x.std((0, 2, 3)), atol=0.05, rtol=0)
    assert len(spec.like) == 3


@pytest.mark.skipif(not extras.installed("mobile"), reason="executorch is not installed")
@pytest.mark.parametrize(("noise", "right"), [(0.02, True), (1.0, False)])
def test_a_mobile_file_is_compared_up_to_its_choices_as_well(
    tmp_path, quantized, compiled_once, monkeypatch, noise, right
):
    """As if the phone's kernels rounded that much otherwise."""
    run = pte.run_apart
    monkeypatch.setattr(pte, "_compile", compiled_once)
    monkeypatch.setattr(
        pte,
        "run_apart",
        lambda path, inputs, threads: run(
            path, tuple(x + noise * torch.sin(1e3 * x) for x in inputs), threads
        ),
    )
    if right:
        assert "of 18 samples" in pte.write_pte(quantized, tmp_path / "m.pte").choices
        return
    with pytest.raises(VerificationError, match=r"disagrees with the graph on output '(output_1|choice_0)'"):
        pte.write_pte(quantized, tmp_path / "m.pte")
    assert not list(tmp_path.iterdir())
