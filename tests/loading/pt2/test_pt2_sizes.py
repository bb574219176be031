"""A `.pt2` that claims more than it holds is refused before memory is spent on it."""

from __future__ import annotations

import zipfile

import pytest
from pt2_members import GRAPH, WEIGHTS, edit_json, write

from nncompress.errors import ModelFileError
from nncompress.loading.pt2.archive import read_pt2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("sizes", [{"as_int": 2**40}, {"as_int": 2**7}]),
        ("sizes", [{"as_int": 4}, {"as_int": 4}]),
        ("storage_offset", {"as_int": 1}),
        ("strides", [{"as_int": 2**40}, {"as_int": 1}]),
        ("dtype", 8),
    ],
)
def test_tensor_beyond_its_bytes_is_refused(key, value, members, tmp_path):
    hostile = dict(members)
    edit_json(hostile, WEIGHTS, lambda d: d["config"]["fc.weight"]["tensor_meta"].update({key: value}))
    with pytest.raises(ModelFileError, match=r"fc\.weight"):
        read_pt2(write(hostile, tmp_path / "short.pt2"))


def test_tensor_repeated_to_absurd_size_is_refused(members, tmp_path):
    hostile = dict(members)
    huge = {"sizes": [{"as_int": 2**40}, {"as_int": 4}], "strides": [{"as_int": 0}, {"as_int": 1}]}
    edit_json(hostile, WEIGHTS, lambda d: d["config"]["fc.weight"]["tensor_meta"].update(huge))
    with pytest.raises(ModelFileError, match="repeats"):
        read_pt2(write(hostile, tmp_path / "broadcast.pt2"))


def test_compressed_members_are_refused(members, tmp_path):
    """A zip bomb is a small file of much compressed data; torch stores its members as they are."""
    path = tmp_path / "bomb.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
        archive.writestr("archive/data/weights/weight_9", bytes(50_000_000))
    assert path.stat().st_size < 200_000
    with pytest.raises(ModelFileError, match="compressed"):
        read_pt2(path)


def test_members_that_overlap_are_refused(members, tmp_path):
    """Many directory entries for the same bytes claim more than the file has."""
    path = tmp_path / "overlap.pt2"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive:
        for name, content in members.items():
            archive.writestr(f"archive/{name}", content)
        archive.writestr("archive/data/weights/weight_7", bytes(100_000))
        shared = archive.infolist()[-1]
        for index in range(100, 400):
            copy = zipfile.ZipInfo(f"archive/data/weights/weight_{index}")
            for field in ("header_offset", "file_size", "compress_size", "CRC"):
                setattr(copy, field, getattr(shared, field))
            archive.filelist.append(copy)
            archive.NameToInfo[copy.filename] = copy
    with pytest.raises(ModelFileError, match="more bytes than the file has"):
        read_pt2(path)


def test_doubled_member_is_refused(members, tmp_path):
    """Two readers may disagree on which of two members of one name is meant."""
    path = write(members, tmp_path / "double.pt2")
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_STORED) as archive,
        pytest.warns(UserWarning, match="Duplicate"),
    ):
        archive.writestr("archive/models/model.json", members[GRAPH])
    with pytest.raises(ModelFileError, match="doubled"):
        read_pt2(path)


def test_truncated_file_is_refused(members, tmp_path):
    path = write(members, tmp_path / "cut.pt2")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ModelFileError, match=r"cut\.pt2"):
        read_pt2(path)
