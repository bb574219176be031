"""Texts in a column of a table, as token ids: `reviews.csv?text=review&y=label&tokenizer=DIR&length=128`.

Where no column is named it is the one called text; of a `.txt` each line is a sample. DIR holds the
tokenizer.json of the tokenizers library (or is that file). Texts are cut at `length` tokens and filled up to
it; the model's inputs are told by their names: ids, the mask of what is text, the number of the segment.
"""

from __future__ import annotations

import base64
import csv
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from nncompress.data.fit import ExpectedInput
from nncompress.data.source import ArraySource, check_allocation
from nncompress.data.sources.npz import LABEL_NAMES
from nncompress.data.sources.tables import LINE, Column, check_named, open_rows
from nncompress.errors import DataError
from nncompress.extras import need
from nncompress.files.bounded_text import read_json

IDS_AND_MASK = ("input_ids", "attention_mask")
OPTIONS = ("text", "tokenizer", "length")
TOGETHER = 2**16  # characters of the texts that are encoded at a time, but for the last of them
MOST_TOKENIZER = 2**28  # bytes; vocabularies of 250,000 words take 2^25
MOST_GROWTH = 64  # characters that a tokenizer's rules may make of one before it looks for tokens
_PADS = ("[PAD]", "<pad>", "<|endoftext|>", "</s>")
_WHAT = {"attention_mask": "attention_mask", "token_type_ids": "type_ids"}


def open_texts(
    path: Path, options: dict[str, str], expected: list[ExpectedInput] | None, called: Sequence[str] = ()
) -> ArraySource:
    """int64 [N, length] for every input of the model, ids and their mask where it is not known; and labels.

    Args:
        called: the model's inputs, where no more is known of them.

    Raises:
        DataError: table or tokenizer cannot be read, no length is known, or an input is none of these.
        MissingExtraError: the tokenizers library is not installed.
    """
    rest = {key: value for key, value in options.items() if key not in (*OPTIONS, "y")}
    if "tokenizer" not in options or rest:
        raise DataError(
            f"{path}: texts need a column and a tokenizer",
            got="&".join(f"{key}={value}" for key, value in options.items()),
            expected=f"{path.name}?text=review&y=label&length=128, and --tokenizer DIR (or &tokenizer=DIR)",
            remedy="--tokenizer and the folder that holds the model's tokenizer.json",
        )
    need("text", str(path))
    names, rows = open_rows(path)
    text = options.get("text", LINE)
    label = options.get("y") or next((n for n in LABEL_NAMES if n in names), None)
    check_named([text, *([label] if label else [])], names, path)
    given = list(called or IDS_AND_MASK) if expected is None else [e.name for e in expected]
    what = _contents(given, path)
    length = _length(options.get("length"), expected, path)
    tokenizer = _opened(options["tokenizer"], length)
    labels = Column(label or "", path, text=True)

    def texts() -> Iterator[str]:
        for place, row in rows:
            if label is not None:
                labels.add(row.get(label), place)
            if not isinstance(found := row.get(text), str):
                raise DataError(f"{path}: {text} is no text in line {place}", got=repr(found)[:80])
            yield found

    parts: dict[str, list[np.ndarray]] = {name: [] for name in given}
    samples = 0
    try:
        for some in _together(texts()):
            samples += len(some)
            check_allocation(2 * samples * length * 8 * len(given), str(path))
            encoded = _encoded(tokenizer, some, length, options["tokenizer"])
            for name, part in parts.items():
                part.append(np.array([getattr(each, what[name]) for each in encoded], np.int64))
    except (OSError, csv.Error, UnicodeDecodeError) as problem:
        raise DataError(f"{path} cannot be read", got=str(problem)[:300]) from problem
    classes, class_names = labels.labels() if label else (None, None)
    arrays = {name: np.concatenate(part) for name, part in parts.items()}
    return ArraySource(arrays, classes, origin=str(path), class_names=class_names)


