from nncompress.report.bench_table import shortened, verdict
from nncompress.results import ArmResult, Estimate, EvalResult, Latency, Samples


def arm(
    name: str, speedup: tuple[float, float, float] | None, size: int = 1000, top1: float | None = None
) -> ArmResult:
    accuracy = None if top1 is None else EvalResult("d", "classification", 100, top1=top1)
    estimate = None if speedup is None else Estimate(*speedup)
    latency = Latency(1e-3, 1e-3, 1e-3, 0.0)
    return ArmResult(name, "r", latency, None, estimate, None, Samples(()), file_size=size, accuracy=accuracy)


FIRST = arm("original", None, top1=0.9)


def test_faster_smaller_and_as_good():
    text = verdict(FIRST, arm("int8", (2.0, 1.9, 2.1), size=250, top1=0.895))
    assert text == "int8: 2.00x faster, 4.00x smaller, -0.50 points of top-1"


def test_a_pass_that_gained_nothing_did_not_pay():
    assert (
        verdict(FIRST, arm("x", (1.0, 0.99, 1.01)))
        == "x: no measurable difference in speed, same size: did not pay"
    )
    assert (
        verdict(FIRST, arm("x", (0.5, 0.4, 0.6), size=2000)) == "x: 2.00x slower, 2.00x larger: did not pay"
    )


def test_slower_but_smaller_paid_in_size():
    assert verdict(FIRST, arm("x", (0.8, 0.7, 0.9), size=500)) == "x: 1.25x slower, 2.00x smaller"


def test_losing_speed_to_the_step_before_is_said():
    before = arm("prune-nodes", (1.4, 1.39, 1.41))
    assert "slower than prune-nodes" in verdict(FIRST, arm("x", (1.3, 1.29, 1.31), size=500), before)
    assert "slower than" not in verdict(FIRST, arm("x", (1.38, 1.3, 1.45), size=500), before)


def test_long_names_keep_their_end():
    assert shortened("model.prune.factorize.pt2", 14) == "…factorize.pt2"
    assert len(shortened("a" * 50)) == 24
    assert shortened("short.pt2") == "short.pt2"
