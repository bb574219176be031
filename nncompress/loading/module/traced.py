"""A module traced to a graph, on inputs that are stated, taken from data or inferred; compared with it."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from nncompress.dtypes import dtype_name
from nncompress.errors import UnsupportedError, UsageError
from nncompress.ir import InputSpec, Model
from nncompress.ir.edit.fixed_inputs import remembering
from nncompress.ir.graph.inputs import BATCH, with_batch_dims
from nncompress.ir.graph.sample_dims import settle_batch
from nncompress.ir.graph.stated_input import FORM, InputShape, matched, parse_input
from nncompress.ir.stated_constants import Constant, stated
from nncompress.ir.unchanged import unchanged
from nncompress.loading.compare import compare_with_source, run_source
from nncompress.loading.module.drawn_inputs import settle_masks
from nncompress.loading.module.dry_run import dry_run
from nncompress.loading.module.fixed_arguments import fix_arguments
from nncompress.loading.module.free_lengths import Length, with_free_lengths
from nncompress.loading.module.infer_input import (
    argument_names,
    example_from_shapes,
    infer_input,
    is_float,
    required_inputs,
    stated_form,
    with_dtypes,
)
from nncompress.loading.module.wrappers import take_out_wrappers
from nncompress.loading.random_numbers import refuse_random_numbers
from nncompress.loading.torchscript import AsScripted, GraphModule
from nncompress.memory import most_bytes

# tensors, or what gives those of the data that inputs of these names take
Examples = tuple[Tensor, ...] | Callable[[Sequence[str]], tuple[Tensor, ...]]


def traced(
    module: nn.Module,
    path: Path | str,
    input_shapes: str | Sequence[InputShape] | None,
    example_inputs: Examples | None,
    notice: Callable[[str], None],
    source: nn.Module | None = None,
    limits: Mapping[str, int] | None = None,
    lengths: Sequence[Length | None] | None = None,
) -> Model:
    """The graph of a module, compared with it, or with the source that it stands for.

    Args:
        limits: as in `example_from_shapes`.
        lengths: of each input, which stay free where the graph allows it.
    """
    take_out_wrappers(module)
    of_data = callable(example_inputs)  # which has its samples first; other tensors are what forward takes
    if callable(example_inputs):
        example_inputs = example_inputs(required_inputs(module)) if input_shapes is None else None
    with unchanged(module):
        inputs, dims = inputs_to_trace(module, input_shapes, example_inputs, notice, limits)
    _check_runs(module, inputs, path)

    def exported(sample_dims: Sequence[int | None] | None) -> Model:
        laid = inputs
        if of_data and example_inputs is not None and sample_dims is not None:
            laid = tuple(x.movedim(0, d) for x, d in zip(inputs, sample_dims) if d is not None)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = None
            if lengths is not None and any(lengths) and not any(sample_dims or ()):
                model = with_free_lengths(module, laid, lengths, notice)
            model = model or Model.from_module(module, laid, sample_dims=sample_dims)
        refuse_random_numbers(model, path)
        return model

    # time first: another dim that all inputs have, where the first turns out to be none of samples
    ranks = min((tensor.dim() for tensor in inputs), default=0)
    others = [partial(exported, [dim] * len(inputs)) for dim in range(1, ranks) if dims is None]
    first = exported(dims)
    if marked(input_shapes) and dims is not None:
        _check_marks(first, dims)
    model = settle_batch(first, notice, others, stated=marked(input_shapes), traced=True)
    settle_masks(model)
    compare_with_source(model, source or module, path, notice)
    return model


def _check_marks(model: Model, dims: Sequence[int | None]) -> None:
    """Refuse a B on a dim along which the graph takes one size only, and would have its samples elsewhere.

    Raises:
        UsageError: naming the input.
    """
    for spec, dim in zip(model.inputs, dims):
        if BATCH not in model.dynamic and dim is not None and spec.batch_dim != dim:
            raise UsageError(
                f"--input marks dim {dim} of {spec.name} as the batch, and the network takes one size there",
                got=str(spec),
                remedy="mark another dim with the B, or none: it is looked for",
            )


def _check_runs(module: nn.Module, inputs: tuple[Tensor, ...], path: Path | str) -> None:
    """Refuse a stated input that the module cannot take, before the export makes a riddle of it.

    Raises:
        UsageError: it raises on this input.
    """
    try:
        dry_run(module, inputs, most_bytes())
        run_source(module, inputs)
    except UnsupportedError:  # our own word on a part of it
        raise
    except Exception as error:  # whatever the user's forward raises
        shapes = ", ".join("x".join(map(str, tensor.shape)) for tensor in inputs)
        raise UsageError(
            f"{path} does not run on an input of shape {shapes}",
            got=next(iter(str(error).splitlines()), type(error).__name__)[:300],
            remedy=_what_runs(module, inputs),
        ) from error


def _what_runs(module: nn.Module, given: tuple[Tensor, ...]) -> str:
    """An input on which the module runs, where one is found; else the form of what it takes."""
    constants = getattr(module.forward, "constants", ())
    try:
        (found,), _ = infer_input(module)
    except UsageError:
        names = argument_names(module, len(given))
        form = stated_form(names) if names else FORM
        return f"state the input that it takes, as --input {stated(form, constants)}"
    dtype = None if found.is_floating_point() else dtype_name(found.dtype)
    form = str(InputShape((1, *found.shape[1:]), dtype))
    return f"it runs on --input {stated(form, constants)}, or state another"


def scripted(
    script: torch.jit.ScriptModule,
    path: Path | str,
    input_shapes: str | Sequence[InputShape] | None,
    example_inputs: Examples | None,
    constants: Sequence[Constant],
    notice: Callable[[str], None],
) -> Model:
    """The graph of a TorchScript module, compared with TorchScript; arguments as of `load_model`."""
    module = GraphModule(script, [each.name for each in constants])
    fixed, arguments = fix_arguments(module, constants, path, Constant.scripted_argument)
    source = AsScripted(script, module, lambda *inputs: arguments.complete(*inputs).args)
    model = traced(module, path, input_shapes, example_inputs, notice, source)
    return remembering(model, fixed, notice)


def inputs_to_trace(
    module: nn.Module,
    stated: str | Sequence[InputShape] | None,
    examples: tuple[Tensor, ...] | None,
    notice: Callable[[str], None],
    limits: Mapping[str, int] | None,
) -> tuple[tuple[Tensor, ...], list[int | None] | None]:
    """Inputs that run, and along which dims their samples lie; None: along the first of all."""
    if stated is None:
        if examples is not None:
            return examples, None
        inputs, guess = infer_input(module)
        notice(guess)
        return inputs, None
    shapes = parsed(stated)
    if shapes and shapes[0].name:
        shapes = matched(shapes, argument_names(module, len(shapes)))
    typed = with_dtypes(module, shapes, limits)
    if len(shapes) > 1 and typed != list(shapes) and not all(map(is_float, typed)):
        notice(f"inputs are taken as {','.join(map(str, typed))}; --input states other dtypes")
    inputs = example_from_shapes(module, typed, limits=limits)
    if any(shape.batch_dim is not None for shape in shapes):
        return inputs, [shape.batch_dim for shape in shapes]
    if len({shape.shape[0] for shape in shapes}) == 1:
        return inputs, None
    specs = with_batch_dims([InputSpec("", "float32", shape.shape) for shape in shapes])
    dims = [spec.fixed_dim for spec in specs]
    if all(dim is None for dim in dims):
        notice(
            "the inputs' first sizes differ, so the batch is fixed; --input can mark the dims along which "
            "samples lie with a B: Bx40,2xBx128"
        )
        return inputs, None
    where = ", ".join(f"dim {dim} of input {i}" for i, dim in enumerate(dims))
    notice(f"samples are taken to lie along {where}; --input can mark the dims with a B: Bx40,2xBx128")
    return inputs, dims


def marked(shapes: str | Sequence[InputShape] | None) -> bool:
    """A B says along which dims samples lie."""
    return shapes is not None and any(shape.batch_dim is not None for shape in parsed(shapes))


def parsed(shapes: str | Sequence[InputShape]) -> Sequence[InputShape]:
    """The text of --input, or what it says already."""
    return parse_input(shapes) if isinstance(shapes, str) else shapes
