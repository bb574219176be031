"""Shards, tensors, masks and sounds."""

import tracemalloc
import wave

import numpy as np
import pytest
import torch
from PIL import Image

from nncompress import extras
from nncompress.data import open_data
from nncompress.errors import DataError, MissingExtraError
from nncompress.ir import InputSpec


@pytest.fixture
def rng():
    return np.random.default_rng()


def whole(dataset):
    (batch,) = dataset.batches(len(dataset))
    return batch


def mono(samples):
    return [InputSpec("x", "float32", ("batch", samples))]


# --- several .npz -----------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path, rng):
    x, y = rng.standard_normal((10, 3)).astype(np.float32), np.arange(10)
    for part, (start, end) in enumerate([(0, 4), (4, 5), (5, 10)]):
        np.savez(tmp_path / f"part-{part}.npz", x=x[start:end], y=y[start:end])
    return tmp_path, x


def test_a_folder_and_a_pattern_of_archives_are_one_source(shards):
    folder, x = shards
    for spec in (f"{folder}", f"{folder}/part-*.npz"):
        batch = whole(open_data(spec))
        assert np.array_equal(batch.inputs[0].numpy(), x)
        assert batch.labels.tolist() == list(range(10))
    assert len(open_data(f"{folder}/part-[02].npz")) == 9


def test_records_of_shards_come_in_the_order_asked_for(shards):
    folder, x = shards
    source = open_data(str(folder))._source
    asked = np.array([9, 0, 4, 3, 9, 5])
    (got,), labels = source.read(asked)
    assert np.array_equal(got, x[asked])
    assert labels.tolist() == asked.tolist()


def test_shards_that_differ_are_refused_by_name(shards):
    folder, _ = shards
    np.savez(folder / "part-9.npz", x=np.zeros((2, 4), np.float32), y=np.zeros(2, int))
    with pytest.raises(DataError, match=r"part-9.npz has other inputs") as raised:
        open_data(str(folder))
    assert raised.value.got == "x: float32 [4] a sample"
    assert raised.value.expected == "x: float32 [3] a sample"
    np.savez(folder / "part-9.npz", x=np.zeros((2, 3), np.float32))
    with pytest.raises(DataError, match=r"part-9.npz has other labels") as raised:
        open_data(str(folder))
    assert (raised.value.got, raised.value.expected) == ("no labels", "labels")


# --- tensors ----------------------------------------------------------------------------------------------


def test_tensors_are_records(tmp_path):
    x, y = torch.randn(5, 3), torch.arange(5)
    for saved in ({"x": x, "y": y}, (x, y), [x, y], {"images": x, "labels": y, "name": "digits"}):
        torch.save(saved, tmp_path / "d.pt")
        batch = whole(open_data(str(tmp_path / "d.pt")))
        assert torch.equal(batch.inputs[0], x)
        assert torch.equal(batch.labels, y)
    torch.save(x, tmp_path / "d.pt")
    assert whole(open_data(str(tmp_path / "d.pt"))).labels is None


class Foreign:
    pass


@pytest.mark.parametrize("saved", [{"a": 1}, "text", 3, Foreign(), {"x": torch.eye(3).to_sparse()}])
def test_what_is_no_tensor_is_refused_and_runs_nothing(tmp_path, saved):
    torch.save(saved, tmp_path / "d.pt")
    with pytest.raises(DataError):
        open_data(str(tmp_path / "d.pt"))


# --- masks ------------------------------------------------------------------------------------------------


