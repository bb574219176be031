"""The loop against a hand-written one in plain torch, and everything it promises about zeros, ties, kills."""

from __future__ import annotations

import networks
import numpy as np
import pytest
import torch
from kills import Kill, Killed
from torch import nn
from torch.nn import functional as F

from nncompress.data import open_data
from nncompress.errors import (
    DataError,
    DeviceError,
    UsageError,
    VerificationError,
)
from nncompress.ir import Model
from nncompress.passes import Context, Prune
from nncompress.progress import NullProgress
from nncompress.train import TrainSettings, train
from nncompress.train.run import Run
from tests.train.corners import same, small


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_matches_a_hand_written_loop(data, optimizer):
    module, model = small()
    module.drop.p = 0.0
    model = Model.from_module(module, (torch.randn(2, 3, 8, 8),))
    dataset = open_data(str(data), model.inputs)
    settings = TrainSettings(
        epochs=2,
        batch=8,
        lr=0.02,
        optimizer=optimizer,
        schedule="constant",
        weight_decay=0.01,
        l2=0.1,
        seed=3,
    )
    trained, result = train(model, dataset, settings)

    made = {
        "sgd": lambda p: torch.optim.SGD(p, 0.02, momentum=0.9, weight_decay=0.01),
        "adam": lambda p: torch.optim.Adam(p, 0.02, weight_decay=0.01),
        "adamw": lambda p: torch.optim.AdamW(p, 0.02, weight_decay=0.01),
    }
    reference = module.train()
    step = made[optimizer](reference.parameters())
    from nncompress.train.seeds import derived_seed

    for epoch in range(2):
        for batch in dataset.batches(8, shuffle_seed=derived_seed(3, epoch)):
            loss = F.cross_entropy(reference(*batch.inputs), batch.labels)
            loss = loss + 0.05 * sum(w.square().sum() for w in (reference.conv.weight, reference.head.weight))
            step.zero_grad()
            loss.backward()
            step.step()
    reference.eval()
    for name, tensor in reference.state_dict().items():
        if name != "bn.num_batches_tracked":
            torch.testing.assert_close(trained.tensor(name).detach(), tensor, rtol=1e-4, atol=1e-5)
    x = torch.randn(3, 3, 8, 8)
    torch.testing.assert_close(trained(x), reference(x), rtol=1e-4, atol=1e-5)
    assert result.epochs[1]["loss"] < result.epochs[0]["loss"]
    assert not same(model, trained)  # the given model is left alone
    assert trained.history[-1]["pass"] == "train"


@pytest.mark.parametrize("options", [{}, {"optimizer": "adamw", "weight_decay": 0.1, "l1": 0.01}])
def test_zeros_that_prune_made_stay_zero(data, options):
    _, model = small()
    model.history.append({"pass": "prune"})
    Prune(sparsity=0.6).apply(model, Context())
    zero = {name: (tensor == 0) for name, tensor in model.state_dict().items() if name.endswith("weight")}
    dataset = open_data(str(data), model.inputs)
    trained, _ = train(model, dataset, TrainSettings(epochs=2, batch=8, **options))
    assert torch.equal(trained.tensor("conv.weight") == 0, zero["conv.weight"])
    assert torch.equal(trained.tensor("head.weight") == 0, zero["head.weight"])
    assert not torch.equal(trained.tensor("conv.weight"), model.tensor("conv.weight"))
    dense, _ = train(model, dataset, TrainSettings(epochs=2, batch=8, dense=True))
    assert (dense.tensor("conv.weight") != 0).all()


