"""What a model takes: the specification of its inputs, read off an exported program."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from nncompress.dtypes import dtype_name
from nncompress.errors import UnsupportedError, UsageError
from nncompress.ir.graph.normal_form.id_ranges import id_ranges
from nncompress.ir.graph.tracing import MAX_BATCH, MAX_LENGTH

MOST_MOMENTS = 64  # channels of an input whose moments are kept one by one
SHARED = -1  # in JSON: no dim, where one that is missing is the first
USUAL_SIZE = 16  # of other dynamic dims, where nothing says better
LEAST_BATCH = "least_batch"  # key of a model's metadata: of fewer samples the graph makes something else
BATCH_NAME = "batch_name"  # key of a model's metadata: what its source calls the dim that is "batch" here
MASKS = ((1, 2), (0, 1), (0, 2))  # ranges of booleans: all are True; all False; some of both
BATCH = "batch"  # the name of the dim along which samples lie, at whatever position


@dataclass(frozen=True)
class InputSpec:
    """One positional tensor input.

    Attributes:
        name: the argument's name in the original model.
        dtype: torch dtype without the prefix, e.g. "float32".
        shape: sizes; a string names a dynamic dim ("batch"). Equal names are equal sizes.
        low, high: for integers, example values are drawn from [low, high); booleans are one of `MASKS`.
        like: (mean, standard deviation) of calibration data, of each channel (dim 1) or of all: example
            floats are drawn like these. Empty: standard normal.
        samples: some samples of that data, along `batch_dim`, floats in at most as many bits as `dtype`;
            None: none are kept (`nncompress.ir.formats.samples`).
        fixed_dim: where no dim is named "batch", the one along which samples lie; None: the input is shared
            by all samples (a table), or nobody can tell.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    low: int = 0
    high: int = 2
    like: tuple[tuple[float, float], ...] = field(default=(), compare=False)
    fixed_dim: int | None = 0
    samples: Tensor | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        if self.like:  # lists, where it was read from JSON
            object.__setattr__(self, "like", tuple(map(tuple, self.like)))

    @property
    def batch_dim(self) -> int | None:
        """The dim along which samples lie, None where all samples share the input."""
        if BATCH in self.shape:
            return self.shape.index(BATCH)
        return self.fixed_dim if self.fixed_dim is not None and self.fixed_dim < len(self.shape) else None

    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"

    def to_json(self) -> dict[str, Any]:
        fixed_dim = SHARED if self.fixed_dim is None else self.fixed_dim
        stated = {**asdict(replace(self, samples=None)), "shape": list(self.shape), "fixed_dim": fixed_dim}
        del stated["samples"]  # which are no JSON: a member of their own
        if not self.like:
            del stated["like"]
        return stated

    @classmethod
    def from_json(cls, stored: dict[str, Any]) -> InputSpec:
        """What `to_json` made, here or in a version that knew no `fixed_dim`."""
        fixed_dim = stored.get("fixed_dim", 0)
        known = {"shape": tuple(stored["shape"]), "fixed_dim": None if fixed_dim == SHARED else fixed_dim}
        return cls(**{**stored, **known})

    def drawn_like(self, sample: Tensor) -> InputSpec:
        """The spec whose example values have the moments of this data [N, ...]; itself for integers."""
        if not (sample.dtype.is_floating_point and sample.numel() and sample.isfinite().all()):
            return self
        each = sample.dim() > 1 and isinstance(self.shape[1], int) and self.shape[1] <= MOST_MOMENTS
        rows = sample.detach().unbind(1) if each else (sample.detach(),)
        found = (torch.std_mean(row.double(), correction=0) for row in rows)  # not all in float64 at a time
        return replace(self, like=tuple((float(mean), float(std)) for std, mean in found))


def input_specs(
    module: fx.GraphModule, program: ExportedProgram, known: Sequence[InputSpec] | None
) -> tuple[list[InputSpec], dict[str, tuple[int, int | None]]]:
    """The inputs of `module` (made from `program`), and the bounds of their dynamic dims by name.

    Args:
        known: specs from before, whose names (torch.export writes them in lower case), names of dims and
            integer ranges are carried over.

    Raises:
        UnsupportedError: an input is not a tensor.
    """
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    examples = dict(zip(placeholders, _example_leaves(program)))
    tables = {} if known else id_ranges(module)
    named = {spec.name: spec for spec in known or ()}
    dims: dict[str, str] = {}  # sympy symbol -> our name
    batch = None if known else _batch_symbol(placeholders)
    dynamic: dict[str, tuple[int, int | None]] = {}
    specs: list[InputSpec] = []
    for position, node in enumerate(placeholders):
        value = node.meta.get("val")
        if not isinstance(value, Tensor):
            raise UnsupportedError(
                f"input {node.target!r} is not a tensor", remedy="export with it fixed to a constant"
            )
        name = str(node.target)
        old = named.get(name) or (known[position] if known and position < len(known) else None)
        shape: list[int | str] = []
        for axis, size in enumerate(value.shape):
            if isinstance(size, int) or size.node.expr.is_Integer:  # that tracing found to be one number
                shape.append(int(size))
                continue
            symbol = str(size.node.expr)
            if symbol not in dims:
                previous = old.shape[axis] if old else None
                default = BATCH if symbol == batch else f"dim{len(dims)}"
                dims[symbol] = previous if isinstance(previous, str) else default
                dynamic[dims[symbol]] = _bounds(program, size.node.expr)
            shape.append(dims[symbol])
        spec = InputSpec(name, dtype_name(value.dtype), tuple(shape))
        if old is not None:
            kept = old.name if old.name not in {each.name for each in specs} else spec.name
            spec = replace(old, name=kept, dtype=spec.dtype, shape=spec.shape)
        elif not (value.dtype.is_floating_point or value.dtype.is_complex):
            low, high = tables.get(node) or _range_of(examples.get(node))
            spec = replace(spec, low=low, high=high)
        specs.append(spec)
    return specs if known else with_batch_dims(specs), dynamic


