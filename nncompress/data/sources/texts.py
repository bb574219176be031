"""Texts in a column of a table, as token ids: `reviews.csv?text=review&y=label&tokenizer=DIR&length=128`.

DIR holds the tokenizer.json of the tokenizers library (or is that file). Texts are cut at `length` tokens and
filled up to it; the model's inputs are told by their names: ids, the mask of what is text, the number of the
segment.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from nncompress.data.fit import ExpectedInput
from nncompress.data.source import ArraySource
from nncompress.data.sources.npz import LABEL_NAMES
from nncompress.data.sources.tables import Column, check_named, open_rows
from nncompress.errors import DataError
from nncompress.extras import need

OPTIONS = ("text", "tokenizer", "length")
TOGETHER = 1024  # texts that are encoded at a time
_PADS = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")
_WHAT = {"attention_mask": "attention_mask", "token_type_ids": "type_ids"}


def open_texts(path: Path, options: dict[str, str], expected: list[ExpectedInput] | None) -> ArraySource:
    """int64 [N, length] for every input of the model, ids and their mask where it is not known; and labels.

    Raises:
        DataError: table or tokenizer cannot be read, no length is known, or an input is none of these.
        MissingExtraError: the tokenizers library is not installed.
    """
    rest = {key: value for key, value in options.items() if key not in (*OPTIONS, "y")}
    if "text" not in options or "tokenizer" not in options or rest:
        raise DataError(
            f"{path}: texts need a column and a tokenizer",
            got="&".join(f"{key}={value}" for key, value in options.items()),
            expected=f"{path.name}?text=review&y=label&tokenizer=DIR&length=128",
        )
    need("text", str(path))
    names, rows = open_rows(path)
    text, label = options["text"], options.get("y") or next((n for n in LABEL_NAMES if n in names), None)
    check_named([text, *([label] if label else [])], names, path)
    given = [e.name for e in expected] if expected is not None else ["input_ids", "attention_mask"]
    what = _contents(given, path)
    tokenizer = _opened(options["tokenizer"], _length(options.get("length"), expected, path))
    labels = Column(label or "", path, text=True)

    def texts() -> Iterator[str]:
        for place, row in rows:
            if label is not None:
                labels.add(row.get(label), place)
            if not isinstance(found := row.get(text), str):
                raise DataError(f"{path}: {text} is no text in line {place}", got=repr(found)[:80])
            yield found

    parts: dict[str, list[np.ndarray]] = {name: [] for name in given}
    stream = texts()
    try:
        while some := list(islice(stream, TOGETHER)):
            encoded = tokenizer.encode_batch(some)
            for name, part in parts.items():
                part.append(np.array([getattr(each, what[name]) for each in encoded], np.int64))
    except (OSError, csv.Error, UnicodeDecodeError) as problem:
        raise DataError(f"{path} cannot be read", got=str(problem)[:300]) from problem
    classes, class_names = labels.labels() if label else (None, None)
    arrays = {name: np.concatenate(part) for name, part in parts.items()}
    return ArraySource(arrays, classes, origin=str(path), class_names=class_names)


def _contents(names: list[str], path: Path) -> dict[str, str]:
    """Of each input, what of an encoded text it takes."""
    ids = [name for name in names if name not in _WHAT]
    if len(ids) != 1:
        raise DataError(
            f"{path}: the model's inputs are not those of a text",
            got=", ".join(names),
            expected=f"token ids, and {', '.join(_WHAT)}",
        )
    return {**_WHAT, ids[0]: "ids"}


def _length(stated: str | None, expected: list[ExpectedInput] | None, path: Path) -> int:
    fixed = [e.shape[-1] for e in expected or () if len(e.shape) == 2 and isinstance(e.shape[-1], int)]
    if stated is None and fixed:
        return int(fixed[0])
    if stated is None or not stated.isdecimal() or not 0 < int(stated) <= 2**20:
        raise DataError(
            f"{path}: it is not known how many tokens a sample has",
            got=f"length={stated}" if stated else "",
            remedy="add &length=128",
        )
    return int(stated)


def _opened(place: str, length: int) -> Any:
    from tokenizers import Tokenizer

    path = Path(place) / "tokenizer.json" if Path(place).is_dir() else Path(place)
    if not path.is_file():
        raise DataError(f"there is no tokenizer at {path}", expected="the tokenizer.json of a directory")
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as problem:  # the library raises plain Exceptions
        raise DataError(f"{path} cannot be read as a tokenizer", got=str(problem)[:300]) from problem
    tokenizer.enable_truncation(length)
    padding = tokenizer.padding or {}
    pad = padding.get("pad_token") or next((t for t in _PADS if tokenizer.token_to_id(t) is not None), None)
    if pad is None or tokenizer.token_to_id(pad) is None:
        raise DataError(f"{path} knows no token to fill up with", expected=f"one of {', '.join(_PADS)}")
    tokenizer.enable_padding(length=length, pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    return tokenizer
