"""Model files opened for `eval` and `bench`; the others are compared with the first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nncompress.analysis.answer import PROBED, Answers, index_of
from nncompress.analysis.metrics.fit import check_fit, require_labels
from nncompress.analysis.metrics.registry import named_metric
from nncompress.benchmarking.inputs import sizes_that_run
from nncompress.cli import session
from nncompress.cli.console import say
from nncompress.cli.work import model_files
from nncompress.data import Dataset, open_data
from nncompress.errors import DataError, NNCompressError, UsageError
from nncompress.ir import InputSpec, Model
from nncompress.ir.graph.inputs import sizes_of
from nncompress.ir.graph.stated_input import parse_input, restated
from nncompress.ir.graph.table_rows import check_positions, table_rows
from nncompress.ir.stated_constants import Constant, each_with_its_own, split_constants
from nncompress.loading import holds_weights_only
from nncompress.loading.collections import names_architecture
from nncompress.runtimes import OPENERS, Runner, open_artifact
from nncompress.runtimes.free_sizes import guess_told

CARRIED = {"arch": None, "weights": None, "weights_key": None, "strict": True}  # of a file with its network


@dataclass(frozen=True)
class Artifact:
    """One file.

    Attributes:
        model: its graph, None for a file that only its own runtime reads.
        normalize: how its images are normalised, as the file remembers.
        name: what tables call it: the file's name, or the pass that made it in this directory's session.
        inputs, sizes: how a file's inputs are read: which dims are the batch, and what the others are.
        outputs: their names.
        answer: the output that labels belong to, where that was said or is remembered.
        least_batch: the fewest samples that it takes at a time.
        runtime: that the file is opened in; None: the one that owns its format.
        constants: of its inputs those that have the same value in every run, and are not among `inputs`.
    """

    path: Path
    model: Model | None
    normalize: str | None
    name: str
    inputs: tuple[InputSpec, ...] = ()
    sizes: Mapping[str, int] = field(default_factory=dict)
    outputs: tuple[str, ...] = ()
    answer: int | None = None
    least_batch: int = 1
    runtime: str | None = None
    constants: tuple[Constant, ...] = ()

    def open(self, threads: int) -> Runner:
        """In torch for a graph, else in the runtime of the file."""
        artifact = self.path if self.model is None else self.model
        runner = open_artifact(artifact, threads, runtime=self.runtime, constants=self.constants)
        if self.inputs:
            runner.inputs, runner.sizes = self.inputs, self.sizes
        return runner


def open_all(
    paths: Sequence[str] | None,
    *,
    every: bool = False,
    **loading: Any,
) -> list[Artifact]:
    """The files of `paths`; with none, the original and what the previous command of this directory wrote.

    Args:
        every: with no paths, all results since the original, in order.
        loading: the options of `options.LOADING`.

    Raises:
        UsageError: none were given and there is no earlier result.
    """
    named = bool(paths)
    if not paths:
        previous = session.read()
        if previous is None:
            raise UsageError(
                "no model was given, and in this directory there is no result of an earlier command",
                remedy="nncompress COMMAND model.pt2 smaller.onnx",
            )
        chain = previous.chain if every else (previous.original, previous.chain[-1])
        paths = [p for p in dict.fromkeys(chain) if Path(p).is_file()]
        if not paths:
            raise UsageError(
                "no model was given, and what earlier commands wrote in this directory is gone",
                remedy="nncompress COMMAND model.pt2 smaller.onnx",
            )
        say(f"comparing {', '.join(paths)}")
    options_of = needed_by(paths, loading)

    def opened(path: str, stated: str | None) -> Artifact:
        name = Path(path).name if named else _made_by(path)
        return _open(path, name, {**options_of[path], "input": stated})

    return each_with_its_own(paths, loading["input"], opened, say)


def needed_by(paths: Sequence[str], loading: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The options each file is opened with: --arch is for those that hold weights only, and is used by those;
    --weights for those that name an architecture.

    Raises:
        UsageError: --arch or --weights was given, and no file needs it.
    """
    arch = loading["arch"]
    if loading["weights"] is not None:
        if not any(map(names_architecture, paths)):
            raise UsageError(
                "no model needs --weights: they are for timm:NAME and torchvision:NAME",
                got=", ".join(paths),
                remedy="leave --weights out",
            )
        return {path: loading if names_architecture(path) else {**loading, **CARRIED} for path in paths}
    if arch is None:
        return dict.fromkeys(paths, loading)

    trust = loading["trust_pickle"]
    needing = [p for p in paths if not _in_runtime(p) and holds_weights_only(p, trust_pickle=trust)]
    if not needing:
        raise UsageError("no model needs --arch: each carries its architecture", remedy="leave --arch out")
    if len(needing) < len(paths):
        say(f"--arch {arch} is for {', '.join(needing)}; the others carry their architecture")
    return {path: loading if path in needing else {**loading, **CARRIED} for path in paths}


def _in_runtime(path: str) -> bool:
    return Path(path).suffix.lower() in OPENERS


def names(opened: Sequence[Artifact]) -> list[str]:
    """What tables call them: unique, so by paths where names are alike; one file twice is counted."""
    names = [each.name for each in opened]
    names = [name if names.count(name) == 1 else str(each.path) for name, each in zip(names, opened)]
    return [
        name if name not in names[:position] else f"{name} ({names[:position].count(name) + 1})"
        for position, name in enumerate(names)
    ]


