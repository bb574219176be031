"""A folder of sounds, one folder per class as with images, or without classes.

.wav of whole numbers of 8, 16, 24 or 32 bits (PCM), scaled to -1 … 1; all else (.flac, .ogg, .mp3, floats in
.wav) by soundfile. Where the model says how many samples it takes,
longer files are cut at their end and shorter ones filled up with silence; else all are as long as the first.
They are read block by block, no farther than the model takes, into the float32 numbers that it is given.
"""

from __future__ import annotations

import io
import wave
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nncompress.data.class_folders import files_by_class, files_in
from nncompress.data.fit import ExpectedInput
from nncompress.data.kind import Kind
from nncompress.data.normalization import Normalization
from nncompress.data.source import Field, Raw, check_allocation
from nncompress.errors import DataError, MissingExtraError
from nncompress.extras import need

SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
MAGIC = (  # what such files begin with, beside .wav
    b"fLaC",
    b"OggS",
    b"ID3",
    b"\xff\xfb",
    b"\xff\xf3",
    b"\xff\xf2",
)
SIZE_IN_MEMORY = 8  # bytes of a number: as float32 here, and in its batch
BLOCK = 2**18  # bytes that are read at a time
MOST_NUMBERS = 2**28  # of one sound: an hour and a half of 48 kHz


def is_sound(content: bytes) -> bool:
    """By its first bytes: pictures may be RIFF files, too (WebP)."""
    return content.startswith(MAGIC) or (content[:4] == b"RIFF" and content[8:12] == b"WAVE")


@dataclass(frozen=True, slots=True)
class EncodedSound:
    """One sound still to be read: its name for errors, its file or its bytes, its class."""

    name: str
    content: Path | bytes
    label: int | None = None


class SoundSource:
    """Files read when they are asked for: float32 [samples], or [channels, samples].

    Args:
        sounds: all of them with labels, or all without.
        rate: samples a second that all are to have; None: as many as the first has.
        whole: none is cut, and the longest says how many samples all have where the model does not.

    Raises:
        DataError: the first cannot be read, or the model takes no sound.
    """

    normalization: Normalization | None = None
    notes: tuple[str, ...] = ()

    def __init__(
        self,
        sounds: Sequence[EncodedSound],
        class_names: tuple[str, ...] | None,
        expected: list[ExpectedInput] | None,
        rate: int | None = None,
        *,
        whole: bool = False,
    ) -> None:
        self._sounds, self._whole = sounds, whole
        first = _read(sounds[0], 1)
        self._rate, self._rate_of = rate or first.rate, sounds[0].name if rate is None else "their column"
        channels, frames = len(first.numbers), first.frames
        shape: tuple[int | str, ...] = (frames,) if channels == 1 else (channels, frames)
        if expected is not None:
            if len(expected) != 1 or len(expected[0].shape) not in (2, 3):
                raise DataError(
                    "the model does not take sounds",
                    got=", ".join(f"{e.name} {list(e.shape)}" for e in expected),
                    expected="one input [batch, samples] or [batch, channels, samples]",
                )
            shape = expected[0].shape[1:]
        length = shape[-1]
        self._channels = shape[0] if len(shape) == 2 else None
        self._fixed = isinstance(length, int) and expected is not None
        if whole and not self._fixed:
            frames = max(_read(sound, 1).frames for sound in sounds)
        self._length = length if self._fixed and isinstance(length, int) else frames
        self._check(first, sounds[0].name)
        given = (self._length,) if self._channels is None else (channels, self._length)
        self.fields: tuple[Field, ...] = (Field("sounds", "float32", given),)
        self.class_names = class_names
        self.has_labels = class_names is not None
        self.classes = None if class_names is None else len(class_names)

    def __len__(self) -> int:
        return len(self._sounds)

    def read(self, indices: np.ndarray) -> Raw:
        """The sounds at `indices`, in that order."""
        sounds = np.stack([self._one(int(i)) for i in indices])
        labels = np.array([self._sounds[int(i)].label for i in indices]) if self.has_labels else None
        return (sounds,), labels

    def _one(self, index: int) -> np.ndarray:
        name = self._sounds[index].name
        sound = _read(self._sounds[index], self._length)
        self._check(sound, name)
        numbers = sound.numbers
        if (missing := self._length - numbers.shape[1]) > 0:
            numbers = np.pad(numbers, ((0, 0), (0, missing)))
        return numbers[0] if self._channels is None else numbers

    def _check(self, sound: _Sound, name: str) -> None:
        """Refuse one that is not as the others, or as the model takes them.

        Raises:
            DataError: saying in what.
        """
        if sound.rate != self._rate:
            raise DataError(
                f"{name} has another sample rate than {self._rate_of}",
                got=f"{sound.rate} Hz",
                expected=f"{self._rate} Hz",
                remedy="bring all files to one rate",
            )
        channels = 1 if self._channels is None else self._channels
        if isinstance(channels, int) and len(sound.numbers) != channels:
            raise DataError(
                f"{name} has {len(sound.numbers)} channels",
                expected=str(channels),
                remedy="mix it down, or split it",
            )
        if self._whole and sound.frames > self._length:
            raise DataError(
                f"{name} is longer than the model takes, and what is said at its end would be cut off",
                got=f"{sound.frames} samples",
                expected=f"at most {self._length}",
                remedy="cut it, and its transcript; or a model whose length is free",
            )
        if not self._fixed and not self._whole and sound.frames != self._length:
            raise DataError(
                f"{name} is not as long as {self._sounds[0].name}",
                got=f"{sound.frames} samples",
                expected=str(self._length),
                remedy=f"cut them to one length; or state it: --input 1x{self._length}",
            )


