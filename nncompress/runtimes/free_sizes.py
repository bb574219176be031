"""Numbers for the sizes that a file leaves free: the likeliest ones, to be tried until it runs."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence, Set

from nncompress.ir import InputSpec
from nncompress.ir.graph.inputs import BATCH as BATCH_DIM

# the likeliest first: of images, and of anything else (tokens, samples, channels)
IMAGE_SIZES = (224, 64, 32, 320, 640, 96, 28, 299, 512)
LENGTHS = (16, 64, 8, 128, 256, 1024, 16000, 4, 2)
OF_LENGTHS = ("past", "seq", "len", "cache", "token")  # of a key/value cache [batch, heads, past, size], too
BATCH = 2
MOST_MIXED = 200  # combinations of different candidates that are tried at the most
MOST_VALUES = 2**27  # of an input at sizes that a file remembers: anyone may have written them


def free_dims(shapes: Sequence[tuple[int | str, ...]]) -> list[str]:
    """The names among the sizes, each once."""
    return list(dict.fromkeys(dim for shape in shapes for dim in shape if isinstance(dim, str)))


def usual_sizes(
    shapes: Sequence[tuple[int | str, ...]], batch: str | None, remembered: Mapping[str, int]
) -> Iterator[dict[str, int]]:
    """A size for every free dim of inputs of these shapes: the remembered ones, alike ones, mixed ones.

    Args:
        shapes: a str names a free dim, equal names are equal sizes.
        batch: the dim along which samples lie.
    """
    free = [dim for dim in free_dims(shapes) if not _sum(dim, shapes)]
    candidates = [_candidates(dim, shapes, batch) for dim in free]
    most = max((len(each) for each in candidates), default=1)
    alike = [tuple(each[min(i, len(each) - 1)] for each in candidates) for i in range(most)]
    known = dict(zip(free, alike[0])) | {dim: size for dim, size in remembered.items() if dim in free}
    first = [tuple(known.values())] if all(_values(shape, known) <= MOST_VALUES for shape in shapes) else []
    mixed = itertools.islice(itertools.product(*candidates), MOST_MIXED)
    sums = {dim: _sum(dim, shapes) for dim in free_dims(shapes) if dim not in free}
    for sizes in dict.fromkeys((*first, *alike, *mixed)):
        chosen = dict(zip(free, sizes))
        yield chosen | {
            dim: sum(chosen.get(part) or int(part) for part in parts) for dim, parts in sums.items()
        }


def other_sizes(sizes: Mapping[str, int], free: Set[str], batch: str | None) -> Iterator[dict[str, int]]:
    """All free dims changed at once, no two alike; then alike; then the batch alone, and each dim alone."""
    dims = [name for name in sizes if name in free and name != batch]
    more = {batch: sizes[batch] + 1} if batch in free and batch is not None else {}

    def others(size: int) -> list[int]:  # larger first: what is cut off at a length shows there only
        return [n for n in (size + 32, size // 2, size + 1, 2 * size) if n > 1]

    if not free:
        return
    for apart in (1, 0) if dims else (0,):
        for start in range(4):
            changed = {}
            for position, name in enumerate(dims):
                choice = others(sizes[name])
                changed[name] = choice[(start + apart * position) % len(choice)]
            yield {**sizes, **more, **changed}
    for name in [*more, *dims]:
        for size in [more[name]] if name in more else others(sizes[name]):
            yield {**sizes, name: size}


def _sum(dim: str, shapes: Sequence[tuple[int | str, ...]]) -> list[str]:
    """What a dim called "past_sequence_length + 1" is the sum of; nothing of others."""
    parts = [part.strip() for part in dim.split("+")]
    known = free_dims(shapes)
    return parts if len(parts) > 1 and all(part in known or part.isdecimal() for part in parts) else []


def guess_told(name: object, specs: Sequence[InputSpec], sizes: Mapping[str, int]) -> str | None:
    """Where neither --input nor --data tell a size, with which one figures are made; None: none is free."""
    guessed = {
        dim: sizes[dim] for dim in free_dims([s.shape for s in specs]) if dim in sizes.keys() - {BATCH_DIM}
    }
    if not guessed:
        return None
    said = ", ".join(f"{dim} = {size}" for dim, size in guessed.items())
    marked = {BATCH_DIM: "B", **guessed}
    example = ",".join(f"{s.name}:" + "x".join(str(marked.get(str(d), d)) for d in s.shape) for s in specs)
    return (
        f"{name} leaves sizes open, figures are made with {said}: --data decides, or --input {example} "
        "with other numbers"
    )


def _values(shape: tuple[int | str, ...], sizes: Mapping[str, int]) -> int:
    return math.prod(sizes.get(dim, 1) if isinstance(dim, str) else dim for dim in shape)


def _candidates(dim: str, shapes: Sequence[tuple[int | str, ...]], batch: str | None) -> tuple[int, ...]:
    if dim == batch or any(shape[:1] == (dim,) and len(shape) > 1 for shape in shapes):
        return (BATCH,)
    spatial = any(len(shape) == 4 and dim in shape[1:] for shape in shapes)
    spatial &= not any(word in dim.lower() for word in OF_LENGTHS)
    return IMAGE_SIZES if spatial else LENGTHS
