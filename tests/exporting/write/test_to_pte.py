"""`.pte`: lowered, written, and run in ExecuTorch itself. Skipped as a whole where the extra is missing."""

import operator

import networks
import numpy as np
import pytest
import torch
from records import images
from torch import nn

from nncompress import extras
from nncompress.cli.app import run as command_line
from nncompress.errors import DataError, ExitCode, ModelFileError, UnsupportedError
from nncompress.exporting import write, write_pt2
from nncompress.exporting.lower.xnnpack.rewrite import lower_xnnpack
from nncompress.exporting.origin import is_ours
from nncompress.exporting.write import pte
from nncompress.exporting.write.pte import LARGEST_BATCH
from nncompress.ir import Model
from nncompress.ir.edit import nodes as edit
from nncompress.ir.formats.qdq import ops as ops_of
from nncompress.ir.formats.qdq import round_weight, store_int8
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import layers
from nncompress.passes import Context, Quantize
from nncompress.runtimes import open_artifact

needs_executorch = pytest.mark.skipif(
    not extras.installed("mobile"), reason="executorch is not installed: pip install 'nncompress[mobile]'"
)


@pytest.fixture(scope="module")
def plain() -> Model:
    return networks.model("residual")


@pytest.fixture(scope="module")
def quantized(plain) -> Model:
    model = plain.copy()
    Quantize().apply(model, Context(data=images(64, None)))
    return model


@pytest.fixture(scope="module")
def files(plain, quantized, tmp_path_factory):
    """name -> (model, path, report)"""
    folder = tmp_path_factory.mktemp("pte")
    plain.metadata["normalize"] = "imagenet"
    return {
        name: (model, folder / f"{name}.pte", write(model, folder / f"{name}.pte"))
        for name, model in (("float", plain), ("int8", quantized))
    }


def ops(model: Model) -> list[str]:
    return [op_name(node) for node in model.graph.nodes]


def distance(got: np.ndarray, expected: torch.Tensor) -> float:
    expected = expected.detach()
    return float((torch.from_numpy(got) - expected).norm() / expected.norm())


# -- lowering ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["residual", "stages", "depthwise", "attention"])
def test_lowering_keeps_the_values(name):
    model = networks.model(name)
    lowered = lower_xnnpack(model)
    inputs = networks.inputs(name, 5, seed=7)
    torch.testing.assert_close(lowered(*inputs), model(*inputs), rtol=1e-4, atol=1e-5)


def test_inputs_and_buffers_may_be_called_like_ops():
    class Normalizes(nn.Module):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)
            self.register_buffer("mean", torch.randn(4))
            self.register_buffer("pad", torch.randn(4))

        def forward(self, slice, cat):
            return self.head(slice - self.mean) + self.head(cat * self.pad)

    torch.manual_seed(0)
    inputs = (torch.randn(2, 4), torch.randn(2, 4))
    model = Model.from_module(Normalizes().eval(), inputs)
    torch.testing.assert_close(lower_xnnpack(model).outputs_of(*inputs), model.outputs_of(*inputs))


@needs_executorch
def test_several_parts_of_a_tensor_at_once_run_at_every_batch(tmp_path):
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.head = nn.Linear(6, 12), nn.Linear(12, 2)

        def forward(self, x):  # [N, 3, 6]
            h = self.inside(x)
            a, b = h.chunk(2, -1)
            c, d, e = torch.cat([b, a], -1).split([3, 4, 5], -1)
            first, second, third = torch.cat([e, c, d], -1).unbind(1)
            return self.head(torch.stack([third - first, second, first], 1))

    torch.manual_seed(0)
    model = Model.from_module(Parts().eval(), (torch.randn(2, 3, 6),))
    write(model, tmp_path / "m.pte")
    runner = open_artifact(tmp_path / "m.pte")
    for batch in (1, 5, 40):
        inputs = model.example_inputs(batch=batch, seed=batch)
        assert distance(runner.run(*inputs)[0], model.outputs_of(*inputs)[0]) < 1e-5


@needs_executorch
def test_a_program_that_does_not_run_is_refused_as_one_and_not_written(plain, tmp_path, monkeypatch):
    def fails(*_):
        raise DataError("ExecuTorch could not run the program on this input", got="error 0x10")

    monkeypatch.setattr(pte, "run_apart", fails)
    with pytest.raises(UnsupportedError, match=r"(?s)cannot run it.*0x10.*\.onnx"):
        write(plain, tmp_path / "m.pte")
    assert not list(tmp_path.iterdir())


