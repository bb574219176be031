"""Classes of the positions in a sample: of pixels, of tokens, of the tokens that come next.

| labels                                   | output                         | what has a class |
|------------------------------------------|--------------------------------|------------------|
| integers [N, T]                          | [N, T, C]                      | tokens           |
| none, or the input's [N, T], some below 0 | [N, T, C]                     | next tokens      |
| integers [N, ...]                        | [N, C, ...], one logit C = 1   | pixels           |

As `--metric` has them (miou, perplexity): labels below 0 are left out, of pixels also 255, and scores of
pixels at another resolution are interpolated. The mean is over all that count in a step of one process.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional as F

from nncompress.analysis.labels import is_one_number, two_class_labels
from nncompress.analysis.metrics.sequences import repeats, tokens_of
from nncompress.data import Batch
from nncompress.errors import DataError

LEFT_OUT = -100  # as torch's cross-entropy has it
_VOID = 255  # pixels without a class
_INTERPOLATED = {3: "linear", 4: "bilinear", 5: "trilinear"}


def positions_of(output: Tensor, batch: Batch) -> str | None:
    """What has a class of its own: "pixels", "tokens" or "next tokens"; None: nothing within a sample."""
    labels, given = batch.labels, tokens_of(batch)
    if not output.is_floating_point() or (labels is not None and labels.is_floating_point()):
        return None
    of_tokens = output.dim() == 3 and given is not None and given.shape == output.shape[:2]
    if given is not None and of_tokens and (labels is None or repeats(labels, given)):
        return "next tokens"
    if labels is None or labels.dim() < 2:
        return None
    if labels.shape == output.shape[:2] and output.dim() == 3:
        return "tokens"
    alike = labels.shape == output.shape[:1] + output.shape[2:]
    return "pixels" if alike or (output.dim() == labels.dim() + 1 and output.dim() in (4, 5)) else None


def classes_of(positions: str, output: Tensor, batch: Batch, origin: str, first_sample: int) -> Tensor:
    """The class of every position, `LEFT_OUT` where it counts for nothing.

    Raises:
        DataError: a class that the output has no score for; names the sample, the batch's first being
            `first_sample`.
    """
    labels = batch.labels
    if positions == "next tokens" and labels is None:
        labels = tokens_of(batch)
    assert labels is not None
    if positions == "next tokens":
        labels = F.pad(labels[:, 1:].long(), (0, 1), value=LEFT_OUT)
    scores = output.shape[1 if positions == "pixels" else 2]
    most = max(scores, 2)  # one logit tells two classes apart
    absent = (labels < 0) | ((labels == _VOID) if positions == "pixels" and most <= _VOID else False)
    beyond = ((labels >= most) & ~absent).flatten(1).any(1)
    if beyond.any():
        place = int(beyond.int().argmax())
        raise DataError(
            f"{origin}: sample {first_sample + place} has a label that the model has no output for",
            got=f"label {int(labels[place].masked_fill(absent[place], 0).max())}, of {positions}",
            expected=f"0 to {most - 1}, or -100 for what is left out",
            remedy="use data with the classes the model was trained on",
        )
    return labels.long().masked_fill(absent, LEFT_OUT)


def scores_of(positions: str, output: Tensor, classes: Tensor) -> Tensor:
    """The output as [N, C, ...], at the resolution of the classes."""
    if positions != "pixels":
        return output.movedim(-1, 1)
    if output.shape[2:] == classes.shape[1:]:
        return output
    return F.interpolate(output, classes.shape[1:], mode=_INTERPOLATED[output.dim()])


def binary_cross_entropy(logits: Tensor, classes: Tensor, label_smoothing: float = 0.0) -> Tensor:
    """The sum of -log p over the classes 0 and 1 that are not left out, of a logit each.

    Args:
        label_smoothing: this share of each label is given to both classes alike.
    """
    counted = classes != LEFT_OUT
    logits = logits.reshape(classes.shape)[counted]
    wanted = classes[counted].to(logits.dtype) * (1 - label_smoothing) + label_smoothing / 2
    return F.binary_cross_entropy_with_logits(logits, wanted, reduction="sum")


def two_classes(output: Tensor, labels: Tensor | None, origin: str, first_sample: int) -> Tensor:
    """Labels 0 and 1, one for the single logit of each sample, [N].

    Raises:
        DataError: they are others, or the output is no single logit; names the sample.
    """
    if not is_one_number(output):
        raise DataError(
            f"{origin}: binary-cross-entropy needs one logit per sample",
            got=f"an output of shape {list(output.shape)}",
            expected="float [N] or [N, 1]",
            remedy="leave --loss out, which says what fits",
        )
    return two_class_labels(labels, origin, first_sample, "--task regression, where labels are amounts")
