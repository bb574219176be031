"""Files made to take the machine's memory, or to be read as what they are not: one message each, at once."""

from __future__ import annotations

import contextlib
import io
import lzma
import os
import resource
import struct
import tarfile
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from nncompress.data import open_data
from nncompress.errors import DataError
from nncompress.ir import InputSpec


def png_chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def promised_png(width, height):
    header = png_chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return (
        b"\x89PNG\r\n\x1a\n" + header + png_chunk(b"IDAT", zlib.compress(bytes(10))) + png_chunk(b"IEND", b"")
    )


def saved(kind, **options):
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, kind, **options)
    return file.getvalue()


def promised_jpeg():
    content = bytearray(saved("JPEG"))
    at = content.index(b"\xff\xc0") + 5
    content[at : at + 4] = struct.pack(">HH", 60000, 60000)
    return bytes(content)


def promised_bmp():
    content = bytearray(saved("BMP"))
    content[18:26] = struct.pack("<ii", 60000, 60000)
    return bytes(content)


def promised_gif():
    content = bytearray(saved("GIF"))
    content[6:10] = struct.pack("<HH", 65535, 65535)
    return bytes(content)


def promised_tiff():
    content = bytearray(saved("TIFF"))
    for tag in (256, 257):
        at = content.index(struct.pack("<HHI", tag, 4 if b"\x00\x01\x04\x00" in content else 3, 1)) + 8
        content[at : at + 4] = struct.pack("<I", 60000)
    return bytes(content)


def many_frames():
    file = io.BytesIO()
    frames = [Image.new("L", (16, 16), shade) for shade in (0, 100, 200)]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    return file.getvalue()


PROMISES = {
    "a.png": promised_png(30_000, 30_000),
    "b.png": promised_png(2**31 - 1, 2**31 - 1),
    "c.ppm": b"P6 60000 60000 255\n" + bytes(100),
    "d.jpg": promised_jpeg(),
    "e.bmp": promised_bmp(),
    "f.gif": promised_gif(),
    "g.tif": promised_tiff(),
}


@pytest.mark.parametrize("name", PROMISES)
def test_pixels_are_bounded_before_any_is_decoded(tmp_path, rgb32, name):
    (tmp_path / name).write_bytes(PROMISES[name])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="cannot be read as an image"):
        open_data(str(tmp_path), rgb32)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100_000  # kB


def test_a_flat_image_of_many_pixels_is_read(tmp_path):
    Image.new("RGB", (4000, 4000), "white").save(tmp_path / "a.png")
    assert open_data(str(tmp_path), [InputSpec("x", "float32", ("batch", 3, 8, 8))]).inputs[0].shape == (
        3,
        8,
        8,
    )


def test_frames_are_not_chosen_in_silence(tmp_path):
    (tmp_path / "a.gif").write_bytes(many_frames())
    with pytest.raises(DataError, match="cannot be read as an image") as error:
        open_data(str(tmp_path))
    assert "several frames" in error.value.got


@pytest.mark.parametrize("kind", [b"zTXt", b"iCCP", b"iTXt"])
def test_text_and_profiles_of_a_png_do_not_unpack_without_bound(tmp_path, kind):
    bomb = zlib.compress(bytes(2**28))
    content = b"a\0\1\0\0\0" + bomb if kind == b"iTXt" else b"a\0\0" + bomb
    good = saved("PNG")
    (tmp_path / "a.png").write_bytes(good[:33] + png_chunk(kind, content) + good[33:])
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with contextlib.suppress(DataError):  # a profile that does not unpack is left out
        open_data(str(tmp_path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kB


def test_pipes_and_devices_are_no_data(tmp_path, rgb32):
    os.mkfifo(tmp_path / "a.png")
    for spec in ("/dev/zero", str(tmp_path / "a.png"), str(tmp_path)):
        with pytest.raises(DataError, match=r"neither a file nor a folder|holds no images"):
            open_data(spec, rgb32)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, tarfile.GNUTYPE_SPARSE])
def test_a_tar_of_anything_but_plain_files_is_refused(tmp_path, kind):
    with tarfile.open(tmp_path / "test.tar", "w") as archive:
        member = tarfile.TarInfo("cat/a.png")
        member.type, member.linkname = kind, "/etc/passwd"
        archive.addfile(member)
    with pytest.raises(DataError, match=r"no plain file|cannot be read as a tar"):
        open_data(f"cifar10:{tmp_path}")