def test_a_shortcut_of_slices_and_padding_becomes_one_convolution(plain, quantized):
    for model in (plain, quantized):
        lowered = lower_xnnpack(model)
        assert not {"slice", "pad"} & set(ops(lowered))
        assert ops(lowered).count("conv2d") == ops(model).count("conv2d") + 1


class Slices(nn.Module):
    def __init__(self, pick) -> None:
        super().__init__()
        self.pick = pick
        self.conv = nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x):
        return self.pick(self.conv(x))


@pytest.mark.parametrize(
    ("pick", "replaced"),
    [
        (lambda x: x[:, :, ::2, ::3], True),
        (lambda x: x[:, :, ::2], True),
        (lambda x: x[:, :, 1::2, ::2], False),
        (lambda x: x[:, :, ::2, :5], False),
        (lambda x: x[:, ::2], False),
    ],
    ids=["two strides", "rows", "offset", "cut", "channels"],
)
def test_only_whole_strided_slices_are_convolutions(pick, replaced):
    model = Model.from_module(Slices(pick).eval(), (torch.randn(2, 4, 9, 9),))
    lowered = lower_xnnpack(model)
    x = torch.randn(3, 4, 9, 9)
    torch.testing.assert_close(lowered(x), model(x), rtol=0, atol=1e-6)
    assert replaced == ("slice" not in ops(lowered))


def test_integers_are_signed_and_every_reader_has_its_own(quantized):
    lowered = lower_xnnpack(quantized)
    for node in lowered.graph.nodes:
        if "quantize_per" in op_name(node):
            assert node.args[-1] == torch.int8
        if op_name(node).startswith("dequantize_per"):
            assert len(node.users) == 1


def dynamic(model: Model) -> Model:
    """Linear weights in int8, inputs rounded to uint8 by the range of each batch."""
    changed = model.copy()
    for layer in list(layers(changed)):
        data, reader = layer.data, layer.node
        store_int8(changed, layer.weight.name, *round_weight(layer.weight.value(), 0), 0)
        with edit.inserting_before(reader) as call:
            chosen = call(ops_of.choose_qparams.tensor, data, 0, 255, 1e-9, torch.uint8)
            scale, zero = (call(operator.getitem, chosen, position) for position in (0, 1))
            rounded = call(ops_of.quantize_per_tensor.tensor, data, scale, zero, 0, 255, torch.uint8)
            value = call(ops_of.dequantize_per_tensor.tensor, rounded, scale, zero, 0, 255, torch.uint8)
        reader.replace_input_with(data, value)
    changed.refresh()
    return changed


@needs_executorch
def test_a_file_is_told_as_ours(files, tmp_path):
    assert all(is_ours(path) for _, path, _ in files.values())
    (tmp_path / "other.pte").write_bytes(b"ET12 of another")
    assert not is_ours(tmp_path / "other.pte")


def test_dynamic_int8_stays_dynamic(tmp_path):
    model = dynamic(networks.model("two-outputs"))
    report = write(model, tmp_path / "m.pte")
    assert report.int8 == "3 of 3 in int8"
    assert report.portable == ()
    inputs = networks.inputs("two-outputs", 9, seed=5)
    for got, expected in zip(open_artifact(tmp_path / "m.pte").run(*inputs), model(*inputs)):
        assert distance(got, expected) < 0.03


# -- files -------------------------------------------------------------------------------------------------


@needs_executorch
@pytest.mark.parametrize("batch", [1, 2, 15, 16, 17, LARGEST_BATCH])
def test_float_agrees_at_every_batch(files, batch):
    model, path, _ = files["float"]
    inputs = networks.inputs("residual", batch, seed=batch)
    (got,) = open_artifact(path).run(*inputs)
    assert distance(got, model(*inputs)) < 1e-5


@needs_executorch
def test_int8_runs_in_int8_and_agrees(files):
    model, path, report = files["int8"]
    assert report.int8 == "5 of 5 in int8"
    assert report.portable == ()
    inputs = networks.inputs("residual", 33, seed=3)
    (got,) = open_artifact(path).run(*inputs)
    assert distance(got, model(*inputs)) < 0.03
    assert not np.array_equal(got, files["float"][0](*inputs).detach().numpy())


@needs_executorch
def test_a_larger_batch_is_refused_before_it_runs(files):
    with pytest.raises(DataError, match="size 65 of batch"):
        open_artifact(files["float"][1]).run(*networks.inputs("residual", LARGEST_BATCH + 1))


