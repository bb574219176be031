"""A teacher's answers, asked for once: without augmentation every epoch shows it the same samples.

They are told apart by what the model receives, and asked for in the order of the data before the first step:
so a run that was interrupted goes on with the same numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from nncompress.analysis.sample_keys import sample_keys
from nncompress.data import Batch, Dataset
from nncompress.progress import Progress
from nncompress.train.graph import channels_last
from nncompress.train.settings import TrainSettings

ASKING = "the teacher's answers"  # what progress says meanwhile
MOST = 2**28  # bytes of answers that are kept
ROUNDING = 0.01  # relative distance of two answers to the same sample, in bfloat16 at worst

Answers = Callable[[Sequence[Tensor]], Sequence[Tensor]]


def room_for(answer: Tensor, samples: int) -> bool:
    """Whether as many answers as the `samples` of a run are kept, by those [N, ...] to some of them."""
    return answer.numel() * torch.float32.itemsize * samples <= MOST * len(answer)


class Remembered:
    """What a teacher answers to the samples of one run.

    Args:
        device: where the teacher is.
    """

    def __init__(
        self, dataset: Dataset, batch: int, limit: int | None, device: torch.device, progress: Progress
    ) -> None:
        self._dataset, self._batch, self._limit = dataset, batch, limit
        self._device, self._progress = device, progress
        self._rows: dict[bytes, int] | None = None
        self._table = torch.zeros(0)

    @classmethod
    def of_run(
        cls,
        dataset: Dataset,
        settings: TrainSettings,
        processes: int,
        device: torch.device,
        progress: Progress,
    ) -> Remembered | None:
        """None where it would be asked no less: one epoch, samples that augmentation changes, layers whose
        outputs are wanted too, processes that share the samples."""
        again = settings.epochs > 1 and not settings.augments and not settings.match and processes == 1
        return cls(dataset, settings.batch, settings.limit, device, progress) if again else None

    def of(self, inputs: Sequence[Tensor], ask: Answers) -> Tensor | None:
        """The answers to a batch; None where they are not kept."""
        if self._rows is None:
            self._rows = self._asked(ask)
        if not self._rows:
            return None
        rows = [self._rows.get(key) for key in sample_keys(Batch(tuple(x.cpu() for x in inputs), None))]
        known = [row for row in rows if row is not None]
        return self._table[known].to(self._device) if len(known) == len(rows) else None

    def _asked(self, ask: Answers) -> dict[bytes, int]:
        """Which row of the table each sample's answer is; empty where there is no such table: an answer is
        not that of its sample alone, or there would be too many."""
        planned = self._dataset.planned_samples(self._limit)
        rows: dict[bytes, int] = {}
        answers: list[Tensor] = []
        seen = 0
        for batch in self._dataset.batches(self._batch, self._limit):
            self._progress.step(ASKING, seen, planned)
            found = ask(tuple(channels_last(x.to(self._device)) for x in batch.inputs))[0]
            if not seen and not self._alone(batch, found, ask):
                return {}
            if not room_for(found, max(planned or 0, seen + len(batch))):
                return {}
            answers.append(found.float().cpu())
            rows |= {key: seen + number for number, key in enumerate(sample_keys(batch))}
            seen += len(batch)
        self._table = torch.cat(answers) if answers else self._table
        return rows

    def _alone(self, batch: Batch, found: Tensor, ask: Answers) -> bool:
        """Whether samples lie along the first dim of the inputs and of the answer, and each half of them,
        drawn at random, is answered as it was among all: not by what else is in the batch, before, behind or
        beside it, and not by chance."""
        if batch.dims or found.dim() == 0 or len(found) != len(batch):
            return False
        half = max(len(batch) // 2, self._dataset.least_batch)
        if self._dataset.fixed_batch or half >= len(batch):
            return False
        order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
        return all(self._alike(batch, found, part, ask) for part in (order[:half], order[-half:]))

    def _alike(self, batch: Batch, found: Tensor, part: Tensor, ask: Answers) -> bool:
        again = ask(tuple(channels_last(x[part].to(self._device)) for x in batch.inputs))[0]
        wanted = found[part.to(found.device)]
        return again.shape == wanted.shape and _close(again.float(), wanted.float())


def _close(answers: Tensor, others: Tensor) -> bool:
    """Of each sample [N, ...]; what is not finite is where it was."""
    if not torch.equal(answers.isfinite(), others.isfinite()):
        return False
    difference, size = ((x.nan_to_num(0, 0, 0)).flatten(1).norm(dim=1) for x in (answers - others, others))
    return bool((difference <= ROUNDING * size).all())
