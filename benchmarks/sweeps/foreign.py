"""Files that torch never saw, out of packages: read, changed by four passes, exported and run again.

    python -m benchmarks.sweeps.foreign FOLDER [PATTERN ...]        e.g. "*rec*"

FOLDER holds what is in the wheels of rapidocr-onnxruntime, magika, basic-pitch, silero-vad and openwakeword
(`pip download --no-deps -d wheels NAME`, then each unzipped there).

`read`: the file against ONNX Runtime, as the loader compares, at several sizes. Of each pass `moved`: outputs
of the written .onnx against the file's, on data; `written`: that .onnx against the .pt2 of the same model,
read again, at another batch and other free sizes. Names of inputs and outputs and free sizes have to be the
file's. Data are made here: text for the networks that read it, this package's own code as bytes, tones for
those that hear, and for those that hear features what the networks before them make of the tones. Where a
file asks for the rate of the sound, that is a constant, and no input of what is written.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path

import numpy as np
import onnxruntime
import torch
from PIL import Image, ImageDraw, ImageFont

import nncompress
from nncompress.errors import NNCompressError, UsageError

Arrays = tuple[np.ndarray, ...]
STEPS = ("prune-nodes:ratio=0.3", "quantize", "cluster", "prune:sparsity=0.5")
WHERE_NO_NODES = "factorize:params=0.8"
SAMPLES = 8
RATE = "sr"
COLUMNS = ("file", "pass", "read", "parameters", "moved", "written", "CPU")
PACKAGES = {
    "rapidocr-onnxruntime": "ch_*.onnx",
    "magika": "standard_*/model.onnx",
    "basic-pitch": "nmp.onnx",
    "silero-vad": "silero_vad/data/*.onnx",
    "openwakeword": "openwakeword/resources/models/*.onnx",
}


def text(count: int, height: int, width: int, rows: int = 1) -> Arrays:
    """Words in black on white, as networks for text take them: [N, 3, H, W] in -1 … 1."""
    draw, words = np.random.default_rng(count * height + width), " ".join(sys.builtin_module_names).split()
    pages = []
    for _ in range(count):
        page = Image.new("RGB", (width, height), "white")
        for row in range(rows):
            font = ImageFont.load_default(size=int(draw.uniform(0.4, 0.7) * height / rows))
            line = " ".join(draw.choice(words, 8))
            ImageDraw.Draw(page).text((4, (row + 0.15) * height / rows), line, "black", font)
        pages.append(np.asarray(page, np.float32).transpose(2, 0, 1) / 127.5 - 1)
    return (np.stack(pages),)


def tones(count: int, length: int, loud: float = 0.3) -> np.ndarray:
    """Two notes that fade, with a little noise: [N, samples]."""
    draw, time_axis = np.random.default_rng(count + length), np.arange(length) / 16000
    sounds = []
    for _ in range(count):
        notes = 110 * 2 ** (draw.integers(0, 36, 2) / 12)
        sound = sum(np.sin(2 * np.pi * note * time_axis) for note in notes) * np.exp(-time_axis)
        sounds.append(loud * (sound + 0.05 * draw.standard_normal(length)))
    return np.asarray(sounds, np.float32)


def bytes_of_code(count: int) -> Arrays:
    """The beginnings and ends of files, 256 where there is nothing: int32 [N, 2048]."""
    rows = np.full((count, 2048), 256, np.int32)
    for row, path in zip(rows, sorted(Path(nncompress.__file__).parent.rglob("*.py"))[20:]):
        content = np.frombuffer(path.read_bytes(), np.uint8)
        row[: min(1024, len(content))] = content[:1024]
        row[2048 - min(1024, len(content)) :] = content[-1024:]
    return (rows,)


def states(count: int, length: int, width: int = 128, tensors: int = 1) -> Arrays:
    """Sound, and what a detector remembers of the sound before it."""
    draw = np.random.default_rng(count)
    kept = [0.1 * draw.standard_normal((count, 2, width)).astype(np.float32) for _ in range(tensors)]
    return (tones(count, length), *kept)


def heard(folder: Path, count: int, frames: int) -> Arrays:
    """Openwakeword's first two networks on tones: [N, 76, 32, 1] of one, [N, frames, 96] of both."""
    first, second = (next(folder.rglob(f"{name}.onnx")) for name in ("melspectrogram", "embedding_model"))
    length = 160 * (76 + 8 * frames) + 480
    spectra = [ran(first, (8192 * 4 * tones(1, length + at),))[0][0, 0] / 10 + 2 for at in range(count)]
    windows = np.stack([s[8 * at : 8 * at + 76, :, None] for s in spectra for at in range(max(frames, 1))])
    if not frames:
        return (windows.astype(np.float32),)
    features = ran(second, (windows.astype(np.float32),))[0]
    return (features.reshape(count, frames, 96),)


def data_for(folder: Path, path: Path, count: int, other: bool) -> Arrays | None:
    """Samples that the file takes, a row each, in the order of its inputs; `other`: of other free sizes."""
    name, more = path.name, 32 if other else 0
    taken = onnxruntime.InferenceSession(path).get_inputs()
    frames = taken[0].shape
    rules: dict[str, Callable[[], Arrays]] = {
        "ch_PP-OCR*_det_*": lambda: text(count, 160 + more, 320 - more, 4),
        "ch_PP-OCR*_rec_*": lambda: text(count, 48, 320 + 2 * more),
        "ch_ppocr_*_cls_*": lambda: text(count, 48, 192),
        "model.onnx": lambda: bytes_of_code(count),
        "nmp.onnx": lambda: (tones(count, 43844)[..., None],),
        "melspectrogram.onnx": lambda: (8192 * 4 * tones(count, 16000 + 10 * more),),
        "embedding_model.onnx": lambda: heard(folder, count, 0),
        "silero_vad_16k_sequence.onnx": lambda: (
            tones(count, 576),
            *np.zeros((2, 1, 1, 128), np.float32),
        ),
        "silero_vad_half.onnx": lambda: states(count, 512),
        "silero_vad_openvino_16k.onnx": lambda: states(count, 576),
        "silero_vad*.onnx": lambda: states(
            count, 512, max(value.shape[-1] for value in taken if len(value.shape) == 3), len(taken) - 2
        ),
        "*_v0.1.onnx": lambda: heard(folder, count, int(frames[1])),
    }
    found = next((make for pattern, make in rules.items() if fnmatch(name, pattern)), None)
    return None if found is None else found()