def _together(texts: Iterator[str]) -> Iterator[list[str]]:
    some: list[str] = []
    size = 0
    for text in texts:
        some.append(text)
        size += len(text) + 64
        if size > TOGETHER:
            yield some
            some, size = [], 0
    if some:
        yield some


def _encoded(tokenizer: Any, some: list[str], length: int, place: str) -> list[Any]:
    """The texts as `length` tokens each.

    Raises:
        DataError: the tokenizer cannot: it lacks a token that it needs, or gives up on a pattern.
    """
    try:
        found = list(tokenizer.encode_batch(some))
    except BaseException as problem:
        _check_own(problem)
        raise DataError(
            f"the tokenizer at {place} cannot encode the texts",
            got=str(problem)[:300],
            remedy="a tokenizer.json that goes with the model",
        ) from problem
    if any(len(each.ids) != length for each in found):
        raise DataError(
            f"the tokenizer at {place} does not make {length} tokens of a text",
            got=f"{max(len(each.ids) for each in found)}: what it adds to every text is more than that",
            remedy="a greater length=",
        )
    return found


def _check_own(problem: BaseException) -> None:
    """Raise again what is no failure of the tokenizer: those are Exceptions, and panics of its Rust."""
    if not isinstance(problem, Exception) and type(problem).__name__ != "PanicException":
        raise problem


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
            remedy=f"say it: --data {path.name}?length=128 (behind other options &length=128)",
        )
    return int(stated)


def _opened(place: str, length: int) -> Any:
    from tokenizers import Tokenizer

    path = Path(place) / "tokenizer.json" if Path(place).is_dir() else Path(place)
    if not path.is_file():
        raise DataError(f"there is no tokenizer at {path}", expected="the tokenizer.json of a directory")
    try:
        content = read_json(path, MOST_TOKENIZER)
        check_growth(content if isinstance(content, dict) else {})
        tokenizer = Tokenizer.from_file(str(path))
    except BaseException as problem:
        _check_own(problem)
        raise DataError(
            f"{path} cannot be read as a tokenizer",
            got=str(problem)[:300],
            expected="the tokenizer.json that save_pretrained or Tokenizer.save writes",
            remedy="name the folder of the model that the texts are for",
        ) from problem
    tokenizer.enable_truncation(length)
    padding = tokenizer.padding or {}
    pad = padding.get("pad_token") or next((t for t in _PADS if tokenizer.token_to_id(t) is not None), None)
    if pad is None or tokenizer.token_to_id(pad) is None:
        raise DataError(f"{path} knows no token to fill up with", expected=f"one of {', '.join(_PADS)}")
    tokenizer.enable_padding(length=length, pad_id=tokenizer.token_to_id(pad), pad_token=pad)
    return tokenizer


def check_growth(content: dict[str, Any]) -> None:
    """Refuse rules that make a text much longer: applied one after the other, they would fill any memory.

    Args:
        content: of a tokenizer.json.

    Raises:
        ValueError: one character may become more than `MOST_GROWTH`.
    """
    growth = 1
    rules: list[Any] = [content.get("normalizer"), content.get("pre_tokenizer")]
    while rules:
        match rules.pop():
            case {"type": "Sequence"} as sequence:
                rules += [*(sequence.get("normalizers") or ()), *(sequence.get("pretokenizers") or ())]
            case {"type": "Replace", "pattern": {"String": str() as found}, "content": str() as text} if (
                found
            ):
                growth *= max(1, len(text))
            case {"type": "Replace", "content": str() as text}:  # what matches nothing inserts
                growth *= 1 + len(text)
            case {"type": "Prepend", "prepend": str() as text}:
                growth *= 1 + len(text)
            case {"type": "Precompiled", "precompiled_charsmap": str() as text}:
                stored = base64.b64decode(text)
                texts = stored[4 + int.from_bytes(stored[:4], "little") :]  # behind the trie, each ends in 0
                growth *= max(1, *(len(each.decode(errors="replace")) for each in texts.split(b"\0")))
        if growth > MOST_GROWTH:
            raise ValueError(f"its rules may make more than {MOST_GROWTH} characters of one")
