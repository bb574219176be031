"""What `nncompress new` can build: a line, an input and the costs of every architecture."""

from __future__ import annotations

import difflib
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING

from nncompress.errors import UsageError

if TYPE_CHECKING:
    from nncompress.ir import Model


@dataclass(frozen=True)
class Architecture:
    """One network.

    Attributes:
        name: as in the papers, "wrn-28-10"; its factory is `nncompress.zoo.wrn_28_10`.
        module: the file that it is written in.
        shape: of one input sample.
        parameters, macs: trained values, and multiply-accumulates of one such record.
        summary: one line.
        classes: of its outputs by default; None where it is no classifier.
    """

    name: str
    module: str
    shape: tuple[int, ...]
    parameters: int
    macs: int
    summary: str
    classes: int | None = 10

    @property
    def factory(self) -> str:
        return self.name.replace("-", "_")

    def build(
        self, *, classes: int | None = None, shape: tuple[int, ...] | None = None, seed: int = 0
    ) -> Model:
        """The network with fresh weights, in evaluation mode, its batch dynamic.

        Args:
            classes: instead of its own number.
            shape: of one input sample, instead of its own: other sizes, or other image channels.
            seed: of the weights.

        Raises:
            UsageError: it is no classifier, or does not fit inputs of that shape.
        """
        import torch

        from nncompress.ir import Model

        options = {}
        if classes is not None:
            if self.classes is None:
                raise UsageError(f"{self.name} is no classifier: it has no --classes")
            options["classes"] = classes
        shape = shape or self.shape
        if len(shape) != len(self.shape):
            raise UsageError(
                f"{self.name} does not take such inputs",
                got="x".join(map(str, shape)),
                expected=f"sizes like {'x'.join(map(str, self.shape))} after the batch",
            )
        if len(shape) == 3:
            options["channels"] = shape[0]
        factory = getattr(import_module(f"nncompress.zoo.{self.module}"), self.factory)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = factory(**options).eval()
        example = torch.zeros(2, *shape)
        try:
            with torch.no_grad():
                module(example)
        except RuntimeError as error:  # a size that some layer cannot take
            raise UsageError(
                f"{self.name} does not run on inputs of that shape",
                got="x".join(map(str, shape)),
                expected=f"by default {'x'.join(map(str, self.shape))}",
            ) from error
        return Model.from_module(module, (example,), metadata={"architecture": self.name})


def architecture(name: str) -> Architecture:
    """The architecture of that name.

    Raises:
        UsageError: there is none.
    """
    if name not in ARCHITECTURES:
        near = difflib.get_close_matches(name, ARCHITECTURES, 1)
        raise UsageError(
            f"no architecture is called {name!r}",
            remedy=f"did you mean {near[0]}?" if near else "nncompress new --list shows them",
        )
    return ARCHITECTURES[name]


_MNIST, _CIFAR, _IMAGENET = (1, 28, 28), (3, 32, 32), (3, 224, 224)

# fmt: off
_ALL = (
    Architecture("summation", "small_nets", (2,), 4_001, 3_000,
                 "y = x1 + x2 by 1000 hidden nodes; one is enough", None),
    Architecture("sine", "small_nets", (1,), 1_501, 1_000,
                 "sin x by 500 hidden nodes; a network to grow", None),
    Architecture("mnist-autoencoder", "small_nets", _MNIST, 37_827, 1_919_232,
                 "1-32-64-32-1 channels, strided and transposed convolutions", None),
    Architecture("mnist-classifier", "small_nets", _MNIST, 454_922, 11_065_088,
                 "three large convolutions, the last one as large as its input"),
    Architecture("alternatives-convolution", "alternatives", _CIFAR, 260_362, 28_673_280,
                 "three 5×5 convolutions: the baseline of the next three"),
    Architecture("alternatives-kernel-composing", "alternatives", _CIFAR, 158_154, 18_187_520,
                 "two of them as 1×5 and 5×1"),
    Architecture("alternatives-separable", "alternatives", _CIFAR, 17_002, 3_814_656,
                 "two of them as depthwise and pointwise"),
    Architecture("alternatives-nonlinear-separable", "alternatives", _CIFAR, 17_194, 3_814_656,
                 "the same with batch norm and ReLU in between"),
    Architecture("small-separable", "separable", (3, 24, 24), 121_930, 12_342_400,
                 "6 separable residual blocks for 24×24 crops of CIFAR-10"),
    Architecture("resnet20", "cifar_resnet", _CIFAR, 269_722, 40_551_040,
                 "CIFAR ResNet, shortcuts without parameters (option A)"),
    Architecture("resnet32", "cifar_resnet", _CIFAR, 464_154, 68_862_592, "the same, 5 blocks a stage"),
    Architecture("resnet44", "cifar_resnet", _CIFAR, 658_586, 97_174_144, "the same, 7 blocks a stage"),
    Architecture("resnet56", "cifar_resnet", _CIFAR, 853_018, 125_485_696, "the same, 9 blocks a stage"),
    Architecture("resnet110", "cifar_resnet", _CIFAR, 1_727_962, 252_887_680, "the same, 18 blocks a stage"),
    Architecture("resnet164", "preactivation", _CIFAR, 1_703_258, 247_646_720,
                 "CIFAR ResNet of bottleneck blocks, pre-activation"),
    Architecture("wrn-40-4", "preactivation", _CIFAR, 8_949_210, 1_298_582_016,
                 "wide residual network: 40 layers, 4 times as wide"),
    Architecture("wrn-28-10", "preactivation", _CIFAR, 36_536_884, 5_243_386_368,
                 "28 layers, 10 times as wide; CIFAR-100", 100),
    Architecture("wrn-22-10", "preactivation", _CIFAR, 26_855_604, 3_827_808_768,
                 "22 layers, 10 times as wide; CIFAR-100", 100),
    Architecture("resnet34", "imagenet_resnet", _IMAGENET, 21_797_672, 3_663_761_408,
                 "ImageNet ResNet of basic blocks; torchvision's names", 1000),
    Architecture("resnet50", "imagenet_resnet", _IMAGENET, 25_557_032, 4_089_184_256,
                 "ImageNet ResNet of bottleneck blocks", 1000),
    Architecture("resnet101", "imagenet_resnet", _IMAGENET, 44_549_160, 7_801_405_440,
                 "the same, 23 blocks in stage 3", 1000),
    Architecture("resnet152", "imagenet_resnet", _IMAGENET, 60_192_808, 11_513_626_624,
                 "the same, 8 and 36 blocks in stages 2 and 3", 1000),
    Architecture("separable-resnet34", "separable", _IMAGENET, 3_109_434, 464_276_224,
                 "ResNet-34 of separable residual blocks with a light stem", 1000),
)
# fmt: on
ARCHITECTURES: dict[str, Architecture] = {each.name: each for each in _ALL}
