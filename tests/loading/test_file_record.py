"""What nncompress records in a model file comes from anyone's hand when it is read."""

from __future__ import annotations

from pathlib import Path

import pytest

from nncompress.errors import ModelFileError
from nncompress.loading.file_record import read_header, read_record

STEP = {
    "pass": "prune",
    "settings": {"std": 0.5},
    "before": {"macs": 8},
    "after": {"macs": 8},
    "version": "0",
}


def test_record_comes_back():
    written = {"history": [STEP], "metadata": {"normalize": "imagenet", "study": {"a": [1]}}}
    found = read_record(written, Path("m.pt2"))
    assert (found.history, found.metadata) == ([STEP], written["metadata"])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("metadata", {"normalize": 3}),
        ("metadata", {"normalize": "gray"}),
        ("metadata", {"normalize": "0.5/0"}),
        ("metadata", [1]),
        ("history", {"pass": "prune"}),
        ("history", [3]),
        ("history", [STEP | {"pass": 3}]),
        ("history", [STEP | {"settings": [1]}]),
        ("history", [STEP | {"before": 3}]),
        ("history", [STEP | {"after": {"macs": "many"}}]),
        ("history", [STEP | {"after": {"macs": 2**70}}]),
        ("outputs", [1]),
        ("dynamic", 10**40),
        ("inputs", [{"name": "x", "dtype": "float32", "shape": [2**40]}]),
    ],
)
def test_value_of_another_type_is_refused(key, value):
    with pytest.raises(ModelFileError, match=r"m\.pt2 is damaged") as refused:
        read_record({key: value}, Path("m.pt2"))
    assert len(str(refused.value)) < 400


def test_deep_history_is_refused():
    deep: dict = {}
    for _ in range(5000):
        deep = {"a": deep}
    with pytest.raises(ModelFileError, match="nested more than 32 deep"):
        read_record({"history": [STEP | {"settings": deep}]}, Path("m.pt2"))


def test_header_of_another_tool_is_no_record():
    assert (
        read_header({"history": "[" * 100_000, "metadata": "free text"}, Path("m.safetensors")).history == []
    )