@contextmanager
def told_of(name: str, opened: Sequence[Artifact]) -> Iterator[None]:
    """Where several are open, a refusal says of which it is."""
    try:
        yield
    except NNCompressError as error:
        if len(opened) > 1:
            error.what = f"{name}: {error.what}"
        raise


def _made_by(path: str) -> str:
    """The last word of the stem: "original", or the pass that wrote it; an exported file keeps its name."""
    stem, _, made_by = Path(path).stem.rpartition(".")
    return made_by if stem and path.endswith(".pt2") else Path(path).name


def _open(path: str, name: str, loading: dict[str, Any]) -> Artifact:
    if not _in_runtime(path):
        model = model_files.open_model(path, **loading).model
        normalize, answer = model.metadata.get("normalize"), model.metadata.get("answer")
        given = (model.inputs, model.sizes, model.outputs, answer, model.least_batch)
        return Artifact(Path(path), model, normalize, name, *given)
    shapes, constants = split_constants(loading["input"])
    runner = open_artifact(path, constants=constants)
    inputs, sizes, remembered = runner.inputs, runner.sizes, runner.remembered()
    if shapes is not None:
        stated, sizes, _ = restated(inputs, parse_input(shapes), path, remembered)
        inputs = tuple(stated)
    elif loading["data"] is None:
        sizes = sizes_that_run(runner, _whole_numbers(remembered.get("sizes")))
        told = guess_told(path, inputs, sizes)
        if told is not None:
            say(told)
    answer = runner.remembered_answer()
    if loading["output_index"] is not None:
        answer = index_of(runner.outputs, loading["output_index"])
    return Artifact(
        Path(path),
        None,
        loading["normalize"] or runner.remembered_normalization(),
        name,
        inputs,
        sizes,
        runner.outputs,
        answer,
        runner.least_batch,
        constants=constants,
    )


def _whole_numbers(stored: Any) -> dict[str, int]:
    """The entries of a table that are positive whole numbers; anyone may have written it."""
    items = stored.items() if isinstance(stored, dict) else ()
    return {key: value for key, value in items if type(value) is int and 0 < value < 2**31}


def dataset_for(artifacts: Sequence[Artifact], data: str, normalize: str | None) -> Dataset:
    """The data, opened for the first artifact.

    Raises:
        DataError: it cannot be read, or does not fit the first artifact's inputs, or another one takes other
            inputs.
    """
    for each in artifacts[1:]:
        _check_alike(each, artifacts[0])
    how = normalize or next((a.normalize for a in artifacts if a.normalize), None)
    found = open_data(data, artifacts[0].inputs, how)
    if artifacts[0].model is not None:
        found.bound(table_rows(artifacts[0].model))
    for each in artifacts:
        if each.model is not None:
            check_positions(each.model, sizes_of(each.inputs, [field.shape for field in found.inputs]), data)
    found.at_least(max(each.least_batch for each in artifacts))
    for assumption in found.assumptions():
        say(assumption)
    return found


def _check_alike(artifact: Artifact, first: Artifact) -> None:
    def taken(spec: InputSpec) -> tuple[object, ...]:
        return spec.dtype, len(spec.shape), spec.batch_dim

    def sizes(spec: InputSpec) -> list[int | str]:
        return [size for dim, size in enumerate(spec.shape) if dim != spec.batch_dim]

    mine, its = artifact.inputs, first.inputs
    alike = list(map(taken, mine)) == list(map(taken, its)) and all(
        a == b or isinstance(a, str) or isinstance(b, str)
        for one, other in zip(mine, its)
        for a, b in zip(sizes(one), sizes(other))
    )
    if mine and its and not alike:
        raise DataError(
            f"{artifact.name} takes other inputs than {first.name}, so the same data does not fit both",
            got=", ".join(map(str, mine)),
            expected=", ".join(map(str, its)),
            remedy="each by itself; or --input NAME:SHAPE with a B on the dim along which samples lie",
        )


def answers(
    opened: Sequence[Artifact], samples: Dataset | None, task: str = "auto", metric: str | None = None
) -> list[int | None]:
    """Per model the output that labels belong to: as stated or remembered, else the one that they fit.

    Raises:
        UsageError: there is a metric, and no data to measure it on.
        DataError: the labels fit several outputs, or none; or there are none, and the metric needs them.
    """
    wanted = None if metric is None else named_metric(metric)
    if wanted is not None and samples is None:
        raise UsageError(f"--metric {metric} is measured on data", remedy="add --data FILE.npz")
    if wanted is not None and samples is not None:
        require_labels(wanted, samples)
    if samples is None or not (samples.has_labels or task == "reconstruction" or wanted is not None):
        return [None] * len(opened)

    found = []
    for each in opened:
        choice = Answers(each.open(1).run, samples, task, each.answer, wanted)
        size = samples.fixed_batch or PROBED
        for first in samples.batches(size, limit=size):
            with told_of(each.name, opened):
                answer = choice.of(first, 0)
                if wanted is not None:
                    check_fit(wanted, answer, first, samples.spec)
            break
        found.append(choice.output)
        if choice.output is not None and len(each.outputs) > 1:
            say(
                f"{each.name}: labels are held against output {choice.output} of {len(each.outputs)} "
                f"({each.outputs[choice.output]}); --output-index names another"
            )
    return found
