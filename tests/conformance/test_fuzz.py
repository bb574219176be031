"""A short slice of `benchmarks/fuzz/files.py`, the same every time: no broken file gets past its reader."""

from __future__ import annotations

import os
from pathlib import Path
from random import Random

import pytest
import torch

from benchmarks.fuzz.cases import NEEDS, TARGETS
from benchmarks.fuzz.files import case
from benchmarks.fuzz.good import good_files
from benchmarks.fuzz.operator_graphs import OperatorGraph
from benchmarks.fuzz.process import batch
from nncompress.errors import MOST_SHOWN, NNCompressError

CORPUS = Path(__file__).with_name("fuzz_corpus")


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    before, folder = os.getcwd(), tmp_path_factory.mktemp("fuzz")
    os.chdir(folder)
    yield good_files(folder, apart=False)
    os.chdir(before)


@pytest.mark.parametrize("kind", sorted(TARGETS))
def test_broken_files_are_refused_or_read(kind, good, tmp_path):
    target = TARGETS[kind]
    path = tmp_path / target.place
    target.prepare(tmp_path)
    path.write_bytes(good[kind][0])
    target.read(path)  # as it is: damaged from something that is refused anyhow, it would try little
    refused = 0
    for index in range(8):
        content = case(good[kind], target, Random(kind).randrange(1000), index)
        path.write_bytes(content)
        try:
            target.read(path)
        except NNCompressError:
            refused += 1
    assert refused or kind in ("session", "latency", "trial", "effect", "trained", "streamed")  # made anew


@pytest.mark.parametrize("path", sorted(CORPUS.iterdir()), ids=lambda path: path.name)
def test_what_once_went_wrong_is_one_bounded_message(path, good, tmp_path):
    """`KIND-SEED-ROUND-NUMBER`, as the fuzzer named it."""
    kind = path.name.split("-")[0]
    if kind not in TARGETS:
        pytest.skip(f"needs nncompress[{NEEDS[kind]}]")
    target = TARGETS[kind]
    place = tmp_path / target.place
    target.prepare(tmp_path)
    place.write_bytes(path.read_bytes())
    said = ""
    try:
        target.read(place)
    except NNCompressError as error:
        said = str(error)
    assert max(map(len, said.splitlines()), default=0) < 2 * MOST_SHOWN


def test_operators_with_hostile_arguments_are_refused_or_run(tmp_path):
    """A few graphs of `benchmarks/fuzz/operators.py`; files are read in a process that may die of them."""
    forms = [("add_", "Tensor"), ("conv2d", "default"), ("index_put_", "default"), ("gather", "default")]

    def make(index: int) -> bytes:
        name, form = forms[index % len(forms)]
        operator = getattr(getattr(torch.ops.aten, name), form)
        return OperatorGraph(f"torch.ops.aten.{name}.{form}", operator, Random(index)).content()

    outcomes = list(batch("pt2", make, TARGETS["pt2"].read, tmp_path / "work", "a.pt2", 12))
    assert [outcome.what for outcome in outcomes if outcome.wrong] == []
    assert {"read", "ModelFileError"} <= {outcome.what for outcome in outcomes}
