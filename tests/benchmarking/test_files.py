from __future__ import annotations

import csv
import json

import pytest

from nncompress.benchmarking import files
from nncompress.errors import OutputError, UsageError
from nncompress.results import SCHEMA, BenchResult, BenchSuite, CandidateResult, Estimate, Latency, Samples


@pytest.fixture
def suite():
    def candidate(name, speedup):
        wall = Latency(2e-3, 3e-3, 4e-3, 1e-4)
        return CandidateResult(
            name, "r", wall, Latency(1e-3, 2e-3, 3e-3, 1e-4), speedup, None, Samples((2, 3), (1, 1), (0, 1)),
            energy={"CPU package": 0.5, "GPU": 0.25}, peak_memory=7, file_size=9,
        )  # fmt: skip

    candidates = (candidate("a, with a comma", None), candidate("b", Estimate(2.0, 1.9, 2.1)))
    runs = tuple(BenchResult(candidates, batch, 1, "cpu", (2,), 0, 0, {"cpu": "C"}) for batch in (1, 8))
    return BenchSuite(runs)


def test_json_holds_everything(suite, tmp_path):
    files.write_file(suite, tmp_path / "r.json")
    content = json.loads((tmp_path / "r.json").read_text())
    assert content == json.loads(json.dumps(suite.to_json()))
    assert (content["schema"], content["kind"]) == (SCHEMA, "bench-suite")
    assert content["runs"][1]["candidates"][0]["samples"] == {
        "wall_ns": [2, 3],
        "cpu_ns": [1, 1],
        "place": [0, 1],
    }
    assert content["runs"][0]["environment"] == {"cpu": "C"}


def test_csv_holds_a_row_per_model_and_batch(suite, tmp_path):
    files.write_file(suite, tmp_path / "r.csv")
    with (tmp_path / "r.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["model"], row["batch"]) for row in rows] == [
        ("a, with a comma", "1"), ("b", "1"), ("a, with a comma", "8"), ("b", "8"),
    ]  # fmt: skip
    first, second = rows[:2]
    assert (first["speedup"], second["speedup"], second["speedup_low"]) == ("", "2.0", "1.9")
    assert (float(first["median_s"]), float(first["wall_median_s"])) == (1e-3, 2e-3)
    assert (first["energy_j"], first["peak_memory_bytes"], first["top1"]) == ("0.75", "7", "")
    assert (first["schema"], first["rounds"], first["cpu"]) == (str(SCHEMA), "2", "C")


def test_what_cannot_be_written_is_told_before(tmp_path, monkeypatch):
    files.check_files([tmp_path / "r.json", tmp_path / "r.csv"])
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(UsageError, match="cannot tell the format"):
        files.check_files([tmp_path / "r.txt"])
    with pytest.raises(OutputError, match="cannot write"):
        files.check_files([tmp_path / "none" / "r.json"])
    base = tmp_path / "base.json"
    base.write_text("{}")
    with pytest.raises(OutputError, match="not overwritten"):
        files.check_files([base], protect=[base])

    def full(**where):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.tempfile, "TemporaryFile", full)
    with pytest.raises(OutputError, match="nothing was measured") as raised:
        files.check_files([tmp_path / "r.json"])
    assert raised.value.got == "No space left on device"
