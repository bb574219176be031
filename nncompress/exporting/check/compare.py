"""Does an exported file compute, in its own runtime, what the graph computes?"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nncompress.analysis.distance.precision import (
    MEDIAN,
    TOLERANCE,
    amplification,
    beyond,
    precision_of,
    resolutions,
)
from nncompress.analysis.distance.rounding import Rounding
from nncompress.dtypes import dtype_name
from nncompress.errors import NNCompressError, UnsupportedError, VerificationError
from nncompress.ir import Model
from nncompress.ir.formats.qdq import without_rounding
from nncompress.ir.formats.samples import other_batch, samples_of, usual_sizes_of, verification_inputs
from nncompress.ir.graph.inputs import count_samples, derived_sizes
from nncompress.ir.graph.state import changed_tensors
from nncompress.runtimes.base import output_array
from nncompress.runtimes.free_sizes import other_sizes
from nncompress.runtimes.onnx_files.unrounded import write_unrounded

Run = Callable[[tuple[Tensor, ...]], Sequence[Tensor]]
FLIPPED_INTEGERS = 0.02  # share of integer outputs (arg-max, comparisons) that may differ at near ties


@dataclass(frozen=True)
class Comparison:
    """What comparing found; fields as in `ExportReport`."""

    max_abs_diff: float
    relative_error: float
    runtime: str
    batches: tuple[int, ...]
    choices: str = ""
    rounding: str = ""


_REPORT = "this is a defect of the export; keep the model as .pt2 and report it"


def refuse_changing(model: Model, what: str) -> None:
    """A model that changes its own tensors, where `what`, "a .pte", takes these for constants.

    Raises:
        UnsupportedError
    """
    changed = changed_tensors(model.graph)
    if changed:
        raise UnsupportedError(
            f"{what} of a model that changes its own tensors could not be compared over several calls",
            got=", ".join(changed[:5]),
            remedy="export it to a plain .onnx (without --target), where they become inputs and outputs",
        )


def compare(
    model: Model,
    run: Callable[[tuple[Tensor, ...]], Sequence[Tensor]],
    runtime: str,
    batches: tuple[int, ...] | None = None,
    *,
    precision: str = "",
    among: Collection[str] | None = None,
    proof: Callable[[], str] | None = None,
    proven: Callable[[tuple[Tensor, ...]], Sequence[Tensor]] | None = None,
) -> Comparison:
    """Run the file and the graph on the same inputs, at these batch sizes where the batch is dynamic, and at
    other sizes of the other free dims.

    The inputs are samples of what the model was calibrated on, where it keeps some; else random: like those
    that it was calibrated on, where it was, else standard normal.

    Integer kernels round a value on a boundary to the other side, and deep in a network that takes the
    outputs as far from the graph's as rounding took these from float. So outputs beyond the tolerance are
    compared with those of the same graph without rounding of activations: right is what is about as far from
    them as the graph's are (`nncompress.analysis.distance.rounding`).

    Of the samples that a model keeps, all are run, and judged together: a value on a boundary takes a single
    sample of a right file farther than a wrong scale would.

    Args:
        run: the file's outputs for positional inputs.
        runtime: what ran it, for messages.
        precision: a key of `TOLERANCE`; by default the model's.
        among: compare these outputs only.
        proof, proven: see `Rounding`.

    Raises:
        VerificationError: the outputs differ by more than the tolerance for the precision.
    """
    precision = precision or precision_of(model)
    kernels = resolutions(model)
    worst_diff = worst_relative = 0.0
    quantized = precision.startswith(("int8", "int4"))
    as_written = precision.endswith("as written")
    rounding = Rounding(model, as_written=as_written, proof=proof, proven=proven) if quantized else None
    batches = batch_sizes(model, batches)
    for batch, inputs, sizes in _trials(model, batches):
        with torch.no_grad():
            made = [model.outputs_of(*(each.clone() for each in given)) for given in inputs]
            ours = [[torch.from_numpy(output_array(each)) for each in outputs] for outputs in made]
            theirs = _at_other_sizes(run, inputs[0], runtime, sizes) if sizes else list(map(run, inputs))
        for at, name in enumerate(model.outputs):
            if among is not None and name not in among:
                continue
            where = f"{runtime} disagrees with the graph on output {name!r} at batch {batch}{sizes}"
            pair = _pooled([each[at] for each in ours], [each[at] for each in theirs])
            try:
                difference, relative = distance(where, *pair, precision, kernels[at])
            except VerificationError as refused:
                if rounding is not None:
                    difference, relative = rounding.explains(refused, inputs, at, *pair)
                else:
                    factor = amplification(model, inputs[0], at)
                    difference, relative = distance(where, *pair, precision, kernels[at], factor)
            worst_diff, worst_relative = max(worst_diff, difference), max(worst_relative, relative)
    told = "" if rounding is None else rounding.told
    return Comparison(worst_diff, worst_relative, runtime, batches, rounding=told)


def differs_without_rounding(model: Model, path: Path, open_file: Callable[[Path], Run]) -> str:
    """Where the `.onnx` at `path` says something else than the graph, or why that cannot be told; "" where it
    says the same.

    Args:
        open_file: how a file is run as it is written.
    """
    with tempfile.TemporaryDirectory() as folder:
        floats = Path(folder) / "floats.onnx"
        if why := write_unrounded(model, path, floats):
            return why
        try:
            run = open_file(floats)
            compare(without_rounding(model), run, "the file without rounding", precision="float32")
        except (UnsupportedError, VerificationError) as error:
            return f"{error.what}: {error.got}"
    return ""


def _trials(model: Model, batches: Sequence[int]) -> Iterator[tuple[int, list[tuple[Tensor, ...]], str]]:
    """(batch, inputs of each call, other sizes of the free dims in words), of which the last may be none."""
    for batch in batches:
        yield batch, _inputs(model, batch), ""
    batch = batches[-1]
    for sizes in _other_sizes(model, batch):
        said = "".join(f", {dim} = {size}" for dim, size in sizes.items())
        yield batch, [verification_inputs(model, batch=batch, seed=batch, sizes=sizes)], said


def _other_sizes(model: Model, batch: int) -> Iterator[dict[str, int]]:
    """Sizes of the free dims at which the graph runs, until each had one beside its usual one; a graph may
    take some together only, or multiples alone."""
    usual = usual_sizes_of(model)
    follow = derived_sizes(model.graph_module, model.inputs, usual).keys()
    left = usual.keys() - follow
    for trial in other_sizes(usual, frozenset(left), None):
        changed = {dim for dim in left if trial[dim] != usual[dim]}
        bounds = [(trial[dim], *model.dynamic.get(dim, (1, None))) for dim in changed]
        if not changed or any(not low <= size <= (high or size) for size, low, high in bounds):
            continue
        sizes = trial | derived_sizes(model.graph_module, model.inputs, trial)
        try:
            with torch.no_grad():
                model.outputs_of(*verification_inputs(model, batch=batch, seed=batch, sizes=sizes))
        except Exception:  # whatever an operator raises: the graph does not take these
            continue
        yield sizes
        left -= changed


def _at_other_sizes(
    run: Callable[[tuple[Tensor, ...]], Sequence[Tensor]],
    inputs: tuple[Tensor, ...],
    runtime: str,
    sizes: str,
) -> list[Sequence[Tensor]]:
    """
    Raises:
        VerificationError: it does not run there.
    """
    try:
        return [run(inputs)]
    except NNCompressError as error:
        raise VerificationError(
            f"{runtime} does not run the file at every size that the graph leaves free",
            got=f"{error.got or error.what}, at {sizes.removeprefix(', ')}",
            expected="what the graph gives",
            remedy="keep the model as .pt2",
        ) from error


def _inputs(model: Model, batch: int) -> list[tuple[Tensor, ...]]:
    """What is run at this batch size: all samples that the model keeps, else one call's."""
    kept = samples_of(model.inputs)
    first = verification_inputs(model, batch=batch, seed=batch)
    size, count = count_samples(model.inputs, first), count_samples(model.inputs, kept) if kept else 1
    rest = [verification_inputs(model, batch=batch, seed=batch + at) for at in range(size, count, size)]
    return [first, *rest]


