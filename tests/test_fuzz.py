"""A short slice of `benchmarks/fuzz.py`, the same every time: no broken file gets past its reader."""

from __future__ import annotations

import os
from random import Random

import pytest
from fuzz import case
from fuzz_cases import TARGETS, good_files

from nncompress.errors import NNCompressError


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    before, folder = os.getcwd(), tmp_path_factory.mktemp("fuzz")
    os.chdir(folder)
    yield good_files(folder)
    os.chdir(before)


@pytest.mark.parametrize("kind", sorted(TARGETS))
def test_broken_files_are_refused_or_read(kind, good, tmp_path):
    target = TARGETS[kind]
    path = tmp_path / target.place
    path.parent.mkdir(parents=True, exist_ok=True)
    refused = 0
    for index in range(8):
        content = case(good[kind], target, Random(kind).randrange(1000), index)
        path.write_bytes(content)
        try:
            target.read(path)
        except NNCompressError:
            refused += 1
    assert refused or kind == "session"  # which says that it is damaged, and goes on