def derived_sizes(
    module: fx.GraphModule, specs: Sequence[InputSpec], usual: Mapping[str, int]
) -> dict[str, int]:
    """Of dynamic dims that follow from others (a mask of one more than the cache), the size at usual ones."""
    free = {
        size.node.expr: name
        for node, spec in zip((n for n in module.graph.nodes if n.op == "placeholder"), specs)
        for size, name in zip(node.meta["val"].shape, spec.shape)
        if isinstance(name, str) and isinstance(size, torch.SymInt)
    }
    at = {e: usual.get(name, 2 if name == BATCH else USUAL_SIZE) for e, name in free.items() if e.is_Symbol}
    sizes = {name: e.subs(at) for e, name in free.items() if not e.is_Symbol and e.free_symbols <= at.keys()}
    return {name: int(size) for name, size in sizes.items() if size.is_Integer and size > 0}


def is_dim_name(text: str) -> bool:
    """It may name a dynamic dim: a word of any file, "p2o.DynamicDimension.1", that fits into a message."""
    return text.isprintable() and len(text) <= 200 and any(letter.isalnum() for letter in text)


def name_without_batch(specs: Sequence[InputSpec], metadata: Mapping[str, Any]) -> str:
    """What to call the dim "batch" once another one is: as its source does; else a name that no dim has."""
    taken = {size for spec in specs for size in spec.shape}
    stated = metadata.get(BATCH_NAME)
    if isinstance(stated, str) and stated not in taken:
        return stated
    return next(f"dim{i}" for i in range(len(taken) + 1) if f"dim{i}" not in taken)


def count_samples(specs: Sequence[InputSpec], inputs: Sequence[Tensor | np.ndarray]) -> int:
    """How many samples `inputs` hold; 1 where they share all of them."""
    sizes = (x.shape[s.batch_dim] for s, x in zip(specs, inputs) if s.batch_dim is not None and x.ndim)
    return next(sizes, 1)


def least_batch_of(metadata: Mapping[str, Any]) -> int:
    """The fewest samples that a model takes at a time, by what its file says: anyone may have written it."""
    said = metadata.get(LEAST_BATCH)
    return said if type(said) is int and 1 <= said <= MAX_BATCH else 1


def check_sizes(specs: Sequence[InputSpec], inputs: Sequence[Tensor | np.ndarray], *, least: int) -> None:
    """Refuse inputs that a model does not take: a graph is right for the sizes that it was traced with.

    Args:
        least: the fewest samples that it takes at a time.

    Raises:
        UsageError: these are fewer; a size is a number there and another one here; or a name has two sizes.
    """
    if least > 1 and (samples := count_samples(specs, inputs)) < least:
        raise UsageError(
            f"the model is right for batches of {least} or more: of fewer its graph makes something else",
            got=f"a batch of {samples}",
            expected=f"at least {least} samples together",
            remedy=f"--batch {least}; or, in forward(), nothing that treats a single sample otherwise",
        )
    named: dict[str, int] = {}
    for spec, value in zip(specs, inputs):
        wanted = [
            named.setdefault(d, n) if isinstance(d, str) else d for d, n in zip(spec.shape, value.shape)
        ]
        wrong = [axis for axis, (want, size) in enumerate(zip(wanted, value.shape)) if want != size]
        if not wrong and value.ndim == len(spec.shape):
            continue
        fixed = wrong == [spec.batch_dim] and isinstance(spec.shape[wrong[0]], int)
        raise UsageError(
            f"the model takes batches of {spec.shape[wrong[0]]} only"
            if fixed
            else "the model is right for the sizes that it was loaded with, and this is another one",
            got=f"{spec.name} of shape {list(value.shape)}",
            expected=str(spec) + "".join(f", {d} = {named[d]}" for d in named if wrong and d in spec.shape),
            remedy="export it again with a dynamic batch"
            if fixed
            else "load the network with --input (input=) of this size, or export it with that dim dynamic",
        )


def sizes_of(specs: Sequence[InputSpec], samples: Sequence[tuple[int, ...]]) -> dict[str, int]:
    """The sizes of the dynamic dims, batch apart, that samples of these shapes have."""
    sizes = {}
    for spec, sample in zip(specs, samples):
        dims = [d for axis, d in enumerate(spec.shape) if axis != spec.batch_dim]
        sizes.update({d: size for d, size in zip(dims, sample) if isinstance(d, str)})
    return sizes