def _pooled(expected: Sequence[Tensor], got: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """An output of several calls as one, of the graph and of the file; or the first two of other shapes."""
    pairs = list(zip(expected, got, strict=True))
    differing = next((pair for pair in pairs if pair[0].shape != pair[1].shape), None)
    if differing is not None or len(pairs) == 1:
        return differing or pairs[0]
    return torch.cat([each.flatten() for each in expected]), torch.cat([each.flatten() for each in got])


def batch_sizes(model: Model, wanted: tuple[int, ...] | None = None) -> tuple[int, ...]:
    """Those that `model` takes of the wanted ones; None: of one and several."""
    wanted = wanted or (1, other_batch(model.inputs))
    if "batch" not in model.dynamic:
        wanted = wanted[:1]
    low, high = model.dynamic.get("batch", (1, None))
    return tuple(sorted({min(max(b, low), high or b) for b in wanted}))


def distance(
    where: str, expected: Tensor, got: Tensor, precision: str, resolution: float = 0.0, factor: float = 1.0
) -> tuple[float, float]:
    """(largest difference, relative error) of an output.

    Args:
        resolution: a difference that counts for nothing (`resolutions`).
        factor: of the tolerance (`amplification`).

    Raises:
        VerificationError: shapes or types differ, or values by more than the tolerance.
    """
    if expected.shape != got.shape:
        raise VerificationError(where, got=f"shape {tuple(got.shape)}", expected=f"{tuple(expected.shape)}")
    if expected.dtype != got.dtype:
        raise VerificationError(
            where,
            got=f"values of {dtype_name(got.dtype)}",
            expected=dtype_name(expected.dtype),
            remedy=_REPORT,
        )
    if expected.dtype.is_complex:
        expected, got = torch.view_as_real(expected), torch.view_as_real(got)
    if not expected.dtype.is_floating_point:
        flipped = (expected != got.to(expected.dtype)).double().mean().item() if expected.numel() else 0.0
        if flipped > FLIPPED_INTEGERS:
            raise VerificationError(where, got=f"{flipped:.1%} of its integers differ", remedy=_REPORT)
        return 0.0, 0.0
    reference, result = expected.double(), got.double()
    finite = torch.isfinite(reference)
    if not torch.equal(finite, torch.isfinite(result)) or not torch.equal(
        reference[~finite].nan_to_num(), result[~finite].nan_to_num()
    ):
        raise VerificationError(
            where,
            got="infinities or NaN in different places",
            remedy="a large finite number in the place of an infinity (ONNX Runtime's max pools make one of "
            "it), or keep the model as .pt2",
        )
    reference, result = reference[finite], result[finite]
    if not reference.numel():
        return 0.0, 0.0
    apart = beyond(reference - result, resolution)
    difference = apart.abs().max().item()
    norm = reference.norm().item()
    relative = apart.norm().item() / (norm or 1.0)
    typical = norm / reference.numel() ** 0.5 or 1.0
    median = apart.abs().median().item() / typical
    largest, usual = factor * TOLERANCE[precision], factor * MEDIAN[precision]
    if relative > largest or median > usual:
        raise VerificationError(
            where,
            got=f"relative error {relative:.2g}, median {median:.2g}, largest difference {difference:.3g}",
            expected=f"at most {largest:.2g}, median {usual:.2g}, in {precision}",
            remedy=_REPORT,
        )
    return difference, relative
