"""CIFAR ResNets pruned to half of their MACs, then fine-tuned by distillation from the original.

    python benchmarks/finetune_resnets.py DIR WORK [--depth 20] [--row ours] [--epochs 3] [--limit 25000]

DIR holds train.tar.xz, test.tar.xz and resnet20-jpeg.safetensors, resnet56-jpeg.safetensors. Every row is
`nncompress prune-nodes --macs 0.5 --blocks separate` (on 512 training images), then `nncompress train
--teacher ORIGINAL`, with the same options for all rows; `random` and `l1` choose nodes by that criterion in
every group alike and are not repaired, `… repaired` are repaired as ours is. Top-1 is of all test images.

WORK keeps each finished row, and the checkpoint of the one that was interrupted: the same command goes on
there. The table has all rows that are finished.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import nncompress
from nncompress import pipeline
from nncompress.analysis.accuracy import evaluate
from nncompress.analysis.cost import cost
from nncompress.ir import Model
from nncompress.passes import Context
from nncompress.passes.prune_nodes import PruneNodes
from nncompress.train import TrainSettings, train

HERE = Path(__file__).parent
BARE: dict[str, Any] = {"compensate": False, "renormalize": False}
ROWS: dict[str, dict[str, Any]] = {
    "ours": {},
    "l1": {"criterion": "l1", **BARE},
    "random": {"criterion": "random", **BARE},
    "l1, repaired": {"criterion": "l1"},
    "random, repaired": {"criterion": "random"},
}
PRUNING_IMAGES = 512


def original(folder: Path, depth: int) -> Model:
    return nncompress.load(
        folder / f"resnet{depth}-jpeg.safetensors",
        arch=f"{HERE / 'cifar_resnet.py'}:resnet{depth}",
        input="1x3x32x32",
        normalize="imagenet",
    )


def make_row(
    folder: Path, depth: int, name: str, settings: TrainSettings, checkpoint: Path
) -> dict[str, Any]:
    teacher = original(folder, depth)
    images = nncompress.dataset(f"cifar10:{folder}?split=train", teacher)
    test = nncompress.dataset(f"cifar10:{folder}?split=test", teacher)
    started = time.process_time()
    pass_ = PruneNodes(macs=0.5, blocks="separate", **ROWS[name])
    small, _ = pipeline.run(teacher, [pass_], Context(data=images, limit=PRUNING_IMAGES))
    pruned, resumed = time.process_time(), checkpoint.exists()
    _, result = train(
        small, images, settings, validation=test, teacher=teacher, checkpoint=checkpoint, resume=True
    )
    return {
        "depth": depth,
        "row": name,
        "macs": cost(small).macs / cost(teacher).macs,
        "one_shot": evaluate(small, test).top1,
        "epochs": [row["validation"]["top1"] for row in result.epochs],
        "images": settings.limit or len(images),
        "prune_minutes": round((pruned - started) / 60, 1),
        "train_minutes": "" if resumed else round((time.process_time() - pruned) / 60, 1),
        "settings": settings.settings(),
    }


def table(rows: list[dict[str, Any]]) -> str:
    lines = [
        "| model | nodes | MACs | original | one-shot | after 1 epoch | after all | budget | CPU min |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        first, last = row["epochs"][0], row["epochs"][-1]
        epochs = f"{len(row['epochs'])} × {row['images']:,} images"
        lines.append(
            f"| ResNet-{row['depth']} | {row['row']} | {row['macs']:.1%} | {100 * row['original']:.2f} "
            f"| {100 * row['one_shot']:.2f} | {100 * first:.2f} | {100 * last:.2f} | {epochs} "
            f"| {row['train_minutes']} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--depth", type=int, action="append", choices=[20, 56])
    parser.add_argument("--row", action="append", choices=list(ROWS), help="[default: ours, l1, random]")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--limit", type=int, help="images per epoch [default: all 50,000]")
    parser.add_argument("--lr", type=float, default=0.02)
    parser.add_argument("--precision", default="bf16", choices=["fp32", "bf16", "fp16"])
    arguments = parser.parse_args()
    settings = TrainSettings(
        epochs=arguments.epochs,
        limit=arguments.limit,
        lr=arguments.lr,
        crop=4,
        flip=True,
        weight_decay=5e-4,
        precision=arguments.precision,
    )
    arguments.work.mkdir(parents=True, exist_ok=True)
    for depth in arguments.depth or (20, 56):
        reference = arguments.work / f"{depth}.original"
        if not reference.exists():
            model = original(arguments.folder, depth)
            test = nncompress.dataset(f"cifar10:{arguments.folder}?split=test", model)
            reference.write_text(str(evaluate(model, test).top1), encoding="utf-8")
        for name in arguments.row or [*ROWS][:3]:
            kept = arguments.work / f"{depth}-{name}.json"
            if not kept.exists():
                checkpoint = kept.with_suffix(".checkpoint")
                row = make_row(arguments.folder, depth, name, settings, checkpoint)
                row["original"] = float(reference.read_text(encoding="utf-8"))
                kept.write_text(json.dumps(row), encoding="utf-8")
                checkpoint.unlink()
    finished = [json.loads(path.read_text(encoding="utf-8")) for path in arguments.work.glob("*.json")]
    print(table(sorted(finished, key=lambda row: (row["depth"], [*ROWS].index(row["row"])))))


if __name__ == "__main__":
    sys.exit(main())
