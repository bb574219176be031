"""Sounds and what is said in them, for `--metric wer`: as a folder, or by the columns of a table.

    clips?vocabulary=vocab.json                         a .txt beside each sound
    dev-clean?vocabulary=tokens.txt                     *.trans.txt: a sound's name and its text (LibriSpeech)
    clips.tsv?audio=path&text=sentence&vocabulary=…     paths of files (Common Voice), also in other tables

Labels are texts, the numbers of their characters (Unicode), filled up with -1; `Vocabulary` says how the
model spells. Without one there are no labels, which is enough to calibrate. A sound is never cut, and
silence follows shorter ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from nncompress.data.class_folders import files_in
from nncompress.data.fit import ExpectedInput
from nncompress.data.kind import Asked, Kind
from nncompress.data.sources.columns import table_at
from nncompress.data.sources.encoded_columns import Labelled
from nncompress.data.sources.sounds import SUFFIXES, EncodedSound, SoundSource
from nncompress.data.sources.tables import check_named, open_rows
from nncompress.data.vocabulary import Vocabulary, open_vocabulary
from nncompress.errors import DataError
from nncompress.files.bounded_text import Unreadable, read_text

MOST_TEXT = 2**24  # bytes of a file of transcripts
SPOKEN = ".trans.txt"
PLACES = ("clips",)  # beside a table, where files may lie that it names without their folder
END = -1  # what fills up shorter texts
OPTIONS = ("vocabulary", "blank")


@dataclass(frozen=True)
class Clip:
    """A sound, and what is said in it."""

    sound: EncodedSound
    text: str


class TranscribedSource(Labelled):
    """Sounds with texts as labels, int64 [N, characters]."""

    def __init__(self, inner: SoundSource, texts: list[str], vocabulary: Vocabulary, origin: str) -> None:
        longest = max(2, *map(len, texts))  # a row of one number would be a class
        numbers = np.full((len(texts), longest), END, np.int64)
        for row, text in zip(numbers, texts):
            row[: len(text)] = list(map(ord, text))
        super().__init__(inner, numbers, None, origin)
        self.classes = None
        self.vocabulary = vocabulary
        self.notes = vocabulary.notes


def open_clips(
    clips: list[Clip], options: dict[str, str], expected: list[ExpectedInput] | None, origin: str
) -> SoundSource | TranscribedSource:
    """The sounds, with their texts as labels where a vocabulary is stated.

    Raises:
        DataError: a file cannot be read, or a sound is longer than the model takes.
    """
    if not clips:
        raise DataError(f"{origin} holds no transcripts")
    sounds = SoundSource([clip.sound for clip in clips], None, expected, whole=True)
    if "vocabulary" not in options:
        sounds.notes = (
            "transcripts are left out: ?vocabulary=FILE, what the model spells with, makes them labels of "
            "--metric wer",
        )
        return sounds
    if not any(clip.text.split() for clip in clips):
        raise DataError(
            f"{origin}: no word is said in any transcript", expected="texts, of which some are not empty"
        )
    vocabulary = open_vocabulary(options["vocabulary"], options.get("blank"))
    return TranscribedSource(sounds, [clip.text for clip in clips], vocabulary, origin)


def _spoken(folder: Path) -> list[Path]:
    """LibriSpeech's files of transcripts, at most two folders below."""
    return sorted(file for depth in ("", "*/", "*/*/") for file in folder.glob(f"{depth}*{SPOKEN}"))


def _claims_folder(asked: Asked) -> bool:
    folder = asked.folder
    if folder is None:
        return False
    return bool(_spoken(folder)) or any(
        file.with_suffix(".txt").is_file() for file in files_in(folder, SUFFIXES)
    )


def _open_folder(asked: Asked) -> SoundSource | TranscribedSource:
    folder = Path(asked.path)
    spoken = _spoken(folder)
    clips = [clip for file in spoken for clip in _lines_of(file)] if spoken else list(_beside(folder))
    return open_clips(clips, asked.options, asked.expected, asked.path)


def _lines_of(file: Path) -> Iterator[Clip]:
    sounds = {path.stem: path for path in files_in(file.parent, SUFFIXES)}
    for number, line in enumerate(_read(file).splitlines(), 1):
        name, _, text = line.strip().partition(" ")
        if not name:
            continue
        if name not in sounds:
            raise DataError(f"{file}, line {number}: there is no sound {name} beside it", got=line[:80])
        yield Clip(EncodedSound(str(sounds[name]), sounds[name]), text.strip())


def _beside(folder: Path) -> Iterator[Clip]:
    for sound in files_in(folder, SUFFIXES):
        text = sound.with_suffix(".txt")
        if not text.is_file():
            raise DataError(
                f"{sound} has no transcript",
                expected=f"{text.name} beside it, as others have",
                remedy="write it, or move the sound away",
            )
        yield Clip(EncodedSound(str(sound), sound), " ".join(_read(text).split()))


def _read(file: Path) -> str:
    try:
        return read_text(file, MOST_TEXT)
    except (OSError, Unreadable) as problem:
        raise DataError(f"{file} cannot be read", got=str(problem)[:200]) from problem


def _claims_table(asked: Asked) -> bool:
    return "audio" in asked.options and table_at(asked) is not None


def _open_table(asked: Asked) -> SoundSource | TranscribedSource:
    found = table_at(asked)
    assert found is not None, "claimed"
    table, asked = found
    unknown = sorted(set(asked.options) - {"audio", "text", *OPTIONS})
    if unknown:
        raise DataError(
            f"{asked.spec}: sounds with transcripts take no {unknown[0]}",
            expected=f"{table.name}?audio=path&text=sentence&vocabulary=vocab.json",
        )
    names, rows = open_rows(table)
    audio, text = asked.options["audio"], asked.options.get("text", "text")
    check_named([audio, text], names, table)
    clips = []
    for place, row in rows:
        said = row.get(text)
        if not isinstance(said, str):
            raise DataError(f"{table}: {text} of sample {place} is no text", got=repr(said)[:80])
        clips.append(Clip(_sound(table, audio, place, row.get(audio)), said))
    return open_clips(clips, asked.options, asked.expected, str(table))


def _sound(table: Path, column: str, place: int, value: Any) -> EncodedSound:
    name = f"{table}, {column} of sample {place},"
    content = value.get("bytes") if isinstance(value, dict) else value
    if isinstance(content, bytes) and content:
        return EncodedSound(name, content)
    path = value.get("path") if isinstance(value, dict) else value
    folders = [table.parent / each for each in ("", *PLACES)]
    files = [folder / path for folder in folders] if isinstance(path, str) and path else []
    found = next((file for file in files if file.is_file()), None)
    if found is None:
        raise DataError(
            f"{name} names no file",
            got=repr(value)[:80],
            expected=f"a path, from {table.parent} or {' or '.join(PLACES)}/ there",
        )
    return EncodedSound(str(found), found)


FOLDER = Kind(
    "a folder of sounds and transcripts, ?vocabulary=vocab.json",
    _claims_folder,
    _open_folder,
    options=OPTIONS,
)
TABLE = Kind(
    "a table of sounds and transcripts, ?audio=path&text=sentence&vocabulary=vocab.json",
    _claims_table,
    _open_table,
    options=None,
)