@dataclass(frozen=True, slots=True)
class _Sound:
    """The beginning of a sound, float32 [channels, samples]; how many samples it has in all; its rate."""

    numbers: np.ndarray
    frames: int
    rate: int


def _read(sound: EncodedSound, most: int) -> _Sound:
    """The first `most` samples.

    Raises:
        DataError: it is none.
        MissingExtraError: soundfile is not installed, for what is no .wav of whole numbers.
    """
    content = sound.content
    size = content.stat().st_size if isinstance(content, Path) else len(content)
    source = str(content) if isinstance(content, Path) else io.BytesIO(content)
    try:
        return _wave(source, size, most)
    except wave.Error as problem:
        begins = content[:12] if isinstance(content, bytes) else _first_bytes(content)
        floats = str(problem).startswith("unknown format")
        if not is_sound(begins) or (begins.startswith(b"RIFF") and not floats):
            raise _unreadable(sound.name, problem) from problem
    except DataError:
        raise
    except Exception as problem:  # EOFError, and what a damaged header makes of numpy
        raise _unreadable(sound.name, problem) from problem
    try:
        need("audio", sound.name)
        import soundfile

        source = str(content) if isinstance(content, Path) else io.BytesIO(content)
        with soundfile.SoundFile(source) as file:
            if not 0 < file.frames * file.channels <= MOST_NUMBERS:
                raise ValueError(f"{file.frames} samples in {file.channels} channels")
            taken = min(file.frames, most)
            check_allocation(SIZE_IN_MEMORY * taken * file.channels, sound.name)
            numbers = file.read(taken, dtype="float32", always_2d=True).T
            return _Sound(numbers, file.frames, file.samplerate)
    except (DataError, MissingExtraError):
        raise
    except Exception as problem:  # soundfile's own
        raise _unreadable(sound.name, problem) from problem


def _first_bytes(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(12)


def _wave(source: str | io.BytesIO, size: int, most: int) -> _Sound:
    with wave.open(source, "rb") as file:
        width, channels, frames = file.getsampwidth(), file.getnchannels(), file.getnframes()
        if frames * width * channels > size:
            raise ValueError(f"{frames} samples in {size} bytes")
        if not frames:
            raise ValueError("no samples")
        file.setpos(frames - 1)
        if len(file.readframes(1)) != width * channels:
            raise ValueError("the file was cut off")
        file.rewind()
        taken = min(frames, most)
        check_allocation(SIZE_IN_MEMORY * taken * channels, "a sound")
        numbers, step = np.empty((channels, taken), np.float32), max(BLOCK // (width * channels), 1)
        for start in range(0, taken, step):
            count = min(step, taken - start)
            content = file.readframes(count)
            if len(content) != count * width * channels:
                raise ValueError("the file was cut off")
            numbers[:, start : start + count] = _scaled(content, width).reshape(-1, channels).T
        return _Sound(numbers, frames, file.getframerate())


def _scaled(content: bytes, width: int) -> np.ndarray:
    """Whole numbers of `width` bytes as float64 of -1 … 1."""
    if width == 3:  # the upper three of four bytes
        padded = np.zeros((len(content) // 3, 4), np.uint8)
        padded[:, 1:] = np.frombuffer(content, np.uint8).reshape(-1, 3)
        numbers = padded.view("<i4")[:, 0]
    else:
        numbers = np.frombuffer(content, {1: "u1", 2: "<i2", 4: "<i4"}[width])
    scaled = numbers.astype(np.float64) - (128 if width == 1 else 0)
    return scaled / 2.0 ** (8 * (4 if width == 3 else width) - 1)


def _unreadable(name: str, problem: Exception) -> DataError:
    return DataError(
        f"{name} cannot be read as a sound",
        got=f"{type(problem).__name__}: {problem}"[:200],
        expected="a .wav file of 8, 16, 24 or 32 bit whole numbers, or what soundfile reads",
        remedy="ffmpeg -i in.wav -c:a pcm_s16le out.wav",
    )


def has_sounds(folder: Path) -> bool:
    """There are sounds in it, or in a folder of it."""
    places = (folder, *(place for place in folder.iterdir() if place.is_dir()))
    return any(files_in(place, SUFFIXES) for place in places)


def open_sound_folder(folder: Path, expected: list[ExpectedInput] | None) -> SoundSource:
    """Open a folder of class folders, or of files.

    Raises:
        DataError: there are both.
    """
    loose, by_class = files_by_class(folder, SUFFIXES, "sounds", "file")
    if loose:
        return SoundSource([EncodedSound(str(path), path) for path in loose], None, expected)
    labelled = [
        EncodedSound(str(path), path, label)
        for label, files in enumerate(by_class.values())
        for path in files
    ]
    return SoundSource(labelled, tuple(by_class), expected)


KIND = Kind(
    "a folder of sounds by class",
    lambda asked: asked.folder is not None and has_sounds(asked.folder),
    lambda asked: open_sound_folder(Path(asked.path), asked.expected),
)
