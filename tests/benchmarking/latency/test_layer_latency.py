import json

import pytest
from scripted_machine import script

from nncompress.benchmarking.latency import layer as layer_latency
from nncompress.benchmarking.latency.layer import Latencies, measure
from nncompress.benchmarking.latency.layer_file import LayerShape
from nncompress.benchmarking.latency.table import LatencyTable
from nncompress.targets import TARGETS

ORT = TARGETS["ort-cpu"]


@pytest.fixture(autouse=True)
def _few_rounds(monkeypatch):
    monkeypatch.setattr(layer_latency, "MOST_ROUNDS", 10)


def test_chains_are_shares_of_the_layer_they_replace(monkeypatch):
    """Each really runs; what it takes is told by a clock of ours: 10 ns per weight."""
    script(monkeypatch)
    wide, narrow = (LayerShape("MatMul", (128, n)) for n in (128, 8))
    found = measure((wide,), [(narrow, LayerShape("MatMul", (8, 128))), (wide,)], (16, 128), ORT)
    assert found.reference == pytest.approx(10e-9 * 128 * 128, rel=0.02)
    assert found.shares == pytest.approx((1 / 8, 1), rel=0.02)
    same = (("pads", (1, 1, 1, 1)), ("group", 1))
    thin = (LayerShape("Conv", (16, 64, 1, 1)), LayerShape("Conv", (16, 16, 3, 3), same))
    found = measure((LayerShape("Conv", (64, 64, 3, 3), same),), [thin], (1, 64, 8, 8), ORT)
    assert found.shares == pytest.approx(((16 * 64 + 16 * 16 * 9) / (64 * 64 * 9),), rel=0.02)


def test_transposed_convolutions_and_large_weights_run(monkeypatch):
    up = LayerShape("ConvTranspose", (4, 6, 2, 2), (("strides", (2, 2)), ("output_padding", (0, 0))))
    monkeypatch.setattr(layer_latency, "MOST_WEIGHTS", 1)  # a session at a time
    found = measure((up,), [(up,), (up,)], (1, 4, 5, 5), ORT)
    assert len(found.shares) == 2
    assert min(found.shares) > 0


A, B, C = ((LayerShape("MatMul", (8, n)),) for n in (1, 2, 3))


@pytest.fixture
def asked(monkeypatch):
    """What the table has measured, by a clock of ours: chain of n columns takes n tenths of the reference."""
    calls = []

    def fake(reference, chains, shape, target):
        calls.append((reference, list(chains), shape))
        return Latencies(2e-3, tuple(chain[0].weight[1] / 10 for chain in chains))

    monkeypatch.setattr("nncompress.benchmarking.latency.table.measure", fake)
    return calls


def test_the_table_measures_what_it_does_not_know_once(tmp_path, asked):
    assert LatencyTable(ORT, tmp_path).latencies(A, [B], (1, 8)) == Latencies(2e-3, (0.2,))
    other_process = LatencyTable(ORT, tmp_path)
    assert other_process.latencies(A, [C, B], (1, 8)) == Latencies(2e-3, (0.3, 0.2))
    assert other_process.latencies(A, [B], (1, 8)).shares == (0.2,)
    other_process.latencies(A, [B], (4, 8))  # another shape
    assert asked == [(A, [B], (1, 8)), (A, [C], (1, 8)), (A, [B], (4, 8))]


def test_what_two_processes_have_measured_at_once_is_the_same_for_both_from_then_on(tmp_path, monkeypatch):
    """That which was written first: passes that choose by it are to choose alike."""
    clock = iter((1e-3, 2e-3, 3e-3, 4e-3))

    def fake(reference, chains, shape, target):
        now = next(clock)
        return Latencies(now, tuple(100 * now for _ in chains))

    monkeypatch.setattr("nncompress.benchmarking.latency.table.measure", fake)
    first, second = (LatencyTable(ORT, tmp_path) for _ in range(2))
    assert first.latencies(A, [B], (1, 8)) == Latencies(1e-3, (0.1,))
    assert second.latencies(A, [B, C], (1, 8)) == Latencies(1e-3, (0.1, 0.2))  # B as it is in the file
    assert second.latencies(C, [], (1, 8)) == Latencies(3e-3, ())
    assert first.latencies(B, [], (1, 8)) == Latencies(4e-3, ())
    for each in (first, second, LatencyTable(ORT, tmp_path)):
        assert each.latencies(A, [B, C], (1, 8)) == Latencies(1e-3, (0.1, 0.2))
        assert each.latencies(C, [], (1, 8)) == Latencies(3e-3, ())


def test_the_file_says_what_it_holds_for(tmp_path, asked):
    table = LatencyTable(ORT, tmp_path)
    table.latencies(A, [B], (1, 8))
    content = json.loads(table.file.path.read_text())
    assert content["threads"] == 1
    assert content["runtime"].startswith("ONNX Runtime, CPU 1")
    assert content["machine"]["cpu"]
    assert content["layers"] == {"1x8: MatMul 8x1": {"seconds": 2e-3, "shares": {"MatMul 8x2": 0.2}}}


def test_another_machine_or_runtime_measures_anew(tmp_path, asked, monkeypatch):
    LatencyTable(ORT, tmp_path).latencies(A, [B], (1, 8))
    monkeypatch.setattr("nncompress.benchmarking.latency.table.version", lambda _: "0.0")
    LatencyTable(ORT, tmp_path).latencies(A, [B], (1, 8))
    LatencyTable(TARGETS["openvino"], tmp_path).latencies(A, [B], (1, 8))
    assert len(asked) == 3
    assert len(list(tmp_path.iterdir())) == 3


@pytest.mark.parametrize("broken", ["", "[]", '{"layers": {"x": 1}}', '{"layers": {"x": {"seconds": -1.0}}}'])
def test_a_damaged_file_is_measured_over(tmp_path, asked, broken):
    table = LatencyTable(ORT, tmp_path)
    table.file.path.write_text(broken)
    assert LatencyTable(ORT, tmp_path).latencies(A, [B], (1, 8)).shares == (0.2,)
    assert "1x8: MatMul 8x1" in json.loads(table.file.path.read_text())["layers"]


def test_a_folder_that_cannot_be_written_does_no_harm(tmp_path, asked):
    (tmp_path / "file").write_text("")
    table = LatencyTable(ORT, tmp_path / "file" / "folder")
    for _ in range(2):
        assert table.latencies(A, [B], (1, 8)).shares == (0.2,)
    assert len(asked) == 1
    assert "file/folder" in table.unkept
    assert not LatencyTable(ORT, tmp_path).unkept
