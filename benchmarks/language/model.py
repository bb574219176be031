"""A small language model, trained here, in fewer bits: perplexity, bytes, and the time of a token.

python -m benchmarks.language.model DIR [--train-s 540] [--only train|quality|speed]

The model reads bytes; the text is what any Python brings: the documentation of its topics and the
docstrings of its library. It is trained once, into DIR/lm.pt2 (at most `--train-s` seconds of CPU time).
All perplexities are of ONNX Runtime on the file as it runs, on the last tenth of the text; "relative" is
to float32, with twice the standard error of the mean of the sequences' differences. Times are of a wider
model with random weights, batch 1, one token, one thread, interleaved; memory is the peak of a process of
its own beyond the runtime.
"""

from __future__ import annotations

import argparse
import ast
import math
import random
import statistics
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from onnxruntime.quantization import CalibrationDataReader
from onnxruntime.quantization.matmul_nbits_quantizer import (
    DefaultWeightOnlyQuantConfig,
    GPTQWeightOnlyQuantConfig,
    MatMulNBitsQuantizer,
)
from torch import Tensor, nn
from torch.nn import functional as F

import nncompress
from nncompress.benchmarking.own_process import in_own_process
from nncompress.devices import processor
from nncompress.ir import Model

CONTEXT, VOCABULARY, BATCH = 128, 256, 8
CALIBRATION, HELD_OUT, MANY = 128, 256, 1024  # sequences; many, to tell forms of one network apart
FLOAT = "keep=embed*+place*"  # as their quantizer does it
OURS = {
    "int8 weights": "quantize:mode=weights",
    "int8 dynamic": "quantize:mode=dynamic",
    "ours, nearest": f"quantize:weight-bits=4,group-size=32,rounding=nearest,{FLOAT}",
    "ours, data": f"quantize:weight-bits=4,group-size=32,{FLOAT}",
    "ours, nearest, asymmetric": "quantize:weight-bits=4,group-size=32,rounding=nearest,asymmetric=true,"
    + FLOAT,
    "ours, data, asymmetric": f"quantize:weight-bits=4,group-size=32,asymmetric=true,{FLOAT}",
    "ours, nearest, 128": f"quantize:weight-bits=4,group-size=128,rounding=nearest,{FLOAT}",
    "ours, data, 128": f"quantize:weight-bits=4,group-size=128,{FLOAT}",
    "ours, data, embeddings too": "quantize:weight-bits=4,group-size=32",
}  # fmt: skip


