"""The kinds of data that `--data` takes, in one table: what is asked for is of the first that claims it."""

from __future__ import annotations

from nncompress.data.kind import Kind
from nncompress.data.sources import cifar10, columns, mnist, npz, python, sounds, tensors, transcripts
from nncompress.data.sources.pictures import boxes, images, masks

KINDS: tuple[Kind, ...] = (
    npz.KIND,
    transcripts.TABLE,
    columns.TEXTS,
    columns.COLUMNS,
    tensors.KIND,
    masks.KIND,
    boxes.YOLO,
    boxes.COCO,
    transcripts.FOLDER,
    sounds.KIND,
    npz.SHARDS,
    images.KIND,
    mnist.KIND,
    cifar10.KIND,
    python.ADDED,
    python.CODE,
)
FORMS = "; ".join(kind.form for kind in KINDS if kind.form)
