"""Distillation: the answers and the features of a trained model are imitated."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from nncompress.analysis.answer import ANSWER, answer_index, known_answer
from nncompress.data.normalization import parse_normalization
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.train.graph import channels_last, lay_out, layer_output, training_graph
from nncompress.train.loss.remembered import Remembered
from nncompress.train.precision import Precision
from nncompress.train.settings import TrainSettings

Shape = tuple[int | str, ...]


class Teacher:
    """A copy of `model` in evaluation mode, on the student's inputs.

    Args:
        remembered: of the samples that are learnt; None: every step asks it anew.

    Raises:
        UsageError: its inputs, outputs or layers to match are not shaped as the student's, or it takes images
            that are normalised otherwise.
    """

    def __init__(
        self,
        model: Model,
        student: Model,
        settings: TrainSettings,
        precision: Precision,
        device: torch.device,
        remembered: Remembered | None = None,
    ) -> None:
        copied = model.copy()
        if known_answer(copied) is None and copied.outputs == student.outputs:
            copied.metadata[ANSWER] = known_answer(student)  # the output of the same name
        _refuse_other_shapes(copied, student)
        _refuse_other_pixels(copied, student)
        _refuse_other_layers(copied, student, settings.match)
        self.temperature, self.matched, self.precision = settings.temperature, len(settings.match), precision
        lay_out(copied, channels_last)
        self.graph = training_graph(copied, training=False, matched=settings.match).to(device)
        self._remembered = remembered

    def losses(
        self, inputs: Sequence[Tensor], output: Tensor, features: Sequence[Tensor], scores: bool
    ) -> tuple[Tensor, Tensor | None]:
        """How far the student is from the answers, and from the features where there are any to match.

        Args:
            scores: outputs are scores of classes.
        """
        answers = self._answers(inputs)
        imitated = imitation(output, answers[0].float(), self.temperature, scores)
        return imitated, feature_distance(features, answers[-self.matched :]) if self.matched else None

    def _answers(self, inputs: Sequence[Tensor]) -> Sequence[Tensor]:
        """Its output, and those of the layers to match."""
        if self._remembered is not None:
            known = self._remembered.of(inputs, self._given)
            if known is not None:
                return (known,)
        return self._given(inputs)

    def _given(self, inputs: Sequence[Tensor]) -> tuple[Tensor, ...]:
        with torch.no_grad(), self.precision.forward():
            found: tuple[Tensor, ...] = self.graph(*inputs)
        return found


def imitation(student: Tensor, teacher: Tensor, temperature: float, classification: bool) -> Tensor:
    """T² KL(teacher || student) of the softened scores (Hinton, Vinyals & Dean 2015), else their MSE."""
    if not classification:
        return F.mse_loss(student, teacher)
    soft = F.log_softmax(student / temperature, 1)
    wanted = F.log_softmax(teacher / temperature, 1)
    return F.kl_div(soft, wanted, reduction="batchmean", log_target=True) * temperature**2


def feature_distance(student: Sequence[Tensor], teacher: Sequence[Tensor]) -> Tensor:
    """Mean over layers of |s − t|² / |t|²: layers of every scale count alike."""
    parts = [
        (s.float() - t.float()).square().mean() / t.float().square().mean().clamp_min(1e-12)
        for s, t in zip(student, teacher, strict=True)
    ]
    return torch.stack(parts).mean()


def _refuse_other_shapes(teacher: Model, student: Model) -> None:
    """What both take, and their answers, are shaped alike; a dynamic dim fits any.

    Raises:
        UsageError: they are not.
    """
    for what, here, there in (
        ("takes other inputs", [s.shape for s in student.inputs], [s.shape for s in teacher.inputs]),
        ("gives other outputs", [_answer(student)], [_answer(teacher)]),
    ):
        if len(here) != len(there) or not all(map(_alike, here, there)):
            raise UsageError(
                f"train: the teacher {what} than the model",
                got=f"{_of_one_sample(there)} there, {_of_one_sample(here)} here",
                expected="two models for one task, e.g. a pruned one and its original",
            )


def _answer(model: Model) -> Shape:
    return model.output_shapes()[answer_index(model)]


def _alike(one: Shape, other: Shape) -> bool:
    pairs = zip(one[1:], other[1:])
    return len(one) == len(other) and all(
        a == b or isinstance(a, str) or isinstance(b, str) for a, b in pairs
    )


def _of_one_sample(shapes: Sequence[Shape]) -> str:
    return ", ".join("×".join(map(str, shape[1:])) or "one number" for shape in shapes)


def _refuse_other_pixels(teacher: Model, student: Model) -> None:
    """Both models are given the same batch, so they take images normalised alike, where they remember how.

    Raises:
        UsageError: they do not.
    """
    here, there = (model.metadata.get("normalize") for model in (student, teacher))
    if here and there and parse_normalization(here) != parse_normalization(there):
        raise UsageError(
            "train: the teacher takes images normalised otherwise than the model",
            got=f"{there} there, {here} here",
            expected="two models trained on the same kind of input",
        )


def _refuse_other_layers(teacher: Model, student: Model, names: Sequence[str]) -> None:
    """Layers to be matched exist in both and have outputs of one shape.

    Raises:
        UsageError: they do not.
    """
    for name in names:
        shapes = [tuple(layer_output(m, name).meta["val"].shape[1:]) for m in (student, teacher)]
        if shapes[0] != shapes[1]:
            raise UsageError(
                f"train: the outputs of --match {name} differ in shape",
                got=f"{list(shapes[0])} here, {list(shapes[1])} in the teacher",
                remedy="match a layer whose nodes were not pruned",
            )