@pytest.fixture
def street(tmp_path, rng):
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    masks = rng.integers(0, 4, (3, 6, 8)).astype(np.uint8)
    for number, mask in enumerate(masks):
        pixels = rng.integers(0, 256, (6, 8, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.jpg")
        Image.fromarray(mask).save(tmp_path / "masks" / f"{number}.png")
    return tmp_path, masks


def test_masks_are_classes_of_pixels(street):
    folder, masks = street
    batch = whole(open_data(str(folder)))
    assert batch.inputs[0].shape == (3, 3, 6, 8)
    assert np.array_equal(batch.labels.numpy(), masks)


def test_masks_are_cropped_as_their_images_without_new_classes(street):
    folder, _ = street
    for number in range(3):  # class 1 left, class 2 right, as black and white in the image
        mask = np.repeat([[1, 1, 1, 1, 2, 2, 2, 2]], 6, 0).astype(np.uint8)
        Image.fromarray(mask).save(folder / "masks" / f"{number}.png")
        (folder / "images" / f"{number}.jpg").unlink()
        Image.fromarray((mask == 2).astype(np.uint8) * 255).save(folder / "images" / f"{number}.png")
    batch = whole(open_data(str(folder), [InputSpec("x", "float32", ("batch", 1, 21, 21))]))
    assert batch.labels.shape == (3, 21, 21)
    assert set(batch.labels.unique().tolist()) == {1, 2}
    assert ((batch.inputs[0][:, 0] > 0.5) == (batch.labels == 2)).float().mean() > 0.95


def test_a_palette_says_indices_and_colours_are_refused(street):
    folder, masks = street
    picture = Image.fromarray(masks[0])
    picture.putpalette([255, 0, 0] * 256)
    picture.save(folder / "masks" / "0.png")
    assert np.array_equal(whole(open_data(str(folder))).labels[0].numpy(), masks[0])
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(folder / "masks" / "0.png")
    with pytest.raises(DataError, match="mode RGB"):
        open_data(str(folder))
    Image.fromarray(np.zeros((5, 8), np.uint8)).save(folder / "masks" / "0.png")
    with pytest.raises(DataError, match="its image is"):
        open_data(str(folder))
    (folder / "masks" / "0.png").unlink()
    with pytest.raises(DataError, match=r"1 of 3 images have no mask(.|\n)*masks/0.png"):
        open_data(str(folder))


# --- sounds -----------------------------------------------------------------------------------------------


def write_wav(path, numbers, width=2, channels=1, rate=8000):
    path.parent.mkdir(parents=True, exist_ok=True)
    scaled = np.round(np.asarray(numbers) * (2 ** (8 * width - 1) - 1)).astype(np.int64)
    if width == 1:
        content = (scaled + 128).astype(np.uint8).tobytes()
    else:
        content = scaled.astype("<i8").reshape(-1, 1).view(np.uint8)[:, :width].tobytes()
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(width)
        file.setframerate(rate)
        file.writeframes(content)


@pytest.mark.parametrize("width", [1, 2, 3, 4])
def test_sounds_of_every_width_come_back(tmp_path, rng, width):
    sound = rng.uniform(-1, 1, 50)
    write_wav(tmp_path / "yes" / "a.wav", sound, width)
    write_wav(tmp_path / "no" / "b.wav", -sound, width)
    data = open_data(str(tmp_path), mono(50))
    batch = whole(data)
    assert data.class_names == ("no", "yes")
    assert batch.labels.tolist() == [0, 1]
    np.testing.assert_allclose(batch.inputs[0].numpy(), [-sound, sound], atol=2.0 ** (2 - 8 * width) + 1e-6)


def test_sounds_fill_the_length_that_the_model_takes(tmp_path):
    write_wav(tmp_path / "a.wav", np.full(5, 0.5))
    write_wav(tmp_path / "b.wav", np.full(9, 0.5))
    batch = whole(open_data(str(tmp_path), mono(7)))
    assert (batch.inputs[0] > 0.4).sum(1).tolist() == [5, 7]
    assert batch.labels is None
    with pytest.raises(DataError, match="not as long as"):
        whole(open_data(str(tmp_path)))


def test_channels_are_a_dim_where_the_model_takes_them(tmp_path):
    write_wav(tmp_path / "a.wav", [[0.5, -0.5]] * 4, channels=2)
    batch = whole(open_data(str(tmp_path), [InputSpec("x", "float32", ("batch", 2, 4))]))
    assert (batch.inputs[0][0] > 0).tolist() == [[True] * 4, [False] * 4]
    with pytest.raises(DataError, match="2 channels"):
        open_data(str(tmp_path), mono(4))


def test_of_a_long_sound_no_more_is_read_than_the_model_takes(tmp_path):
    """It was read whole, in four forms at once: 18 bytes for each of 2."""
    write_wav(tmp_path / "a.wav", np.linspace(-0.9, 0.9, 2**20))
    for length, most in ((2**10, 2**20), (2**20, 2**24)):
        tracemalloc.start()
        batch = next(iter(open_data(str(tmp_path), mono(length)).batches(1)))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < most
        np.testing.assert_allclose(
            batch.inputs[0][0].numpy(), np.linspace(-0.9, 0.9, 2**20)[:length], atol=1e-4
        )


def test_rates_that_differ_and_damaged_files_are_messages(tmp_path):
    write_wav(tmp_path / "a.wav", [0.5] * 4)
    write_wav(tmp_path / "b.wav", [0.5] * 4, rate=16000)
    with pytest.raises(DataError, match=r"b.wav has another sample rate"):
        whole(open_data(str(tmp_path)))
    content = (tmp_path / "a.wav").read_bytes()
    for damaged in (content[:20], content[:-4], b"RIFF" + bytes(40)):
        (tmp_path / "a.wav").write_bytes(damaged)
        with pytest.raises(DataError, match="cannot be read as a sound"):
            open_data(str(tmp_path))


@pytest.mark.parametrize("form", ["flac", "ogg", "wav"])
def test_other_sounds_are_read_by_soundfile(tmp_path, form):
    soundfile = pytest.importorskip("soundfile")
    sound = (0.5 * np.sin(np.arange(800) / 5)).astype(np.float32)
    subtype = "FLOAT" if form == "wav" else None
    soundfile.write(tmp_path / f"a.{form}", sound, 8000, subtype=subtype)
    got = whole(open_data(str(tmp_path), mono(800))).inputs[0][0].numpy()
    assert np.abs(got - sound).max() < (0.1 if form == "ogg" else 1e-4)


def test_without_soundfile_other_sounds_name_the_extra(tmp_path, monkeypatch):
    monkeypatch.setattr(extras, "installed", lambda name: False)
    (tmp_path / "a.flac").write_bytes(b"fLaC" + bytes(60))
    with pytest.raises(MissingExtraError, match=r"nncompress\[audio\]"):
        open_data(str(tmp_path), mono(4))
