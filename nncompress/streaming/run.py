"""A pass over a checkpoint, one weight after the other.

Memory: what a shard's tensors take, once as they are written and once as bytes, and what the pass takes for
one weight in float32.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path

import torch
from torch import Tensor

from nncompress.errors import UsageError
from nncompress.files.folders import folder_to_fill
from nncompress.loading.state_dict.shards import Checkpoint, StoredTensor
from nncompress.options import flag_of
from nncompress.passes import Context, Pass
from nncompress.progress import NullProgress, Progress
from nncompress.streaming.layer import HALVES, as_float, kind_of, layer_name, one_layer, stored
from nncompress.streaming.shards import Row, Shards, Streamed, alone_at

SHARD = 256 * 2**20  # bytes of the source that become one shard, unless a single tensor has more
LARGE = 2**22  # bytes of a tensor, from which on a copy that is kept too long counts


def run(
    each: Pass,
    source: Checkpoint,
    folder: str | Path,
    *,
    progress: Progress | None = None,
    shard: int = SHARD,
) -> Streamed:
    """Apply a pass to every weight of `source` by itself, and write the result to `folder`.

    What is no weight of a layer is copied. A folder that holds shards of an unfinished run of the same pass
    on the same files is completed.

    Args:
        shard: bytes of the source that become one shard.

    Raises:
        UsageError: the pass, or an option of it, needs the whole model, or a pattern names no layer.
        OutputError: the folder holds files that are not ours, or cannot be written.
        ModelFileError, UnsupportedError: a tensor cannot be read, or the pass refuses it.
    """
    each, spared = by_itself(each, source)
    with folder_to_fill(folder) as made, alone_at(made):
        return _into(made, each, spared, source, progress or NullProgress(), shard)


def _into(
    folder: Path, each: Pass, spared: tuple[str, ...], source: Checkpoint, progress: Progress, shard: int
) -> Streamed:
    units = list(_units(source.tensors, shard))
    shards = Shards(folder, source, units, each)
    total = sum(tensor.bytes for tensor in source.tensors)
    done = 0
    for number, unit in enumerate(units):
        if number not in shards.finished:

            def told(tensor: StoredTensor, before: int = done) -> None:
                progress.step(f"{each.name}, weight by weight", before, total)

            shards.write(number, *_made(each, unit, spared, told))
        done += sum(tensor.bytes for tensor in unit)
        progress.step(f"{each.name}, weight by weight", done, total)
    return shards.complete()


def by_itself(each: Pass, source: Checkpoint, also: Sequence[str] = ()) -> tuple[Pass, tuple[str, ...]]:
    """The pass for a single layer, without the patterns that spare layers; and those patterns.

    Args:
        also: options that are taken besides those that look at one weight.

    Raises:
        UsageError
    """
    if each.tensorwise is None:
        raise UsageError(
            f"{each.name} looks at the network as a whole, not at one weight after the other",
            remedy="leave --stream out, and give a model with its architecture (--arch)",
        )
    reason = each.needs_network()
    other = next((name for name in each.settings() if name not in (*each.tensorwise, *also)), None)
    if other is not None:
        reason = reason or f"{flag_of(other)} looks at the network as a whole"
    if reason:
        raise UsageError(f"{each.name} --stream: {reason}")
    spared = getattr(each, each.protects, ())
    names = [layer_name(t.name) for t in source.tensors if kind_of(t.name, t.shape)]
    if not names:
        raise UsageError(
            f"{source.path} holds no weight of a layer",
            expected="tensors of two or more dims whose names end in .weight",
        )
    for pattern in spared:
        if not any(fnmatch(name, pattern) for name in names):
            raise UsageError(
                f"{each.name}: --{each.protects} {pattern} names no layer",
                expected=", ".join(names[:5]) + (", …" if len(names) > 5 else ""),
            )
    for tensor in source.tensors:
        name = layer_name(tensor.name)
        if kind_of(tensor.name, tensor.shape) and not any(fnmatch(name, pattern) for pattern in spared):
            each.check_shape(name, tensor.shape)
    strengths = each.strengths()
    return replace(strengths[0] if strengths else each, **{each.protects: ()}), tuple(spared)


def _units(tensors: Sequence[StoredTensor], shard: int) -> Iterator[list[StoredTensor]]:
    """Neighbouring tensors of at most `shard` bytes together, or a larger one alone."""
    unit: list[StoredTensor] = []
    for tensor in tensors:
        if unit and sum(t.bytes for t in unit) + tensor.bytes > shard:
            yield unit
            unit = []
        unit.append(tensor)
    if unit:
        yield unit


def _made(
    each: Pass, unit: Sequence[StoredTensor], spared: Sequence[str], told: Callable[[StoredTensor], None]
) -> tuple[dict[str, Tensor], dict[str, Sequence[int]], list[Row]]:
    """What is stored for the tensors of a unit, the shapes of those in parts, and what became of each."""
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, Sequence[int]] = {}
    rows = []
    for tensor in unit:
        told(tensor)
        row, parts = _treated(each, tensor, spared)
        rows.append(row)
        if set(parts) != {tensor.name}:
            shapes[tensor.name] = tensor.shape
        tensors |= parts
    return tensors, shapes, rows


def _treated(each: Pass, tensor: StoredTensor, spared: Sequence[str]) -> tuple[Row, dict[str, Tensor]]:
    """What becomes of one tensor, and what is stored for it, by name."""
    value = tensor.read()
    where = layer_name(tensor.name)
    kind = kind_of(tensor.name, tensor.shape)
    reason = ""
    if not kind:
        reason = "kept: no weight of a layer"
    elif value.dtype not in (*HALVES, torch.float32, torch.float64):
        reason = f"skipped: {str(value.dtype).removeprefix('torch.')}"
    elif any(fnmatch(where, pattern) for pattern in spared):
        reason = f"skipped by --{each.protects}"
    elif not each.treats(kind):
        reason = f"skipped: the weight of {'an' if kind[0] == 'e' else 'a'} {kind}"
    if reason:
        return Row(tensor.name, reason, tensor.bytes, tensor.bytes, 0.0, False), {tensor.name: value}
    model = one_layer(tensor.name, as_float(value), kind)
    context = Context()
    _let_go(tensor)  # what traced it holds itself, and a weight
    each.requires(model, context)
    _let_go(tensor)  # the copy that was asked
    changes = each.apply(model, context)
    if not any(change.applied for change in changes):
        what = "; ".join(change.what for change in changes) or "nothing to change"
        return Row(tensor.name, what, tensor.bytes, tensor.bytes, 0.0, False), {tensor.name: value}
    model.refresh()
    each.ensures(model, changes)
    parts, result = stored(model, value.dtype)
    named = (
        {tensor.name: result.contiguous()}
        if parts is None
        else {f"{tensor.name}.{part}": content.contiguous() for part, content in parts.items()}
    )
    size = sum(content.nbytes for content in named.values())
    del model
    original = as_float(value)
    length = float(torch.linalg.vector_norm(original))
    error = float(torch.linalg.vector_norm(original.sub_(result))) / length if length else 0.0
    what = "; ".join(change.what.partition(",")[0] for change in changes if change.applied)
    return Row(tensor.name, what, tensor.bytes, size, error, True), named


def _let_go(tensor: StoredTensor) -> None:
    """Free what refers to itself before a large tensor is worked on; of small ones Python does so in time."""
    if tensor.bytes >= LARGE:
        gc.collect()
