"""Pictures and sounds in a column of a table, encoded, as the datasets library keeps them.

    FOLDER?split=train&x=image&y=label      what `save_to_disk` wrote, or parquet files by split
    table.parquet?x=audio                   a column of bytes, or of {"bytes": …, "path": …}

All are held in memory as they are encoded, and decoded when they are read. Of several such columns one has to
be named. What they hold, their first bytes say.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from nncompress.data.fit import ExpectedInput
from nncompress.data.normalization import Normalization
from nncompress.data.source import Field, Raw, Source, check_allocation, check_labels
from nncompress.data.sources.arrow import holds_files
from nncompress.data.sources.npz import LABEL_NAMES
from nncompress.data.sources.pictures.images import EncodedImage, ImageSource
from nncompress.data.sources.saved_datasets import class_names_of, feature_of, schema_of
from nncompress.data.sources.sounds import EncodedSound, SoundSource, is_sound
from nncompress.data.sources.tables import Column, check_named, open_rows
from nncompress.data.vocabulary import Vocabulary
from nncompress.errors import DataError


def encoded_columns(table: Path, options: dict[str, str], expected: list[ExpectedInput] | None) -> list[str]:
    """The columns of files in bytes, where the input is of one: `options` name one of these, or none at all
    and the model's inputs are not columns by their names.

    Raises:
        DataError: the table cannot be read.
        MissingExtraError: pyarrow is not installed.
    """
    schema = schema_of(table)
    found = [] if schema is None else [field.name for field in schema if holds_files(field.type)]
    asked = {column for name, columns in options.items() if name != "y" for column in columns.split(",")}
    if not asked and schema is not None and expected:
        by_name = all(e.name in schema.names for e in expected)
        return [] if by_name and not {e.name for e in expected} & set(found) else found
    return found if not asked or asked & set(found) else []


def open_encoded(
    table: Path, encoded: list[str], options: dict[str, str], expected: list[ExpectedInput] | None
) -> Source:
    """The samples of a column of pictures or sounds.

    Args:
        encoded: the columns of files in bytes.
        options: `y`, and the one input by name.

    Raises:
        DataError: the column is not told, holds no bytes, or what cannot be read.
    """
    names, rows = open_rows(table)
    options = dict(options)
    label = options.pop("y", None) or next((n for n in LABEL_NAMES if n in names), None)
    asked = [column for columns in options.values() for column in columns.split(",")] or encoded
    check_named([*asked, *([label] if label else [])], names, table)
    if len(asked) != 1 or asked[0] not in encoded:
        raise DataError(
            f"{table}: one column of pictures or sounds is the input",
            got=", ".join(asked),
            expected=" or ".join(encoded),
            remedy=f"{table.name}?x={encoded[0]}" + (f"&y={label}" if label else ""),
        )
    labels = Column(label or "", table, text=True)
    found = list(_files(table, asked[0], rows, label, labels))
    if not found:
        raise DataError(f"{table} holds no samples")
    inner: ImageSource | SoundSource
    if is_sound(found[0][1]):
        sounds = [EncodedSound(name, content) for name, content in found]
        inner = SoundSource(sounds, None, expected, feature_of(table, asked[0]).get("sampling_rate"))
    else:
        inner = ImageSource([EncodedImage(name, content, None) for name, content in found], None, expected)
    if label is None:
        return inner
    numbers, words = labels.labels()
    return Labelled(inner, numbers, words or class_names_of(table, label), str(table))


def _files(
    table: Path, column: str, rows: Iterator[tuple[int, dict[str, Any]]], label: str | None, labels: Column
) -> Iterator[tuple[str, bytes]]:
    """The name and the bytes of each; labels are added to `labels`."""
    held = 0
    for place, row in rows:
        value = row.get(column)
        content = value.get("bytes") if isinstance(value, dict) else value
        if not isinstance(content, bytes) or not content:
            path = value.get("path") if isinstance(value, dict) else None
            raise DataError(
                f"{table}: {column} of sample {place} holds no bytes",
                got=f"the path {path!r:.100}" if path else repr(value)[:80],
                remedy="save_to_disk() and push_to_hub() of the datasets library put files into the table",
            )
        held += len(content)
        check_allocation(held, str(table))
        if label is not None:
            labels.add(row.get(label), place)
        yield f"{table}, {column} of sample {place},", content


class Labelled:
    """A source with labels of its own."""

    normalization: Normalization | None = None
    vocabulary: Vocabulary | None = None
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        inner: ImageSource | SoundSource,
        labels: np.ndarray,
        class_names: tuple[str, ...] | None,
        origin: str,
    ) -> None:
        self._inner, self._values = inner, check_labels(labels, len(inner), origin)
        self.fields: tuple[Field, ...] = inner.fields
        self.class_names = class_names
        self.has_labels = True
        whole = self._values.dtype.kind == "i"
        self.classes: int | None = int(self._values.max(initial=-1)) + 1 if whole else None
        if class_names is not None and (self.classes or 0) > len(class_names):
            raise DataError(
                f"{origin}: a label names no class",
                got=str((self.classes or 0) - 1),
                expected=f"0 to {len(class_names) - 1} ({len(class_names)} classes)",
            )

    def __len__(self) -> int:
        return len(self._inner)

    def read(self, indices: np.ndarray) -> Raw:
        """The samples at `indices`, in that order."""
        return self._inner.read(indices)[0], self._values[indices]
