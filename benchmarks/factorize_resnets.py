"""Accuracy against MACs of `factorize` on CIFAR ResNets, without fine-tuning.

    python benchmarks/factorize_resnets.py DIR [--limit 2048] [--models resnet20,resnet56] [--cuts 0.3,0.5]

DIR holds resnet20.safetensors, resnet56.safetensors, lossless_train4660.npz (the only data that is used to
compress) and lossless_test846.npz (the only data that is used to measure). Every MAC count is measured on the
compressed model. With 846 images the standard error of a top-1 near 92 % is 0.9 points.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import torch
from cifar_resnet import resnet20, resnet56
from safetensors.torch import load_file

from nncompress.analysis.cost import cost
from nncompress.data import Dataset, open_data
from nncompress.ir import Model
from nncompress.passes import Context
from nncompress.passes.factorize import Factorize

FACTORIES = {"resnet20": resnet20, "resnet56": resnet56}
METHODS = {
    "weight SVD, channel form": {"minimize": "weight", "form": "channel", "refit": False},
    "layer output, channel form": {"minimize": "layer", "form": "channel", "refit": False},
    "model output, channel form": {"minimize": "model", "form": "channel", "refit": False},
    "model output, best form": {"minimize": "model", "refit": False},
    "the same, refitted (default)": {},
}


def load(name: str, folder: Path) -> Model:
    module = FACTORIES[name]().eval()
    module.load_state_dict(load_file(folder / f"{name}.safetensors"))
    return Model.from_module(module, (torch.randn(2, 3, 32, 32),))


def top1(model: Model, data: Dataset) -> float:
    right = total = 0
    with torch.no_grad():
        for batch in data.batches(128):
            right += int((model(*batch.inputs).argmax(1) == batch.labels).sum())
            total += len(batch)
    return 100 * right / total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--limit", type=int, default=2048, help="calibration images")
    parser.add_argument("--models", default="resnet20,resnet56")
    parser.add_argument("--cuts", default="0.3,0.5")
    parser.add_argument("--methods", default=",".join(str(i) for i in range(len(METHODS))))
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'model':10}{'method':32}{'MACs cut':>10}{'params cut':>12}{'top-1':>8}{'seconds':>9}")
    for name in options.models.split(","):
        model = load(name, options.folder)
        train, test = (
            open_data(str(options.folder / f"lossless_{part}.npz"), model.inputs, "imagenet")
            for part in ("train4660", "test846")
        )
        before = cost(model)
        print(f"{name:10}{'original':32}{0:>10.1%}{0:>12.1%}{top1(model, test):>8.2f}", flush=True)
        for index in map(int, options.methods.split(",")):
            method, settings = list(METHODS.items())[index]
            for cut in map(float, options.cuts.split(",")):
                small = model.copy()
                start = time.perf_counter()
                step = Factorize(macs=1 - cut, **settings)
                context = Context(data=train, limit=options.limit)
                step.requires(small, context)
                step.apply(small, context)
                seconds = time.perf_counter() - start
                after = cost(small)
                saved = 1 - after.macs / before.macs, 1 - after.parameters / before.parameters
                print(
                    f"{name:10}{method:32}{saved[0]:>10.1%}{saved[1]:>12.1%}{top1(small, test):>8.2f}"
                    f"{seconds:>9.0f}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
