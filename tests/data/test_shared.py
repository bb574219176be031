"""The development data set beside the checkout, where there is one."""

from __future__ import annotations

from pathlib import Path

import pytest

from nncompress.data import open_data

SHARED = Path(__file__).resolve().parents[2].parent / "shared" / "data"
CLASSES = "airplane automobile bird cat deer dog frog horse ship truck"

pytestmark = [
    pytest.mark.shared_data,
    pytest.mark.skipif(not SHARED.is_dir(), reason="no ../shared/data beside the checkout"),
]


def test_mnist_begins_as_is_well_known():
    dataset = open_data(f"mnist:{SHARED / 'mnist'}")
    batch = next(dataset.batches(100))
    assert len(dataset) == 10_000
    assert batch.inputs[0].shape == (100, 1, 28, 28)
    assert batch.labels[:5].tolist() == [7, 2, 1, 0, 4]  # the test set's well-known beginning


def test_a_real_cifar10_tar_is_read_with_its_classes(rgb32):
    dataset = open_data(f"cifar10:{SHARED / 'cifar10'}", rgb32, "imagenet")
    assert len(dataset) == 10_000
    assert " ".join(dataset.class_names) == CLASSES
    (batch,) = dataset.batches(100, limit=100)
    assert batch.labels.bincount().tolist() == [10] * 10  # the limit spreads over the classes
    assert batch.inputs[0].abs().max() < 3


def test_a_real_npz_is_read_with_its_labels(rgb32):
    dataset = open_data(str(SHARED / "cifar10" / "lossless_test846.npz"), rgb32)
    assert len(dataset) == 846
    assert dataset.has_labels