class Block(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        y = self.norm1(x)
        shape = (batch, tokens, self.heads, width // self.heads)
        q, k, v = (layer(y).view(shape).transpose(1, 2) for layer in (self.q, self.k, self.v))
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class LanguageModel(nn.Module):
    """Byte ids [batch, tokens] -> scores of the next byte [batch, tokens, 256]."""

    def __init__(self, width: int = 128, depth: int = 3, heads: int = 4) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(VOCABULARY, width), nn.Embedding(CONTEXT, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(depth)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, VOCABULARY)
        for table in (self.embed, self.place):
            nn.init.normal_(table.weight, std=0.02)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.place(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(x)))


def text() -> Tensor:
    """Bytes, int64 [n]: documentation of topics, then docstrings of the standard library, sorted by file."""
    parts = []
    for file in sorted(Path(sysconfig.get_paths()["stdlib"]).rglob("*.py")):
        if "site-packages" in file.parts or "test" in str(file):
            continue
        try:
            tree = ast.parse(file.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        kinds = (ast.Module, ast.ClassDef, ast.FunctionDef)
        docs = [ast.get_docstring(n) for n in ast.walk(tree) if isinstance(n, kinds)]
        parts += [doc for doc in docs if doc]
        if file.name == "topics.py":
            parts += [
                n.value for n in ast.walk(tree) if isinstance(n, ast.Constant) and isinstance(n.value, str)
            ]
    random.Random(0).shuffle(parts)
    return torch.frombuffer(bytearray("\n\n".join(parts).encode()), dtype=torch.uint8).long()


def trained(folder: Path, data: Tensor, seconds: float) -> Model:
    path = folder / "lm.pt2"
    if not path.exists():
        torch.manual_seed(0)
        net = LanguageModel()
        decayed = [p for p in net.parameters() if p.dim() > 1]
        rest = [p for p in net.parameters() if p.dim() < 2]
        groups = [{"params": decayed, "weight_decay": 0.1}, {"params": rest, "weight_decay": 0.0}]
        optimizer = torch.optim.AdamW(groups, lr=2e-3, betas=(0.9, 0.98))
        generator, start, step = torch.Generator().manual_seed(0), time.process_time(), 0
        while (share := (time.process_time() - start) / seconds) < 1:
            at = torch.randint(0, len(data) - CONTEXT - 1, (BATCH, 1), generator=generator)
            rows = data[at + torch.arange(CONTEXT + 1)]
            for group in optimizer.param_groups:
                group["lr"] = 2e-3 * min(1, step / 50) * (0.05 + 0.475 * (1 + math.cos(math.pi * share)))
            loss = F.cross_entropy(net(rows[:, :-1]).flatten(0, 1), rows[:, 1:].flatten())
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            optimizer.step()
            step += 1
            if step % 50 == 0:
                print(f"step {step}: {float(loss):.3f} nats a byte", file=sys.stderr, flush=True)
        model = nncompress.load(net.eval(), input=(data[: 2 * CONTEXT].view(2, CONTEXT),))
        nncompress.export(model, str(path))
    return nncompress.load(str(path))


def losses(path: Path, ids: Tensor) -> Tensor:
    """Cross-entropy of each sequence, [n]."""
    session, lost = open_file(path), []
    for rows in ids.split(16):
        scores = torch.from_numpy(session.run(None, {"ids": rows.numpy()})[0])[:, :-1]
        lost.append(F.cross_entropy(scores.mT, rows[:, 1:], reduction="none").mean(1))
    return torch.cat(lost)


def open_file(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


class Reader(CalibrationDataReader):
    def __init__(self, ids: Tensor) -> None:
        self._rows = iter(ids.split(1))

    def get_next(self) -> dict[str, np.ndarray] | None:
        rows = next(self._rows, None)
        return None if rows is None else {"ids": rows.numpy()}


def theirs(folder: Path, source: Path, ids: Tensor | None) -> Iterator[tuple[str, Path]]:
    """Files of ONNX Runtime's own quantizer."""
    for symmetric in (True, False):
        for size in (32, 128):
            if size == 128 and not symmetric:
                continue
            name = f"ORT nearest{'' if symmetric else ', asymmetric'}{', 128' if size == 128 else ''}"
            config = DefaultWeightOnlyQuantConfig(block_size=size, is_symmetric=symmetric, accuracy_level=4)
            yield (
                name,
                save(MatMulNBitsQuantizer(onnx.load(source), algo_config=config), folder / f"{name}.onnx"),
            )
    if ids is not None:  # not in groups of 128: it cannot pack the zero point of a matrix of one group
        config = GPTQWeightOnlyQuantConfig(Reader(ids), block_size=32)
        quantizer = MatMulNBitsQuantizer(
            onnx.load(source), block_size=32, accuracy_level=4, algo_config=config
        )
        yield "ORT GPTQ", save(quantizer, folder / "ORT GPTQ.onnx")


def save(quantizer: MatMulNBitsQuantizer, path: Path) -> Path:
    quantizer.process()
    onnx.save(quantizer.model.model, path)
    return path


def quality(folder: Path, model: Model, data: Tensor) -> None:
    train, held = data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]
    at = torch.randint(0, len(train) - CONTEXT, (CALIBRATION, 1), generator=torch.Generator().manual_seed(1))
    ids = train[at + torch.arange(CONTEXT)]
    rows = held[: len(held) // CONTEXT * CONTEXT].view(-1, CONTEXT)[:MANY]
    files = {"float32": folder / "float32.onnx"}
    nncompress.export(model, str(files["float32"]))
    for name, text_ in OURS.items():
        files[name] = folder / f"{name}.onnx"
        nncompress.export(nncompress.compress(model, [text_], data=ids), str(files[name]), target="ort-cpu")
    files |= dict(theirs(folder, files["float32"], ids))
    base = losses(files["float32"], rows)
    print(f"\n| {len(rows)} × {CONTEXT} bytes | perplexity | relative | file |\n|---|---|---|---|")
    for name, path in files.items():
        found = losses(path, rows)
        moved = found - base
        relative = f"{math.expm1(moved.mean()):+.2%} ± {2 * float(moved.std()) / len(moved) ** 0.5:.2%}"
        print(f"| {name} | {math.exp(found.mean()):.4f} | {relative} | {path.stat().st_size:,} |", flush=True)


def speed(folder: Path) -> None:
    torch.manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (2, 1))
    model = nncompress.load(LanguageModel(1024, 2, 16).eval(), input=(ids,))
    files = {"float32": folder / "wide.onnx"}
    nncompress.export(model, str(files["float32"]))
    chosen = ("int8 weights", "int8 dynamic")
    chosen += tuple(f"ours, nearest{each}" for each in ("", ", asymmetric", ", 128"))
    for name in chosen:
        files[name] = folder / f"wide {name}.onnx"
        small = nncompress.compress(model, [OURS[name]], data=ids.repeat(8, 1))
        nncompress.export(small, str(files[name]), target="ort-cpu")
    files |= dict(theirs(folder, files["float32"], None))
    sessions = {name: open_file(path) for name, path in files.items()}
    taken: dict[str, list[float]] = {name: [] for name in files}
    one = {"ids": ids[:1].numpy()}
    for _ in range(60):
        for name in random.sample(list(sessions), len(sessions)):
            start = time.thread_time()
            sessions[name].run(None, one)
            taken[name].append(time.thread_time() - start)
    print(f"\n{processor().name}\n| one token, width 1024 | ms | tokens/s | float32 is 1 | file | memory |")
    print("|---|---|---|---|---|---|")
    base = statistics.median(taken["float32"])
    for name, path in files.items():
        middle = statistics.median(taken[name])
        memory = in_own_process(path, (one["ids"],)).peak_memory or 0
        row = (f"{1e3 * middle:.2f}", f"{1 / middle:.0f}", f"{base / middle:.2f}x")
        print(f"| {name} | {' | '.join(row)} | {path.stat().st_size:,} | {memory:,} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dir", type=Path)
    parser.add_argument("--train-s", type=float, default=540)
    parser.add_argument("--only", choices=("train", "quality", "speed"))
    given = parser.parse_args()
    given.dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    if given.only != "speed":
        data = text()
        print(f"{len(data):,} bytes of text")
        model = trained(given.dir, data[: len(data) * 9 // 10], given.train_s)
        if given.only != "train":
            quality(given.dir, model, data)
    if given.only in (None, "speed"):
        speed(given.dir)


if __name__ == "__main__":
    main()
