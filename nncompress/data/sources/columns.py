"""Tables, by what their columns hold: texts, files, numbers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from nncompress.data.kind import Asked, Kind
from nncompress.data.source import Source
from nncompress.data.sources.encoded_columns import encoded_columns, open_encoded
from nncompress.data.sources.saved_datasets import is_saved_dataset, table_of
from nncompress.data.sources.tables import LINES, SUFFIXES, open_table
from nncompress.data.sources.texts import open_texts


def table_at(asked: Asked) -> tuple[Path, Asked] | None:
    """The table that was asked for, and what was asked of it; None where it is none.

    Raises:
        DataError: a folder holds several, and none was named.
    """
    if asked.file is not None and asked.path.endswith((*SUFFIXES, LINES)):
        return asked.file, asked
    if asked.folder is not None and is_saved_dataset(asked.folder):
        options = dict(asked.options)
        return table_of(asked.folder, options.pop("split", None)), replace(asked, options=options)
    return None


def _claims_texts(asked: Asked) -> bool:
    found = table_at(asked)
    named = {"text", "tokenizer"} & set(asked.options)
    return found is not None and (bool(named) or found[0].suffix == LINES)


def _open_texts(asked: Asked) -> Source:
    table, asked = _table(asked)
    return open_texts(table, asked.options, asked.expected, asked.names)


def _open_columns(asked: Asked) -> Source:
    table, asked = _table(asked)
    if encoded := encoded_columns(table, asked.options, asked.expected):
        return open_encoded(table, encoded, asked.options, asked.expected)
    return open_table(table, asked.options, asked.expected)


def _table(asked: Asked) -> tuple[Path, Asked]:
    found = table_at(asked)
    assert found is not None, "claimed"
    return found


TEXTS = Kind("texts in a table or a .txt, with --tokenizer DIR", _claims_texts, _open_texts, options=None)
COLUMNS = Kind(
    ".csv, .tsv, .jsonl or .parquet?x=a,b&y=c; a folder that datasets.save_to_disk wrote, "
    "?split=train&x=a&y=c",
    lambda asked: table_at(asked) is not None,
    _open_columns,
    options=None,
)
