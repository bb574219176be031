"""silero-vad in int8 on speech: `python -m benchmarks.sweeps.speech FOLDER`; espeak-ng has to be installed.

FOLDER as for `benchmarks.sweeps.foreign`. Words in eight voices and languages, at several speeds, with pauses
between and noise behind them, are cut into frames of 512 samples with the 64 before them and run as streams,
as the package's own loop does. One half of the streams calibrates, the other is measured: the share of frames
on which the decision (0.5) is another, and how far the chance of speech moves. The state of a changed file is
its own throughout.
"""

from __future__ import annotations

import argparse
import io
import subprocess
import tempfile
import warnings
import wave
from pathlib import Path

import numpy as np
import onnxruntime

import nncompress

FILE = "silero_vad_16k_op15.onnx"
RATE, FRAME, CONTEXT, WIDTH = 16000, 512, 64, 128
STREAMS, FRAMES = 16, 200
VOICES = ("en-us", "en-gb+f3", "de+m3", "fr+f2", "es+m5", "it+f4", "pl+m2", "pt+f1")
WORDS = "import this module again under another name and write what it returns to the file that was asked for"
RECIPES = ("quantize", "quantize:correct-bias=true", "quantize:mode=dynamic", "quantize:mode=weights")


def spoken(voice: str, text: str, speed: int) -> np.ndarray:
    """At 16 kHz, in -1 … 1."""
    line = ["espeak-ng", "-v", voice, "-s", str(speed), "--stdout", text]
    content = subprocess.run(line, check=True, capture_output=True).stdout
    size = (len(content) - 44).to_bytes(4, "little")  # a pipe's header does not know it
    with wave.open(io.BytesIO(content[:40] + size + content[44:])) as file:
        sound = np.frombuffer(file.readframes(file.getnframes()), "<i2") / 2**15
        times = np.arange(0, len(sound), file.getframerate() / RATE)
    return np.interp(times, np.arange(len(sound)), sound)


def streams() -> np.ndarray:
    """[streams, frames, samples], float32."""
    draw, words, found = np.random.default_rng(7), WORDS.split(), []
    for stream in range(STREAMS):
        parts: list[np.ndarray] = []
        while sum(map(len, parts)) < FRAMES * FRAME:
            said = " ".join(draw.choice(words, draw.integers(2, 7)))
            parts.append(spoken(VOICES[stream % len(VOICES)], said, int(draw.integers(120, 200))))
            parts.append(np.zeros(int(draw.uniform(0.3, 1.5) * RATE)))
        sound = np.concatenate(parts)[: FRAMES * FRAME] * draw.uniform(0.2, 1)
        sound += 10 ** draw.uniform(-4, -2) * draw.standard_normal(len(sound))
        sound = np.concatenate([np.zeros(CONTEXT), sound])
        found.append([sound[at * FRAME : (at + 1) * FRAME + CONTEXT] for at in range(FRAMES)])
    return np.asarray(found, np.float32)


def run(path: Path, sounds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The chance of speech [streams, frames], and the state before each frame [frames, 2, streams, WIDTH]."""
    session = onnxruntime.InferenceSession(path)
    asked = [value.name for value in session.get_inputs()]
    kept, states, said = np.zeros((2, len(sounds), WIDTH), np.float32), [], []
    for frame in sounds.swapaxes(0, 1):
        states.append(kept)
        given = {"input": frame, "state": kept} | ({"sr": np.array(RATE)} if "sr" in asked else {})
        chance, kept = session.run(None, given)
        said.append(chance[:, 0])
    return np.stack(said, 1), np.stack(states)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    path = next(parser.parse_args().folder.rglob(FILE))
    warnings.simplefilter("ignore")
    fitted, held = np.split(streams(), 2)
    (expected, _), (_, states) = run(path, held), run(path, fitted)
    x = fitted.swapaxes(0, 1).reshape(-1, CONTEXT + FRAME), states.swapaxes(1, 2).reshape(-1, 2, WIDTH)
    model = nncompress.load(path, data=(x, None), input=f"sr={RATE}", notice=print)
    print(f"{FILE}: speech in {np.mean(expected > 0.5):.0%} of {expected.size} frames")
    print("recipe\tother decisions\tmoved\tat most\tbytes")
    for recipe in RECIPES:
        small = nncompress.compress(model, [recipe], data=(x, None))
        with tempfile.TemporaryDirectory() as folder:
            written = Path(folder) / "small.onnx"
            nncompress.export(small, written)
            found, size = run(written, held)[0], written.stat().st_size / path.stat().st_size
        off, other = np.abs(found - expected), np.mean((found > 0.5) != (expected > 0.5))
        print(f"{recipe}\t{other:.2%}\t{off.mean():.4f}\t{off.max():.2f}\t{size:.0%}", flush=True)


if __name__ == "__main__":
    main()
