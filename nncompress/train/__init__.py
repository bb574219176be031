"""Training of any loaded model: from scratch, fine-tuning, distillation.

    settings = TrainSettings(epochs=5, lr=0.01)
    trained, result = train(model, open_data("train.npz", model.inputs), settings)

| module        | one idea                                                                     |
|---------------|------------------------------------------------------------------------------|
| `settings`    | the options                                                                  |
| `loop`        | epochs, checkpoints, log                                                     |
| `run`         | one step; what a run consists of                                             |
| `graph`       | the training-mode graph; which parameters train, are penalised, stay zero    |
| `quantized`   | quantization-aware training: float copies of int8 weights                    |
| `precision`   | 16-bit arithmetic                                                            |
| `objective`   | task, with or without a teacher; penalties                                   |
| `teacher`     | distillation: answers and features to imitate                                |
| `schedule`    | learning rate of a step                                                      |
| `augment`     | random changes to images                                                     |
| `validation`  | held-out loss and accuracy                                                   |
| `growth`      | add nodes when the loss stops falling                                        |
| `optimizer`   | the optimizer, and its state over a growth                                   |
| `checkpoint`  | continue a killed run to the same result                                     |
| `distributed` | several processes                                                            |
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from nncompress.train.growth.settings import GrowSettings
from nncompress.train.settings import TrainSettings

if TYPE_CHECKING:
    from nncompress.train.distributed import Group, process_group
    from nncompress.train.loop import train
    from nncompress.train.state import TrainResult

__all__ = ["Group", "GrowSettings", "TrainResult", "TrainSettings", "process_group", "train"]

_LAZY = {"Group": "distributed", "process_group": "distributed", "train": "loop", "TrainResult": "state"}


def __getattr__(name: str) -> Any:  # the command line reads the options without importing torch
    import importlib

    if name not in _LAZY:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_LAZY[name]}"), name)