@pytest.mark.parametrize("kind", [tarfile.REGTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_a_tar_that_unpacks_to_more_than_images_do_is_refused(tmp_path, kind):
    member = tarfile.TarInfo("cat/a.png")
    member.type, member.size = kind, 2**28
    content = lzma.compress(member.tobuf(tarfile.GNU_FORMAT) + bytes(2**28), preset=0)
    (tmp_path / "test.tar.xz").write_bytes(content)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(DataError, match="cannot be read as a tar archive"):
        open_data(f"cifar10:{tmp_path}")
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 150_000  # kB


def npy(array_header: dict, content: bytes) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, array_header)
    return file.getvalue() + content


@pytest.mark.parametrize(
    ("header", "content", "says"),
    [
        ({"descr": "<f4", "fortran_order": False, "shape": (10**12, 0)}, b"", "samples of x are empty"),
        ({"descr": "<U0", "fortran_order": False, "shape": (10**12,)}, b"", "does not hold numbers"),
        ({"descr": "<f4", "fortran_order": False, "shape": (-2, -2)}, bytes(16), "cannot be read"),
        ({"descr": "<f4", "fortran_order": False, "shape": (1,) * 90}, bytes(4), "cannot be read"),
        ({"descr": "<f4", "fortran_order": False, "shape": (0, 4)}, b"", "holds no samples"),
        ({"descr": "<M8[s]", "fortran_order": False, "shape": (2, 4)}, bytes(64), "does not hold numbers"),
        ({"descr": "<c8", "fortran_order": False, "shape": (2, 4)}, bytes(64), "does not hold numbers"),
        ({"descr": [("a", "<f4")], "fortran_order": True, "shape": (2,)}, bytes(8), "does not hold numbers"),
    ],
)
def test_headers_that_lie_are_refused(tmp_path, features4, header, content, says):
    with zipfile.ZipFile(tmp_path / "d.npz", "w") as archive:
        archive.writestr("x.npy", npy(header, content))
    with pytest.raises(DataError, match=says):
        open_data(str(tmp_path / "d.npz"), features4)


def test_an_archive_packed_in_another_way_is_refused_unread(tmp_path, features4):
    with zipfile.ZipFile(tmp_path / "d.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("x.npy", npy({"descr": "<f4", "fortran_order": False, "shape": (50, 4)}, bytes(800)))
    with pytest.raises(DataError, match="a way that numpy does not write"):
        open_data(str(tmp_path / "d.npz"), features4)


@pytest.mark.parametrize("label", [2**63, 2**64 - 1])
def test_labels_beyond_int64_do_not_wrap(tmp_path, features4, label):
    y = np.array([0, 1, label], np.uint64)
    np.savez(tmp_path / "d.npz", x=np.zeros((3, 4), np.float32), y=y)
    with pytest.raises(DataError, match="sample 2 has too large a label") as error:
        open_data(str(tmp_path / "d.npz"), features4)
    assert error.value.got == str(label)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "uint32", "uint64", ">i4", ">u2", "bool", "int8"])
def test_every_kind_of_integer_label_is_read_exactly(tmp_path, features4, dtype):
    y = np.array([0, 1, 1, 0]).astype(dtype)
    np.savez(tmp_path / "d.npz", x=np.zeros((4, 4), np.float32), y=y)
    (batch,) = open_data(str(tmp_path / "d.npz"), features4).batches(4)
    assert batch.labels.tolist() == [0, 1, 1, 0]


@pytest.mark.parametrize("dtype", [">f4", ">f8", "longdouble", "float16", "F"])
def test_byte_orders_and_lengths_that_torch_does_not_know(tmp_path, features4, dtype):
    x = np.arange(8.0).reshape(2, 4)
    array = np.asfortranarray(x) if dtype == "F" else x.astype(dtype)
    np.savez(tmp_path / "d.npz", x=array)
    (batch,) = open_data(str(tmp_path / "d.npz"), features4).batches(4)
    np.testing.assert_array_equal(batch.inputs[0], x)


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64", ">i8"])
def test_ids_of_any_integer_dtype(tmp_path, dtype):
    np.savez(tmp_path / "d.npz", x=np.array([[1], [200]], dtype))
    (batch,) = open_data(str(tmp_path / "d.npz"), [InputSpec("ids", "int64", ("batch", 1))]).batches(4)
    assert batch.inputs[0].tolist() == [[1], [200]]


def test_targets_too_large_for_float32_are_refused(tmp_path, features4):
    np.savez(tmp_path / "d.npz", x=np.zeros((2, 4), np.float32), y=np.array([1.0, 1e300]))
    with pytest.raises(DataError, match="sample 1 of the labels, as float32, holds infinity"):
        open_data(str(tmp_path / "d.npz"), features4)


def test_a_narrow_image_is_not_scaled_to_more_than_images_have(tmp_path):
    """Its shorter side, one pixel, to 8/7 of what the model takes makes the other 70 million."""
    Image.new("L", (60000, 1)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="cannot be read as an image") as refusal:
        open_data(str(tmp_path), [InputSpec("x", "float32", ("batch", 1, 1024, 1024))])
    assert "60000 x 1 pixels" in refusal.value.got


@pytest.mark.parametrize(
    "tensor",
    [
        torch.zeros(1).expand(2**33, 4),
        torch.empty(4, 3, device="meta"),
        torch.eye(4).to_sparse(),
        torch.randn(4, 3).to(torch.float8_e4m3fn),
        torch.randn(4, 3, dtype=torch.complex64).conj(),
        torch.nested.nested_tensor([torch.zeros(2), torch.zeros(3)]),
    ],
    ids=["repeated", "meta", "sparse", "float8", "conjugate", "nested"],
)
def test_tensors_that_are_no_arrays_are_one_message(tmp_path, tensor):
    torch.save({"x": tensor, "y": torch.arange(4)}, tmp_path / "a.pt")
    with pytest.raises(DataError):
        open_data(str(tmp_path / "a.pt"))
