"""What is set before the work of a command is imported."""

from __future__ import annotations

import os

import pytest

from nncompress.cli import later as module
from nncompress.cli.later import LARGE_PAGES, later


@pytest.mark.parametrize(
    ("place", "before", "wanted"),
    [
        ("passes.run_passes:run_passes", None, "1"),
        ("passes.run_passes:run_passes", "0", "0"),  # what the user says
        ("bench:bench", None, None),
    ],
)
def test_tensors_of_all_but_what_is_timed_are_in_large_pages(monkeypatch, place, before, wanted):
    monkeypatch.setenv(LARGE_PAGES, before or "")
    if before is None:
        monkeypatch.delenv(LARGE_PAGES)
    seen = []
    monkeypatch.setattr(module, "named", lambda name: lambda *given: seen.append((name, given)))
    later(place)(3)
    assert seen == [(f"nncompress.cli.work.{place}", (3,))]
    assert os.environ.get(LARGE_PAGES) == wanted