def test_a_zero_that_training_leaves_is_no_pruned_one(data):
    """A head that starts at zero, behind a channel that is always 0: its column has no gradient at first, and
    must not be taken for a pruned one when more is unfrozen."""
    _, model = small()
    with torch.no_grad():
        model.tensor("head.weight").zero_()
        model.tensor("bn.weight")[2] = 0
        model.tensor("bn.bias")[2] = -1
    settings = TrainSettings(epochs=2, batch=8, freeze=("conv.*",), unfreeze=("1",))
    run = Run(model, open_data(str(data), model.inputs), settings, None, None, NullProgress())
    for _ in range(settings.epochs):
        for batch in run.rest_of_epoch():
            run.step(batch)
        run.end_epoch()
    head = run.model.tensor("head.weight") != 0
    assert head.any(dim=0).tolist() == [True, True, False, True, True, True]
    assert run.masks == {}


def test_zeros_of_a_part_that_is_unfrozen_later_stay_zero(data, tmp_path):
    _, model = small()
    model.history.append({"pass": "prune"})
    Prune(sparsity=0.6).apply(model, Context())
    zero = model.tensor("conv.weight") == 0
    dataset = open_data(str(data), model.inputs)
    settings = TrainSettings(epochs=3, batch=8, freeze=("conv.*",), unfreeze=("1",))
    whole, _ = train(model, dataset, settings)
    assert torch.equal(whole.tensor("conv.weight") == 0, zero)
    assert not torch.equal(whole.tensor("conv.weight"), model.tensor("conv.weight"))
    kept = {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0.0, "resume": True}
    for at in (3, 7):
        with pytest.raises(Killed):
            train(model, dataset, settings, progress=Kill(at), **kept)
    assert same(whole, train(model, dataset, settings, **kept)[0])


def test_tied_weights_stay_tied(tmp_path):
    model = networks.model("tied")
    rng = np.random.default_rng(0)
    np.savez(
        tmp_path / "d.npz", x=rng.integers(0, 32, (16, 7)), y=rng.normal(size=(16, 7, 32)).astype(np.float32)
    )
    dataset = open_data(str(tmp_path / "d.npz"), model.inputs)
    trained, _ = train(model, dataset, TrainSettings(epochs=2, batch=4, task="regression"))
    state = trained.state_dict()
    assert state["embed.weight"].data_ptr() == state["head.weight"].data_ptr()
    assert not torch.equal(state["embed.weight"], model.tensor("embed.weight"))


def test_frozen_parts_do_not_move(data):
    _, model = small()
    dataset = open_data(str(data), model.inputs)
    trained, _ = train(model, dataset, TrainSettings(epochs=1, batch=8, freeze=("conv.*", "bn.*")))
    for name in ("conv.weight", "bn.weight", "bn.running_mean", "bn.running_var"):
        assert torch.equal(trained.tensor(name), model.tensor(name)), name
    assert not torch.equal(trained.tensor("head.weight"), model.tensor("head.weight"))
    with pytest.raises(UsageError, match="matches no parameter"):
        train(model, dataset, TrainSettings(freeze=("nothing*",)))


def test_early_stopping_keeps_the_best_epoch(data):
    _, model = small()
    dataset = open_data(str(data), model.inputs)
    settings = TrainSettings(epochs=40, batch=8, lr=0.1, patience=2, schedule="constant")
    trained, result = train(model, dataset, settings, validation=dataset)
    losses = [row["validation"]["loss"] for row in result.epochs]
    assert result.stopped == "no improvement"
    assert len(losses) == result.kept_epoch + 2
    batch = next(dataset.batches(40))
    with torch.no_grad():
        loss = F.cross_entropy(trained(*batch.inputs), batch.labels)
    assert float(loss) == pytest.approx(losses[result.kept_epoch - 1], rel=1e-5)


def test_rmse_has_the_gradient_of_the_root():
    from nncompress.train import Group
    from nncompress.train.loss.objective import root

    x = torch.randn(20, dtype=torch.float64, requires_grad=True)
    value = root(x.square().mean(), 1.0, Group())
    (found,) = torch.autograd.grad(value, x)
    (expected,) = torch.autograd.grad(x.square().mean().sqrt(), x)
    torch.testing.assert_close(found, expected)
    assert float(value.detach()) == pytest.approx(float(x.detach().square().mean().sqrt()))
    zero = torch.zeros(3, requires_grad=True)
    (found,) = torch.autograd.grad(root(zero.square().mean(), 1.0, Group()), zero)
    assert torch.equal(found, torch.zeros(3))  # where torch's own sqrt gives NaN


