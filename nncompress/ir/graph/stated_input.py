"""What `--input` says: `1x3x32x32`, `Bx16,ids:Bx12:int64`, `25xBx40`, `x:Bx40,state:2xBx128`.

Inputs are separated by commas, in the model's order or by name. Sizes are joined by x; a B stands for the dim
along which samples lie, an input without one beside others that have one is shared by all samples. Without
any B, samples lie along the first dims. A dtype may follow. An input without dims is `name:`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nncompress.dtypes import INPUTS
from nncompress.errors import UsageError
from nncompress.ir.graph.inputs import BATCH, InputSpec, name_without_batch

MARK = "B"
FORM = (
    "sizes joined by x, samples along the first: 1x3x32x32; or along B: 25xBx40; "
    "several inputs, by name or not: x:Bx40,state:2xBx128,ids:Bx16:int64"
)
_SIZES = re.compile(rf"([1-9][0-9]{{0,8}}|{MARK})([x×]([1-9][0-9]{{0,8}}|{MARK}))*")
_MOST_VALUES = 2**32  # 16 GiB of float32


@dataclass(frozen=True)
class InputShape:
    """One input as `--input` states it.

    Attributes:
        shape: sizes; that of the batch is the example's.
        dtype, name: None where they were not said.
        batch_dim: where the B was; None: there was none.
    """

    shape: tuple[int, ...]
    dtype: str | None = None
    name: str | None = None
    batch_dim: int | None = None

    def __str__(self) -> str:
        sizes = [MARK if d == self.batch_dim else str(size) for d, size in enumerate(self.shape)]
        name = f"{self.name}:" if self.name else ""
        return name + "x".join(sizes) + (f":{self.dtype}" if self.dtype else "")


def parse_input(text: str, batch: int = 1) -> tuple[InputShape, ...]:
    """One shape per input.

    Args:
        batch: the size that a B stands for.
    Raises:
        UsageError: it is anything else.
    """
    shapes = tuple(_parse_one(part.strip(), text, batch) for part in text.split(","))
    named = [shape.name for shape in shapes if shape.name]
    if named and (len(named) < len(shapes) or len(set(named)) < len(named)):
        raise UsageError(f"--input {text}: name every input once, or none", expected=FORM)
    return shapes


def _parse_one(part: str, text: str, batch: int) -> InputShape:
    parts = part.split(":")
    dtype = parts.pop() if len(parts) > 1 and parts[-1] and not _SIZES.fullmatch(parts[-1]) else None
    sizes = parts.pop()
    name = parts.pop() if parts else None
    if dtype is not None and dtype not in INPUTS:
        raise UsageError(f"--input {text}: unknown dtype {dtype!r}", expected=f"one of {', '.join(INPUTS)}")
    if name and not sizes and not parts and not _SIZES.fullmatch(name):  # a number
        return InputShape((), dtype, name)
    marks = re.split("[x×]", sizes).count(MARK)
    if parts or marks > 1 or not _SIZES.fullmatch(sizes) or name == "":
        raise UsageError(f"--input {text}: {part!r} is no shape", expected=FORM)
    numbers, values = [], 1
    for size in re.split("[x×]", sizes):
        numbers.append(batch if size == MARK else int(size))
        values *= numbers[-1]
    if values > _MOST_VALUES:
        raise UsageError(f"--input {text}: {part!r} is too large", got=f"{values} values", expected=FORM)
    where = re.split("[x×]", sizes).index(MARK) if marks else None
    return InputShape(tuple(numbers), dtype, name, where)


def matched(shapes: Sequence[InputShape], names: Sequence[str]) -> list[InputShape]:
    """The shapes in the order of the inputs' `names`.

    Raises:
        UsageError: another number of them, or a name that no input has.
    """
    found = {shape.name: shape for shape in shapes}
    unknown = [str(name) for name in found if name is not None and name not in names]
    if unknown or len(shapes) != len(names):
        raise UsageError(
            "--input does not state the model's inputs",
            got=",".join(map(str, shapes)),
            expected=f"{len(names)}: {', '.join(names)}",
        )
    return list(shapes) if None in found else [found[name] for name in names]


def restated(
    specs: Sequence[InputSpec], shapes: Sequence[InputShape], origin: str, metadata: Mapping[str, Any]
) -> tuple[list[InputSpec], dict[str, int], dict[str, str]]:
    """The inputs of a model whose file states them, with what `--input` adds.

    Args:
        metadata: the model's, which may know the name of the dim that was the batch.
    Returns: the specs, their batch where the B was; the sizes that were said of dynamic dims, by name; and
        the new names of dims that are called otherwise now.
    Raises:
        UsageError: it contradicts the file.
    """
    shapes = matched(shapes, [spec.name for spec in specs])
    for spec, shape in zip(specs, shapes):
        fits = len(spec.shape) == len(shape.shape) and all(
            isinstance(there, str) or there == said or d in (spec.batch_dim, shape.batch_dim)
            for d, (there, said) in enumerate(zip(spec.shape, shape.shape))
        )
        if not fits or shape.dtype not in (None, spec.dtype):
            raise UsageError(f"--input contradicts {origin}", got=str(shape), expected=str(spec))
    renamed: dict[str, str] = {}
    stated = list(specs)
    if any(shape.batch_dim is not None for shape in shapes):
        marked = [
            size
            for spec, shape in zip(specs, shapes)
            if shape.batch_dim is not None and isinstance(size := spec.shape[shape.batch_dim], str)
        ]
        if BATCH not in marked:
            renamed[BATCH] = name_without_batch(specs, metadata)
        renamed.update(dict.fromkeys(marked, BATCH))
        stated = [
            replace(
                spec,
                shape=tuple(renamed.get(str(s), s) for s in spec.shape),
                fixed_dim=shape.batch_dim,
                samples=None,  # whose samples may lie along another dim
            )
            for spec, shape in zip(specs, shapes)
        ]
    sizes: dict[str, int] = {}
    for spec, shape in zip(stated, shapes):
        for there, said in zip(spec.shape, shape.shape):
            if isinstance(there, str) and there != BATCH and sizes.setdefault(there, said) != said:
                raise UsageError(
                    f"--input contradicts {origin}: {there} is one size",
                    got=f"{sizes[there]} and {said}",
                    expected=", ".join(map(str, stated)),
                )
    return stated, sizes, renamed
