"""A few samples of the calibration data, kept with a quantized model: what its files are compared on.

Integer kernels round values on a boundary to the other side than floats do. How far that takes the outputs
hangs on the inputs: on noise, of which a network makes nothing, it takes them much farther than on what the
model was made for.

A `.pt2` keeps them as a member of its own, the text of a safetensors file in base 64; no other format does.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from nncompress.ir.graph.inputs import BATCH, InputSpec, count_samples, derived_sizes, take_samples
from nncompress.ir.graph.model import Model

MOST_SAMPLES = 8
MOST_BYTES = 2**20  # of all inputs together, as they are kept
MOST_TEXT = 2 * MOST_BYTES  # in base 64, with names and shapes
NARROWED = 2.0**-10  # relative error of floats that are kept in 16 bits


def with_samples(specs: Sequence[InputSpec], inputs: Sequence[Tensor]) -> tuple[InputSpec, ...]:
    """The specs with some of the samples in `inputs`, from end to end, as many as there is room for; without
    any where one is too large, or where values are not finite."""
    count = count_samples(specs, inputs)
    if any(x.is_floating_point() and not x.isfinite().all() for x in inputs):
        return without_samples(specs)
    for most in range(min(count, MOST_SAMPLES), 0, -1):
        drawn = take_samples(specs, inputs, torch.arange(most) * count // most)
        taken = [_narrowed(x) for x in drawn]
        if sum(x.nbytes for x in taken) <= MOST_BYTES:
            return tuple(replace(spec, samples=x.clone()) for spec, x in zip(specs, taken, strict=True))
    return without_samples(specs)


def without_samples(specs: Sequence[InputSpec]) -> tuple[InputSpec, ...]:
    """The specs with none."""
    return tuple(replace(spec, samples=None) for spec in specs)


def said_of(specs: Sequence[InputSpec]) -> str | None:
    """What a user has to know where samples of theirs go into a file; None where none do."""
    kept = samples_of(specs)
    if not kept:
        return None
    count = count_samples(specs, kept)
    stay = "1 sample of the data ({}) stays" if count == 1 else f"{count} samples of the data ({{}}) stay"
    return (
        f"{stay.format(f'{sum(x.nbytes for x in kept) / 1e3:.3g} kB')} "
        "with the model, in its .pt2: exported files are compared on them; --no-samples keeps none"
    )


def samples_of(specs: Sequence[InputSpec]) -> list[Tensor]:
    """Those that are kept."""
    return [spec.samples for spec in specs if spec.samples is not None]


def verification_inputs(
    model: Model, batch: int = 2, seed: int = 0, sizes: Mapping[str, int] | None = None
) -> tuple[Tensor, ...]:
    """What two forms of a model are compared on: samples of its calibration data, over and over where the
    batch is larger; values as in `Model.example_inputs` where none are kept.

    Args:
        seed: which is the first of the samples.
        sizes: of other free dims than the batch; samples are cut, or repeated, to these.
    """
    drawn = model.example_inputs(batch, seed, sizes)
    return tuple(
        x if spec.samples is None else _at_sizes(spec, spec.samples, batch, seed, sizes or {})
        for spec, x in zip(model.inputs, drawn, strict=True)
    )


def other_batch(specs: Sequence[InputSpec]) -> int:
    """Beside one sample, or two: what is no first dim may be a length, of which 3 would tell little."""
    return 3 if all(spec.batch_dim in (0, None) for spec in specs) else 19


def usual_sizes_of(model: Model) -> dict[str, int]:
    """The size that each free dim beside the batch has where nobody says another."""
    shapes = [zip(spec.shape, model.concrete_shape(spec, batch=1)) for spec in model.inputs]
    return {d: size for shape in shapes for d, size in shape if isinstance(d, str) and d != BATCH}


def moved_sizes(model: Model, quarters: int) -> dict[str, int]:
    """Other sizes of the free dims beside the batch: so many quarters less, or more where none are below."""
    usual = usual_sizes_of(model)
    moved = {}
    for dim, size in usual.items():
        low, high = model.dynamic.get(dim, (1, None))
        step = quarters * max(size // 4, 1)
        moved[dim] = size - step if size - step >= max(low, 1) else min(size + step, high or size + step)
    return moved | derived_sizes(model.graph_module, model.inputs, moved)


def _at_sizes(spec: InputSpec, samples: Tensor, batch: int, seed: int, sizes: Mapping[str, int]) -> Tensor:
    samples = _at_batch(spec, samples, batch, seed)
    for dim, name in enumerate(spec.shape):
        if isinstance(name, str) and name in sizes:
            samples = samples.index_select(dim, torch.arange(sizes[name]) % samples.shape[dim])
    return samples


def _at_batch(spec: InputSpec, samples: Tensor, batch: int, seed: int) -> Tensor:
    samples = samples.to(spec.torch_dtype())
    dim = spec.batch_dim
    if dim is None:
        return samples.clone()
    size = spec.shape[dim]
    index = (torch.arange(batch if size == BATCH else int(size)) + seed) % samples.shape[dim]
    return samples.index_select(dim, index)


def _narrowed(x: Tensor) -> Tensor:
    """Floats in 16 bits, where these hold them."""
    x = x.detach().cpu()
    if x.dtype not in (torch.float32, torch.float64):
        return x
    half = x.half()
    return half if (half.to(x.dtype) - x).norm() <= NARROWED * x.norm() else x


def to_text(specs: Sequence[InputSpec]) -> str:
    """For a file; "" where none are kept."""
    found = {str(i): spec.samples.contiguous() for i, spec in enumerate(specs) if spec.samples is not None}
    return base64.b64encode(save(found)).decode("ascii") if found else ""


def from_text(
    text: bytes, specs: Sequence[InputSpec], dynamic: dict[str, tuple[int, int | None]]
) -> tuple[InputSpec, ...]:
    """The specs with the samples that a file of anyone holds.

    Raises:
        ValueError: they are not what is written, or fit the inputs in number, type or shape no more.
    """
    if len(text) > MOST_TEXT:
        raise ValueError(f"{len(text)} bytes of samples, of at most {MOST_TEXT}")
    try:
        found = load(base64.b64decode(text, validate=True))
    except (binascii.Error, SafetensorError, KeyError) as error:  # KeyError: a type that torch lacks
        raise ValueError(f"samples that do not unpack ({str(error)[:100]})") from error
    if found.keys() != {str(i) for i in range(len(specs))}:
        raise ValueError(f"samples of {len(found)} inputs, for {len(specs)}")
    given = [found[str(i)] for i in range(len(specs))]
    if sum(x.nbytes for x in given) > MOST_BYTES:
        raise ValueError(f"{sum(x.nbytes for x in given)} bytes of samples, of at most {MOST_BYTES}")
    sizes: dict[str, int] = {}
    for spec, x in zip(specs, given):
        _check(spec, x, sizes)
    for name, size in sizes.items():
        low, high = dynamic.get(name, (1, None))
        most = MOST_SAMPLES if name == BATCH else high
        if not (low if name != BATCH else 1) <= size <= (most or size):
            raise ValueError(f"samples with {name} = {size}")
    return tuple(replace(spec, samples=x) for spec, x in zip(specs, given))


def _check(spec: InputSpec, x: Tensor, sizes: dict[str, int]) -> None:
    """Raise ValueError where the samples are none of this input; `sizes` of dims by name are filled in."""
    dtype = spec.torch_dtype()
    narrowed = x.dtype == torch.float16 and dtype in (torch.float32, torch.float64)
    fits = x.dim() == len(spec.shape) and (x.dtype == dtype or narrowed)
    for dim, (size, stated) in enumerate(zip(x.shape, spec.shape)):
        name = BATCH if dim == spec.batch_dim else stated
        fits &= sizes.setdefault(name, size) == size if isinstance(name, str) else size == stated
    if not fits:
        raise ValueError(f"samples {x.dtype}{list(x.shape)} for {spec}")
    if x.is_floating_point() and not x.isfinite().all():
        raise ValueError(f"samples for {spec.name} that are not finite")
