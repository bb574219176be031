"""Models and data as callers give them: opened, or taken as they are."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nncompress.analysis.answer import ANSWER, settle_answer
from nncompress.data import Dataset, open_data
from nncompress.data.sources.python import name_of
from nncompress.dtypes import dtype_name
from nncompress.errors import DataError, UsageError
from nncompress.ir import Model
from nncompress.ir.graph.inputs import sizes_of
from nncompress.ir.graph.table_rows import check_positions, table_rows
from nncompress.ir.stated_constants import split_constants
from nncompress.loading import Examples, load_model, load_module, parse_input, stated_form
from nncompress.loading.outline import outline as read_outline
from nncompress.loading.state_dict.shards import Checkpoint
from nncompress.memory import unbounded_memory
from nncompress.runtimes.free_sizes import guess_told

Notice = Callable[[str], None]
Input = str | Tensor | Sequence[Tensor]
GIVEN = "a path, or a torch.nn.Module"


def load(
    model: str | Path | torch.nn.Module,
    *,
    arch: str | None = None,
    weights: str | Path | None = None,
    weights_key: str | None = None,
    strict: bool = True,
    input: Input | None = None,
    data: Any = None,
    normalize: str | None = None,
    trust_pickle: bool = False,
    notice: Notice | None = None,
) -> Model:
    """Load a saved model (`.pt2`, `.onnx`, a pickled `nn.Module`, a state_dict with its architecture), or
    take a module in memory, which stays as it is.

    Args:
        arch: "file.py:factory" or "package.module:factory", called without arguments, for a state_dict.
        weights: the file of the weights, where `model` names an architecture ("timm:resnet18").
        weights_key: where a checkpoint holds the weights, keys joined by dots ("state_dict.student").
        strict: False: weights that are missing or unexpected are told to `notice` instead of refused.
        input: what it takes, where the model does not carry it: shapes such as "1x3x32x32", or example
            tensors, as forward() takes them; and inputs that are one number from now on: "sr=16000".
        data: samples to take the input's shape from, where neither model nor `input` says it.
        normalize: how its images are normalised ("imagenet", "m1,m2,m3/s1,s2,s3"); kept with the model.
        trust_pickle: allow a pickle to run code.
        notice: called with sentences that the user should read (a guessed input shape).

    Raises:
        NNCompressError: see `nncompress.loading`.
    """
    say = notice or (lambda sentence: None)
    module = model if isinstance(model, torch.nn.Module) else None
    if module is not None and any((arch, weights, weights_key, trust_pickle)):
        raise UsageError(
            "arch, weights, weights_key and trust_pickle are for files", got=f"a {type(model).__name__}"
        )
    if module is None and not isinstance(model, str | Path):
        remedy = ""
        if isinstance(model, type):
            remedy = f"the module itself, not its class: {model.__name__}(…)"
        elif isinstance(model, Mapping):
            remedy = "a module with these weights: module.load_state_dict(…)"
        raise UsageError("there is no model in this", got=type(model).__name__, expected=GIVEN, remedy=remedy)
    path = Path() if isinstance(model, torch.nn.Module) else Path(model)
    shapes, constants = split_constants(input) if isinstance(input, str) else (None, ())
    examples: Examples | None = _examples(input)
    drawn: list[Tensor] = []

    def samples(names: Sequence[str]) -> tuple[Tensor, ...]:
        with unbounded_memory():
            drawn[:] = _samples_as_examples(data, normalize, names, _spec(model))
        return tuple(drawn)

    if shapes is None and examples is None and data is not None:
        examples = samples
    try:
        if module is not None:
            loaded = load_module(
                module, input_shapes=shapes, example_inputs=examples, constants=constants, notice=say
            )
        else:
            loaded = load_model(
                path,
                arch=arch,
                weights=weights,
                weights_key=weights_key,
                strict=strict,
                input_shapes=shapes,
                trust_pickle=trust_pickle,
                example_inputs=examples,
                constants=constants,
                notice=say,
            )
    except UsageError as error:
        if not drawn or "does not run on an input" not in error.what:
            raise
        of = ", ".join(f"{dtype_name(t.dtype)}{list(t.shape[1:])}" for t in drawn)
        raise DataError(
            f"the samples of {_spec(data)} do not fit {_spec(model)}",
            got=f"samples of {of}: {error.got}",
            remedy="data the model takes; or --input, where it takes another shape than its file says",
        ) from error
    if normalize is not None:
        loaded.metadata["normalize"] = normalize
    if module is None and shapes is None and data is None:
        sizes = {d: n for s in loaded.inputs for d, n in zip(s.shape, loaded.concrete_shape(s, 1))}
        told = guess_told(path, loaded.inputs, {str(d): n for d, n in sizes.items()})
        if told is not None:
            say(told)
    return loaded


def outline(
    source: Checkpoint,
    *,
    data: Any,
    arch: str | None = None,
    input: str | None = None,
    normalize: str | None = None,
    notice: Notice,
) -> Model:
    """The network of a checkpoint without its weights, for inputs as `data` has them, or `input` says.

    Raises:
        NNCompressError: as of `nncompress.loading.outline`.
    """

    def samples(names: Sequence[str]) -> tuple[Tensor, ...]:
        return _samples_as_examples(data, normalize, names, str(source.path))

    stated, constants = split_constants(input)
    shapes = None if stated is None else parse_input(stated)
    how: Any = {"arch": arch, "input_shapes": shapes, "constants": constants}
    return read_outline(source, **how, examples=samples, notice=notice)


def dataset(
    spec: Any,
    model: Model,
    normalize: str | None = None,
    notice: Callable[[str], None] | None = None,
) -> Dataset:
    """Open data for `model`, normalised as the model remembers unless `normalize` says otherwise.

    The model remembers which of several outputs its labels fit, and the sizes of the samples where its own
    dims are dynamic.

    Args:
        notice: told which output that is, and what the data was taken for where it could be another thing.
    Raises:
        DataError: it cannot be read or does not fit the model's inputs.
    """
    if not isinstance(model, Model):
        raise UsageError(
            "data is opened for a loaded model",
            got=type(model).__name__,
            remedy="nncompress.load(…) makes one of a module or a file",
        )
    if isinstance(spec, Dataset):
        found = spec
    else:
        found = open_data(spec, model.inputs, normalize or model.metadata.get("normalize"))
    found.bound(table_rows(model))
    found.at_least(model.least_batch)
    if notice is not None:
        for assumption in found.assumptions():
            notice(assumption)
    sizes = sizes_of(model.inputs, [field.shape for field in found.inputs])
    check_positions(model, sizes, found.spec)
    model.sizes = {**model.sizes, **sizes}
    if settle_answer(model, found) and notice is not None:
        index = model.metadata[ANSWER]
        name = model.outputs[index]
        notice(f"labels fit output {index} of {len(model.outputs)} ({name}); --output-index says another")
    return found


def taken(model: Any, input: Input | None, data: Any, notice: Notice) -> Model:
    """The model of what was given: one with its graph and weights, or that of a module."""
    if isinstance(model, Model):
        if input is not None:
            raise UsageError("a loaded model knows its inputs", remedy="leave input out")
        shared = copy.copy(model)  # what data says of it is not written into the caller's own
        shared.metadata = dict(model.metadata)
        return shared
    if isinstance(model, str | Path):
        raise UsageError(
            "this takes a loaded model", got=str(model), remedy=f"nncompress.load({str(model)!r})"
        )
    known = data if isinstance(data, Dataset) else None
    return load(model, input=input, data=None if known else data, notice=notice)


def _examples(input: Input | None) -> tuple[Tensor, ...] | None:
    if input is None or isinstance(input, str):
        return None
    tensors = tuple(input) if isinstance(input, Iterable) and not isinstance(input, Tensor) else (input,)
    if not tensors or not all(isinstance(each, Tensor) for each in tensors):
        raise UsageError(
            "input is no shape and no tensors",
            got=str([type(each).__name__ for each in tensors]),
            expected='"1x3x32x32", or a tensor per argument, as forward() takes them',
        )
    if not all(each.dim() for each in tensors):
        raise UsageError(
            "input holds a single number (0-d), which is no input that data can have",
            got=", ".join(str(list(each.shape)) for each in tensors),
            expected="a tensor per argument, each with a dim of samples",
            remedy='fix it by its name, beside the shapes of the others: input="1x3x32x32,step=10"; or let '
            "forward() take one per sample",
        )
    if not all(each.numel() for each in tensors):
        raise UsageError(
            "input holds no numbers",
            got=", ".join(str(list(each.shape)) for each in tensors),
            expected="a tensor per argument, at least one sample along the first dim",
        )
    return tuple(each.detach().cpu() for each in tensors)


def _spec(given: Any) -> str:
    return str(given) if isinstance(given, str | Path) else name_of(given)


def _samples_as_examples(
    data: Any, normalize: str | None, names: Sequence[str], model: str
) -> tuple[Tensor, ...]:
    """Two samples of the data, an input of the model each of these names.

    Raises:
        DataError: the data has no samples, or not these inputs.
    """
    found = open_data(data, None, normalize, names)
    if len(names) > 1 and len(found.inputs) != len(names):
        raise DataError(
            f"{found.spec} does not hold the {len(names)} inputs that {model} takes",
            got=", ".join(field.name for field in found.inputs),
            expected=", ".join(names),
            remedy=f"name its arrays so, or say what the model takes: --input {stated_form(names)}",
        )
    for batch in found.batches(2, limit=2):
        return batch.inputs
    raise DataError(f"{found.spec} has no samples")
