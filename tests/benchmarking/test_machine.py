from __future__ import annotations

import time

import pytest

from nncompress.benchmarking import machine
from nncompress.benchmarking.machine import Activity, activity, between


def test_others_work_is_the_machine_s_without_our_own():
    before = Activity(wall=10, all_programs=100, own=5, throttled=3)
    after = Activity(wall=20, all_programs=118, own=9, throttled=7)
    seen = between(before, after)
    assert seen.other_cores == pytest.approx((18 - 4) / 10)
    assert seen.throttled == 4


def test_what_the_system_does_not_tell_is_unknown(monkeypatch, tmp_path):
    monkeypatch.setattr(machine, "STAT", tmp_path / "none")
    monkeypatch.setattr(machine, "CPUS", tmp_path)
    before, after = activity(), activity()
    assert between(before, after) == machine.Meanwhile(None, None)


def test_the_files_are_read(monkeypatch, tmp_path):
    (tmp_path / "stat").write_text("cpu  100 20 30 5000 7 1 2 40 0 0\ncpu0 1 2 3 4 5 6 7 8 0 0\n")
    for core, count in ((0, 2), (1, 5)):
        folder = tmp_path / f"cpu{core}" / "thermal_throttle"
        folder.mkdir(parents=True)
        (folder / "core_throttle_count").write_text(str(count))
    monkeypatch.setattr(machine, "STAT", tmp_path / "stat")
    monkeypatch.setattr(machine, "CPUS", tmp_path)
    monkeypatch.setattr(machine.os, "sysconf", lambda name: 100)
    now = activity()
    assert now.all_programs == pytest.approx((100 + 20 + 30 + 1 + 2 + 40) / 100)  # neither idle nor waiting
    assert now.throttled == 7


def test_our_own_work_is_not_another_program_s():
    before = activity()
    end = time.thread_time() + 0.05
    while time.thread_time() < end:
        pass
    after = activity()
    assert after.own - before.own >= 0.045  # less a tick of the system's clock
