"""Counters as files, so that the arithmetic is tested on machines that count nothing."""

from __future__ import annotations

import pytest

from nncompress.benchmarking import energy
from nncompress.benchmarking.energy import Rapl, energy_per_call, meters


def package(folder, index, microjoules, span=1_000_000_000, name=None):
    path = folder / f"intel-rapl:{index}"
    path.mkdir(exist_ok=True)
    (path / "name").write_text(f"{name or f'package-{index}'}\n")
    (path / "max_energy_range_uj").write_text(f"{span}\n")
    (path / "energy_uj").write_text(f"{microjoules}\n")
    return path


def test_packages_are_added_and_parts_of_them_are_not(tmp_path):
    a, b = package(tmp_path, 0, 500), package(tmp_path, 1, 700)
    package(tmp_path, "0:0", 300, name="core")
    package(tmp_path, 2, 900, name="psys")
    (meter,), sentence = meters(gpu=False, powercap=tmp_path)
    assert meter.joules() == 0
    (a / "energy_uj").write_text("2000500")
    (b / "energy_uj").write_text("1000700")
    assert meter.joules() == pytest.approx(3.0)
    assert "CPU package" in sentence
    assert "idle power" in sentence


def test_a_counter_that_wraps_around(tmp_path):
    path = package(tmp_path, 0, 900, span=1000)
    meter = Rapl([path])
    (path / "energy_uj").write_text("100")
    assert meter.joules() == pytest.approx(200e-6)


def test_energy_per_call_is_each_arm_s_own():
    class Counter:
        source = "CPU package"
        total = 0.0

        def joules(self):
            return self.total

    counter = Counter()

    def call(joules):
        def run():
            counter.total += joules

        return run

    light, heavy = energy_per_call([call(0.5), call(2.0)], [counter], block_s=1e-4, blocks=3)
    assert light == {"CPU package": pytest.approx(0.5)}
    assert heavy == {"CPU package": pytest.approx(2.0)}


def test_where_nothing_is_counted_the_reason_is_said(tmp_path, monkeypatch):
    assert meters(gpu=False, powercap=tmp_path) == (
        [],
        f"not reported here: no RAPL counter under {tmp_path}",
    )

    def refused(path):
        raise PermissionError(13, "Permission denied")

    package(tmp_path, 0, 1)
    monkeypatch.setattr(Rapl, "_read", staticmethod(refused))
    assert "root only" in meters(gpu=False, powercap=tmp_path)[1]

    def no_driver(name):
        raise OSError(f"{name}: no such library")

    monkeypatch.setattr(energy.ctypes, "CDLL", no_driver)
    assert "libnvidia-ml" in meters(gpu=True, powercap=tmp_path / "none")[1]