def take_samples(
    specs: Sequence[InputSpec], inputs: Sequence[Tensor], index: slice | Tensor
) -> tuple[Tensor, ...]:
    """The inputs of some of the samples; what all samples share stays."""
    return tuple(
        x if spec.batch_dim is None or not x.dim() else x[(*[slice(None)] * spec.batch_dim, index)]
        for spec, x in zip(specs, inputs)
    )


def _batch_symbol(placeholders: Sequence[fx.Node]) -> str | None:
    """The symbol that most inputs have a dim of; among equals the one that is more often the first dim."""
    shapes = [
        [str(s) if isinstance(s, torch.SymInt) else "" for s in node.meta["val"].shape]
        for node in placeholders
        if isinstance(node.meta.get("val"), Tensor)
    ]
    symbols = dict.fromkeys(symbol for shape in shapes for symbol in shape if symbol.isidentifier())
    return max(
        symbols,
        key=lambda s: (sum(s in shape for shape in shapes), sum(shape[:1] == [s] for shape in shapes)),
        default=None,
    )


def with_batch_dims(specs: Sequence[InputSpec]) -> list[InputSpec]:
    """The specs, each with the dim along which its samples lie.

    With a dim named "batch" somewhere, inputs without it are shared by all samples. Where all sizes are
    numbers, samples lie along the first dims if these are equal; else along those of the one size that every
    input has exactly once (a state [2, 1, 128] beside [1, 40]); else nobody can tell.
    """
    if any(BATCH in spec.shape for spec in specs):
        return [spec if BATCH in spec.shape else replace(spec, fixed_dim=None) for spec in specs]
    if len({spec.shape[:1] for spec in specs}) <= 1:
        return [replace(spec, fixed_dim=0) for spec in specs]
    everywhere = [
        size
        for size in dict.fromkeys(size for spec in specs for size in spec.shape)
        if isinstance(size, int) and all(spec.shape.count(size) == 1 for spec in specs)
    ]
    if len(everywhere) != 1:
        return [replace(spec, fixed_dim=None) for spec in specs]
    return [replace(spec, fixed_dim=spec.shape.index(everywhere[0])) for spec in specs]


def _example_leaves(program: ExportedProgram) -> list[Any]:
    if program.example_inputs is None:
        return []
    return [v for v in pytree.tree_leaves(program.example_inputs) if isinstance(v, Tensor)]


def _bounds(program: ExportedProgram, expression: Any) -> tuple[int, int | None]:
    bounds = program.range_constraints.get(expression)
    base = next(iter(expression.free_symbols), None)
    if not expression.is_Symbol and expression.free_symbols == {base}:  # of it files keep no bounds, but of
        low, high = _bounds(program, base)  # what it follows from
        ends = sorted(int(expression.subs(base, end)) for end in (low, high or MAX_BATCH))
        return max(ends[0], 1), ends[1]
    if bounds is None:
        return (1, MAX_BATCH)
    # compared before they become ints: an unbounded symbol reaches to infinity
    most = bounds.upper if bounds.upper <= MAX_LENGTH else MAX_BATCH
    return int(max(bounds.lower, 1)), int(most)


def _range_of(example: Tensor | None) -> tuple[int, int]:
    """That of the values of an example; without one, a mask that hides nothing."""
    if example is None or not example.numel():
        return (1, 2)
    values = example.numpy(force=True)  # torch has no least of unsigned ones
    return int(values.min()), int(values.max()) + 1


def random_input(spec: InputSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Normal floats as the spec has it, integers within its range, booleans as of `mask`; of this shape."""
    dtype = spec.torch_dtype()
    if dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=torch.complex64).to(dtype)
    if dtype.is_floating_point:
        values = torch.randn(shape, generator=generator, dtype=torch.float32)
        if spec.like:
            mean, std = torch.tensor(spec.like).T
            per_channel = [-1, *[1] * (len(shape) - 2)] if len(spec.like) > 1 else []
            values = values * std.view(per_channel) + mean.view(per_channel)
        return values.to(dtype)
    if dtype == torch.bool:
        return mask(spec, shape)
    high = min(spec.high, torch.iinfo(dtype).max)
    return torch.randint(spec.low, max(high, spec.low + 1), shape, generator=generator).to(dtype)


def mask(spec: InputSpec, shape: tuple[int, ...]) -> Tensor:
    """Booleans that are all True or all False, where the range has one of them; else the first of each row is
    False: whichever of them means "hidden", no row is hidden whole."""
    values = torch.full(shape, spec.high > 1)
    if spec.low < 1 < spec.high and shape and shape[-1] > 1:
        values[..., 0] = False
    return values


def name_placeholders(module: fx.GraphModule, inputs: Sequence[InputSpec]) -> None:
    """Let the arguments be called as the inputs are."""
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    for node, spec in zip(placeholders, inputs, strict=True):
        node.target = spec.name
    module.recompile()
