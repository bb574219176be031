"""The options of training: flags of `train` and `cycle`, and what a model's history records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from nncompress.errors import UsageError
from nncompress.options import Options, option


@dataclass(frozen=True)
class TrainSettings(Options):
    """How a model is trained. The defaults fine-tune: a small rate that falls to zero.

    Raises:
        UsageError: an option is out of bounds, or two of them do not go together.
    """

    name = "train"

    epochs: int = option(10, least=1, help="passes over the data")
    batch: int = option(128, least=1, help="samples per step, of all processes together")
    limit: int | None = option(None, least=1, help="samples per epoch [default: all]")
    task: Literal["auto", "classification", "regression", "reconstruction"] = option(
        "auto", help="what is learnt; auto tells from the labels and the output"
    )
    loss: Literal["auto", "cross-entropy", "binary-cross-entropy", "mse", "rmse"] = option(
        "auto", help="auto: cross-entropy for classification, else mse; binary-… is of one logit"
    )
    metric: str | None = option(
        None,
        metavar="NAME",
        help="also measured on --val, decides --patience: f1, miou, map, FILE.py:NAME … (see eval)",
    )
    label_smoothing: float = option(0.0, least=0, below=1, help="share of cross-entropy given to all classes")

    optimizer: Literal["sgd", "adam", "adamw"] = option("sgd", help="sgd has momentum")
    lr: float = option(0.01, above=0, help="learning rate, at its highest")
    momentum: float = option(0.9, least=0, below=1, help="of sgd")
    nesterov: bool = option(False, help="Nesterov's momentum")
    weight_decay: float = option(0.0, least=0, help="of all trained parameters; decoupled in adamw")
    clip: float | None = option(None, above=0, help="bound on the norm of the gradient")

    schedule: Literal["constant", "step", "cosine", "one-cycle"] = option(
        "cosine", help="how the learning rate moves; cosine falls to zero, one-cycle rises first"
    )
    milestones: tuple[str, ...] = option(
        (), metavar="EPOCH", help="step: epochs after which the rate is multiplied by --gamma (repeatable)"
    )
    gamma: float = option(0.1, above=0, below=1, help="step: factor at each milestone")
    warmup: float = option(0.0, least=0, help="epochs in which the rate rises from zero")

    l1: float = option(0.0, least=0, help="add L1 * sum |w| to the loss")
    l2: float = option(0.0, least=0, help="add L2 / 2 * sum w² to the loss")
    regularize: tuple[str, ...] = option(
        (), metavar="PATTERN", help="parameters under --l1 and --l2 [default: the weights of all layers]"
    )
    freeze: tuple[str, ...] = option(
        (), metavar="PATTERN", help="parameters that stay as they are, e.g. 'layer1.*' (repeatable)"
    )
    unfreeze: tuple[str, ...] = option(
        (), metavar="EPOCH", help="epoch after which a --freeze ends: one for each in turn, or one for all"
    )
    dense: bool = option(False, help="let the zeros that prune made grow again")

    temperature: float = option(4.0, above=0, help="softens both models' scores (with --teacher)")
    teacher_weight: float = option(
        0.9, least=0, most=1, help="share of the teacher's answers in the loss; the labels have the rest"
    )
    match: tuple[str, ...] = option(
        (), metavar="LAYER", help="layers whose outputs follow the teacher's (repeatable)"
    )
    match_weight: float = option(1.0, above=0, help="weight of --match against the rest of the loss")

    crop: int = option(0, least=0, help="shift images by up to so many pixels (pad, then crop at random)")
    flip: bool = option(False, help="mirror half of the images")
    brightness: float = option(0.0, least=0, below=1, help="scale brightness by 1 ± up to this")
    contrast: float = option(0.0, least=0, below=1, help="scale contrast by 1 ± up to this")

    patience: int | None = option(
        None, least=1, help="stop after so many epochs without improvement, and keep the best"
    )
    min_improvement: float = option(
        0.001, least=0, below=1, help="relative fall of the loss that counts as improvement"
    )
    precision: Literal["fp32", "bf16", "fp16"] = option(
        "fp32", help="of matrix products; fp16 is for GPUs, bf16 for CPUs that have it too"
    )
    device: Literal["auto", "cpu", "cuda"] = option("auto", help="auto: cuda where there is one")
    seed: int = option(0, least=0, help="of everything random")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.milestones and self.schedule != "step":
            raise UsageError(
                "train: --milestones belong to --schedule step", got=f"--schedule {self.schedule}"
            )
        if self.schedule == "step" and not self.milestones:
            raise UsageError("train: --schedule step needs --milestones", remedy="--milestones 30")
        if self.task == "classification" and self.loss in ("mse", "rmse"):
            raise UsageError(
                "train: classification has no such loss",
                got=self.loss,
                expected="cross-entropy or binary-cross-entropy",
            )
        if self.task in ("regression", "reconstruction") and self.loss.endswith("cross-entropy"):
            raise UsageError(f"train: {self.task} has no such loss", got=self.loss, expected="mse or rmse")
        self.milestone_epochs()
        if len(self.unfreeze) not in (0, 1, len(self.freeze)) or (self.unfreeze and not self.freeze):
            raise UsageError(
                "train: --unfreeze says when each --freeze ends",
                got=f"{len(self.unfreeze)} for {len(self.freeze)}",
                expected="one for each, or one for all",
            )
        self.frozen(0)

    def frozen(self, epoch: int) -> tuple[str, ...]:
        """The patterns of --freeze that hold after so many epochs.

        Raises:
            UsageError: an epoch is no number.
        """
        try:
            until = [int(text) for text in self.unfreeze]
        except ValueError:
            raise UsageError("train: --unfreeze is not a number", got=", ".join(self.unfreeze)) from None
        if len(until) == 1:
            until *= len(self.freeze)
        return tuple(p for p, end in zip(self.freeze, until) if epoch < end) if until else self.freeze

    def milestone_epochs(self) -> tuple[float, ...]:
        """The milestones as numbers, in order.

        Raises:
            UsageError: one is no number.
        """
        try:
            return tuple(sorted(float(m) for text in self.milestones for m in text.split(",")))
        except ValueError:
            raise UsageError("train: --milestones is not a number", got=", ".join(self.milestones)) from None

    @property
    def augments(self) -> bool:
        return bool(self.crop or self.flip or self.brightness or self.contrast)
