"""Detection: mean average precision over IoU 0.50 … 0.95, as COCO defines it, by pycocotools."""

from __future__ import annotations

import contextlib
import io
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncompress.analysis.intervals import CONFIDENCE
from nncompress.analysis.metrics.base import Metric, Scores, check_pair
from nncompress.analysis.metrics.resampled import COPIES, NORMAL_95
from nncompress.data import Batch
from nncompress.errors import DataError
from nncompress.extras import need
from nncompress.results import Estimate

LEAST_SCORE, OVERLAP, MOST = 1e-3, 0.7, 100  # of what a head gives; COCO takes 100 of an image
_CANDIDATES = 3000  # of an image that are looked at, best first
COLUMNS = 6  # of labels: class, left, top, right, bottom, crowd


class MeanAveragePrecision(Metric):
    """Mean average precision of boxes at IoU 0.50 to 0.95, with labels [N, M, 6] of a YOLO or COCO folder.

    The output is either what a detector gives at its end, [N, K, 6] of left, top, right, bottom in pixels of
    the input, score, and class number; or a head's, [N, 4 + C, K] or [N, K, 4 + C] of centre x, y, width,
    height and a score per class, of which overlapping ones are left out here (IoU 0.7, a class by itself).
    """

    name, title = "map", "mAP"
    needs_labels = True

    def __init__(self) -> None:
        need("detection", "--metric map")

    def fits(self, output: Tensor, batch: Batch, classes: int | None) -> bool:
        labels = batch.labels
        if labels is None or labels.dim() != 3 or labels.shape[2] != COLUMNS:
            return False
        numbers = labels.is_floating_point() and output.is_floating_point()
        return numbers and output.dim() == 3 and max(output.shape[1:]) > 4

    def begin(self) -> Scores:
        return DetectionScores(self)


class DetectionScores:
    """Boxes found and boxes that are there, of every image; the interval is that of resampled images."""

    def __init__(self, metric: Metric) -> None:
        self.metric = metric
        self.samples = 0
        self._found: list[np.ndarray] = []  # [n, 6] each: left, top, right, bottom, score, class
        self._there: list[np.ndarray] = []  # [n, 6] each, as labels
        self._by_image: Any = None

    def add(self, output: Tensor, batch: Batch, origin: str) -> None:
        assert batch.labels is not None
        for answer, label in zip(output, batch.labels):
            rows = label[label[:, 0] >= 0].double().numpy()
            self._there.append(rows)
            self._found.append(boxes_of(answer, origin).numpy())
        self.samples += len(output)
        self._by_image = None

    @property
    def value(self) -> float:
        return self._precision(np.ones(self.samples, np.int64))

    def interval(self) -> Estimate:
        return self._spread(self.value, self.drawn())

    def less(self, other: Scores) -> Estimate:
        check_pair(self, other)
        assert isinstance(other, DetectionScores)
        return self._spread(self.value - other.value, self.drawn() - other.drawn())

    def drawn(self) -> np.ndarray:
        """The values of `COPIES` draws of the images, the same ones for every model (Poisson bootstrap)."""
        times = np.random.default_rng(0).poisson(1.0, size=(COPIES, self.samples))
        return np.array([self._precision(row) for row in times])

    def _spread(self, value: float, drawn: np.ndarray) -> Estimate:
        finite = drawn[np.isfinite(drawn)]
        if not np.isfinite(value) or len(finite) < 2:
            raise DataError("--metric map: no image has a box", remedy="data with objects in it")
        half = NORMAL_95 * float(np.std(finite, ddof=1))
        return Estimate(value, value - half, value + half, CONFIDENCE)

    def _precision(self, times: np.ndarray) -> float:
        """COCO's mean average precision where every image counts so often; NaN where none has a box."""
        if self._by_image is None:
            self._by_image = _evaluated(self._found, self._there)
        evaluation = self._by_image
        if evaluation is None:
            return float("nan")
        # One list per class, of all images in turn: an image that is drawn twice stands there twice.
        count = self.samples
        whole = evaluation.evalImgs
        order = np.repeat(np.arange(count), times)
        classes = len(whole) // count
        drawn = type(evaluation)()
        drawn.params = evaluation.params
        drawn.evalImgs = [whole[each * count + image] for each in range(classes) for image in order]
        drawn._paramsEval = type(evaluation.params)("bbox")
        drawn._paramsEval.__dict__.update(evaluation._paramsEval.__dict__)
        drawn.params.imgIds = drawn._paramsEval.imgIds = list(range(len(order)))
        if not len(order):
            return float("nan")
        with contextlib.redirect_stdout(io.StringIO()):
            drawn.accumulate()
        precision = drawn.eval["precision"]
        counted = precision[precision > -1]
        return float(counted.mean()) if counted.size else float("nan")


