"""`.xml`: OpenVINO's own format, written, run and opened again."""

import json
import os

import numpy as np
import pytest
import torch
from records import Records
from torch import nn

from nncompress.cli.app import run
from nncompress.errors import ExitCode, ModelFileError, OutputError, UnsupportedError, VerificationError
from nncompress.exporting import write
from nncompress.ir import Model
from nncompress.passes import Context, Quantize
from nncompress.runtimes import open_artifact
from tests.exporting.lower.int8.test_lower_int8 import quantized

pytest.importorskip("openvino")
from nncompress.exporting.check import openvino as check
from nncompress.runtimes.on_openvino import by_itself


class Residual(nn.Module):
    """Two convolutions with an addition, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 5)

    def forward(self, x):
        h = torch.relu(self.stem(x))
        return self.head(torch.relu(h + self.conv(h)).mean((2, 3)))


@pytest.fixture
def model():
    torch.manual_seed(0)
    return Model.from_module(Residual().eval(), (torch.randn(2, 3, 8, 8),))


def test_it_computes_what_the_graph_does_and_keeps_name_and_history(model, tmp_path):
    small = quantized(model, weight_bits=7)  # exact on processors without VNNI, too
    small.history.append({"pass": "quantize"})
    report = write(small, tmp_path / "m.xml")
    assert report.runtime.startswith("openvino ")
    assert report.target == "openvino"
    assert report.int8.startswith("3 of 3 in int8 in OpenVINO")
    assert report.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.bin", "m.xml"]
    runner = open_artifact(tmp_path / "m.xml")
    assert [step["pass"] for step in json.loads(runner.metadata["nncompress.history"])] == ["quantize"]
    x = torch.randn(5, 3, 8, 8)
    expected = small.outputs_of(x)[0].detach().numpy()
    assert np.linalg.norm(runner.run(x)[0] - expected) < 0.02 * np.linalg.norm(expected)


def test_an_onnx_for_openvino_is_run_there_and_layers_left_in_float_are_named(model, tmp_path):
    small = quantized(model, weight_bits=7, keep=("conv",))
    report = write(small, tmp_path / "m.onnx", target="openvino")
    assert report.runtime.startswith("openvino ")
    assert report.int8.startswith(f"2 of 3 in int8, 1 in {by_itself()} in OpenVINO (conv)")


class Tokens(nn.Module):
    """Patches, and two layers of as many outputs."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.norm = nn.Conv2d(3, 16, 4, 4), nn.LayerNorm(16)
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        tokens = self.patches(x).flatten(2).transpose(1, 2)
        return tokens + self.second(torch.sigmoid(self.first(self.norm(tokens))))


def test_layers_of_as_many_outputs_are_all_in_int8(tmp_path):
    """They were in floats where their weights shared a zero point."""
    torch.manual_seed(0)
    model = Model.from_module(Tokens().eval(), (torch.randn(2, 3, 16, 16),))
    report = write(quantized(model, weight_bits=7), tmp_path / "m.onnx", target="openvino")
    assert report.int8.startswith("3 of 3 in int8 in OpenVINO")


