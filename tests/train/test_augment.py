"""Augmentation changes pixels on their own scale, whatever the normalisation."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from nncompress.data import open_data
from nncompress.errors import UsageError
from nncompress.ir.graph.inputs import InputSpec
from nncompress.train import TrainSettings
from nncompress.train.augment import Augmentation

pytest.importorskip("kornia")
IMAGES = (InputSpec("x", "float32", ("batch", 3, 8, 8)),)


@pytest.fixture
def photos(tmp_path):
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "d.npz", x=rng.integers(40, 200, (64, 8, 8, 3), dtype=np.uint8), y=np.arange(64))
    return open_data(str(tmp_path / "d.npz"), IMAGES, "0.5,0.4,0.3/0.2,0.3,0.4")


def test_flip_mirrors_about_half_and_nothing_else(photos):
    batch = next(photos.batches(64))
    torch.manual_seed(0)
    flipped = Augmentation(TrainSettings(flip=True), photos)(batch)
    same = [torch.allclose(a, b, atol=1e-5) for a, b in zip(flipped.inputs[0], batch.inputs[0])]
    mirrored = [torch.allclose(a, b.flip(2), atol=1e-5) for a, b in zip(flipped.inputs[0], batch.inputs[0])]
    assert all(s != m for s, m in zip(same, mirrored))
    assert 16 < sum(mirrored) < 48
    assert torch.equal(flipped.labels, batch.labels)


def test_crop_shifts_and_fills_with_black(photos):
    batch = next(photos.batches(64))
    torch.manual_seed(0)
    moved = Augmentation(TrainSettings(crop=2), photos)(batch).inputs[0]
    scale, offset = torch.tensor([0.2, 0.3, 0.4]), torch.tensor([0.5, 0.4, 0.3])
    pixels = (moved * scale[:, None, None] + offset[:, None, None]).clamp(min=0)
    original = batch.inputs[0] * scale[:, None, None] + offset[:, None, None]
    padded = torch.nn.functional.pad(original, (2, 2, 2, 2))
    for image, source in zip(pixels, padded):
        shifts = [source[:, i : i + 8, j : j + 8] for i in range(5) for j in range(5)]
        assert any(torch.allclose(image, shift, atol=1e-4) for shift in shifts)


def test_the_same_seed_gives_the_same_images(photos):
    batch = next(photos.batches(64))
    settings = TrainSettings(crop=2, flip=True, brightness=0.3, contrast=0.3)
    made = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        made.append(Augmentation(settings, photos)(batch).inputs[0])
    assert torch.equal(made[0], made[1])
    assert not torch.equal(made[0], made[2])


def test_only_images_are_augmented(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 6), np.float32), y=np.zeros(4, np.int64))
    table = open_data(str(tmp_path / "d.npz"), (InputSpec("x", "float32", ("batch", 6)),))
    with pytest.raises(UsageError, match="for images"):
        Augmentation(TrainSettings(flip=True), table)


def test_images_standardized_one_by_one(photos, tmp_path):
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 256, (5, 8, 8, 3), dtype=np.uint8)
    pixels[4] = 77  # flat
    np.savez(tmp_path / "p.npz", x=pixels, y=np.zeros(5, np.int64))
    data = open_data(str(tmp_path / "p.npz"), IMAGES, "per-image")
    found = next(data.batches(5)).inputs[0].double().numpy()
    flat = pixels.reshape(5, -1).astype(np.float64)
    spread = np.maximum(flat.std(1), 1 / np.sqrt(flat.shape[1]))
    wide = (5, 1, 1, 1)
    expected = (pixels.transpose(0, 3, 1, 2) - flat.mean(1).reshape(wide)) / spread.reshape(wide)
    np.testing.assert_allclose(found[:4], expected[:4], atol=1e-4)
    np.testing.assert_allclose(found[4], 0, atol=1e-2)
    moved = Augmentation(TrainSettings(crop=2, flip=True), data)(next(data.batches(5))).inputs[0]
    np.testing.assert_allclose(moved[:4].flatten(1).std(1, correction=0), 1, atol=1e-4)
    with pytest.raises(UsageError, match="do nothing"):
        Augmentation(TrainSettings(contrast=0.2), data)
