"""A folder of .wav files, one folder per class as with images, or without classes.

Whole numbers of 8, 16, 24 or 32 bits (PCM), scaled to -1 … 1. Where the model says how many samples it takes,
longer files are cut at their end and shorter ones filled up with silence; else all are as long as the first.
"""

from __future__ import annotations

import os
import wave
from pathlib import Path

import numpy as np

from nncompress.data.fit import ExpectedInput
from nncompress.data.normalization import Normalization
from nncompress.data.source import Field, Raw
from nncompress.errors import DataError

SUFFIX = ".wav"


class SoundSource:
    """Files read when they are asked for: float32 [samples], or [channels, samples].

    Args:
        files: with the number of their class, or all without.

    Raises:
        DataError: the first cannot be read, or the model takes no sound.
    """

    normalization: Normalization | None = None

    def __init__(
        self,
        files: list[tuple[Path, int | None]],
        class_names: tuple[str, ...] | None,
        expected: list[ExpectedInput] | None,
    ) -> None:
        self._files = files
        self._length: int | None = None
        first, self._rate = _read(files[0][0])
        shape: tuple[int | str, ...] = (first.shape[1],) if len(first) == 1 else first.shape
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
        self._length = length if isinstance(length, int) else first.shape[1]
        self.fields: tuple[Field, ...] = (Field("sounds", "float32", self._one(0).shape),)
        self.class_names = class_names
        self.has_labels = class_names is not None
        self.classes = None if class_names is None else len(class_names)

    def __len__(self) -> int:
        return len(self._files)

    def read(self, indices: np.ndarray) -> Raw:
        """The sounds at `indices`, in that order."""
        sounds = np.stack([self._one(int(i)) for i in indices])
        labels = np.array([self._files[int(i)][1] for i in indices]) if self.has_labels else None
        return (sounds,), labels

    def _one(self, index: int) -> np.ndarray:
        path = self._files[index][0]
        sound, rate = _read(path)
        if rate != self._rate:
            raise DataError(
                f"{path} has another sample rate than {self._files[0][0].name}",
                got=f"{rate} Hz",
                expected=f"{self._rate} Hz",
                remedy="bring all files to one rate",
            )
        channels = 1 if self._channels is None else self._channels
        if isinstance(channels, int) and len(sound) != channels:
            raise DataError(
                f"{path} has {len(sound)} channels", expected=str(channels), remedy="mix it down, or split it"
            )
        length = self._length or 0
        if not self._fixed and sound.shape[1] != length:
            raise DataError(
                f"{path} is not as long as {self._files[0][0].name}",
                got=f"{sound.shape[1]} samples",
                expected=str(length),
                remedy=f"cut them to one length; or state it: --input 1x{length}",
            )
        sound = np.pad(sound[:, :length], ((0, 0), (0, max(0, length - sound.shape[1]))))
        return sound[0] if self._channels is None else sound


def _read(path: Path) -> tuple[np.ndarray, int]:
    """float32 [channels, samples], and the sample rate."""
    try:
        with wave.open(str(path), "rb") as file:
            width, channels, frames = file.getsampwidth(), file.getnchannels(), file.getnframes()
            if frames * width * channels > path.stat().st_size:
                raise ValueError(f"{frames} samples in {path.stat().st_size} bytes")
            content, rate = file.readframes(frames), file.getframerate()
        if len(content) != frames * width * channels:
            raise ValueError("the file was cut off")
        if width == 3:  # the upper three of four bytes
            padded = np.zeros((len(content) // 3, 4), np.uint8)
            padded[:, 1:] = np.frombuffer(content, np.uint8)[: 3 * len(padded)].reshape(-1, 3)
            numbers = padded.view("<i4")[:, 0]
        else:
            numbers = np.frombuffer(content, {1: "u1", 2: "<i2", 4: "<i4"}[width])
        scaled = numbers.astype(np.float64) - (128 if width == 1 else 0)
        scaled /= 2.0 ** (8 * (4 if width == 3 else width) - 1)
        if not scaled.size:
            raise ValueError("no samples")
        return scaled.reshape(-1, channels).T.astype(np.float32), rate
    except Exception as problem:  # wave.Error, EOFError, and what a damaged header makes of numpy
        raise DataError(
            f"{path} cannot be read as a sound",
            got=f"{type(problem).__name__}: {problem}"[:200],
            expected="a .wav file of 8, 16, 24 or 32 bit whole numbers",
            remedy="ffmpeg -i in.wav -c:a pcm_s16le out.wav",
        ) from problem


def has_sounds(folder: Path) -> bool:
    """There are .wav files in it, or in a folder of it."""
    return bool(_files(folder)) or any(_files(place) for place in folder.iterdir() if place.is_dir())


def open_sound_folder(folder: Path, expected: list[ExpectedInput] | None) -> SoundSource:
    """Open a folder of class folders, or of files.

    Raises:
        DataError: there are both.
    """
    by_class = {p.name: files for p in sorted(folder.iterdir()) if p.is_dir() and (files := _files(p))}
    loose = _files(folder)
    if by_class and loose:
        raise DataError(
            f"{folder} holds sounds beside class folders",
            got=f"{loose[0].name} and {len(by_class)} class folders",
            remedy="move every file into the folder of its class",
        )
    if loose:
        return SoundSource([(path, None) for path in loose], None, expected)
    labelled = [(path, label) for label, files in enumerate(by_class.values()) for path in files]
    return SoundSource(labelled, tuple(by_class), expected)  # type: ignore[arg-type]


def _files(folder: Path) -> list[Path]:
    with os.scandir(folder) as entries:
        return sorted(Path(e.path) for e in entries if e.name.lower().endswith(SUFFIX) and e.is_file())
