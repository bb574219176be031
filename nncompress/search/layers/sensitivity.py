"""What each layer bears: one pass on one layer or group at a time, its cost in outputs against its gain.

Nothing is measured twice: a measurement is kept under a key of the model, the data, the pass with its
settings, the seed and the version.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import isfinite
from typing import Any, ClassVar

from nncompress import pipeline
from nncompress.analysis.answer import known_answer
from nncompress.analysis.couplings import find_couplings, fold_weights
from nncompress.analysis.distance.drift import amount
from nncompress.analysis.metrics.base import Scores
from nncompress.analysis.metrics.two_classes import assumption
from nncompress.analysis.weight_targets import find_targets
from nncompress.benchmarking.latency.model import ModelLatency
from nncompress.benchmarking.latency.target import clocked
from nncompress.devices import machine
from nncompress.errors import NNCompressError
from nncompress.ir import Model
from nncompress.ir.edit.fold import fold_batch_norms
from nncompress.ir.graph.shapes import Shapes
from nncompress.loading.json_schema import finite, number, optional, plain, record
from nncompress.passes import Context, Factorize, Pass, PruneNodes, Quantize
from nncompress.passes.quantize.choose import choose
from nncompress.passes.quantize.prepare import prepare
from nncompress.results import Estimate, Result
from nncompress.runtimes import open_artifact
from nncompress.search.loss import lost
from nncompress.search.measure import Measure, metric_key
from nncompress.search.records import Records, data_key, key_of, model_key
from nncompress.version import __version__

METHODS = ("prune-nodes", "factorize", "quantize")
REMOVED = (0.25, 0.5, 0.75)  # shares of a group's nodes
KEPT = (0.75, 0.5, 0.25)  # shares of a layer's MACs
BITS = (8, 4)  # of a weight


SAVED = ("macs", "bytes", "parameters")
_TIME = record(value=finite, low=finite, high=finite, confidence=finite)
RECORD = record(  # what is kept of a probe
    error=optional(number),
    **dict.fromkeys(SAVED, finite),
    said=plain(str),
    samples=optional(plain(str)),
    lost=optional(finite),
    at_most=optional(finite),
    time=optional(_TIME),
)


@dataclass(frozen=True)
class Probe:
    """One pass on one layer or group.

    Attributes:
        strength: share of nodes removed, share of MACs kept, or bits, by method.
    """

    method: str
    where: str
    strength: float
    applied: Pass


@dataclass(frozen=True)
class Effect:
    """What a probe did.

    Attributes:
        error: relative L2 distance of the outputs from the original's; None where it was not done.
        macs, bytes, parameters: what it saves, as a share of the whole model's.
        said: why it was not done, or "".
        remedy: the options that leave this layer alone.
        lost: of the metric that was asked for, a share as 0 … 1; at_most: so much, with 95 % confidence, were
            the samples others than those that the pass was fitted to, which they are not: it is too low.
        time: saved in the target that was asked for, as a share of the whole model's.
    """

    method: str
    where: str
    strength: float
    error: float | None
    macs: float
    bytes: float
    parameters: float
    said: str
    remedy: str
    lost: float | None = None
    at_most: float | None = None
    time: Estimate | None = None


@dataclass(frozen=True)
class Sensitivity(Result):
    """All effects, and on what they were measured.

    Attributes:
        metric, target: what else was asked for.
    """

    kind: ClassVar[str] = "sensitivity"

    samples: str
    effects: tuple[Effect, ...]
    measured: int
    known: int
    metric: str | None = None
    target: str | None = None


def probes(
    model: Model,
    methods: Sequence[str] = METHODS,
    context: Context | None = None,
    *,
    include_head: bool = True,
) -> list[Probe]:
    """Every layer or group × method × strength of the model.

    Args:
        context: its data decides whether activations can be quantized.
        include_head: of a detection head, too, whether its layers bear being quantized.
    """
    found: list[Probe] = []
    if "prune-nodes" in methods:
        folded = model.copy()
        fold_weights(folded)
        for group in find_couplings(folded).groups:
            for share in REMOVED if group.size > 1 else ():
                applied = PruneNodes(ratios=(f"{group.name}={share:g}",))
                found.append(Probe("prune-nodes", group.name, share, applied))
    if "factorize" in methods:
        for target in find_targets(model, Shapes(model))[0]:
            for share in KEPT:
                found.append(
                    Probe("factorize", target.name, share, Factorize(ratios=(f"{target.name}={share:g}",)))
                )
    if "quantize" in methods:
        mode = "static" if context is not None and context.data is not None else "weights"
        prepared = model.copy()
        prepare(prepared, include_head=include_head)
        fold_batch_norms(prepared)
        names = [layer.name for layer in choose(prepared, ())[0]]
        for name in names:
            for bits in BITS:
                others = tuple(each for each in names if each != name)
                applied_ = Quantize(keep=others, weight_bits=bits, mode=mode, include_head=include_head)  # type: ignore[arg-type]
                found.append(Probe("quantize", name, bits, applied_))
    return found


def sensitivity(
    model: Model,
    wanted: Sequence[Probe],
    context: Context,
    records: Records,
    until: float = float("inf"),
    metric: str | None = None,
    target: str | None = None,
) -> Sensitivity:
    """Measure what is not known yet; other processes may do so in the same folder.

    Args:
        until: `time.monotonic()` from which on no probe is begun.
        metric: also what each probe loses of it, on the samples of the data (`Measure`).
        target: also what time each probe saves there, in turns with the original.

    Returns: the effects, those that cost least per saved MAC first within a method.
    """
    fitted = held = None
    if context.data is not None:
        fitted, held = context.data.split()
    base: list[Any] = [
        model_key(model),
        data_key(fitted, context.limit),
        data_key(held),
        context.limit,
        context.seed,
    ]
    base += [] if metric is None else ["metric", metric_key(metric), data_key(context.data, context.limit)]
    base += [] if target is None else ["time", target, machine()]
    said = "on random inputs" if context.data is None else "on samples of the data"
    keys = [key_of(*base, __version__, probe.applied.name, probe.applied.settings()) for probe in wanted]
    known = sum(records.get(key) is not None for key in keys)

    with _Besides(model, context, metric, target) as besides:

        def measuring(probe: Probe) -> Any:
            return lambda: _measured(model, probe, context, besides)

        found = records.fill(
            [(key, measuring(probe)) for key, probe in zip(keys, wanted)],
            lambda done, total: context.progress.step("measuring layers", done, total),
            until,
        )
    effects = []
    for key, probe in zip(keys, wanted):
        if key in found:
            row = found[key]
            said = row["samples"] or said
            of_it: dict[str, Any] = {
                name: row.get(name) for name in ("error", *SAVED, "said", "lost", "at_most")
            }
            time = None if row.get("time") is None else Estimate(**row["time"])
            effects.append(
                Effect(probe.method, probe.where, probe.strength, **of_it, remedy=_remedy(probe), time=time)
            )
    return Sensitivity(said, tuple(effects), len(found) - known, known, metric, target)


class _Besides:
    """What is measured of each changed model besides the error of its outputs; the original once."""

    def __init__(self, model: Model, context: Context, metric: str | None, target: str | None) -> None:
        self._model, self._context = model, context
        self._measure = None if metric is None else Measure(model, metric)
        self._where = None if target is None else clocked(target)
        self._before: Scores | None = None
        self._latency: ModelLatency | None = None

    def __enter__(self) -> _Besides:
        return self

    def __exit__(self, *_: object) -> None:
        if self._latency is not None:
            self._latency.close()

    def begin(self) -> None:
        """Measure the original, unless that was done.

        Raises:
            NNCompressError: it cannot be measured, or not be exported for the target.
        """
        if self._measure is not None and self._before is None:
            self._before = self._scores(self._model)
            if taken := assumption(self._measure.threshold):
                self._context.notes.append(taken)
        if self._where is not None and self._latency is None:
            self._latency = ModelLatency(self._model, self._context.progress, self._where)

    def of(self, changed: Model) -> dict[str, Any]:
        """What is kept of a changed model.

        Raises:
            NNCompressError: it cannot be measured.
        """
        row: dict[str, Any] = {}
        if self._before is not None:
            loss = lost(self._before, self._scores(changed))
            row["lost"] = loss.value
            if isfinite(loss.at_most()):
                row["at_most"] = loss.at_most()
        if self._latency is not None:
            share = self._latency.glance(changed)
            saved = Estimate(1 - share.value, 1 - share.high, 1 - share.low, share.confidence)
            row["time"] = asdict(saved)
        return row

    def _scores(self, model: Model) -> Scores:
        assert self._measure is not None
        assert self._context.data is not None
        output = known_answer(model)
        return self._measure.scores(open_artifact(model).run, self._context.data, output, self._context.limit)


def _measured(model: Model, probe: Probe, context: Context, besides: _Besides) -> dict[str, Any]:
    quiet = replace(context, notes=[], warnings=[])
    besides.begin()
    try:
        changed, (step,) = pipeline.run(model, [probe.applied], quiet)
    except NNCompressError as refused:
        return {"error": None, **dict.fromkeys(SAVED, 0.0), "said": refused.what, "samples": None}
    saved = {name: 1 - getattr(step.after, name) / max(getattr(step.before, name), 1) for name in SAVED}
    why = next((change.what for change in step.changes if change.where == probe.where), "nothing changed")
    error, said = (amount(step.drift), "") if step.changed else (None, why)
    more: dict[str, Any] = {}
    if step.changed:
        try:
            more = besides.of(changed)
        except NNCompressError as refused:
            said = refused.what
    return {
        "error": error,
        **saved,
        "said": said,
        "samples": str(step.samples),
        **more,
    }


def _remedy(probe: Probe) -> str:
    return f"--keep {probe.where}" if probe.method == "quantize" else f"--exclude {probe.where}"
