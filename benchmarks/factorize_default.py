"""What `factorize` does to trained networks without a budget, at several bounds of the error.

    python benchmarks/factorize_default.py CIFAR_FOLDER [--facenet]

CIFAR_FOLDER holds resnet20.safetensors, resnet56.safetensors, lossless_train4660.npz, lossless_test846.npz.
--facenet adds the networks of MTCNN with the weights that `pip install --no-deps facenet-pytorch` brings.
Every line: how many layers are factored, the MACs left, how far the outputs are on images that nothing was
fitted to, and top-1 on 846 test images.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from trained_resnet import trained_resnet

from nncompress import pipeline
from nncompress.analysis.accuracy import evaluate
from nncompress.analysis.distance.drift import Reference, Samples, amount
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.passes import Context, Factorize

BOUNDS: list[dict[str, Any]] = [
    {"err": 1e-3},
    {"relative": 1e-2},
    {"relative": 3e-3},
    {"relative": 1e-3},
    {"relative": 1e-4},
]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--facenet", action="store_true")
    arguments = parser.parse_args()
    print("network    data  bound             layers    MACs  outputs away  top-1")
    for name in ("resnet20", "resnet56"):
        model, train, test = trained_resnet(name, arguments.folder)
        report(name, model, test, None, evaluated=True)
        report(name, model, test, train, evaluated=True)
    if arguments.facenet:
        for name, model, test in mtcnn(arguments.folder):
            report(name, model, test, None, evaluated=False)


def report(name: str, model: Model, test: Any, data: Dataset | None, *, evaluated: bool) -> None:
    images = test if not evaluated else next(iter(test.batches(128, 128))).inputs
    reference = Reference(model, Samples((tuple(images),), (len(images[0]),), "held-out"), name)
    if evaluated and data is None:
        print(f"{name:9}  as it is {'':40} {100 * (evaluate(model, test).top1 or 0):.2f} %", flush=True)
    for bound in BOUNDS:
        result, (step,) = pipeline.run(model, [Factorize(**bound)], Context(data=data, limit=256))
        changed = sum("rank" in c.numbers for c in step.changes)
        moved = amount(reference.drift(result, name))
        top1 = f"{100 * (evaluate(result, test).top1 or 0):.2f} %" if evaluated else ""
        said = " ".join(f"{k} {v:g}" for k, v in bound.items())
        macs = step.after.macs / step.before.macs
        has = "yes" if data is not None else "no"
        print(f"{name:9}  {has:4}  {said:16} {changed:7} {macs:7.1%} {moved:13.1%}  {top1}", flush=True)


def mtcnn(folder: Path) -> Iterator[tuple[str, Model, tuple[torch.Tensor, ...]]]:
    """PNet, RNet and ONet with their weights, and CIFAR images of their size."""
    spec = find_spec("facenet_pytorch")
    if spec is None or spec.origin is None:
        sys.exit("facenet-pytorch is not installed")
    package = Path(spec.origin).parent
    source = (package / "models" / "mtcnn.py").read_text()
    module = types.ModuleType("mtcnn_networks")
    module.__dict__.update(torch=torch, nn=nn, np=np)
    classes = source[source.index("class PNet") : source.index("class MTCNN")]
    exec(compile(classes, "mtcnn.py", "exec"), module.__dict__)
    pixels = np.load(folder / "lossless_test846.npz")["images"][:128]
    x = (torch.from_numpy(pixels).permute(0, 3, 1, 2).float() - 127.5) / 128
    for name, size in (("PNet", 12), ("RNet", 24), ("ONet", 48)):
        network = getattr(module, name)(pretrained=False)
        network.load_state_dict(torch.load(package / "data" / f"{name.lower()}.pt", weights_only=True))
        images = nn.functional.interpolate(x, size=(size, size), mode="bilinear")
        yield name, Model.from_module(network.eval(), (images[:2],)), (images,)


if __name__ == "__main__":
    main()
