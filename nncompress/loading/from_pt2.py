"""A `.pt2` file to a `Model`: checked, wrapped, compared with its program, its records put back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from torch import Tensor

from nncompress.errors import ModelFileError
from nncompress.ir import Model
from nncompress.ir.formats.lookup import unpack
from nncompress.ir.formats.samples import from_text, samples_of
from nncompress.loading.compare import AsExported, check_graph_runs, compare_with_source, settle_sizes
from nncompress.loading.file_record import damaged, read_record
from nncompress.loading.module.drawn_inputs import settle_masks
from nncompress.loading.pt2.archive import read_pt2, read_samples
from nncompress.loading.random_numbers import refuse_random_numbers


def model_of_pt2(path: Path, notice: Callable[[str], None]) -> tuple[Model, bool]:
    """The model, and whether it is one of ours, which say where their records lie."""
    program, content = read_pt2(path, notice)
    placeholders = {node.name: node for node in program.graph.nodes if node.op == "placeholder"}
    values = [
        placeholders[name].meta["val"] for name in program.graph_signature.user_inputs if name in placeholders
    ]
    shapes = [value.shape for value in values if isinstance(value, Tensor)]
    record = read_record(content, path, shapes)
    model = Model.from_exported(
        program, history=record.history, metadata=record.metadata, inputs=record.inputs
    )
    refuse_random_numbers(model, path)
    if record.inputs is not None and (text := read_samples(path)):
        try:
            model.inputs = from_text(text, model.inputs, model.dynamic)
        except ValueError as error:
            raise damaged(path, str(error)) from error
    settle_sizes(model)
    settle_masks(model)
    if compare_with_source(model, AsExported(program), path, notice, batches=(2,)) is None:
        if samples_of(model.inputs):
            raise damaged(path, "samples on which the model does not run")
        check_graph_runs(model, path)
    try:
        unpack(model)
    except ValueError as error:
        raise ModelFileError(
            f"{path} is damaged: a packed weight does not unpack",
            got=str(error),
            remedy="copy or save the file again",
        ) from error
    if len(record.outputs) == len(model.outputs):
        model.outputs = record.outputs
    return model, record.inputs is not None
