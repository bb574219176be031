"""Quantization-aware training: its gradient, what stays, and that the artifact is what is trained."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from exact_integers import Exact
from kills import Kill, Killed
from torch import nn
from torch.nn import functional as F

from nncompress import exporting, pipeline
from nncompress.data import open_data
from nncompress.errors import UnsupportedError
from nncompress.ir import Model
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import layers
from nncompress.passes import Context, Prune, Quantize
from nncompress.train import TrainSettings, train
from nncompress.train.quantized import round_per_channel


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.head = nn.Linear(8, 4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.head((x + F.relu(self.conv2(x))).mean((2, 3)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A network that tells four textures apart, and the data."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 4, 120)
    x = rng.normal(0, 1, (120, 3, 8, 8)).astype(np.float32)
    x += np.sin(np.arange(8) * (y[:, None] + 1))[:, None, None, :].astype(np.float32)
    path = tmp_path_factory.mktemp("data") / "d.npz"
    np.savez(path, x=x, y=y)
    torch.manual_seed(0)
    model = Model.from_module(Small().eval(), (torch.randn(2, 3, 8, 8),))
    data = open_data(str(path), model.inputs)
    return train(model, data, TrainSettings(epochs=12, batch=20, optimizer="adam", lr=0.02))[0], data


def quantized(model: Model, data, **options) -> Model:
    return pipeline.run(model, [Quantize(**options)], Context(data=data))[0]


def apart(model: Model, original: Model, data) -> float:
    """Mean squared difference of the scores."""
    x = next(data.batches(120)).inputs[0]
    with torch.no_grad():
        return float(F.mse_loss(model(x), original(x)))


def test_the_gradient_goes_straight_through_where_the_grid_ends():
    rng = np.random.default_rng(1)
    w = torch.from_numpy(rng.normal(size=(3, 5)).astype(np.float32)).requires_grad_()
    scale = torch.tensor([0.01, 0.1, 0.02])
    y = round_per_channel(w, scale, None, 0, -7, 7, torch.int8)
    y.backward(torch.arange(15.0).reshape(3, 5))
    steps = w.detach().numpy() / scale.numpy()[:, None]
    np.testing.assert_allclose(
        y.detach().numpy(), np.clip(np.rint(steps), -7, 7) * scale.numpy()[:, None], rtol=1e-6
    )
    inside = np.abs(np.rint(steps)) <= 7
    assert 0 < inside.sum() < 15
    np.testing.assert_array_equal(w.grad.numpy(), np.where(inside, np.arange(15.0).reshape(3, 5), 0))


def test_training_makes_up_for_few_bits_and_the_artifact_stays_int8(trained, tmp_path):
    original, data = trained
    model = quantized(original, data, weight_bits=3)
    nearest = quantized(original, data, weight_bits=3, rounding="nearest")
    runs = []
    for seed in range(3):  # one run in three is left behind by a weight that ends between two of its 7 values
        distill = {"teacher_weight": 1.0, "match": ("conv1",), "seed": seed}
        settings = TrainSettings(epochs=10, batch=20, optimizer="adam", lr=0.01, **distill)
        better, result = train(model, data, settings, teacher=original, validation=data)
        runs.append((apart(better, original, data), better, result))
    left, better, result = sorted(runs, key=lambda run: run[0])[1]
    assert apart(model, original, data) < 0.7 * apart(nearest, original, data)
    assert left < 0.4 * apart(nearest, original, data)

    ops = [[op_name(node) for node in m.graph.nodes] for m in (model, better)]
    assert ops[0] == ops[1]
    before, after = model.state_dict(), better.state_dict()
    assert {n: (t.dtype, t.shape) for n, t in after.items()} == {
        n: (t.dtype, t.shape) for n, t in before.items()
    }
    stored = [name for name, tensor in after.items() if tensor.dtype == torch.int8]
    moved = [n for n in stored if any(not torch.equal(run[1].tensor(n), before[n]) for run in runs)]
    # half a step of the head's 32 weights is more than runs move them on some processors
    assert set(stored) - set(moved) <= {name for name in stored if before[name].numel() <= 32}
    assert len(moved) > 1
    for name, tensor in after.items():
        if tensor.dtype == torch.int8:
            assert int(tensor.abs().max()) <= 3
        elif name.endswith("_scale"):
            assert torch.equal(tensor, before[name])
    batch = next(data.batches(120))
    with torch.no_grad():
        loss = F.cross_entropy(better(*batch.inputs), batch.labels)
    assert result.validation["loss"] == pytest.approx(float(loss), rel=1e-5)  # measured as it will run
    assert [record["pass"] for record in better.history] == ["train", "quantize", "train"]

    onnxruntime = pytest.importorskip("onnxruntime")
    exporting.write(better, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: batch.inputs[0].numpy()})
    exact = Exact(better)
    expected = exact.run(batch.inputs[0].double())[0].detach().numpy()
    apart_by = np.abs(found - expected).max(axis=1) / np.abs(expected).max()
    # A float32 product of a sum and a scale is within 2 ulp: of up to 255 steps, 6e-5. What falls nearer than
    # that to the middle between two steps may go either way (often in the addition, whose operands have few
    # values), anything else may not.
    certain = exact.nearest_tie.detach().numpy() > 6e-5
    assert certain.any()
    assert apart_by[certain].max() < 1e-6
    assert apart_by.max() < 1 / 255
    with torch.no_grad():
        simulated = better(*batch.inputs).numpy()
    np.testing.assert_allclose(simulated[certain], expected[certain], atol=1e-6 * np.abs(expected).max())


def test_zeros_that_prune_made_stay_zero_and_frozen_layers_stay(trained):
    original, data = trained
    sparse, _ = pipeline.run(original, [Prune(sparsity=0.5)], Context())
    model = quantized(sparse, data)
    better, _ = train(model, data, TrainSettings(epochs=2, batch=20, lr=0.1, freeze=("head.*",)))
    for before, after in zip(layers(model), layers(better), strict=True):
        zero = before.weight.value() == 0
        assert zero.float().mean() > 0.3
        assert (after.weight.value()[zero] == 0).all()
        assert torch.equal(before.weight.value(), after.weight.value()) == (before.name == "head")


def test_every_layer_is_trained(trained):
    original, data = trained
    model = quantized(original, data)
    better, _ = train(model, data, TrainSettings(epochs=1, batch=20, lr=0.1))
    for before, after in zip(layers(model), layers(better), strict=True):
        assert not torch.equal(before.weight.value(), after.weight.value())
        assert before.bias is not None
        assert after.bias is not None
        assert not torch.equal(before.bias.value(), after.bias.value())


def test_a_killed_run_continues_from_the_float_copies(trained, tmp_path):
    original, data = trained
    model = quantized(original, data, weight_bits=4)
    settings = TrainSettings(epochs=2, batch=20, lr=0.01)
    whole, _ = train(model, data, settings)
    kept = {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0.0, "resume": True}
    with pytest.raises(Killed):
        train(model, data, settings, progress=Kill(8), **kept)
    resumed, _ = train(model, data, settings, **kept)
    first, second = whole.state_dict(), resumed.state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_grids_found_while_running_are_refused():
    d = torch.ops.quantized_decomposed

    class Dynamic(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.head = nn.Linear(3, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            scale, zero = d.choose_qparams(x, 0, 255, 1e-5, torch.uint8)
            q = d.quantize_per_tensor.tensor(x, scale, zero, 0, 255, torch.uint8)
            return self.head(d.dequantize_per_tensor.tensor(q, scale, zero, 0, 255, torch.uint8))

    model = Model.from_module(Dynamic(), (torch.randn(2, 3),))
    with pytest.raises(UnsupportedError, match="has no gradient"):
        train(model, None, TrainSettings())  # type: ignore[arg-type]
