"""A pass over a checkpoint, shard by shard: what is finished stays, so that a killed run goes on from there.

    OUT/model-00001-of-00048.safetensors   of some 256 MiB of the source each; its header says from what it is
    OUT/model.safetensors.index.json       written last: which shard holds which tensor
    OUT/.nncompress.json                   which of these files are ours

Memory: what a shard's tensors take, once as they are written and once as bytes, and what the pass takes for
one weight in float32.
"""

from __future__ import annotations

import gc
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nncompress.errors import OutputError, UsageError
from nncompress.export.check.read_back import read_back_tensors
from nncompress.export.write.safetensors import write_tensors
from nncompress.files.folders import folder_to_fill
from nncompress.files.ledger import Ledger
from nncompress.loading.state_dict.shards import INDEX, Checkpoint, StoredTensor, open_checkpoint
from nncompress.options import flag_of
from nncompress.passes import Context, Pass
from nncompress.progress import NullProgress, Progress
from nncompress.streaming.layer import kind_of, layer_name, one_layer, stored
from nncompress.version import __version__

SHARD = 256 * 2**20  # bytes of the source that become one shard, unless a single tensor has more
LARGE = 2**22  # bytes of a tensor, from which on a copy that is kept too long counts
_HALF = (torch.float16, torch.bfloat16)
_COMPANIONS = (".json", ".txt", ".model", ".jinja", ".md")  # beside the weights: configuration, tokenizer
_MOST_COMPANION = 64 * 2**20


@dataclass(frozen=True)
class Row:
    """What became of one tensor.

    Attributes:
        what: what the pass did, or why it did nothing.
        error: distance of the weight from what it was, as a share of its length; 0 where it was kept.
    """

    name: str
    what: str
    bytes_before: int
    bytes: int
    error: float
    applied: bool


@dataclass(frozen=True)
class Streamed:
    """What a run did.

    Attributes:
        rows: a row per tensor of the source, in its order.
        resumed: how many of the shards were finished by an earlier run.
        copied: names of the files beside the weights that were copied.
    """

    folder: Path
    rows: tuple[Row, ...]
    shards: int
    resumed: int
    copied: tuple[str, ...]

    @property
    def bytes_before(self) -> int:
        return sum(row.bytes_before for row in self.rows)

    @property
    def bytes(self) -> int:
        return sum(row.bytes for row in self.rows)

    def to_json(self) -> dict[str, Any]:
        return {
            "folder": str(self.folder),
            "bytes_before": self.bytes_before,
            "bytes": self.bytes,
            "shards": self.shards,
            "resumed": self.resumed,
            "copied": list(self.copied),
            "tensors": [asdict(row) for row in self.rows],
        }


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
    each, spared = _by_itself(each, source)
    with folder_to_fill(folder) as made:
        return _into(made, each, spared, source, progress or NullProgress(), shard)


def _into(
    folder: Path, each: Pass, spared: tuple[str, ...], source: Checkpoint, progress: Progress, shard: int
) -> Streamed:
    ledger = Ledger(folder)
    others = ledger.others()
    if others:
        raise OutputError(
            f"{folder} holds files that nncompress did not write",
            got=", ".join(others[:4]) + (", …" if len(others) > 4 else ""),
            remedy="-o with a folder that is new or empty",
        )
    units = list(_units(source.tensors, shard))
    total = sum(tensor.bytes for tensor in source.tensors)
    rows: list[Row] = []
    places: dict[str, str] = {}
    size = done = resumed = 0
    for number, unit in enumerate(units, 1):
        name = f"model-{number:05d}-of-{len(units):05d}.safetensors"
        made_from = {"pass": str(each), "version": __version__, "source": [_identity(t) for t in unit]}
        finished = _finished(ledger, name, made_from)
        resumed += finished is not None
        if finished is None:

            def told(tensor: StoredTensor, before: int = done) -> None:
                progress.step(f"{each.name}, weight by weight", before, total)

            finished = _write(each, unit, source, ledger, name, made_from, spared, told)
        rows += finished
        done += sum(tensor.bytes for tensor in unit)
        progress.step(f"{each.name}, weight by weight", done, total)
        written = open_checkpoint(folder / name)
        places |= {tensor.name: name for tensor in written.tensors}
        size += sum(tensor.bytes for tensor in written.tensors)
    copied = _copied(source, ledger)
    with ledger.writing(INDEX) as temporary:
        index = {"metadata": {"total_size": size}, "weight_map": dict(sorted(places.items()))}
        temporary.write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
    for name in ledger.names:  # of a run with other settings, or on other files
        if name not in {*places.values(), *copied, INDEX}:
            ledger.remove(name)
    return Streamed(folder, tuple(rows), len(units), resumed, tuple(copied))