class Gated(nn.Module):
    """An expansion with a squeeze-and-excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.gate, self.down = nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 4, 1)

    def forward(self, x):
        y = nn.functional.silu(self.up(x))
        return self.down(y * torch.sigmoid(self.gate(y.mean((2, 3), keepdim=True))))


def test_rounded_for_openvino_it_is_nearer_to_float_and_all_in_int8(tmp_path):
    torch.manual_seed(0)
    model, x = Model.from_module(Gated().eval(), (torch.randn(2, 3, 8, 8),)), torch.randn(64, 3, 8, 8)
    away, notes = {}, {}
    for target in (None, "openvino"):
        small, context = model.copy(), Context(data=Records((x,)), target=target)
        Quantize(weight_bits=7, every_layer=True).apply(small, context)
        away[target], notes[target] = float((small(x) - model(x)).norm().detach()), " ".join(context.notes)
    assert away["openvino"] < 0.9 * away[None]
    assert "in other runtimes some layers will run in float" in notes["openvino"]
    assert "in other runtimes" not in notes[None]
    assert write(small, tmp_path / "m.onnx", target="openvino").int8.startswith("3 of 3 in int8")


def test_what_openvino_computes_otherwise_is_not_kept(model, tmp_path, monkeypatch):
    monkeypatch.setattr(
        check.OpenVinoRunner, "run", lambda self, *inputs: (np.zeros((len(inputs[0]), 5), "f4"),)
    )
    for name, options in (("m.xml", {}), ("m.onnx", {"target": "openvino"})):
        with pytest.raises(VerificationError, match=r"openvino .* disagrees"):
            write(model, tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_what_is_right_in_float32_alone_is_not_kept(model, tmp_path, monkeypatch):
    true = check.OpenVinoRunner.run

    def wrong_as_it_comes(self, *inputs):
        return tuple(output * (1 if self.precision else 2) for output in true(self, *inputs))

    monkeypatch.setattr(check.OpenVinoRunner, "run", wrong_as_it_comes)
    monkeypatch.setattr(check, "by_itself", lambda: "bfloat16")  # as on a processor with AMX or AVX512-BF16
    with pytest.raises(VerificationError, match=r"right in float32, but openvino .* as it comes disagrees"):
        write(model, tmp_path / "m.xml")
    assert list(tmp_path.iterdir()) == []


def test_weights_of_another_export_and_files_of_others_are_refused(model, tmp_path):
    write(model, tmp_path / "m.xml")
    write(model, tmp_path / "m.xml")  # ours: replaced
    weights = tmp_path / "m.bin"
    content = bytearray(weights.read_bytes())
    content[0] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ModelFileError, match="does not hold the weights of"):
        open_artifact(tmp_path / "m.xml")
    with pytest.raises(OutputError, match="is there already"):
        write(model, tmp_path / "m.xml")
    assert weights.read_bytes() == content
    weights.unlink()
    with pytest.raises(ModelFileError):
        open_artifact(tmp_path / "m.xml")


@pytest.mark.parametrize("earlier", [True, False])
def test_an_export_that_was_killed_between_its_two_files_can_be_repeated(model, tmp_path, earlier):
    write(model, tmp_path / "new.xml")
    model.tensor("head.bias").data += 1
    write(model, tmp_path / "m.xml")
    os.replace(tmp_path / "new.bin", tmp_path / "m.bin")  # and new.xml never came
    if not earlier:
        (tmp_path / "m.xml").unlink()
    else:
        with pytest.raises(ModelFileError, match="does not hold the weights of"):
            open_artifact(tmp_path / "m.xml")
    write(model, tmp_path / "m.xml")
    x = torch.randn(2, 3, 8, 8)
    np.testing.assert_allclose(
        open_artifact(tmp_path / "m.xml").run(x)[0], model(x).detach().numpy(), rtol=1e-3, atol=1e-4
    )


def test_a_model_with_state_is_refused(tmp_path):
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x):
            self.count.add_(1)
            return x * self.count

    model = Model.from_module(Counting(), (torch.randn(2, 3),))
    for name, options in (("m.xml", {}), ("m.onnx", {"target": "openvino"})):
        with pytest.raises(UnsupportedError) as caught:
            write(model, tmp_path / name, **options)
        assert "count" in caught.value.got
    assert list(tmp_path.iterdir()) == []


class Wrapped(nn.Module):
    """Circular padding of one, two and three dims, by different amounts."""

    def forward(self, x):
        x = nn.functional.pad(x.flatten(1, 2), [2, 0], "circular").unflatten(1, (3, 4))
        x = nn.functional.pad(x, [1, 2, 0, 3], "circular")
        return nn.functional.pad(x[:, None], [1, 1, 2, 0, 1, 0], "circular")


def test_padding_that_wraps_around_is_said_so_that_openvino_reads_it(tmp_path):
    """It has no wrapping `Pad`: the export ended in a traceback."""
    x = torch.arange(2 * 3 * 4 * 5.0).reshape(2, 3, 4, 5)
    model = Model.from_module(Wrapped(), (x,))
    write(model, tmp_path / "m.xml")
    np.testing.assert_array_equal(open_artifact(tmp_path / "m.xml").run(x)[0], Wrapped()(x).numpy())


class Determinant(nn.Module):
    def forward(self, x):
        return torch.linalg.det(x) + 1


def test_an_op_that_openvino_lacks_is_named(tmp_path):
    model = Model.from_module(Determinant(), (torch.randn(2, 3, 3),))
    with pytest.raises(
        UnsupportedError, match=r"m\.xml uses an operator that OpenVINO does not run"
    ) as caught:
        write(model, tmp_path / "m.xml")
    assert "Det" in caught.value.got
    assert list(tmp_path.iterdir()) == []


class Doubles(nn.Module):
    """Float64, which OpenVINO computes in some ops."""

    def __init__(self):
        super().__init__()
        self.first, self.head = nn.Linear(8, 4).double(), nn.Linear(4, 2).double()

    def forward(self, x):
        return self.head(torch.relu(self.first(x)))


def test_float64_that_it_does_not_run_is_refused_by_name_with_a_remedy_that_works(
    tmp_path, monkeypatch, capsys
):
    """It ended in exit 3 and the name of a temporary file."""
    monkeypatch.chdir(tmp_path)
    x = torch.randn(4, 8, dtype=torch.float64)
    net = Doubles().eval()
    model = Model.from_module(net, (x,))
    write(model, "m.pt2")
    assert run(["export", "m.pt2", "-o", "m.xml"]) == ExitCode.UNSUPPORTED
    said = capsys.readouterr().err
    assert "OpenVINO reads m.xml and does not run it" in said
    assert ".part" not in said
    assert sorted(file.name for file in tmp_path.iterdir()) == ["m.pt2"]
    remedy = said.partition("nncompress export MODEL ")[2].partition(",")[0]
    assert run(["export", "m.pt2", *remedy.split()]) == 0
    assert run(["export", "float32.pt2", "-o", "m.xml"]) == 0
    got = open_artifact(tmp_path / "m.xml", precision="float32").run(x.float())[0]
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, net(x).detach().numpy(), atol=1e-5)
    assert run(["prune", "float32.pt2", "--sparsity", "0.5"]) == 0  # beside its original in float64


@pytest.mark.parametrize("kind", ["none", "zeros", "matrix"])
def test_int8_layers_over_rows_have_a_bias_that_its_kernel_reads(kind, tmp_path):
    """Without one, or with zeros, its kernel of a chain of layers read memory that was nobody's."""

    class Chain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.head = nn.Linear(8, 16, bias=kind == "zeros"), nn.Linear(16, 5)
            if kind == "zeros":
                nn.init.zeros_(self.first.bias)

        def forward(self, x):
            h = x @ self.first.weight.T if kind == "matrix" else self.first(x)
            return self.head(torch.relu(h))

    torch.manual_seed(0)
    small = quantized(Model.from_module(Chain().eval(), (torch.randn(2, 8),)), every_layer=True)
    write(small, tmp_path / "m.xml")
    x = torch.randn(4, 8)
    expected = small.outputs_of(x)[0].detach().numpy()
    assert np.linalg.norm(open_artifact(tmp_path / "m.xml").run(x)[0] - expected) < 0.02 * np.linalg.norm(
        expected
    )


