"""Studies of classifiers: their crops, what is kept and refused, the tables, and what is the paper's."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from networks import built_once
from printed import check
from torch import nn

from nncompress.cli.app import run as command
from nncompress.cli.console import print_json
from nncompress.cli.work import reproduce
from nncompress.errors import DataError, ExitCode, UsageError
from nncompress.exporting import write
from nncompress.ir import InputSpec, Model
from nncompress.report.studies import report
from nncompress.studies import Request, classifiers, quantization, sharesnet
from nncompress.studies.comparison import Entry, measure
from nncompress.studies.images import Crops, Images, open_images
from nncompress.train import TrainSettings

INPUTS = (InputSpec("x", "float32", ("batch", 3, 6, 6)),)


def images(count: int = 24, size: int = 8) -> Images:
    generator = np.random.default_rng(0)
    return Images(
        "noise",
        generator.integers(0, 256, (count, size, size, 3), dtype=np.uint8),
        np.arange(count) % 3,
    )


@built_once
def network(size: int = 6) -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    return Model.from_module(module.eval(), (torch.zeros(2, 3, size, size),))


def standardized(window: np.ndarray) -> torch.Tensor:
    x = torch.from_numpy(window.transpose(2, 0, 1).astype(np.float32) / 255)
    return (x - x.mean()) / x.std(correction=0)


def test_in_order_the_centre_is_cut_out():
    source = images()
    batch = next(Crops(source, INPUTS).batches(5))
    for position in range(5):
        torch.testing.assert_close(
            batch.inputs[0][position], standardized(source.pixels[position, 1:7, 1:7]), rtol=1e-4, atol=1e-4
        )


def test_shuffled_windows_lie_anywhere_and_follow_from_the_seed():
    source = images(200)
    data = Crops(source, INPUTS)
    first, again, other = (
        torch.cat([b.inputs[0] for b in data.batches(64, shuffle_seed=s)]) for s in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    places = set()
    windows = {
        (i, top, left): standardized(source.pixels[i, top : top + 6, left : left + 6])
        for i in range(200)
        for top in range(3)
        for left in range(3)
    }
    stacked = torch.stack(list(windows.values()))
    for found in first[:60]:
        distance = (stacked - found).abs().amax((1, 2, 3))
        assert distance.min() < 1e-4
        places.add(list(windows)[int(distance.argmin())][1:])
    assert len(places) == 9  # 60 draws miss one of nine places with a chance of 0.8 %


def test_pixels_are_normalised_as_asked():
    source = images(2, 6)
    for normalize, mean, std in (("0.5/0.25", 0.5, 0.25), (None, 0.0, 1.0)):
        (batch,) = Crops(source, INPUTS, normalize).batches(2)
        expected = (source.pixels.transpose(0, 3, 1, 2) / 255 - mean) / std
        np.testing.assert_allclose(batch.inputs[0].numpy(), expected, atol=1e-5)


def test_images_must_be_large_enough():
    with pytest.raises(DataError, match="too small"):
        Crops(images(size=5), INPUTS)


def test_a_fifth_is_held_out_once(tmp_path):
    path = tmp_path / "images.npz"
    source = images(50)
    np.savez(path, x=source.pixels, y=source.labels)
    train, test = open_images(str(path), "small-model")
    assert (len(train), len(test)) == (40, 10)
    every = sorted(p.tobytes() for p in (*train.pixels, *test.pixels))
    assert every == sorted(p.tobytes() for p in source.pixels)
    with pytest.raises(UsageError, match="needs labelled images"):
        open_images(None, "small-model")


def test_a_kept_network_is_found_again_and_another_training_refused(tmp_path):
    request = Request(tmp_path)
    settings = TrainSettings(epochs=1, batch=8, task="classification")
    first = classifiers.trained(request, "net", network(), images(), settings, seed=3)
    again = classifiers.trained(request, "net", network(), images(), settings, seed=3)
    assert all(torch.equal(a, again.state_dict()[k]) for k, a in first.state_dict().items())
    assert not list(tmp_path.glob("*.checkpoint"))
    longer = TrainSettings(epochs=2, batch=8, task="classification")
    with pytest.raises(UsageError, match="another training"):
        classifiers.trained(request, "net", network(), images(), longer, seed=3)


def test_a_framed_network_sees_the_centre():
    model = network(6)
    framed = classifiers.framed(model, 8, 10)
    x = torch.randn(3, 3, 8, 10)
    torch.testing.assert_close(framed(x), model(x[:, :, 1:7, 2:8]))


def test_rows_hold_what_the_files_do(tmp_path):
    model = network(8)
    data = Crops(images(), model.inputs)
    entries = [Entry("a", [model], data), Entry("b", [model, network(8)], data, {"top1": "99"})]
    rows, _ = measure(Request(tmp_path), entries, paired=True, time_budget=0.2)
    right = sum(int((model(b.inputs[0]).argmax(1) == b.labels).sum()) for b in data.batches(8))
    assert rows[0].top1 == pytest.approx((right / 24,))
    assert len(rows[1].top1) == 2
    assert rows[0].difference is None
    assert rows[1].difference is not None
    assert rows[1].difference.value == 0
    assert rows[0].macs == 6 * 6 * 4 * 27 + 12
    assert rows[1].paper == {"top1": "99"}
    assert rows[1].speedup is not None


def test_sharing_counts_are_the_papers():
    counted = sharesnet._count(next(n for n in sharesnet.TABLE_1 if n.name == "wrn-40-4"))
    assert counted.exact
    assert counted.shared_convolutions == 28  # the paper says 25; see docs/share.md


def test_a_study_of_the_users_own_model(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(quantization, "find_spec", lambda name: None)  # ExecuTorch takes long to import
    source = images(60, 32)
    np.savez(tmp_path / "data.npz", x=source.pixels, y=source.labels)
    write(network(32), tmp_path / "model.pt2")
    arguments = ["--quick", "--data", str(tmp_path / "data.npz"), "--model", str(tmp_path / "model.pt2")]
    found = []
    monkeypatch.setattr(reproduce, "report", lambda result: found.append(result) or report(result))
    assert command(["reproduce", "quantization", *arguments]) == ExitCode.OK
    shown = " ".join(capsys.readouterr().out.split())
    assert "ONNX Runtime int8" in shown
    assert "as it was trained" in shown
    assert "91.1" not in shown  # the paper's accuracy is of its own network
    print_json(found[0].to_json())  # as --json does
    check(json.loads(capsys.readouterr().out))


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (["small-model"], "needs labelled images"),
        (["small-model", "--data", "d.npz", "--model", "m.pt2"], "takes no --model"),
        (["summation", "--epochs", "3"], "takes no --epochs"),
        (["summation", "--data", "d.npz"], "takes no --data"),
        (["sharesnet", "--plot", "p.png"], "takes no --plot"),
        (["approximation", "--data", "d.npz", "--runs", "2"], "takes no --runs"),
        (["quantization", "--data", "d.npz", "--runs", "2"], "takes no --runs"),
        (["quantization", "--data", "d.npz", "--model", "m", "--epochs", "2"], "so --epochs has no effect"),
        (["sharesnet", "--epochs", "2"], "add --data, or leave --epochs out"),
        (["sharesnet", "--runs", "2"], "without data trains nothing"),
        (["sharesnet", "--keep", "k"], "so --keep has no effect"),
        (["sharesnet", "--seed", "2"], "so --seed has no effect"),
    ],
)
def test_mistakes_are_one_message(capsys, arguments, text):
    assert command(["reproduce", *arguments]) == ExitCode.USAGE
    assert text in " ".join(capsys.readouterr().err.split())
