"""Checkpoints: a run that was killed at any instant continues to the result it would have had.

A checkpoint holds tensors, optimizer state, the position in the data and the sums since the epoch began.
Everything random follows from the seed and the position, so no generator's state is kept. The file is
replaced as a whole, and read without running code.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import Tensor

from nncompress.data import Dataset
from nncompress.errors import ModelFileError, UsageError, VerificationError
from nncompress.exporting.write.pt2 import Sink
from nncompress.files.atomic import replacing
from nncompress.files.bounded_text import check_regular
from nncompress.files.interrupts import held_back
from nncompress.files.pickle_scan import scan_file
from nncompress.ir import Model
from nncompress.ir.formats.raw_bytes import raw_bytes

SCHEMA = 2  # 2: zero masks


def weights_digest(model: Model) -> str:
    """SHA-256 of every parameter and buffer with its name and shape."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}\n".encode())
        digest.update(raw_bytes(tensor).numpy().tobytes())
    return digest.hexdigest()


def data_identity(name: str, dataset: Dataset | None) -> dict[str, Any]:
    """What tells one data set from another: its spec, how many samples it has, how they are normalised."""
    if dataset is None:
        return {name: None}
    return {
        name: dataset.spec,
        f"{name} samples": len(dataset),
        f"{name} normalization": str(dataset.normalization),
    }


def save(path: Path, identity: dict[str, Any], state: dict[str, Any]) -> None:
    """Write the checkpoint of the run `identity`, replacing the one before.

    Raises:
        OutputError: it cannot be written.
        VerificationError: read back, it holds something else.
    """
    with replacing(path) as temporary:
        with held_back(), temporary.open("wb") as file:
            sink = Sink(file)
            torch.save({"schema": SCHEMA, "identity": identity, "state": state}, cast(IO[bytes], sink))
            sink.close()
        if not _same(load(temporary, identity), state):
            raise VerificationError(
                f"{path.name} is not kept: read back, it holds another state",
                remedy="this is a defect of nncompress; please report it",
            )


def load(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """The state in a checkpoint of this very run.

    Raises:
        ModelFileError: it is no checkpoint.
        UsageError: it is of another run; the message names what differs.
    """
    try:
        check_regular(path)
        scan_file(path)  # what it would build takes no more memory than it has bytes
        stored = torch.load(path, map_location="cpu", weights_only=True)
        schema, found, state = stored["schema"], dict(stored["identity"]), dict(stored["state"])
        json.dumps([schema, found])  # no tensors and classes, which cannot be compared
    except Exception as error:  # every opcode of a malformed pickle fails in its own way
        raise ModelFileError(
            f"{path} is not a checkpoint of nncompress train", remedy="delete it and train from the start"
        ) from error
    if schema != SCHEMA:
        raise ModelFileError(
            f"{path} was written by another version of nncompress",
            got=f"schema {schema}",
            expected=f"schema {SCHEMA}",
            remedy="end that run with the version that began it, or delete the checkpoint",
        )
    differing = sorted((k for k in {*found, *identity} if found.get(k) != identity.get(k)), key=str)
    if differing:
        raise UsageError(
            f"{path} is the checkpoint of another run, which would not be continued",
            got="; ".join(
                f"{k} {_short(found.get(k))} there, {_short(identity.get(k))} here" for k in differing
            ),
            remedy="repeat the first command's options, or leave --resume away and delete the checkpoint",
        )
    return state


def restore_tensors(model: Model, tensors: dict[str, Tensor]) -> None:
    """Copy the values into the model's own tensors: what shares them keeps sharing them."""
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.shape != tensors[name].shape:  # which would be repeated
                raise ValueError(f"{name} has another shape")
            tensor.copy_(tensors[name])


def _same(read: Any, written: Any) -> bool:
    """Whether two states are equal, their tensors bit for bit, wherever they lie."""
    if isinstance(written, Tensor):
        return (
            isinstance(read, Tensor)
            and read.dtype == written.dtype
            and read.shape == written.shape
            and torch.equal(raw_bytes(read), raw_bytes(written.detach().cpu()))
        )
    if isinstance(written, dict):
        return read.keys() == written.keys() and all(_same(read[key], written[key]) for key in written)
    if isinstance(written, list | tuple):
        return len(read) == len(written) and all(map(_same, read, written))
    return bool(read == written or written != written)


@contextmanager
def readable(path: Path) -> Iterator[None]:
    """Meanwhile a state is put in place; what does not fit there was damaged.

    Raises:
        ModelFileError: it is of this run by its identity, and not by what it holds.
    """
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise ModelFileError(
            f"{path} is damaged",
            got=f"{type(error).__name__}: {error}"[:300],
            remedy="delete it and train from the start",
        ) from error


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:8]}…"