def test_a_bad_label_is_named_with_file_and_record(tmp_path):
    _, model = small()
    y = np.zeros(20, np.int64)
    y[13] = 9
    np.savez(
        tmp_path / "d.npz", x=np.random.default_rng(0).normal(size=(20, 3, 8, 8)).astype(np.float32), y=y
    )
    dataset = open_data(str(tmp_path / "d.npz"), model.inputs)
    with pytest.raises(DataError, match=r"d\.npz: sample 13 has a label"):
        train(model, dataset, TrainSettings(batch=4, task="classification"))


def test_divergence_is_an_error(data):
    _, model = small()
    dataset = open_data(str(data), model.inputs)
    with pytest.raises(VerificationError, match="diverged"):
        train(model, dataset, TrainSettings(epochs=30, batch=8, lr=1e20, schedule="constant"))


def test_the_callers_randomness_is_untouched(data):
    _, model = small()
    dataset = open_data(str(data), model.inputs)
    torch.manual_seed(1)
    expected = torch.randn(3)
    torch.manual_seed(1)
    train(model, dataset, TrainSettings(epochs=1, batch=8))
    assert torch.equal(torch.randn(3), expected)


def test_mixed_precision_trains(data):
    _, model = small()
    dataset = open_data(str(data), model.inputs)
    _, result = train(
        model, dataset, TrainSettings(epochs=8, batch=8, lr=0.05, precision="bf16", device="cpu")
    )
    assert result.loss < result.epochs[0]["loss"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_half_precision_needs_a_gpu(data):
    _, model = small()
    dataset = open_data(str(data), model.inputs)
    with pytest.raises(DeviceError, match="--precision fp16 needs a GPU"):
        train(model, dataset, TrainSettings(precision="fp16"))


def test_the_scaled_loss_of_half_precision_gives_the_same_weights(data, tmp_path, monkeypatch):
    """With the forward pass left in float32, scaling the loss and unscaling the gradients changes nothing."""
    from nncompress.train import run

    class Scaled(run.Precision):
        def __init__(self, name, device):
            super().__init__("fp32", device)
            self.scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)

    _, model = small()
    dataset = open_data(str(data), model.inputs)
    settings = TrainSettings(epochs=2, batch=8, lr=0.05, clip=0.5)
    plain, _ = train(model, dataset, settings)
    monkeypatch.setattr(run, "Precision", Scaled)
    scaled, _ = train(model, dataset, settings)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(scaled.tensor(name), tensor, rtol=1e-5, atol=1e-6)
    kept = {"checkpoint": tmp_path / "c", "checkpoint_seconds": 0.0, "resume": True}
    with pytest.raises(Killed):
        train(model, dataset, settings, progress=Kill(7), **kept)
    resumed, _ = train(model, dataset, settings, **kept)
    assert same(scaled, resumed)


def test_a_view_of_feature_maps_trains(data):
    """Images lie channels last while training: a view of them would not be possible."""

    class Flattened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.head = nn.Conv2d(3, 6, 3, padding=1), nn.Linear(6 * 64, 4)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            y = F.relu(self.conv(x))
            return self.head(y.view(y.shape[0], -1))

    torch.manual_seed(0)
    model = Model.from_module(Flattened().eval(), (torch.randn(2, 3, 8, 8),))
    dataset = open_data(str(data), model.inputs)
    trained, result = train(model, dataset, TrainSettings(epochs=3, batch=8), validation=dataset)
    assert result.loss < result.epochs[0]["loss"]
    assert all(p.is_contiguous() for p in trained.graph_module.parameters())
    x = torch.randn(5, 3, 8, 8)
    assert trained(x).shape == (5, 4)
