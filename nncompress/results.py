"""What measurements return: plain records, the same for the screen, for JSON and for a caller.

Every sample has `to_json()`: plain dictionaries, lists, numbers and text, with the version of the schema.
Numbers that JSON cannot hold (NaN, infinity) become null.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any, ClassVar

SCHEMA = 2  # raised whenever a key changes its meaning or goes away; 2: samples, candidates


def plain(value: Any) -> Any:
    """`value` as JSON can hold it."""
    if is_dataclass(value) and not isinstance(value, type):
        return {f.name: plain(getattr(value, f.name)) for f in fields(value)}
    if isinstance(value, dict):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value


class Result:
    """A record that can be written as JSON."""

    kind: ClassVar[str]

    def to_json(self) -> dict[str, Any]:
        """The sample with its schema version and kind."""
        return {"schema": SCHEMA, "kind": self.kind, **plain(self)}


@dataclass(frozen=True)
class Estimate:
    """A number with the interval that it lies in with this confidence."""

    value: float
    low: float
    high: float
    confidence: float = 0.95

    def __contains__(self, number: float) -> bool:
        return self.low <= number <= self.high


# -- accuracy ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class EvalResult(Result):
    """How well a model does on labelled data.

    Attributes:
        data, samples: where they are from, and how many were used.
        task: classification, regression or reconstruction.
        top1, top5: share of samples, 0 … 1; top5 where there are more than five classes.
        top1_standard_error: of top1 as an estimate of the whole population's.
        rmse: root of the mean squared error over all targets (regression).
        mse: mean squared error over all elements of the input (reconstruction).
        metric, value: what models are compared by, the task's own or the one asked for; shares are 0 … 1.
        interval: `value` with its 95 % interval over samples.
        threshold: of one number per sample, above which it was taken for class 1; None: of other answers.
    """

    kind: ClassVar[str] = "eval"

    data: str
    task: str
    samples: int
    top1: float | None = None
    top5: float | None = None
    top1_standard_error: float | None = None
    rmse: float | None = None
    mse: float | None = None
    metric: str | None = None
    value: float | None = None
    interval: Estimate | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class OutputDifference:
    """One output of a changed model against the original's, over all samples.

    Attributes:
        agreement: share of argmaxes that are the same, 0 … 1; None where there is one number per sample.
        cosine: mean over samples of the cosine of the two output vectors.
        sqnr_db: 10 log10 of the original's energy over the difference's; infinite where they are equal.
        max_abs: largest absolute difference.
    """

    name: str
    agreement: float | None
    cosine: float
    sqnr_db: float
    max_abs: float


@dataclass(frozen=True)
class CompareResult(Result):
    """A changed model against the original on the same inputs, without labels."""

    kind: ClassVar[str] = "compare"

    samples: int
    outputs: tuple[OutputDifference, ...]


@dataclass(frozen=True)
class PairedResult(Result):
    """Two classifiers on the same samples.

    Attributes:
        top1_original, top1_changed: share of samples, 0 … 1.
        only_original, only_changed: samples that only one of them has right.
        difference: top1_changed - top1_original with its paired interval (Bonett & Price 2012).
        p_value: exact McNemar test that neither is better.
    """

    kind: ClassVar[str] = "paired"

    samples: int
    top1_original: float
    top1_changed: float
    only_original: int
    only_changed: int
    difference: Estimate
    p_value: float


@dataclass(frozen=True)
class MetricDifference(Result):
    """Two models on the same samples, by any metric.

    Attributes:
        original, changed: values of the metric; shares are 0 … 1.
        difference: changed - original with its paired interval.
    """

    kind: ClassVar[str] = "metric-difference"

    metric: str
    samples: int
    original: float
    changed: float
    difference: Estimate


# -- speed -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Latency:
    """Times of one call, seconds.

    Attributes:
        mad: median absolute deviation from the median.
    """

    median: float
    p90: float
    p99: float
    mad: float


@dataclass(frozen=True)
class Samples:
    """Raw times of a call, nanoseconds, session after session; entry i of every candidate is of one round.

    Attributes:
        place: at which place of its round the candidate was called, 0 the first.
    """

    wall_ns: tuple[int, ...]
    cpu_ns: tuple[int, ...] | None = None
    place: tuple[int, ...] = ()


@dataclass(frozen=True)
class OperatorTime:
    """One operator in a profile: a node of the graph, or where the runtime names none, a kind of operator.

    Attributes:
        op: as the runtime calls it after its own optimisation: "FusedConv", "QLinearConv", "conv2d".
        node: the node's name, "" where the runtime does not tell.
        calls: per run of the model.
        seconds: per run, the median over runs; without the operators inside of it.
    """

    op: str
    node: str
    calls: float
    seconds: float


@dataclass(frozen=True)
class CandidateResult:
    """One artifact in a benchmark.

    Attributes:
        runtime: "ONNX Runtime 1.31.1 CPU".
        wall: by the clock on the wall.
        cpu: of the calling thread's CPU time; None where a run uses other threads too.
        speedup: the first candidate's time over this one's: above 1 is faster. None for the first.
        parity: its outputs against the first candidate's on the same input. None for the first.
        load_s: seconds to open the file, the fastest of all sessions.
        cold_start_s: seconds to open the file and run once, in a new process that has imported the runtime.
        peak_memory: bytes that loading and running take beyond the runtime itself, in a process of its own.
        energy: joules per call by source ("CPU package", "GPU"), idle power included; None where the machine
            does not report it.
        profile: time per operator, longest first; None where it was not asked for or the runtime tells none.
        file_size: bytes.
        sha256: of the file that was measured or exported; parameters, macs: per sample. Where they are known.
        accuracy: where the caller has data; paired: against the first candidate, on the same samples.
    """

    name: str
    runtime: str
    wall: Latency
    cpu: Latency | None
    speedup: Estimate | None
    parity: CompareResult | None
    samples: Samples
    load_s: float | None = None
    cold_start_s: float | None = None
    peak_memory: int | None = None
    energy: dict[str, float] | None = None
    profile: tuple[OperatorTime, ...] | None = None
    file_size: int | None = None
    sha256: str | None = None
    parameters: int | None = None
    macs: int | None = None
    accuracy: EvalResult | None = None
    paired: PairedResult | MetricDifference | None = None

    @property
    def latency(self) -> Latency:
        """The clock to believe: the thread's own CPU time where it is complete, else the wall's."""
        return self.cpu or self.wall


@dataclass(frozen=True)
class Phase:
    """What a call of a language model does.

    Attributes:
        name: "prompt": reads tokens at once; "decode": writes the next one.
        tokens: that a call reads or writes, of each sample.
        context: tokens before them: in the cache, or computed again.
        cached: the model has a cache.
    """

    name: str
    tokens: int
    context: int
    cached: bool


@dataclass(frozen=True)
class BenchResult(Result):
    """Artifacts measured against each other in one interleaved run.

    Attributes:
        batch: samples per call.
        threads: per call.
        clock: which clock the ratios are taken from: "cpu", "wall", or "GPU" (its events).
        rounds_per_session: how often each was measured; all artifacts were opened anew in each session.
        warmup: rounds that were not kept.
        environment: CPU, instruction sets, versions, governor.
        energy_source: where energy was read, or why it is not reported.
        interrupted: Ctrl-C ended it early; what was measured until then is here.
        warnings: what was seen that makes the numbers doubtful, the likely cause, what to try.
        phase: of a language model, with `--tokens`.
    """

    kind: ClassVar[str] = "bench"

    candidates: tuple[CandidateResult, ...]
    batch: int
    threads: int
    clock: str
    rounds_per_session: tuple[int, ...]
    warmup: int
    seed: int
    environment: dict[str, Any] = field(default_factory=dict)
    energy_source: str = ""
    interrupted: bool = False
    warnings: tuple[str, ...] = ()
    phase: Phase | None = None

    def tokens_per_second(self, candidate: CandidateResult) -> float | None:
        """Of all samples of a call together, at the median; None where no tokens are counted."""
        return None if self.phase is None else self.batch * self.phase.tokens / candidate.latency.median

    def per_sample(self, candidate: CandidateResult) -> float:
        """Median seconds per sample."""
        return candidate.latency.median / self.batch


@dataclass(frozen=True)
class Change:
    """What became of one artifact since an earlier benchmark.

    Attributes:
        measure: "ratio to NAME" (another machine load then cancels) or "latency".
        slowdown: time now over time then: above 1 is slower.
        regressed: the whole interval lies above 1 + tolerance.
    """

    name: str
    batch: int
    measure: str
    slowdown: Estimate
    regressed: bool


@dataclass(frozen=True)
class BaselineResult(Result):
    """A benchmark against an earlier one on the same machine.

    Attributes:
        baseline: the earlier result's file.
        tolerance: what counts as no regression, 0.05 is 5 % slower.
        notes: what is different from then, or could not be compared.
    """

    kind: ClassVar[str] = "bench-baseline"

    baseline: str
    tolerance: float
    changes: tuple[Change, ...]
    notes: tuple[str, ...] = ()

    @property
    def regressions(self) -> tuple[Change, ...]:
        return tuple(change for change in self.changes if change.regressed)


@dataclass(frozen=True)
class BenchSuite(Result):
    """What one `nncompress bench` prints and writes: a benchmark per batch size.

    Attributes:
        baseline: with `--compare`, what became of each artifact.
    """

    kind: ClassVar[str] = "bench-suite"

    runs: tuple[BenchResult, ...]
    baseline: BaselineResult | None = None

    @property
    def interrupted(self) -> bool:
        return any(run.interrupted for run in self.runs)