def boxes_of(answer: Tensor, origin: str = "the data") -> Tensor:
    """The boxes of one image, [n, 6]: left, top, right, bottom, score, class; at most 100, best first.

    Args:
        answer: [K, 6], [4 + C, K] or [K, 4 + C]; see `MeanAveragePrecision`.

    Raises:
        DataError: no form fits, or two do: the numbers do not tell which it is.
    """
    answer = answer.double()
    if answer.shape[1] == COLUMNS and _is_final(answer):
        kept = answer[answer[:, 4] > 0]
        return kept[kept[:, 4].argsort(descending=True)][:MOST]
    forms = [rows for rows in (answer.T, answer) if _is_head(rows)]
    if len(forms) != 1 and float(answer.abs().max()) > 0:
        raise DataError(
            f"{origin}: --metric map cannot tell which numbers are boxes",
            got=f"an output of shape {list(answer.shape)} per image",
            expected="[K, 6] of left, top, right, bottom, score, class, or [4 + C, K] of centre x, y, width, "
            "height in pixels and C scores from 0 to 1",
            remedy="--metric file.py:Name, a class with update and compute",
        )
    rows = forms[0] if forms else answer.new_zeros(0, 5)
    scores, classes = rows[:, 4:].max(1)
    order = scores.argsort(descending=True)[:_CANDIDATES]
    order = order[scores[order] > LEAST_SCORE]
    centre, half = rows[order, :2], rows[order, 2:4] / 2
    boxes = torch.cat(
        [centre - half, centre + half, scores[order, None], classes[order, None].double()], dim=1
    )
    return boxes[_apart(boxes)][:MOST]


def _is_final(answer: Tensor) -> bool:
    """The last column is class numbers, the one before it shares, and right and bottom come last."""
    classes, scores = answer[:, 5], answer[:, 4]
    whole = bool((classes == classes.round()).all()) and bool((classes >= -1).all())
    ordered = bool((answer[:, 2] >= answer[:, 0]).all()) and bool((answer[:, 3] >= answer[:, 1]).all())
    return whole and ordered and bool(((scores >= 0) & (scores <= 1)).all())


def _is_head(rows: Tensor) -> bool:
    """[K, 4 + C]: no size is negative, and what follows are shares."""
    if rows.shape[1] < 5:
        return False
    scores = rows[:, 4:]
    return bool((rows[:, 2:4] >= 0).all()) and bool(((scores >= 0) & (scores <= 1)).all())


def _apart(boxes: Tensor) -> Tensor:
    """The numbers of those boxes, best first, that no better one of their class overlaps."""
    width = boxes[:, :4].abs().max() * 2 + 1 if len(boxes) else 1
    corners = boxes[:, :4] + boxes[:, 5:] * width  # no two classes overlap
    area = (corners[:, 2:] - corners[:, :2]).clamp(min=0).prod(1)
    kept: list[int] = []
    for index in range(len(boxes)):
        if len(kept) == MOST:
            break
        others = corners[kept]
        low = torch.maximum(others[:, :2], corners[index, :2])
        size = torch.minimum(others[:, 2:], corners[index, 2:]) - low
        shared = size.clamp(min=0).prod(1)
        if not bool((shared > OVERLAP * (area[kept] + area[index] - shared)).any()):
            kept.append(index)
    return torch.tensor(kept, dtype=torch.int64)


def _evaluated(found: list[np.ndarray], there: list[np.ndarray]) -> Any:
    """pycocotools' evaluation of every image by itself; None where there is no box at all."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    annotations = [
        {
            "id": 1 + sum(len(rows) for rows in there[:image]) + place,
            "image_id": image,
            "category_id": int(row[0]),
            "bbox": [row[1], row[2], row[3] - row[1], row[4] - row[2]],
            "area": max((row[3] - row[1]) * (row[4] - row[2]), 1e-9),
            "iscrowd": int(row[5]),
        }
        for image, rows in enumerate(there)
        for place, row in enumerate(rows)
    ]
    if not annotations:
        return None
    results = [
        {
            "image_id": image,
            "category_id": int(row[5]),
            "bbox": [row[0], row[1], row[2] - row[0], row[3] - row[1]],
            "score": row[4],
        }
        for image, rows in enumerate(found)
        for row in rows
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = {
            "info": {},
            "images": [{"id": image} for image in range(len(there))],
            "categories": [{"id": each} for each in sorted({row["category_id"] for row in annotations})],
            "annotations": annotations,
        }
        truth.createIndex()
        answers = truth.loadRes(results) if results else COCO()
        if not results:
            answers.dataset = {**truth.dataset, "annotations": []}
            answers.createIndex()
        evaluation = COCOeval(truth, answers, "bbox")
        evaluation.params.areaRng, evaluation.params.areaRngLbl = [[0, 1e10]], ["all"]
        evaluation.params.maxDets = [MOST]
        evaluation.evaluate()
    return evaluation
