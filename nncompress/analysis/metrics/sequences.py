"""Sequences: of tokens that a language model continues, of symbols that a recogniser reads."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncompress.analysis.metrics.summed import MeanMetric
from nncompress.data import Batch
from nncompress.errors import DataError


class Perplexity(MeanMetric):
    """Exponential of the mean negative log-likelihood per token, of scores [N, T, V].

    Labels [N, T] are the right token of every position; below 0 they are left out. Where there are none, or
    they are the input tokens themselves, position t is held against input token t + 1. Positions that an
    input with `mask` in its place marks with 0 cannot be told here: give labels of -100 there.
    """

    name, title = "perplexity", "perplexity"
    share = False
    higher_is_better = False
    needs_labels = False
    masked = True

    def fits(self, output: Tensor, batch: Batch, classes: int | None) -> bool:
        if not output.is_floating_point() or output.dim() != 3:
            return False
        tokens = batch.labels if batch.labels is not None else tokens_of(batch)
        return tokens is not None and tokens.shape == output.shape[:2] and not tokens.is_floating_point()

    def sums(self, output: Tensor, batch: Batch, origin: str, first_sample: int) -> np.ndarray:
        tokens = tokens_of(batch)
        labels = batch.labels
        if labels is None or (tokens is not None and repeats(labels, tokens)):
            labels = tokens if labels is None else labels
            assert labels is not None
            output, labels = output[:, :-1], labels[:, 1:]
        counted = labels >= 0
        if labels.numel() and int(labels.max()) >= output.shape[2]:
            raise DataError(
                f"{origin}: a label names a token that the model has no score for",
                got=f"token {int(labels.max())}",
                expected=f"0 to {output.shape[2] - 1}",
            )
        likely = torch.log_softmax(output.double(), dim=2)
        surprise = -likely.gather(2, labels.clamp(min=0)[..., None])[..., 0]
        totals = [torch.where(counted, surprise, 0.0).sum(1), counted.sum(1).double()]
        return torch.stack(totals, dim=1).numpy()

    def value(self, sums: np.ndarray) -> np.ndarray:
        with np.errstate(over="ignore"):
            return np.exp(super().value(sums))


class ErrorRate(MeanMetric):
    """Word error rate: insertions, deletions and substitutions per symbol of the labels.

    Labels [N, L] are symbol numbers, padded with numbers below 0. The answer is symbol numbers [N, T], or
    scores [N, T, C] of which symbol 0 is the blank: the best at every step, repeats merged, blanks dropped
    (greedy decoding of CTC, Graves et al. 2006). Of transcripts words are counted, in the data's vocabulary,
    which says which symbol is the blank; the scores may be [N, C, T], too.
    """

    name, title = "wer", "WER"
    higher_is_better = False
    masked = True
    BLANK = 0

    def fits(self, output: Tensor, batch: Batch, classes: int | None) -> bool:
        labels = batch.labels
        if labels is None or labels.is_floating_point() or labels.dim() != 2:
            return False
        return output.dim() == (3 if output.is_floating_point() else 2)

    def check(self, output: Tensor, batch: Batch, origin: str, remedy: str) -> None:
        super().check(output, batch, origin, remedy)
        if batch.vocabulary is not None and output.is_floating_point():
            symbols = len(batch.vocabulary.symbols)
            if symbols not in output.shape[1:]:
                raise DataError(
                    f"{origin}: the model scores another number of symbols than the vocabulary has",
                    got=f"scores {list(output.shape)}",
                    expected=f"{symbols} at each step",
                    remedy="its own vocabulary; with &blank=first or &blank=last where that lacks the blank",
                )

    def sums(self, output: Tensor, batch: Batch, origin: str, first_sample: int) -> np.ndarray:
        assert batch.labels is not None
        spelled = batch.vocabulary
        if output.is_floating_point():
            if spelled is not None and output.shape[2] != len(spelled.symbols):
                output = output.transpose(1, 2)
            blank = self.BLANK if spelled is None else spelled.blank
            rows = [torch.unique_consecutive(best) for best in output.argmax(2)]
        else:
            blank, rows = -1, list(output)
        answers: list[list[Any]] = [[s for s in row.tolist() if s >= 0 and s != blank] for row in rows]
        wanted: list[list[Any]] = [[s for s in row.tolist() if s >= 0] for row in batch.labels]
        if spelled is not None:
            answers = [spelled.words(spelled.text(row)) for row in answers]
            wanted = [spelled.words("".join(map(chr, row))) for row in wanted]
        return np.array([[edits(a, b), len(b)] for a, b in zip(answers, wanted)], np.float64)


def edits(answer: list[Any], wanted: list[Any]) -> int:
    """The fewest insertions, deletions and substitutions that make one of the other (Levenshtein 1966)."""
    row = list(range(len(wanted) + 1))
    for i, symbol in enumerate(answer, 1):
        corner, row[0] = row[0], i
        for j, other in enumerate(wanted, 1):
            corner, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, corner + (symbol != other))
    return row[-1]


def tokens_of(batch: Batch) -> Tensor | None:
    """The first input of integers [N, T], samples first."""
    return next((x for x in batch.samples_first() if not x.is_floating_point() and x.dim() == 2), None)


def repeats(labels: Tensor, tokens: Tensor) -> bool:
    """Whether labels repeat the tokens, but for those that are left out."""
    return labels.shape == tokens.shape and bool(((labels == tokens) | (labels < 0)).all())
