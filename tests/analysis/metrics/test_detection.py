"""mAP: known values, both forms of output, and images drawn anew as pycocotools would count them."""

import numpy as np
import pytest
import torch

pytest.importorskip("pycocotools")

from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from nncompress.analysis.metrics.detection import boxes_of
from nncompress.analysis.metrics.registry import named_metric
from nncompress.data import Batch
from nncompress.errors import DataError


def labels_of(images, most):
    table = torch.full((len(images), most, 6), -1.0)
    for rows, each in zip(table, images):
        for row, (kind, *box) in zip(rows, each):
            row[:] = torch.tensor([kind, *box, 0])
    return table


def scored(output, labels):
    batch = Batch((torch.zeros(len(output), 3, 32, 32),), labels)
    metric = named_metric("map")
    metric.check(output, batch, "here", "")
    scores = metric.begin()
    for part in (slice(0, 2), slice(2, None)):
        if len(output[part]):
            scores.add(output[part], batch.part(part), "here")
    return scores


TWO = labels_of([[(0, 0, 0, 10, 10), (0, 20, 20, 30, 30)]], 3)


def test_average_precision_has_the_values_worked_out_by_hand():
    both = torch.tensor([[[0, 0, 10, 10, 0.9, 0], [20, 20, 30, 30, 0.8, 0]]])
    assert scored(both, TWO).value == pytest.approx(1)
    assert scored(both[:, :1], TWO).value == pytest.approx(51 / 101)  # recall 0, 0.01 … 0.5
    # overlaps by 2/3, which counts at thresholds 0.5, 0.55, 0.6 and 0.65
    shifted = both.clone()
    shifted[0, 1] = torch.tensor([22, 20, 32, 30, 0.8, 0])
    assert scored(shifted, TWO).value == pytest.approx((4 + 6 * 51 / 101) / 10)
    wrong = torch.cat([torch.tensor([[[40.0, 40, 50, 50, 0.99, 0]]]), both], 1)  # a false one ranks first
    assert scored(wrong, TWO).value == pytest.approx(2 / 3)
    assert scored(both * torch.tensor([1, 1, 1, 1, 1, 0]) + torch.tensor([0, 0, 0, 0, 0, 1]), TWO).value == 0


def random_case(seed):
    generator = np.random.default_rng(seed)
    images, answers = [], []
    for _ in range(6):
        corners = generator.uniform(0, 20, (4, 2))
        sizes = generator.uniform(4, 12, (4, 2))
        kinds = generator.integers(0, 3, 4)
        images.append([(k, *c, *(c + s)) for k, c, s in zip(kinds, corners, sizes)])
        moved = corners + generator.normal(0, 1, (4, 2))
        rows = [[*c, *(c + s), generator.uniform(0.1, 1), k] for k, c, s in zip(kinds, moved, sizes)]
        rows += [[*c, *(c + 5), generator.uniform(0, 0.6), 1] for c in generator.uniform(0, 20, (3, 2))]
        answers.append(rows)
    return torch.tensor(np.array(answers), dtype=torch.float32), labels_of(images, 5)


def by_pycocotools(output, labels, images):
    """The same by the form of files; the chosen images are there as often as they are named."""
    truth, answers = COCO(), []
    annotations = []
    for place, image in enumerate(images):
        for kind, left, top, right, bottom, _ in labels[image][labels[image][:, 0] >= 0].double().tolist():
            box = {"bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top)}
            box |= {"id": len(annotations) + 1, "image_id": place, "category_id": int(kind), "iscrowd": 0}
            annotations.append(box)
        for left, top, right, bottom, score, kind in output[image].double().tolist():
            answers.append({"bbox": [left, top, right - left, bottom - top], "score": score})
            answers[-1] |= {"image_id": place, "category_id": int(kind)}
    kinds = sorted({each["category_id"] for each in annotations})
    truth.dataset = {"images": [{"id": i} for i in range(len(images))], "annotations": annotations}
    truth.dataset |= {"categories": [{"id": kind} for kind in kinds], "info": {}}
    truth.createIndex()
    evaluation = COCOeval(truth, truth.loadRes(answers), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    return evaluation.stats[0]


@pytest.mark.parametrize("seed", [0, 1])
def test_values_of_draws_are_those_of_data_that_repeats_images(seed, capsys):
    output, labels = random_case(seed)
    scores = scored(output, labels)
    assert scores.value == pytest.approx(by_pycocotools(output, labels, range(6)), abs=1e-9)
    times = np.array([2, 0, 1, 3, 0, 1])
    expected = by_pycocotools(output, labels, np.repeat(np.arange(6), times).tolist())
    assert scores._precision(times) == pytest.approx(expected, abs=1e-9)
    estimate = scores.interval()
    assert estimate.low < estimate.value < estimate.high
    assert scores.less(scored(output, labels)).high == pytest.approx(0)
    capsys.readouterr()


def test_a_head_gives_what_its_boxes_give():
    output, labels = random_case(2)
    classes = torch.nn.functional.one_hot(output[..., 5].long(), 3) * output[..., 4:5]
    centre, size = (output[..., :2] + output[..., 2:4]) / 2, output[..., 2:4] - output[..., :2]
    head = torch.cat([centre, size, classes], 2)
    twice = torch.cat([head, head * torch.tensor([1] * 4 + [0.9] * 3)], 1)  # overlapping ones are left out
    final = scored(output, labels).value
    wide = torch.cat([twice, torch.zeros(6, 6, 7)], 1)
    assert scored(wide.transpose(1, 2), labels).value == pytest.approx(final)
    assert scored(wide, labels).value == pytest.approx(final)


def test_what_cannot_be_told_is_refused():
    logits = torch.cat([torch.full((20, 4), 9.0), torch.full((20, 3), -2.0)], 1)
    for answer in (torch.rand(7, 7), torch.rand(9, 7), logits):
        with pytest.raises(DataError, match="cannot tell which numbers are boxes"):
            boxes_of(answer)
    with pytest.raises(DataError, match="does not fit"):
        scored(torch.zeros(1, 3), TWO)
    with pytest.raises(DataError, match="no image has a box"):
        scored(torch.zeros(1, 4, 6), torch.full((1, 3, 6), -1.0)).interval()
