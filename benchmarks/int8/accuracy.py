"""What int8 costs in accuracy: the CIFAR ResNets on 10,000 test images, float32 against int8, paired.

    python -m benchmarks.int8.accuracy DIR [--networks resnet20 resnet56] [--calibration mse min-max ...]

DIR holds `resnet20-jpeg.safetensors`, `resnet56-jpeg.safetensors` and the images (`cifar10:DIR`). Both models
run in ONNX Runtime. "lost" are images that float32 had right and int8 has wrong, "won" the reverse.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
import onnxruntime
import torch

from benchmarks.networks.cifar_resnet import trained
from nncompress.data import Dataset
from nncompress.exporting import write_onnx
from nncompress.passes import Context
from nncompress.passes.quantize.options import Quantize


def right(path: Path, data: Dataset) -> np.ndarray:
    """bool [samples]: the top class is the label."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    found = []
    for batch in data.batches(250):
        assert batch.labels is not None
        scores = session.run(None, {name: batch.inputs[0].numpy()})[0]
        found.append(scores.argmax(1) == batch.labels.numpy())
    return np.concatenate(found)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--networks", nargs="+", default=["resnet20", "resnet56"])
    parser.add_argument("--calibration", nargs="+", default=["mse"])
    parser.add_argument("--limit", type=int, default=512, help="calibration images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{'network':10}{'calibration':12}{'float32':>9}{'int8':>9}{'change':>9}{'lost':>6}{'won':>6}")
    for name in options.networks:
        model, test, train = trained(options.folder, name)
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            write_onnx(model, path)
            before = right(path, test)
            for method in options.calibration:
                small = model.copy()
                Quantize(calibration=method).apply(small, Context(data=train, limit=options.limit))
                write_onnx(small, path)
                after = right(path, test)
                print(
                    f"{name:10}{method:12}{before.mean():9.2%}{after.mean():9.2%}"
                    f"{100 * (after.mean() - before.mean()):+9.2f}"
                    f"{(before & ~after).sum():6}{(after & ~before).sum():6}",
                    flush=True,
                )


if __name__ == "__main__":
    main()
