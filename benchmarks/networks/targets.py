"""The networks of the table of targets, each as a model file with the data to quantize and compare it on.

    python -m benchmarks.networks.targets WORK [--networks resnet18 …] [--cifar DIR]

writes NAME.pt2, NAME.npz (calibration) and, for the trained ones, NAME.test.npz into WORK. The CIFAR ResNets
are trained: DIR holds resnet20-jpeg.safetensors, resnet56-jpeg.safetensors and the images (`cifar10:DIR`).
The others are timm's and transformers' with random weights, since trained ones cannot be had everywhere. So
that they are like trained ones for a quantizer, their batch norms have the statistics of their data, gains
and shifts that differ between channels, and no block is switched off by a gain of nearly 0, as they start.
Their data is noise with the spectrum of photographs (power falls with the square of the frequency), or words
drawn at random. Where timm or transformers is not installed, their networks are left out, and that is said.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

import nncompress
from benchmarks.networks.cifar_resnet import trained

SIZE, WORDS, LENGTH = 224, 30522, 128
RECORDS = 96  # of them 64 to calibrate on and 32 to compare outputs on
CALIBRATED, TESTED = 1024, 2000  # labelled images
TRAINED = ("resnet20", "resnet56")
IMAGES = {  # ours: timm's name
    "resnet18": "resnet18",
    "resnet50": "resnet50",
    "mobilenet_v2": "mobilenetv2_100",
    "mobilenet_v3_large": "mobilenetv3_large_100",
    "efficientnet_b0": "efficientnet_b0",
    "convnext_tiny": "convnext_tiny",
    "deit_tiny": "deit_tiny_patch16_224",
}
NETWORKS = (*TRAINED, *IMAGES, "bert_6x384")
NORMS = (nn.BatchNorm2d, nn.LayerNorm)


def photographs(count: int, seed: int) -> Tensor:
    """float32 [count, 3, 224, 224] with the spectrum of photographs; channels are alike, as in these."""
    generator = torch.Generator().manual_seed(seed)
    rows, columns = torch.fft.fftfreq(SIZE)[:, None], torch.fft.rfftfreq(SIZE)[None, :]
    falling = 1 / (rows.square() + columns.square()).sqrt().clamp(min=1 / SIZE)
    noise = torch.randn(count, 4, SIZE, SIZE, generator=generator)
    images = torch.fft.irfft2(torch.fft.rfft2(noise) * falling, s=(SIZE, SIZE))
    images = images[:, :1] + 0.3 * images[:, 1:]
    return images / images.std(dim=(1, 2, 3), keepdim=True)


def like_trained(network: nn.Module, x: Tensor) -> nn.Module:
    """Give a network with random weights activations of ordinary size in every layer, in place.

    Args:
        x: [samples, …] what batch norms take their statistics from.
    """
    torch.manual_seed(0)
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            nn.init.normal_(layer.weight, std=(layer.weight[0].numel()) ** -0.5)
        elif isinstance(layer, NORMS) and layer.weight is not None:
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.3)
    for name, parameter in network.named_parameters():
        if name.endswith("gamma"):  # ConvNeXt's gains of its blocks start at 1e-6
            nn.init.uniform_(parameter, 0.2, 0.8)
    network.eval()
    for layer in network.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.train().momentum = None  # the mean over all batches
    with torch.no_grad():
        network(x)
    return network.eval()


class Logits(nn.Module):
    """A transformer whose only output is its logits."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, ids: Tensor) -> Tensor:
        return self.network(input_ids=ids, return_dict=False)[0]  # type: ignore[no-any-return]


def bert() -> nn.Module:
    """int64 [batch, 128] -> [batch, 2]: 6 layers of width 384, 6 heads."""
    import transformers

    config = transformers.BertConfig(
        hidden_size=384, num_hidden_layers=6, num_attention_heads=6, intermediate_size=1536
    )
    return Logits(transformers.BertForSequenceClassification(config))


def random_network(name: str, folder: Path) -> None:
    if name in IMAGES:
        import timm

        data, network = photographs(RECORDS, 0), timm.create_model(IMAGES[name])
    else:
        data = torch.randint(0, WORDS, (RECORDS, LENGTH), generator=torch.Generator().manual_seed(0))
        network = bert()
    like_trained(network, data[:32])
    nncompress.export(nncompress.load(network, input=(data[:2],)), folder / f"{name}.pt2")
    np.savez(folder / f"{name}.npz", x=data.numpy())


def trained_network(name: str, folder: Path, cifar: Path) -> None:
    model, test, train = trained(cifar, name)
    nncompress.export(model, folder / f"{name}.pt2")
    for images, count, file in ((train, CALIBRATED, f"{name}.npz"), (test, TESTED, f"{name}.test.npz")):
        drawn = list(images.batches(250, count, shuffle_seed=0))
        x = np.concatenate([batch.inputs[0].numpy() for batch in drawn])
        y = np.concatenate([batch.labels.numpy() for batch in drawn])  # type: ignore[union-attr]
        np.savez(folder / file, x=x, y=y)


def missing(names: list[str], cifar: Path | None) -> Iterator[tuple[str, str]]:
    """Of the networks that cannot be made here, each with the reason."""
    for name in names:
        if name in TRAINED:
            if cifar is None:
                yield name, "--cifar DIR has its weights and images"
        else:
            package = "timm" if name in IMAGES else "transformers"
            if find_spec(package) is None:
                yield name, f"pip install {package}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("work", type=Path, metavar="WORK")
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS), metavar="NAME")
    parser.add_argument("--cifar", type=Path, metavar="DIR")
    given = parser.parse_args()
    given.work.mkdir(parents=True, exist_ok=True)
    left_out = dict(missing(given.networks, given.cifar))
    for name in given.networks:
        if name in left_out:
            print(f"{name}: left out: {left_out[name]}")
        elif name in TRAINED:
            trained_network(name, given.work, given.cifar)
        else:
            random_network(name, given.work)


if __name__ == "__main__":
    main()
