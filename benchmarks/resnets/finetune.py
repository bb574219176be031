"""CIFAR ResNets pruned to half of their MACs, then fine-tuned by distillation from the original.

    python -m benchmarks.resnets.finetune DIR WORK [--depth 20] [--row ours] [--epochs 3] [--limit 25000]

DIR holds train.tar.xz, test.tar.xz and resnet20-jpeg.safetensors, resnet56-jpeg.safetensors. Every row is
`nncompress prune-nodes --macs 0.5 --blocks separate` (on 512 training images), then `nncompress train
--teacher ORIGINAL`, with the same options for all rows; `random` and `l1` choose nodes by that criterion in
every group alike and are not repaired, `… repaired` are repaired as ours is. Top-1 is of all test images.

WORK keeps each row, its accuracy after every epoch, and the checkpoint of a row that was interrupted: the
same command goes on there. The table has all rows that were begun.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import nncompress
from benchmarks.networks import cifar_resnet
from nncompress import pipeline
from nncompress.analysis.accuracy import evaluate
from nncompress.analysis.cost import cost
from nncompress.ir import Model
from nncompress.passes import Context
from nncompress.passes.prune_nodes.options import PruneNodes
from nncompress.train import TrainSettings, train

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
        arch=f"{cifar_resnet.__file__}:resnet{depth}",
        input="1x3x32x32",
        normalize="imagenet",
    )


def make_row(
    folder: Path, depth: int, name: str, settings: TrainSettings, work: Path, one_shot: bool
) -> dict[str, Any]:
    """Prune, and fine-tune unless `one_shot`; what is known is in `work` as soon as it is known."""
    kept, log = work / f"{depth}-{name}.json", work / f"{depth}-{name}.jsonl"
    checkpoint = work / f"{depth}-{name}.checkpoint"
    teacher = original(folder, depth)
    images = nncompress.dataset(f"cifar10:{folder}?split=train", teacher)
    test = nncompress.dataset(f"cifar10:{folder}?split=test", teacher)
    started = time.process_time()
    pass_ = PruneNodes(macs=0.5, blocks="separate", **ROWS[name])
    small, _ = pipeline.run(teacher, [pass_], Context(data=images, limit=PRUNING_IMAGES))
    pruned, resumed = time.process_time(), checkpoint.exists()
    row: dict[str, Any] = {
        "depth": depth,
        "row": name,
        "macs": cost(small).macs / cost(teacher).macs,
        "original": evaluate(teacher, test).top1,
        "one_shot": evaluate(small, test).top1,
        "images": settings.limit or len(images),
        "prune_minutes": round((pruned - started) / 60, 1),
        "settings": settings.settings(),
        "finished": one_shot,
    }
    kept.write_text(json.dumps(row), encoding="utf-8")
    if not one_shot:
        started = time.process_time()
        train(
            small,
            images,
            settings,
            validation=test,
            teacher=teacher,
            checkpoint=checkpoint,
            resume=True,
            log=log,
        )
        row["train_minutes"] = "" if resumed else round((time.process_time() - started) / 60, 1)
        kept.write_text(json.dumps({**row, "finished": True}), encoding="utf-8")
        checkpoint.unlink()
    return row


def table(work: Path) -> str:
    """Every row that was begun: a log has the epochs there were so far."""
    rows = [json.loads(path.read_text(encoding="utf-8")) for path in work.glob("*.json")]
    lines = [
        "| model | nodes by | MACs | original | one-shot | after 1 epoch | after all | budget (images) "
        "| CPU min |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in sorted(rows, key=lambda row: (row["depth"], [*ROWS].index(row["row"]))):
        log = work / f"{row['depth']}-{row['row']}.jsonl"
        text = log.read_text(encoding="utf-8") if log.exists() else ""
        top1 = [100 * json.loads(line)["validation"]["top1"] for line in text.splitlines()]
        first, last = (f"{top1[0]:.2f}", f"{top1[-1]:.2f}") if top1 else ("", "")
        budget = f"{len(top1)} × {row['images']:,}" if top1 else ""
        lines.append(
            f"| ResNet-{row['depth']} | {row['row']} | {row['macs']:.1%} | {100 * row['original']:.2f} "
            f"| {100 * row['one_shot']:.2f} | {first} | {last if row['finished'] else ''} "
            f"| {budget} | {row.get('train_minutes', '')} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--depth", type=int, action="append", choices=[20, 56])
    parser.add_argument("--row", action="append", choices=list(ROWS), help="[default: ours, l1, random]")
    parser.add_argument("--one-shot", action="store_true", help="prune only")
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
        for name in arguments.row or [*ROWS][:3]:
            kept = arguments.work / f"{depth}-{name}.json"
            if not (kept.exists() and json.loads(kept.read_text(encoding="utf-8"))["finished"]):
                make_row(arguments.folder, depth, name, settings, arguments.work, arguments.one_shot)
    print(table(arguments.work))


if __name__ == "__main__":
    sys.exit(main())
