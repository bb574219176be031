"""An exported ONNX file in ONNX Runtime: opened, run, compared with the graph."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncompress.errors import UnsupportedError
from nncompress.export import verify
from nncompress.export.verify import Comparison
from nncompress.ir import Model


def compare(model: Model, path: Path) -> Comparison:
    """See `nncompress.export.verify.compare`.

    Raises:
        UnsupportedError: ONNX Runtime cannot load the file; the message names the op.
        VerificationError: the outputs differ by more than the tolerance for the model's precision.
    """
    import onnxruntime

    session = open_session(path)
    return verify.compare(
        model, lambda inputs: run(session, inputs), f"onnxruntime {onnxruntime.__version__}"
    )


def open_session(path: Path, save_to: Path | None = None) -> Any:
    """An ONNX Runtime session on the CPU, silent, all of its optimisations on.

    Args:
        save_to: write the graph after optimisation there (before the layout of float kernels is chosen).

    Raises:
        UnsupportedError: it has no implementation of an op in the file.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    if save_to is not None:
        options.optimized_model_filepath = str(save_to)
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # the runtime's own exception classes share no base but Exception
        text = str(error)
        op = re.search(r"implementation for (\w+)\(", text) or re.search(r"Op \((\w+)\)", text)
        raise UnsupportedError(
            f"ONNX Runtime on this machine cannot run the op {op.group(1)} of this model"
            if op
            else "ONNX Runtime cannot load the exported model",
            got=text.splitlines()[0][:300],
            remedy="keep it as .pt2, or replace the op in the model",
        ) from error


def run(session: Any, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    """Outputs for positional inputs.

    Raises:
        UnsupportedError: a kernel of the runtime refuses what it is given.
    """
    wanted = [value.name for value in session.get_inputs()]
    arrays = {name: tensor.contiguous().numpy() for name, tensor in zip(wanted, inputs, strict=True)}
    try:
        results = session.run(None, arrays)
    except Exception as error:  # the runtime's own exception classes share no base but Exception
        raise UnsupportedError(
            "ONNX Runtime loads the exported model and then cannot run it",
            got=str(error).splitlines()[0][:300],
            remedy="keep it as .pt2",
        ) from error
    return [torch.from_numpy(np.array(array)) for array in results]
