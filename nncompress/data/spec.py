"""The text after `--data` → an open `Dataset`."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nncompress.data.dataset import Dataset
from nncompress.data.fit import ExpectedInput, fit_inputs
from nncompress.data.held_out import half_of
from nncompress.data.normalization import parse_normalization
from nncompress.data.source import Source, StreamSource
from nncompress.data.sources.cifar10 import open_cifar10
from nncompress.data.sources.encoded_columns import encoded_columns, open_encoded
from nncompress.data.sources.mnist import open_mnist
from nncompress.data.sources.npz import open_npz, open_shards
from nncompress.data.sources.pictures.boxes import (
    annotations_of,
    is_yolo_folder,
    open_coco_folder,
    open_yolo_folder,
)
from nncompress.data.sources.pictures.images import open_image_folder
from nncompress.data.sources.pictures.masks import is_mask_folder, open_mask_folder
from nncompress.data.sources.python import name_of, open_memory, open_python
from nncompress.data.sources.saved_datasets import is_saved_dataset, table_of
from nncompress.data.sources.sounds import has_sounds, open_sound_folder
from nncompress.data.sources.tables import LINES, open_table
from nncompress.data.sources.tables import SUFFIXES as TABLES
from nncompress.data.sources.tensors import open_tensors
from nncompress.data.sources.texts import open_texts
from nncompress.errors import DataError
from nncompress.extensions import Registry

SOURCES: Registry[Callable[[str], Any]] = Registry(  # what other packages add: NAME:PLACE
    "nncompress.data", {}, lambda name, it: "" if callable(it) else f"{it!r:.80} is no function"
)
_NAMED: dict[str, Callable[[Path, str, list[ExpectedInput] | None], Source]] = {  # NAME:DIR?split=…
    "mnist": lambda folder, split, expected: open_mnist(folder, split),
    "cifar10": open_cifar10,
}
_CODE = r"([\w.]+|.+\.py):\w+"
FORMS = (
    "file.npz, or several (a folder, part-*.npz); .csv, .tsv, .jsonl or .parquet?x=a,b&y=c; .pt of tensors; "
    "texts in these or in a .txt, with --tokenizer DIR; "
    "a folder that datasets.save_to_disk wrote, ?split=train&x=a&y=c; "
    "a folder of images or sounds by class, of images/ and masks/, of images/ and labels/ (YOLO), of "
    "images and COCO's annotations; mnist:DIR, cifar10:DIR, package.module:function or file.py:function"
)


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
        source = _open_source(spec, expected, names)
    else:
        source = open_memory(spec, expected, names)
        spec = name_of(spec)
    asked = normalize is not None
    normalization = parse_normalization(normalize) if normalize is not None else source.normalization
    conversions = fit_inputs(source.fields, expected, normalization, asked=asked, origin=spec)
    return Dataset(spec, source, conversions, _fixed_batch(source, expected, spec), asked)


def is_code(spec: str) -> bool:
    """Whether opening it runs code: that of the user, or of a package that adds a kind of data."""
    path, _ = _split_options(spec)
    kind = path.partition(":")[0]
    if kind in _NAMED or os.path.exists(path):
        return False
    return kind in SOURCES or re.fullmatch(_CODE, path) is not None


def _open_source(
    spec: str, expected: list[ExpectedInput] | None, names: Sequence[str]
) -> Source | StreamSource:
    path, options = _split_options(spec)
    if "half" in options:
        half = options.pop("half")
        rest = "&".join(f"{key}={value}" for key, value in options.items())
        return half_of(_open_source(f"{path}?{rest}" if rest else path, expected, names), half, spec)
    kind, colon, folder = path.partition(":")
    if colon and kind in _NAMED:
        return _NAMED[kind](Path(folder), _split(options, spec), expected)
    name, _, place = spec.partition(":")
    if name in SOURCES:
        opener = SOURCES[name]
        return open_memory(lambda: opener(place), expected)
    table = Path(path) if path.endswith((*TABLES, LINES)) and os.path.isfile(path) else None
    if os.path.isdir(path) and is_saved_dataset(Path(path)):
        table = table_of(Path(path), options.pop("split", None))
    if table is not None:
        if {"text", "tokenizer"} & set(options) or table.suffix == LINES:
            return open_texts(table, options, expected, names)
        if encoded := encoded_columns(table, options, expected):
            return open_encoded(table, encoded, options, expected)
        return open_table(table, options, expected)
    if options:
        raise DataError(
            f"{spec} takes no options",
            got="?" + "&".join(options),
            remedy="leave --tokenizer out: it is for texts, in a .txt or a table"
            if "tokenizer" in options
            else "leave out what follows the ?",
        )
    if os.path.isdir(path):
        return _open_folder(Path(path), expected, names)
    if os.path.isfile(path):
        if path.endswith(".npz"):
            return open_npz(Path(path), expected, names)
        if path.endswith((".pt", ".pth")):
            return open_tensors(Path(path), expected, names)
        raise DataError(f"{path} is not a kind of data that can be read", expected=FORMS)
    if path.endswith(".npz") and (shards := sorted(glob.glob(path))):
        return open_shards([Path(shard) for shard in shards], expected, names)
    if is_code(path):
        return open_python(path, expected)
    if os.path.exists(path):
        raise DataError(f"{path} is neither a file nor a folder", got="a device or a pipe", expected=FORMS)
    raise DataError(f"there is no data at {path}", expected=FORMS)


def _open_folder(folder: Path, expected: list[ExpectedInput] | None, names: Sequence[str]) -> Source:
    """What is in it decides: masks or boxes beside images, sounds, .npz files, else images."""
    try:
        if is_mask_folder(folder):
            return open_mask_folder(folder, expected)
        if is_yolo_folder(folder):
            return open_yolo_folder(folder, expected)
        if (annotations := annotations_of(folder)) is not None:
            return open_coco_folder(folder, annotations, expected)
        if has_sounds(folder):
            return open_sound_folder(folder, expected)
        shards = sorted(path for path in folder.glob("*.npz") if path.is_file())
    except OSError as problem:
        raise DataError(f"{folder} cannot be read", got=str(problem)) from problem
    return open_shards(shards, expected, names) if shards else open_image_folder(folder, expected)


def _split_options(spec: str) -> tuple[str, dict[str, str]]:
    path, _, query = spec.partition("?")
    if not query or os.path.exists(spec):
        return spec, {}
    pairs = (part.partition("=") for part in query.split("&"))
    return path, {key: value for key, _, value in pairs}


def _split(options: dict[str, str], spec: str) -> str:
    unknown = sorted(set(options) - {"split"})
    split = options.get("split", "test")
    if unknown or split not in ("train", "test"):
        raise DataError(f"{spec}: unknown option", got=str(options), expected="?split=train or ?split=test")
    return split


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
