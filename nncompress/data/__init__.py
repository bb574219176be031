"""Evaluation, calibration and training data: what `--data` takes.

    open_data("val.npz", model.inputs)                     arrays x, y
    open_data("parts/", model.inputs)                      a folder of such files, or part-*.npz
    open_data("table.csv?x=a,b&y=kind", model.inputs)      columns; also .tsv, .jsonl, .parquet
    open_data("set/?split=train", model.inputs)            a folder that datasets.save_to_disk wrote
    open_data("val.pt", model.inputs)                      tensors that torch.save wrote
    open_data("photos/", model.inputs, "imagenet")         a folder of images by class, or images/ and masks/
    open_data("sounds/", model.inputs)                     a folder of .wav files by class
    open_data("clips/?vocabulary=vocab.json", ...)         a folder of .wav files, a .txt beside each
    open_data("mnist:DIR?split=train", model.inputs)       IDX files, gzipped or not
    open_data("cifar10:DIR", model.inputs)                 the official batches, or tars of images by class
    open_data("package.module:function", model.inputs)     your own code

Every source becomes the same thing: a `Dataset` that streams batches the model takes as they are.
"""

from __future__ import annotations

from nncompress.data.dataset import Batch, Dataset
from nncompress.data.fit import ExpectedInput
from nncompress.data.normalization import Normalization
from nncompress.data.source import Field
from nncompress.data.spec import open_data

__all__ = ["Batch", "Dataset", "ExpectedInput", "Field", "Normalization", "open_data"]
