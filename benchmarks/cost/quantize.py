"""What quantizing costs: ours beside NNCF and ONNX Runtime's own quantizer, each in a process of its own.

    python -m benchmarks.cost.quantize [--images 64]

ResNet-50 at 224², random weights; CPU time and the most memory that the process ever held, Python and
libraries included. Ours reads a `.pt2` and writes a verified one, theirs read the same model as `.onnx` and
write what they made of it, which nobody checks. NNCF is no dependency of ours: where it is missing, so is its
row.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

from benchmarks.cost.commands import measured

NNCF = """
import sys, numpy, nncf, openvino
x = numpy.load(sys.argv[2])["x"]
graph = openvino.Core().read_model(sys.argv[1])
small = nncf.quantize(graph, nncf.Dataset([each[None] for each in x]), subset_size=len(x))
openvino.save_model(small, sys.argv[3], compress_to_fp16=False)
"""
ONNXRUNTIME = """
import sys, numpy
from onnxruntime import InferenceSession
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
class Images(CalibrationDataReader):
    def __init__(self):
        name = InferenceSession(sys.argv[1]).get_inputs()[0].name
        self.feeds = iter([{name: each[None]} for each in numpy.load(sys.argv[2])["x"]])
    def get_next(self):
        return next(self.feeds, None)
types = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8}
quantize_static(sys.argv[1], sys.argv[3], Images(), quant_format=QuantFormat.QDQ, per_channel=True, **types)
"""


def prepare(folder: Path, images: int) -> None:
    """The model as `.pt2` and `.onnx`, and the images as the model takes them."""
    import numpy as np
    import torch

    import nncompress
    from benchmarks.cost.chain import settled_resnet50
    from nncompress.ir import Model

    model = Model.from_module(settled_resnet50(), (torch.randn(2, 3, 224, 224),))
    nncompress.export(model, folder / "model.pt2")
    nncompress.export(model, folder / "model.onnx")
    np.savez(folder / "x.npz", x=np.random.default_rng(0).standard_normal((images, 3, 224, 224), np.float32))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--prepare", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.prepare:
        prepare(given.prepare, given.images)
        return
    with tempfile.TemporaryDirectory() as name:
        folder, own = Path(name), [sys.executable, "-m", "benchmarks.cost.quantize"]
        subprocess.run([*own, "--images", str(given.images), "--prepare", name], check=True)
        images = str(folder / "x.npz")
        ours = [sys.executable, "-m", "nncompress", "quantize", str(folder / "model.pt2"), "--data", images]
        theirs = [str(folder / "model.onnx"), images]
        rows = {"nncompress": [*ours, "--limit", str(given.images), "-o", str(folder / "ours.pt2")]}
        if find_spec("nncf") is not None and find_spec("openvino") is not None:
            rows["NNCF"] = [sys.executable, "-c", NNCF, *theirs, str(folder / "nncf.xml")]
        else:
            print("NNCF or OpenVINO is not installed, its row is left out: pip install nncf openvino")
        rows["ONNX Runtime"] = [sys.executable, "-c", ONNXRUNTIME, *theirs, str(folder / "own.onnx")]
        print(f"| ResNet-50 at 224², {given.images} images | CPU seconds | peak, GB |\n|---|---|---|")
        for title, command in rows.items():
            _, seconds, peak = measured(command)
            print(f"| {title} | {seconds:.0f} | {peak:.2f} |", flush=True)


if __name__ == "__main__":
    main()
