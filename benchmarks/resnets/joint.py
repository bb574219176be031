"""Nodes and ranks under one budget, one shot: `reduce` beside each by itself and the nearest methods.

    python -m benchmarks.resnets.joint DIR WORK [--model resnet20 ...] [--method reduce ...]
        [--cut 0.5 ...] [--test]

DIR holds train.tar.xz, test.tar.xz (images by class), resnet20-jpeg.safetensors, resnet56-jpeg.safetensors.
Compressed with 1,024 training images; measured on 2,000 others, and with --test on all test images: what is
to be chosen is chosen without it. The siblings (resnet14, resnet38) are these networks without the blocks
that contribute least, trained on; they are made where WORK lacks them. Nothing was ever tuned on them.

| method | |
|---|---|
| reduce, factorize, prune-nodes | the passes, as they are by default; nodes with `--blocks separate` |
| BALF | González-Martínez 2025, arXiv 2509.25136: whitened SVD of layers, ranks by their relative error |
| GRAIL | Tang et al. 2026, arXiv 2602.23795: see `layerwise_pruning.py` |
| OSSCAR | Meng et al. 2024 (ICML): see `layerwise_pruning.py` |

CORP (Zhang and Yang 2026, arXiv 2602.05243) prunes hidden units and attention logits of transformers, which
these networks do not have. WORK keeps every row as it is made: the same command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import tarfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import nncompress
from benchmarks.networks import cifar_resnet
from benchmarks.resnets.layerwise_pruning import grail, osscar
from nncompress import pipeline
from nncompress.analysis.accuracy import Measured, measure
from nncompress.analysis.cost import cost
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.passes import Context, Factorize, Pass, PruneNodes, Reduce
from nncompress.train import TrainSettings, train

CALIBRATION, HELD_OUT = 1024, 2000
CUTS = (0.7, 0.5, 0.3)
SIBLINGS = {
    "resnet14": ("resnet20", 3),
    "resnet38": ("resnet56", 9),
}  # of which network, without how many blocks
TRAINING = TrainSettings(epochs=1, limit=16000, lr=0.02, crop=4, flip=True, weight_decay=5e-4)

Method = Callable[[Model, Dataset, float], Model]


def passes(make: Callable[[float], Pass]) -> Method:
    def run(model: Model, data: Dataset, share: float) -> Model:
        return pipeline.run(model, [make(share)], Context(data=data, limit=CALIBRATION))[0]

    return run


METHODS: dict[str, Method] = {
    "reduce": passes(lambda share: Reduce(macs=share)),
    "factorize": passes(lambda share: Factorize(macs=share)),
    "prune-nodes": passes(lambda share: PruneNodes(macs=share, blocks="separate")),
    "BALF": passes(lambda share: Factorize(macs=share, form="channel", minimize="layer", refit=False)),
    "GRAIL": grail,
    "OSSCAR": osscar,
}


def unpacked(folder: Path, work: Path) -> None:
    """WORK/calibration.npz, held.npz and test.npz, drawn once."""
    if (work / "test.npz").exists():
        return
    for split in ("train", "test"):
        images, labels = [], []
        with tarfile.open(folder / f"{split}.tar.xz") as archive:
            for member in archive:
                if member.isfile():
                    file = archive.extractfile(member)
                    assert file is not None
                    images.append(np.asarray(Image.open(io.BytesIO(file.read())).convert("RGB")))
                    labels.append(member.name.split("/")[-2])
        order = np.random.default_rng(0).permutation(len(images))
        x, y = np.stack(images)[order], np.unique(labels, return_inverse=True)[1][order]
        if split == "test":
            np.savez(work / "test.npz", x=x, y=y)
        else:
            end = 2 * CALIBRATION + HELD_OUT
            np.savez(work / "calibration.npz", x=x[:CALIBRATION], y=y[:CALIBRATION])
            np.savez(work / "held.npz", x=x[2 * CALIBRATION : end], y=y[2 * CALIBRATION : end])
            np.savez(work / "train.npz", x=x[end:], y=y[end:])


def network(name: str, folder: Path, work: Path) -> Model:
    """A trained network; a sibling is made where there is none yet."""
    if name not in SIBLINGS:
        return nncompress.load(
            folder / f"{name}-jpeg.safetensors",
            arch=f"{cifar_resnet.__file__}:{name}",
            input="1x3x32x32",
            normalize="imagenet",
        )
    kept = work / f"{name}.pt2"
    if not kept.exists():
        parent, blocks = SIBLINGS[name]
        given = network(parent, folder, work)
        images = nncompress.dataset(str(work / "train.npz"), given)
        context = Context(data=images, limit=256)
        small, _ = pipeline.run(given, [PruneNodes(drop_blocks=blocks)], context)
        train(small, images, TRAINING, checkpoint=work / f"{name}.checkpoint", resume=True)
        nncompress.export(small, str(kept))
    return nncompress.load(kept)


class Network:
    """A trained network, and what it answers, which is asked for once."""

    def __init__(self, name: str, folder: Path, work: Path) -> None:
        self.name, self.model, self._work = name, network(name, folder, work), work
        self._answers: dict[str, Measured] = {}

    def data(self, part: str) -> Dataset:
        return nncompress.dataset(str(self._work / f"{part}.npz"), self.model)

    def row(self, method: str, share: float, *, test: bool) -> dict[str, object]:
        """Compressed and measured."""
        started = time.process_time()
        small = METHODS[method](self.model, self.data("calibration"), share)
        found: dict[str, object] = {
            "model": self.name,
            "method": method,
            "cut": share,
            "macs": round(cost(small).macs / cost(self.model).macs, 4),
            "cpu_seconds": round(time.process_time() - started),
        }
        for part in ("held", "test") if test else ("held",):
            images = self.data(part)
            if part not in self._answers:
                self._answers[part] = measure(self.model, images, "classification")
            change = measure(small, images, "classification").against(self._answers[part]).difference
            found[part] = [round(100 * each, 2) for each in (change.value, change.low, change.high)]
        return found


def table(rows: list[dict[str, object]], part: str) -> str:
    """Differences of top-1 in points."""
    lines = ["| model | method | " + " | ".join(f"{cut:g} of the MACs" for cut in CUTS) + " |"]
    lines.append("|---|---|" + "---|" * len(CUTS))
    found = {(r["model"], r["method"], r["cut"]): r[part] for r in rows if part in r}
    for name, method in dict.fromkeys((name, method) for name, method, _ in found):
        cells = []
        for cut in CUTS:
            value = found.get((name, method, cut))
            cells.append("" if value is None else "{:+.2f} [{:+.2f}, {:+.2f}]".format(*value))  # type: ignore[misc]
        lines.append(f"| {name} | {method} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--model", action="append", choices=["resnet20", "resnet56", *SIBLINGS])
    parser.add_argument("--method", action="append", choices=list(METHODS))
    parser.add_argument("--cut", action="append", type=float, choices=CUTS)
    parser.add_argument("--test", action="store_true", help="measure on the test images, too")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    arguments.work.mkdir(parents=True, exist_ok=True)
    unpacked(arguments.folder, arguments.work)
    log = arguments.work / "rows.jsonl"
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    wanted = "test" if arguments.test else "held"
    done = {(r["model"], r["method"], r["cut"]) for r in rows if wanted in r}
    for name in arguments.model or ("resnet20", "resnet56", *SIBLINGS):
        given: Network | None = None
        for cut in arguments.cut or CUTS:
            for method in arguments.method or METHODS:
                if (name, method, cut) in done:
                    continue
                given = given or Network(name, arguments.folder, arguments.work)
                made = given.row(method, cut, test=arguments.test)
                rows.append(made)
                print(json.dumps(made), file=sys.stderr, flush=True)
                with log.open("a") as file:
                    file.write(json.dumps(made) + "\n")
    print(table(rows, wanted))


if __name__ == "__main__":
    main()