@needs_executorch
def test_names_dims_and_metadata_travel(files):
    model, path, _ = files["float"]
    runner = open_artifact(path)
    assert runner.inputs == model.inputs
    assert runner.outputs == model.outputs
    assert "imagenet" in runner.metadata["nncompress.metadata"]
    assert runner.name.startswith("ExecuTorch ")
    assert runner.file_size == path.stat().st_size


@needs_executorch
def test_runners_of_different_threads_live_together(files):
    """Resetting the pool of threads makes loaded methods point to freed memory; they are loaded again."""
    model, path, _ = files["float"]
    inputs = networks.inputs("residual", 4)
    runners = [open_artifact(path, threads) for threads in (1, 2, 1)]
    for _ in range(3):
        for runner in runners:
            assert distance(runner.run(*inputs)[0], model(*inputs)) < 1e-5


@needs_executorch
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda content: b"", "not an ExecuTorch program"),
        (lambda content: b"\x08\x01\x12\x00 an ONNX file", "not an ExecuTorch program"),
        (lambda content: content[: len(content) // 2], "cut off"),
        (lambda content: content[:10], "cut off"),
        (lambda content: content[:4] + b"ET99" + content[8:], "another version"),
        (lambda content: content[:64] + bytes(len(content) - 64), "damaged"),
    ],
    ids=["empty", "foreign", "half", "start", "version", "zeros"],
)
def test_broken_files_give_one_error_and_no_noise(files, tmp_path, capfd, damage, message):
    path = tmp_path / "m.pte"
    path.write_bytes(damage(files["float"][1].read_bytes()))
    capfd.readouterr()
    with pytest.raises(ModelFileError, match=message):
        open_artifact(path)
    assert capfd.readouterr() == ("", "")


@needs_executorch
def test_an_op_that_the_runtime_lacks_is_named_and_nothing_is_written(tmp_path, capfd):
    class Inverse(nn.Module):
        def forward(self, x):
            return torch.linalg.inv(x @ x.transpose(1, 2) + torch.eye(4))

    model = Model.from_module(Inverse(), (torch.randn(2, 4, 4),))
    with pytest.raises(UnsupportedError, match="linalg_inv"):
        write(model, tmp_path / "m.pte")
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr() == ("", "")


def test_without_the_extra_one_line_and_its_exit_code(plain, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(extras, "installed", lambda extra: False)
    monkeypatch.chdir(tmp_path)
    write_pt2(plain, tmp_path / "m.pt2")
    assert command_line(["export", "m.pt2", "-o", "m.pte"]) == ExitCode.MISSING_EXTRA
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "error: m.pte needs executorch, which is not installed",
        "  try:      pip install 'nncompress[mobile]'",
    ]
    (tmp_path / "m.pte").write_bytes(b"")
    assert command_line(["eval", "m.pt2", "m.pte"]) == ExitCode.MISSING_EXTRA


class Joined(nn.Module):
    """Branches of different ranges, concatenated; one of them was pooled."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.branch = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 4, 1)
        self.last = nn.Conv2d(12, 5, 1)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        joined = torch.cat([torch.max_pool2d(x, 3, 1, 1), torch.relu(self.branch(x))], 1)
        return self.last(torch.cat([joined[:, 4:], self.branch(x)], 1))


@networks.built_once
def joined() -> Model:
    torch.manual_seed(6)
    model = Model.from_module(Joined(), (torch.randn(2, 3, 8, 8),))
    Quantize().apply(model, Context(data=images(64, None)))
    model.refresh()
    return model


def test_what_is_concatenated_has_one_grid():
    original = joined()
    lowered = lower_xnnpack(original)
    joins = [node for node in lowered.graph.nodes if op_name(node) == "cat"]
    assert joins
    for node in joins:
        (written,) = node.users
        if op_name(written) == "quantize_per_tensor":
            grids = [tuple(each.args[1:5]) for each in (*node.all_input_nodes, written)]
            assert len(set(grids)) == 1
    inputs = original.example_inputs(8, seed=2)
    assert distance(lowered.outputs_of(*inputs)[0].detach().numpy(), original(*inputs)) < 0.05


@needs_executorch
def test_int8_concatenations_load_and_agree(tmp_path):
    """ExecuTorch refuses to load a program whose concatenation joins different grids."""
    report = write(joined(), tmp_path / "m.pte")
    assert report.int8 == "4 of 4 in int8"
    assert report.relative_error < 0.05