def test_commands_take_it(model, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write(model, "m.pt2")
    assert run(["export", "m.pt2", "--target", "openvino", "-o", "m.xml"]) == 0
    assert "for openvino" in capsys.readouterr().out
    assert run(["eval", "m.pt2", "m.xml"]) == 0
    assert run(["bench", "m.pt2", "m.xml", "--time", "0.1"]) == 0
    assert run(["inspect", "m.xml"]) == ExitCode.UNSUPPORTED


TRANSFORMS = {
    "rfft": lambda h: torch.view_as_real(torch.fft.rfft(h)),
    "rfft-short": lambda h: torch.view_as_real(torch.fft.rfft(h, 9)),
    "irfft": lambda h: torch.fft.irfft(torch.complex(h, h * 2)[..., :9], n=16),
    "irfft-odd": lambda h: torch.fft.irfft(torch.complex(h, h * 2)[..., :8], n=15),
    "of-tokens": lambda h: torch.fft.irfft(torch.fft.rfft(h, dim=1) * 2, n=6, dim=1),
    "mixing": lambda h: torch.fft.fft2(h).real,
    "hfft": lambda h: torch.fft.hfft(torch.complex(h, h)[..., :9], n=16),
    "shifted": lambda h: torch.fft.fftshift(torch.fft.ifft(h), dim=-1).abs(),
    "stft": lambda h: torch.stft(h.flatten(1), 16, 4, 12, torch.hann_window(12), return_complex=True).abs(),
    "stft-whole": lambda h: torch.view_as_real(
        torch.stft(h.flatten(1), 16, 8, center=False, onesided=False, return_complex=True)
    ),
    "istft": lambda h: torch.istft(
        torch.complex(h.mT[:, :9], h.mT[:, 5:14]), 16, 4, 16, torch.hann_window(16), length=18
    ),
}


@pytest.mark.parametrize("name", TRANSFORMS)
def test_fourier_transforms_compute_what_torch_does(name, tmp_path):
    class Transformed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(4, 16)

        def forward(self, x):
            return TRANSFORMS[name](self.first(x))

    torch.manual_seed(0)
    module, x = Transformed().eval(), torch.randn(3, 6, 4)
    write(Model.from_module(module, (x,)), tmp_path / "m.xml")
    (found,) = open_artifact(tmp_path / "m.xml", precision="float32").run(x)
    expected = module(x).detach()
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_a_transform_over_a_free_size_is_refused_by_name(tmp_path):
    class Long(nn.Module):
        def forward(self, x):
            return torch.fft.fft(x).abs()

    dims = ({0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=2, max=64)},)
    model = Model.from_module(Long(), (torch.randn(2, 6),), dynamic_shapes=dims)
    with pytest.raises(UnsupportedError, match="Fourier transform") as refused:
        write(model, tmp_path / "m.xml")
    assert "a number for that size" in refused.value.remedy
    write(Model.from_module(Long(), (torch.randn(2, 6),)), tmp_path / "m.xml")
