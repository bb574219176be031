"""A text classifier and a vision transformer, trained here, made smaller and rounded: accuracy of the files.

python -m benchmarks.language.classifiers DIR IMAGES [--train-s 150]

IMAGES is data of 28 × 28 grey images in ten classes, as commands take it (`mnist:FOLDER?split=test`); the
first four fifths train, the rest is held out. The text classifier reads 128 bytes of source code and says of
which of eight packages of Python's library they are; the last tenth of each package is held out. Both are
trained once, for `--train-s` seconds of CPU time, into DIR. 512 samples calibrate; no training afterwards.
Accuracy is of ONNX Runtime on the file as it runs.
"""

from __future__ import annotations

import argparse
import math
import sysconfig
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import nncompress
from benchmarks.language.model import LanguageModel, open_file
from benchmarks.networks.tiny_transformer import VisionTransformer
from nncompress.analysis.cost import cost
from nncompress.ir import Model

PACKAGES, LENGTH, CALIBRATION = 8, 128, 512
ROWS = {
    "float32": (),
    "prune-nodes --macs 0.8": ("prune-nodes:macs=0.8",),
    "prune-nodes --macs 0.6": ("prune-nodes:macs=0.6",),
    "… magnitude, not fitted": ("prune-nodes:macs=0.6,criterion=l2,compensate=false",),
    "prune-nodes --ratio 0.25": ("prune-nodes:ratio=0.25",),
    "prune-nodes --drop-blocks 1": ("prune-nodes:drop-blocks=1",),
    "quantize": ("quantize",),
    "quantize --mode dynamic": ("quantize:mode=dynamic",),
    "quantize --weight-bits 4 --group-size 32": ("quantize:weight-bits=4,group-size=32",),
    "… --rounding nearest": ("quantize:weight-bits=4,group-size=32,rounding=nearest",),
    "prune-nodes --macs 0.6, quantize": ("prune-nodes:macs=0.6,round-to=8", "quantize"),
}


class TextClassifier(LanguageModel):
    """Byte ids [batch, 128] -> scores of the packages."""

    def __init__(self) -> None:
        super().__init__(64, 3, 4)
        self.head = nn.Linear(64, PACKAGES)

    def forward(self, ids: Tensor) -> Tensor:
        x = self.embed(ids) + self.place(torch.arange(ids.shape[1]))
        return self.head(self.norm(self.blocks(x)).mean(1))


def text() -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Bytes and packages, to train and held out."""
    root = Path(sysconfig.get_paths()["stdlib"])
    code: dict[str, bytes] = defaultdict(bytes)
    for file in sorted(root.glob("*/**/*.py")):
        package = file.relative_to(root).parts[0]
        if package not in ("site-packages", "test", "idlelib", "encodings") and "test" not in file.parts:
            code[package] += file.read_bytes()
    largest = sorted(code, key=lambda name: -len(code[name]))[:PACKAGES]
    parts: tuple[list[tuple[Tensor, Tensor]], ...] = ([], [])
    for label, name in enumerate(largest):
        rows = torch.frombuffer(bytearray(code[name]), dtype=torch.uint8).long()
        rows = rows[: len(rows) // LENGTH * LENGTH].view(-1, LENGTH)
        cut = len(rows) * 9 // 10
        for part, own in zip(parts, (rows[:cut], rows[cut:])):
            part.append((own, torch.full((len(own),), label)))
    known, held = ((torch.cat([x for x, _ in p]), torch.cat([y for _, y in p])) for p in parts)
    return known, held


def images(spec: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Images and digits, to train and held out."""
    net = nncompress.load(VisionTransformer(1, 28, 64, 3, 4).eval(), input=(torch.zeros(2, 1, 28, 28),))
    batches = list(nncompress.dataset(spec, net, "0.13/0.31").batches(1000, limit=None))
    x = torch.cat([batch.inputs[0] for batch in batches])
    y = torch.cat([batch.labels for batch in batches]).long()
    cut = len(x) * 4 // 5
    return (x[:cut], y[:cut]), (x[cut:], y[cut:])


def trained(path: Path, make: Callable[[], nn.Module], known: tuple[Tensor, Tensor], seconds: float) -> Model:
    if not path.exists():
        torch.manual_seed(0)
        net, (x, y) = make(), known
        optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3, weight_decay=0.05)
        generator, start = torch.Generator().manual_seed(0), time.process_time()
        while (share := (time.process_time() - start) / seconds) < 1:
            at = torch.randint(0, len(x), (64,), generator=generator)
            for group in optimizer.param_groups:
                group["lr"] = 1e-3 * min(1, 20 * share) * (0.02 + 0.49 * (1 + math.cos(math.pi * share)))
            loss = F.cross_entropy(net(x[at]), y[at])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        nncompress.export(nncompress.load(net.eval(), input=(x[:2],)), str(path))
    return nncompress.load(str(path))


def accuracy(path: Path, held: tuple[Tensor, Tensor]) -> float:
    session = open_file(path)
    name, right = session.get_inputs()[0].name, 0
    for x, y in zip(held[0].split(100), held[1].split(100)):
        right += int((torch.from_numpy(session.run(None, {name: x.numpy()})[0]).argmax(1) == y).sum())
    return right / len(held[1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dir", type=Path)
    parser.add_argument("images")
    parser.add_argument("--train-s", type=float, default=150)
    given = parser.parse_args()
    given.dir.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    cases = {
        "text classifier": (TextClassifier, text()),
        "vision transformer": (lambda: VisionTransformer(1, 28, 64, 3, 4), images(given.images)),
    }
    for case, (make, (known, held)) in cases.items():
        print(f"\n| {case}, {len(held[1])} held out | accuracy | change | multiply-adds | file |")
        print("|---|---|---|---|---|", flush=True)
        model = trained(given.dir / f"{case}.pt2", make, known, given.train_s)
        drawn = torch.randperm(len(known[0]), generator=torch.Generator().manual_seed(1))[:CALIBRATION]
        first, whole = 0.0, cost(model).macs
        for number, (name, passes) in enumerate(ROWS.items()):
            path = given.dir / f"{case} {number}.onnx"
            small = nncompress.compress(model, list(passes), data=known[0][drawn]) if passes else model
            nncompress.export(small, str(path), target="ort-cpu")
            found = accuracy(path, held)
            first = first or found
            told = (f"{found:.2%}", f"{100 * (found - first):+.2f}", f"{cost(small).macs / whole:.2f}")
            print(f"| `{name}` | {' | '.join(told)} | {path.stat().st_size:,} |", flush=True)


if __name__ == "__main__":
    main()