def _by_itself(each: Pass, source: Checkpoint) -> tuple[Pass, tuple[str, ...]]:
    """The pass for a single layer, without the patterns that spare layers; and those patterns.

    Raises:
        UsageError
    """
    if each.tensorwise is None:
        raise UsageError(
            f"{each.name} looks at the network as a whole, not at one weight after the other",
            remedy="leave --stream out, and give a model with its architecture (--arch)",
        )
    reason = each.needs_network()
    other = next((name for name in each.settings() if name not in each.tensorwise), None)
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


def _identity(tensor: StoredTensor) -> list[Any]:
    """What changes where the tensor does, without reading it."""
    file = tensor.file.stat()
    return [tensor.name, str(tensor.dtype), list(tensor.shape), tensor.start, file.st_size, file.st_mtime_ns]


def _finished(ledger: Ledger, name: str, made_from: dict[str, Any]) -> list[Row] | None:
    """What an earlier run recorded of the shard that it made of the same; None where it has to be made."""
    if not ledger.owns(name):
        return None
    file = ledger.folder / name
    record = json.loads(open_checkpoint(file).headers[file].get("streamed", "{}"))
    if record.get("made_from") != made_from:
        return None
    return [Row(**row) for row in record["rows"]]


def _write(
    each: Pass,
    unit: Sequence[StoredTensor],
    source: Checkpoint,
    ledger: Ledger,
    name: str,
    made_from: dict[str, Any],
    spared: Sequence[str],
    told: Callable[[StoredTensor], None],
) -> list[Row]:
    tensors: dict[str, Tensor] = {}
    shapes: dict[str, list[int]] = {}
    rows = []
    for tensor in unit:
        told(tensor)
        row, parts = _treated(each, tensor, spared)
        rows.append(row)
        if set(parts) != {tensor.name}:
            shapes[tensor.name] = list(tensor.shape)
        tensors |= parts
    done = {"pass": each.name, "settings": each.settings(), "before": {}, "after": {}, "version": __version__}
    header = {
        "format": "pt",
        "history": json.dumps([done]),
        "metadata": "{}",
        "streamed": json.dumps({"made_from": made_from, "rows": [asdict(row) for row in rows]}),
        **({"packed": json.dumps(shapes)} if shapes else {}),
    }
    with ledger.writing(name) as temporary:
        write_tensors(tensors, header, temporary)
        read_back_tensors(tensors, header, temporary)
    return rows


def _treated(each: Pass, tensor: StoredTensor, spared: Sequence[str]) -> tuple[Row, dict[str, Tensor]]:
    """What becomes of one tensor, and what is stored for it, by name."""
    value = tensor.read()
    where = layer_name(tensor.name)
    kind = kind_of(tensor.name, tensor.shape)
    reason = ""
    if not kind:
        reason = "kept: no weight of a layer"
    elif value.dtype not in (*_HALF, torch.float32, torch.float64):
        reason = f"skipped: {str(value.dtype).removeprefix('torch.')}"
    elif any(fnmatch(where, pattern) for pattern in spared):
        reason = f"skipped by --{each.protects}"
    elif not each.treats(kind):
        reason = f"skipped: the weight of {'an' if kind[0] == 'e' else 'a'} {kind}"
    if reason:
        return Row(tensor.name, reason, tensor.bytes, tensor.bytes, 0.0, False), {tensor.name: value}
    model = one_layer(tensor.name, _float(value), kind)
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
    original = _float(value)
    length = float(torch.linalg.vector_norm(original))
    error = float(torch.linalg.vector_norm(original.sub_(result))) / length if length else 0.0
    what = "; ".join(change.what.partition(",")[0] for change in changes if change.applied)
    return Row(tensor.name, what, tensor.bytes, size, error, True), named


def _let_go(tensor: StoredTensor) -> None:
    """Free what refers to itself before a large tensor is worked on; of small ones Python does so in time."""
    if tensor.bytes >= LARGE:
        gc.collect()


def _float(value: Tensor) -> Tensor:
    """The values in memory of their own, halves as float32."""
    return value.float() if value.dtype in _HALF else value.clone()


def _copied(source: Checkpoint, ledger: Ledger) -> list[str]:
    """Copy what lies beside the shards of a folder and says what they are: configuration, tokenizer."""
    beside = source.files[0].parent
    if not source.path.is_dir() and source.path.suffix != ".json":
        return []
    copied = []
    for file in sorted(beside.iterdir()):
        if file.suffix not in _COMPANIONS or file.name.endswith(".index.json") or file.name.startswith("."):
            continue
        if not file.is_file() or file.stat().st_size > _MOST_COMPANION:
            continue
        with ledger.writing(file.name) as temporary:
            temporary.write_bytes(file.read_bytes())
        copied.append(file.name)
    return copied