def ran(path: Path, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    session = onnxruntime.InferenceSession(path)
    asked = [value.name for value in session.get_inputs()]
    given = dict(zip((name for name in asked if name != RATE), inputs))
    return session.run(None, given | {name: np.array(16000) for name in asked if name == RATE})


def apart(some: Sequence[np.ndarray], others: Sequence[np.ndarray]) -> float:
    """‖a − b‖ / ‖b‖ of the output that is farthest; numbers of a hundredth count as zero, as scores do."""
    found = []
    for a, b in zip(some, others, strict=True):
        size = max(float(np.linalg.norm(b)), 0.01 * b.size**0.5)
        found.append(float(np.linalg.norm(np.subtract(a, b, dtype=np.float64))) / size)
    return max(found)


def declared(path: Path) -> list[tuple[str, list[bool]]]:
    """Names of inputs, the rate apart, and outputs, and which sizes of inputs are free."""
    session = onnxruntime.InferenceSession(path)
    asked = [value for value in session.get_inputs() if value.name != RATE]
    given = [(v.name, [not isinstance(d, int) or d < 1 for d in v.shape]) for v in asked]
    return given + [(value.name, []) for value in session.get_outputs()]


def for_one_call(model: nncompress.Model, inputs: Arrays) -> Arrays:
    """As many samples as it takes at once, where each input wants them."""
    several = "batch" in model.dynamic
    return tuple(
        x if spec.batch_dim is None else np.moveaxis(x if several else x[:1], 0, spec.batch_dim)
        for spec, x in zip(model.inputs, inputs)
    )


def compressed(model: nncompress.Model, step: str, data: Arrays) -> tuple[str, nncompress.Model]:
    """By the pass; by another one where the model has no nodes that could be removed."""
    try:
        return step, nncompress.compress(model, [step], data=(data, None))
    except UsageError:
        if not step.startswith("prune-nodes"):
            raise
    return WHERE_NO_NODES, nncompress.compress(model, [WHERE_NO_NODES], data=(data, None))


def row(model: nncompress.Model, path: Path, step: str, data: Arrays, other: Arrays) -> dict[str, object]:
    begun = time.process_time()
    name, small = compressed(model, step, data)
    with tempfile.TemporaryDirectory() as folder:
        written, kept = Path(folder) / "small.onnx", Path(folder) / "small.pt2"
        nncompress.export(small, written)
        nncompress.export(small, kept)
        if declared(written) != declared(path):
            raise AssertionError(f"other names or sizes: {declared(written)} for {declared(path)}")
        seen, unseen = (for_one_call(small, inputs) for inputs in (data, other))
        moved = apart(ran(written, seen), ran(path, seen))
        with torch.no_grad():
            expected = nncompress.load(kept).outputs_of(*(torch.from_numpy(x) for x in unseen))
        error = apart(ran(written, unseen), [out.numpy() for out in expected])
    before, after = (sum(p.numel() for p in each.graph_module.parameters()) for each in (model, small))
    return {
        "pass": name.partition(":")[0],
        "parameters": f"{after / before:.2f}",
        "moved": f"{moved:.1%}",
        "written": f"{error:.1e}",
        "CPU": f"{time.process_time() - begun:.0f} s",
    }


def rows(folder: Path, path: Path) -> Iterator[dict[str, object]]:
    """A row for each pass, the first with how the file was read; one with the reason where it was not."""
    data, other = (data_for(folder, path, count, count < SAMPLES) for count in (SAMPLES, 3))
    if data is None or other is None:
        yield {"read": "there is no data for it here"}
        return
    said: list[str] = []
    rated = RATE in (value.name for value in onnxruntime.InferenceSession(path).get_inputs())
    try:
        model = nncompress.load(
            path, data=(data, None), input=f"{RATE}=16000" if rated else None, notice=said.append
        )
    except NNCompressError as refused:
        yield {"read": f"{refused.what.partition(': ')[2]}: {refused.got}"}
        return
    read = next((s.rsplit(" ", 1)[1] for s in said if "agrees with" in s), "?")
    for step in STEPS:
        try:
            yield {"read": read, **row(model, path, step, data, other)}
        except (NNCompressError, AssertionError) as refused:
            yield {"read": read, "pass": step, "written": " ".join(str(refused).split())[:300]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("patterns", nargs="*", default=["*"])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    for package, pattern in PACKAGES.items():
        if not any(options.folder.rglob(pattern)):
            print(f"{package} is missing: no {pattern} in {options.folder}")
    print("\t".join(COLUMNS))
    for path in sorted(options.folder.rglob("*.onnx")):
        name = "/".join(path.relative_to(options.folder).parts[-2:])
        if any(fnmatch(name, pattern) for pattern in options.patterns):
            for cells in rows(options.folder, path):
                print(
                    "\t".join(str(({"file": name} | cells).get(column, "")) for column in COLUMNS), flush=True
                )


if __name__ == "__main__":
    main()
