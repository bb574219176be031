"""The text after `--data` → an open `Dataset`."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nncompress.data.dataset import Dataset
from nncompress.data.fit import ExpectedInput, fit_inputs
from nncompress.data.held_out import half_of
from nncompress.data.kind import Asked
from nncompress.data.normalization import parse_normalization
from nncompress.data.source import Source, StreamSource
from nncompress.data.sources import FORMS, KINDS
from nncompress.data.sources.python import name_of, open_memory
from nncompress.errors import DataError


def open_data(
    spec: str | Any,
    inputs: Sequence[ExpectedInput] | None = None,
    normalize: str | None = None,
    names: Sequence[str] = (),
) -> Dataset:
    """Open `spec` and check that its samples fit the model's inputs.

    Args:
        spec: `file.npz` or several, a table (`.csv`, `.jsonl`, `.parquet`, a folder that `save_to_disk` of
            the datasets library wrote, with `?split=train`), a `.pt` of tensors, a folder of
            images or sounds by class or of images and masks, `mnist:DIR`, `cifar10:DIR` (both also with
            `?split=train`), `package.module:function`, or `NAME:PLACE` of a source that another package
            adds (docs/extending.md); or data in memory: see `open_memory`. `?half=1` and `?half=2` are two
            parts of the same size, drawn at random and always the same.
        inputs: the model's inputs. None: the samples are taken for what they most likely are (uint8
            [H, W, C] is an image), which tells a model's input shape from its data.
        normalize: `imagenet`, `none`, or `means/standard deviations`, on pixels scaled to 0 … 1.
            None: what the file holds (`mean` and `std` in a `.npz`), else none.
        names: of the model's inputs, where `inputs` is None and no more is known of them.
    Raises:
        DataError: the data is missing, unreadable, or does not fit.
    """
    expected = None if inputs is None else list(inputs)
    if expected and all(e.batch_dim is None for e in expected):
        raise DataError(
            "nobody can tell along which dim of the model's inputs samples lie",
            got=", ".join(f"{e.name} {list(e.shape)}" for e in expected),
            remedy="mark it with a B in --input, such as x:Bx40,state:2xBx128",
        )
    if isinstance(spec, str | Path):
        spec = str(spec)
        source = _opened(_asked(spec, expected, names))
    else:
        source = open_memory(spec, expected, names)
        spec = name_of(spec)
    asked = normalize is not None
    normalization = parse_normalization(normalize) if normalize is not None else source.normalization
    conversions = fit_inputs(source.fields, expected, normalization, asked=asked, origin=spec)
    return Dataset(spec, source, conversions, _fixed_batch(source, expected, spec), asked)


def is_code(spec: str) -> bool:
    """Whether opening it runs code: that of the user, or of a package that adds a kind of data."""
    asked = _asked(spec)
    if os.path.exists(asked.path):
        return False
    return next((kind.runs_code for kind in KINDS if kind.claims(asked)), False)


def _opened(asked: Asked) -> Source | StreamSource:
    if "half" in asked.options:
        half, rest = asked.options["half"], _without(asked.spec, "half")
        return half_of(_opened(_asked(rest, asked.expected, asked.names)), half, asked.spec)
    try:
        kind = next((kind for kind in KINDS if kind.claims(asked)), None)
    except OSError as problem:
        raise DataError(f"{asked.path} cannot be read", got=str(problem)) from problem
    if kind is not None:
        kind.check_options(asked)
        return kind.open(asked)
    if asked.file is not None:
        raise DataError(
            f"{asked.path} is not a kind of data that can be read",
            expected=FORMS,
            remedy=f"name what gives the data: {asked.path}:function" if asked.path.endswith(".py") else "",
        )
    if os.path.exists(asked.path):
        raise DataError(
            f"{asked.path} is neither a file nor a folder", got="a device or a pipe", expected=FORMS
        )
    raise DataError(f"there is no data at {asked.path}", expected=FORMS)


def _asked(spec: str, expected: list[ExpectedInput] | None = None, names: Sequence[str] = ()) -> Asked:
    path, _, query = spec.partition("?")
    if not query or os.path.exists(spec):
        return Asked(spec, spec, {}, expected, names)
    pairs = (part.partition("=") for part in query.split("&"))
    return Asked(spec, path, {key: value for key, _, value in pairs}, expected, names)


def _without(spec: str, option: str) -> str:
    """The rest of it, as it was written."""
    path, _, query = spec.partition("?")
    kept = "&".join(part for part in query.split("&") if part.partition("=")[0] != option)
    return f"{path}?{kept}" if kept else path


def _fixed_batch(
    source: Source | StreamSource, expected: list[ExpectedInput] | None, spec: str
) -> int | None:
    placed = [(e, e.batch_dim) for e in expected or ()]
    sizes = {s for s in (e.shape[dim] for e, dim in placed if dim is not None) if isinstance(s, int)}
    if len(sizes) > 1:
        raise DataError("the model's inputs have different fixed batch sizes", got=str(sorted(sizes)))
    size = sizes.pop() if sizes else None
    if size is not None and isinstance(source, Source) and len(source) < size:
        raise DataError(
            f"{spec} has fewer samples than the model's fixed batch",
            got=f"{len(source)} samples",
            expected=f"at least {size}",
        )
    return size
