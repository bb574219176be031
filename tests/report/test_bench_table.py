import io

from rich.console import Console

from nncompress.report.bench_table import shortened, suite, verdict
from nncompress.results import (
    BaselineResult,
    BenchResult,
    BenchSuite,
    CandidateResult,
    Change,
    Estimate,
    EvalResult,
    Latency,
    OperatorTime,
    Samples,
)


def candidate(
    name: str, speedup: tuple[float, float, float] | None, size: int = 1000, top1: float | None = None
) -> CandidateResult:
    accuracy = None if top1 is None else EvalResult("d", "classification", 100, top1=top1)
    estimate = None if speedup is None else Estimate(*speedup)
    latency = Latency(1e-3, 1e-3, 1e-3, 0.0)
    return CandidateResult(
        name, "r", latency, None, estimate, None, Samples(()), file_size=size, accuracy=accuracy
    )


FIRST = candidate("original", None, top1=0.9)


def test_faster_smaller_and_as_good():
    text = verdict(FIRST, candidate("int8", (2.0, 1.9, 2.1), size=250, top1=0.895))
    assert text == "int8: 2.00x faster, 4.00x smaller, -0.50 points of top-1"


def test_a_pass_that_gained_nothing_did_not_pay():
    assert (
        verdict(FIRST, candidate("x", (1.0, 0.99, 1.01)))
        == "x: no measurable difference in speed, same size: did not pay"
    )
    assert (
        verdict(FIRST, candidate("x", (0.5, 0.4, 0.6), size=2000))
        == "x: 2.00x slower, 2.00x larger: did not pay"
    )


def test_slower_but_smaller_paid_in_size():
    assert verdict(FIRST, candidate("x", (0.8, 0.7, 0.9), size=500)) == "x: 1.25x slower, 2.00x smaller"


def test_losing_speed_to_the_step_before_is_said():
    before = candidate("prune-nodes", (1.4, 1.39, 1.41))
    assert "slower than prune-nodes" in verdict(FIRST, candidate("x", (1.3, 1.29, 1.31), size=500), before)
    assert "slower than" not in verdict(FIRST, candidate("x", (1.38, 1.3, 1.45), size=500), before)


def test_long_names_keep_their_end():
    assert shortened("model.prune.factorize.pt2", 14) == "…factorize.pt2"
    assert len(shortened("a" * 50)) == 24
    assert shortened("short.pt2") == "short.pt2"


def printed(result: BenchSuite) -> str:
    console = Console(width=80, file=io.StringIO(), no_color=True)
    with console.capture() as captured:
        console.print(suite(result))
    return captured.get()


def test_everything_fits_80_columns() -> None:
    names = ("a-rather-long-model-name.prune.pt2", "a-rather-long-model-name.prune.factorize.quantize.pt2")
    rows = tuple(
        OperatorTime(f"Operator{i}", f"node_of_a_long_name/{'x' * 40}", 1, 1e-3 / (i + 1)) for i in range(12)
    )
    candidates = tuple(
        CandidateResult(
            name, "ONNX Runtime 1.31.1 CPU", Latency(1.23456, 2.34567, 3.45678, 0.1), None,
            Estimate(12.3456, 11.2345, 13.4567) if i else None, None, Samples((1,)), load_s=0.12345,
            cold_start_s=1.2345, peak_memory=123_456_789, energy={"CPU package": 0.0123},
            profile=rows if i else None, file_size=123_456_789, macs=987_654_321,
            accuracy=EvalResult("d", "classification", 100, top1=0.98765),
        )
        for i, name in enumerate(names)
    )  # fmt: skip
    runs = tuple(
        BenchResult(
            candidates, batch, 1, "cpu", (2, 2), 0, 0, energy_source="CPU package", warnings=("w " * 90,)
        )
        for batch in (1, 8)
    )
    change = Change(names[1], 8, f"ratio to {names[0]}", Estimate(1.234, 1.2, 1.3), True)
    baseline = BaselineResult(
        "a/long/path/to/the/baseline.json", 0.05, (change,), ("onnxruntime was 1, is 2",)
    )
    text = printed(BenchSuite(runs, baseline))
    assert max(len(line.rstrip()) for line in text.splitlines()) <= 80
    for part in ("12.35 [11.23, 13.46]", "98.77 %", "123 MB", "12.3 mJ CPU package", "batch 8", "154 ms",
                 "regression", "1.234 [1.200, 1.300]", "4 others", "tells no time per operator"):  # fmt: skip
        assert part in " ".join(text.split()), part
    assert "…" in text
