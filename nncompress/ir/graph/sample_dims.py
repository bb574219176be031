"""Along which dims do samples lie? Asked of the model: samples together must give what each gives alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nncompress.errors import NNCompressError, UnsupportedError, UsageError
from nncompress.ir.graph.inputs import (
    BATCH,
    BATCH_NAME,
    LEAST_BATCH,
    InputSpec,
    count_samples,
    name_without_batch,
    take_samples,
    with_batch_dims,
)
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.ops import op_name
from nncompress.ir.graph.places import place
from nncompress.ir.graph.stated_input import InputShape, restated

INDEPENDENT = (
    1e-2  # relative difference of outputs, together and alone: rounding stays far below, sharing above
)
Run = Callable[..., Any]

MOST_ALONE = 8  # samples of a fixed batch that are run by themselves: a file may fix a million


def dependence(run: Run, specs: Sequence[InputSpec], inputs: Sequence[Tensor], alone: bool) -> float | None:
    """How far a sample's outputs move with the other samples of its batch, relative to their size.

    Every sample is looked at (of more than `MOST_ALONE` so many, the first and the last among them): in a
    causal model, samples along time leave the first alone. And in both orders: a sort, or a running maximum,
    leaves alone what lies in its order. And among more samples: what takes the third after it, round the
    batch, takes itself among three. 0 for independent samples, up to rounding; infinite where no output has
    one row per sample.

    Args:
        alone: the model takes a single sample, so each is run by itself; else among its copies.
    Returns: None where that cannot be told: a batch of 1 that is fixed, or a run that fails.
    """
    count = count_samples(specs, inputs)
    if count < 2:
        return None
    found: list[float | None] = []
    try:
        with torch.no_grad():
            forth = _outputs(run, specs, inputs, range(count))
            size, back = _backwards(run, specs, inputs, count)
            for place in _spread(count):
                # among copies of itself; another order alone would not show in a sum over all samples
                others, now = (1, 0) if alone else (count, place)
                apart = _outputs(run, specs, inputs, [place] * others)
                for a, b, c in zip(forth, back, apart):
                    found.append(_sample_distance(a, place, c, now, count, others))
                    found.append(_sample_distance(b, count - 1 - place, c, now, size, others))
    except (NNCompressError, RuntimeError, IndexError, ValueError):
        return None
    return max((each for each in found if each is not None), default=math.inf)


def _spread(count: int) -> list[int]:
    most = min(count, MOST_ALONE)
    return [i * (count - 1) // (most - 1) for i in range(most)]


def _backwards(
    run: Run, specs: Sequence[InputSpec], inputs: Sequence[Tensor], count: int
) -> tuple[int, tuple[Tensor, ...]]:
    """The outputs of the samples in the other order and of one behind them, and how many these are; of two
    behind them, where a batch has to be even; of none where the model takes neither."""
    order = [*reversed(range(count)), *range(count)]
    for size in (count + 1, count + 2):
        try:
            return size, _outputs(run, specs, inputs, order[:size])
        except (NNCompressError, RuntimeError, IndexError, ValueError):
            continue
    return count, _outputs(run, specs, inputs, order[:count])


def _outputs(
    run: Run, specs: Sequence[InputSpec], inputs: Sequence[Tensor], samples: Sequence[int]
) -> tuple[Tensor, ...]:
    taken = take_samples(specs, inputs, torch.tensor(samples))
    outputs = run(*(tensor.clone() for tensor in taken))  # a model may change its inputs
    parts = outputs if isinstance(outputs, (tuple, list)) else (outputs,)
    return tuple(torch.as_tensor(part) for part in parts)


def _sample_distance(a: Tensor, place: int, b: Tensor, now: int, count: int, others: int) -> float | None:
    """Of one sample: `place` of `count` in a, `now` of `others` in b; None where there are no such rows.

    Where several dims have these sizes, the one along which they agree best is it.
    """
    if a.dim() != b.dim():
        return None
    dims = [d for d in range(a.dim()) if a.shape[d] == count and b.shape[d] == others]
    pairs = [(a.select(d, place), b.select(d, now)) for d in dims]
    return min((_distance(x.double(), y.double()) for x, y in pairs if x.shape == y.shape), default=None)


def settle_batch(
    model: Model,
    say: Callable[[str], None],
    others: Iterable[Callable[[], Model]] = (),
    *,
    stated: bool = False,
    traced: bool = False,
) -> Model:
    """The model, with its samples along dims of which it was asked; what is found, or cannot be, is said.

    Args:
        others: make the same model with its samples along other dims, the likeliest first; tried where they
            depend on each other along those that it has (time).
        stated: the user said along which dims they lie.
        traced: the graph was made here, so that a batch which came out fixed is the network's doing.

    Raises:
        UsageError: they were stated, and samples along them depend on each other.
    """
    found = _dependence(model)
    several = _dependence(model, alone=False) if found == math.inf else None
    if several is not None and several < INDEPENDENT:
        say(
            f"a single sample along {_places(model)} gives outputs of other shapes than one of several, "
            "as after a squeeze(), which takes the batch of 1, too; squeeze(1) names the dim"
        )
        return model
    if found is None and traced and BATCH not in model.dynamic:
        return _of_fixed_batch(model, say, others)
    if found is None or found < INDEPENDENT:
        if traced and model.fixed_batch is not None:
            sizes = ",".join("x".join(map(str, spec.shape)) for spec in model.inputs)
            say(
                f"the graph takes {model.fixed_batch} samples at a time, as torch.export could not keep the "
                f"batch free: it was traced with --input {sizes}, which can say another size"
            )
        return model
    if stated:
        raise UsageError(
            "--input marks a dim as the batch along which samples are not independent",
            got=f"along {_places(model)} they change each other's outputs{_by(found)}",
            expected="samples together give what each gives alone",
            remedy=f"mark another dim with the B, as in --input {_example(model)}; or none: it is looked for",
        )
    for make in (*map(_with_batch, others), *_other_names(model)):
        try:
            other = make()
        except NNCompressError:
            continue
        now = _dependence(other)
        if now is None and BATCH in other.dynamic:
            continue  # it ran on no batch there, which proves nothing
        if now is None or now < INDEPENDENT:
            say(
                f"samples lie along {_places(other)}; along {_places(model)} they would change each other's "
                f"outputs{_by(found)}. --input can say it, with a B there: {_example(other, marked=True)}"
            )
            other.agreement = model.agreement
            return other
    say(
        f"samples in one batch, along {_places(model)}, change each other's outputs{_by(found)}: figures "
        f"depend on how many there are.{_norms(model)} If samples lie along another dim, mark it with a B: "
        f"--input {_example(model)}"
    )
    return model


def restate(model: Model, shapes: Sequence[InputShape], path: Path) -> None:
    """Take from `--input` what the file left open: sizes of dynamic dims, and which dim is the batch.

    Raises:
        UsageError: it contradicts the file.
    """
    inputs, model.sizes, names = restated(model.inputs, shapes, str(path), model.metadata)
    model.inputs = tuple(inputs)
    model.dynamic = {names.get(name, name): bounds for name, bounds in model.dynamic.items()}
    if BATCH in names:
        model.metadata.pop(BATCH_NAME, None)
    model.metadata.update((BATCH_NAME, old) for old, new in names.items() if new == BATCH != old)
    for name, size in model.sizes.items():
        low, high = model.dynamic[name]
        if not low <= size <= (high or size):
            raise UsageError(
                f"--input contradicts {path}", got=f"{name} = {size}", expected=f"{low} to {high or 'any'}"
            )


def _norms(model: Model) -> str:
    """A sentence on batch norms in training mode, if there are some."""
    norms = [n for n in model.graph.nodes if op_name(n) == "batch_norm" and n.args[3] is None]
    if not norms:
        return ""
    return (
        f" {place(norms[0])} normalises by the statistics of each batch, as in training: a network is saved, "
        "and exported, after model.eval()."
    )


def _of_fixed_batch(model: Model, say: Callable[[str], None], others: Iterable[Callable[[], Model]]) -> Model:
    """The model with its samples along another dim, where there is one along which they are independent."""
    for make in map(_with_batch, others):
        try:
            other = make()
        except NNCompressError:
            continue
        found = _dependence(other)
        if found is not None and found < INDEPENDENT:
            say(
                f"samples lie along {_places(other)}: along {_places(model)} the network takes one size. "
                f"--input can say it, with a B there: {_example(other, marked=True)}"
            )
            return other
    if any(spec.batch_dim is not None for spec in model.inputs):
        what = f"the network takes one size only along {_places(model)}: the batch is fixed there"
        where = "another dim, mark it"
    else:
        sizes = ", ".join(f"{spec.name} {list(spec.shape)}" for spec in model.inputs)
        what = f"the network takes one size only, {sizes}: one call is one sample"
        where = "dims of these, mark them"
    what += f". If samples lie along {where} with a B: --input {_example(model)}"
    say(what)
    return model


def _with_batch(make: Callable[[], Model]) -> Callable[[], Model]:
    """One whose batch came out fixed has its samples nowhere, and cannot be asked."""

    def made() -> Model:
        model = make()
        if BATCH not in model.dynamic:
            raise UnsupportedError("no batch along this dim")
        return model

    return made


def _other_names(model: Model) -> Iterator[Callable[[], Model]]:
    """With another dynamic dim as batch; where all sizes are numbers, the one dim of size 1."""
    for name in [name for name in model.dynamic if name != BATCH]:
        yield partial(_with_batch_at, model, name)
    ones = [spec.shape.index(1) for spec in model.inputs if spec.shape.count(1) == 1]
    if not model.dynamic and len(ones) == len(model.inputs):
        inputs = [replace(spec, fixed_dim=dim) for spec, dim in zip(model.inputs, ones)]
        yield lambda: Model(
            model.graph_module, inputs, model.outputs, model.dynamic, model.history, model.metadata
        )


def _with_batch_at(model: Model, name: str) -> Model:
    """The same graph and weights, with its samples along the dynamic dim of this name."""
    names = {name: BATCH, BATCH: name_without_batch(model.inputs, model.metadata)}
    inputs = [replace(s, shape=tuple(names.get(str(d), d) for d in s.shape)) for s in model.inputs]
    dynamic = {names.get(dim, dim): bounds for dim, bounds in model.dynamic.items()}
    metadata = {key: value for key, value in model.metadata.items() if key != LEAST_BATCH}
    specs = with_batch_dims(inputs)
    other = Model(model.graph_module, specs, model.outputs, dynamic, model.history, metadata)
    other.sizes = {dim: size for dim, size in model.sizes.items() if dim != name}
    other.metadata[BATCH_NAME] = name
    return other


def _dependence(model: Model, *, alone: bool = True) -> float | None:
    """As `dependence`; `alone`: of samples by themselves, where the model takes a single one."""
    low, high = model.dynamic.get(BATCH, (2, 2))
    alone = alone and low < 2
    found = None
    for least in (
        3,
        2,
    ):  # among two, what takes the next but one would take itself; a batch may have to be even
        samples = min(max(least, low), high or least)
        found = dependence(model.outputs_of, model.inputs, model.example_inputs(samples), alone=alone)
        if found is not None:
            break
    return found


def _places(model: Model) -> str:
    places = [(spec.name, spec.batch_dim) for spec in model.inputs]
    return ", ".join(f"dim {dim} of {name}" for name, dim in places if dim is not None) or "no dim"


def _example(model: Model, *, marked: bool = False) -> str:
    """What `--input` takes for this model, the B on its batch (`marked`), else on another dim."""
    parts = []
    for spec in model.inputs:
        sizes = list(map(str, model.concrete_shape(spec, 2)))
        others = [d for d in range(len(sizes)) if d != spec.batch_dim]
        place = spec.batch_dim if marked else next(iter(others), None)
        if place is not None:
            sizes[place] = "B"
        parts.append("x".join(sizes) if len(model.inputs) == 1 else f"{spec.name}:{'x'.join(sizes)}")
    return ",".join(parts)


def _by(found: float) -> str:
    return f" by {found:.0%}" if math.isfinite(found) else ", of which none has a row per sample"


def _distance(a: Tensor, b: Tensor) -> float:
    finite = torch.isfinite(a) & torch.isfinite(b)
    a, b = a.where(finite, 0), b.where(finite, 0)
    return float((a - b).norm() / a.norm().clamp_min(1e-30))
