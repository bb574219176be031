"""`Model`: the one thing that every loader makes, every pass edits and every exporter reads."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram
from torch.utils import _pytree as pytree

from nncompress.errors import UnsupportedError
from nncompress.ir.normalize import normalize, op_name, remove_dead_code

MAX_BATCH = 4096  # upper bound of the dynamic batch; without one, torch.export cannot bound products of sizes


@dataclass(frozen=True)
class InputSpec:
    """One positional tensor input.

    Attributes:
        name: the argument's name in the original model.
        dtype: torch dtype without the prefix, e.g. "float32".
        shape: sizes; a string names a dynamic dim ("batch"). Equal names are equal sizes.
        low, high: for integers, example values are drawn from [low, high).
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]
    low: int = 0
    high: int = 2

    def torch_dtype(self) -> torch.dtype:
        return getattr(torch, self.dtype)

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(map(str, self.shape))}]"

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "shape": list(self.shape)}


class Model:
    """A trained network as a flat graph of ATen ops.

    Attributes:
        graph_module: the graph (`nncompress.ir.normalize` says in which form) with its parameters and
            buffers under their dotted names. `node.meta["val"]` holds a fake tensor with the symbolic shape.
        inputs: the positional tensor inputs.
        outputs: a name per tensor of the output tuple.
        dynamic: bounds (min, max) of every dynamic dim by name.
        history: what was done to it, oldest first; JSON objects.
        metadata: JSON object kept with the model, e.g. `normalize` (how its images are normalised).
    """

    def __init__(
        self,
        graph_module: fx.GraphModule,
        inputs: Sequence[InputSpec],
        outputs: Sequence[str],
        dynamic: Mapping[str, tuple[int, int | None]],
        history: Sequence[dict[str, Any]] = (),
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        self.graph_module = graph_module
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self.dynamic = dict(dynamic)
        self.history = list(history)
        self.metadata = dict(metadata or {})

    # -- made from ---------------------------------------------------------------------------------------

    @classmethod
    def from_module(
        cls,
        module: torch.nn.Module,
        example_inputs: tuple[Any, ...],
        *,
        kwargs: Mapping[str, Any] | None = None,
        dynamic_batch: bool = True,
        dynamic_shapes: Any = None,
        metadata: Mapping[str, Any] | None = None,
    ) -> Model:
        """Export `module`, in the mode it is in (call `.eval()` first), to a `Model` that owns its weights.

        Args:
            example_inputs: positional arguments; tensors that share their first size (>= 2) get a dynamic
                batch. A batch of 1 is doubled for the export.
            dynamic_batch: keep the first dim dynamic; where the network fixes it, it becomes static.
            dynamic_shapes: passed on to `torch.export.export` instead, for other dynamic dims.

        Raises:
            UnsupportedError: `torch.export` cannot trace it.
        """
        named: dict[str, Any] = dict(kwargs or {})
        if dynamic_shapes is None and dynamic_batch:
            example_inputs = pytree.tree_map(_at_least_two, example_inputs)
            named = pytree.tree_map(_at_least_two, named)
            dynamic_shapes = _batch_dims((example_inputs, named))
        try:
            program = _export(module, example_inputs, named, dynamic_shapes)
        except UnsupportedError:
            if dynamic_shapes is None or not dynamic_batch:
                raise
            program = _export(module, example_inputs, named, None)
        return cls.from_exported(program, metadata=metadata, copy_weights=True)

    @classmethod
    def from_exported(
        cls,
        program: ExportedProgram,
        *,
        history: Sequence[dict[str, Any]] = (),
        metadata: Mapping[str, Any] | None = None,
        inputs: Sequence[InputSpec] | None = None,
        copy_weights: bool = False,
    ) -> Model:
        """Wrap an exported program; `inputs`, where given, carries names of dims and integer ranges over."""
        graph_module = program.module(check_guards=False)
        assert isinstance(graph_module, fx.GraphModule)
        names = _output_names(program)
        _retie(program, graph_module)
        normalize(graph_module)
        if copy_weights:
            graph_module = copy.deepcopy(graph_module)
        specs, dynamic = _input_specs(graph_module, program, inputs)
        results: Any = graph_module.graph.output_node().args[0]
        count = len(results)
        if len(names) != count:
            names = [f"output_{i}" for i in range(count)] if count > 1 else ["output"]
        return cls(graph_module, specs, names, dynamic, history, metadata)

    # -- read --------------------------------------------------------------------------------------------

    @property
    def graph(self) -> fx.Graph:
        return self.graph_module.graph

    def __call__(self, *inputs: Tensor) -> Tensor | tuple[Tensor, ...]:
        """Run it: a tensor if it has one output, else a tuple."""
        outputs = self.outputs_of(*inputs)
        return outputs[0] if len(outputs) == 1 else outputs

    def outputs_of(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Run it: always the tuple of all outputs. Gradients are recorded if the caller's mode says so."""
        return self.graph_module(*inputs)

    def tensor(self, name: str) -> Tensor:
        """The parameter or buffer of that dotted name.

        Raises:
            AttributeError: there is none.
        """
        prefix, _, leaf = name.rpartition(".")
        return getattr(self.graph_module.get_submodule(prefix), leaf)

    def state_dict(self) -> dict[str, Tensor]:
        """Parameters and buffers by dotted name, tied ones under every name they have."""
        return self.graph_module.state_dict()

    def example_inputs(self, batch: int = 2, seed: int = 0) -> tuple[Tensor, ...]:
        """Random inputs that fit: standard normal floats, integers within each input's range.

        Every dynamic dim named "batch" gets the size `batch`; other dynamic dims a size inside their bounds.
        """
        generator = torch.Generator().manual_seed(seed)
        return tuple(_random(spec, self.concrete_shape(spec, batch), generator) for spec in self.inputs)

    def concrete_shape(self, spec: InputSpec, batch: int) -> tuple[int, ...]:
        """The input's shape with the dynamic dims put to numbers, "batch" to `batch`."""

        def size(dim: int | str) -> int:
            if isinstance(dim, int):
                return dim
            if dim == "batch":
                return batch
            low, high = self.dynamic.get(dim, (2, None))
            return min(max(low, 16), high or 16)

        return tuple(size(dim) for dim in spec.shape)

    # -- change ------------------------------------------------------------------------------------------

    def copy(self) -> Model:
        """A deep copy: weights, graph and history."""
        return Model(
            copy.deepcopy(self.graph_module),
            self.inputs,
            self.outputs,
            self.dynamic,
            copy.deepcopy(self.history),
            copy.deepcopy(self.metadata),
        )

    def set_training(self, training: bool) -> None:
        """Switch the training flag of every batch norm and dropout node."""
        for node in self.graph.nodes:
            position = {"batch_norm": 5, "dropout": 2, "feature_dropout": 2}.get(op_name(node))
            if position is not None and node.op == "call_function":
                node.update_arg(position, training)
        self.graph_module.recompile()

    def refresh(self) -> None:
        """After an edit: drop dead code and derive every node's shape anew by exporting again.

        Raises:
            UnsupportedError: the edited graph does not trace; the message names the op.
        """
        remove_dead_code(self.graph_module)
        fresh = Model.from_exported(self.exported_program(), inputs=self.inputs)
        self.graph_module = fresh.graph_module

    def exported_program(self) -> ExportedProgram:
        """The model as a `torch.export` program with the same names and dynamic dims.

        Raises:
            UnsupportedError: it does not trace.
        """
        dims = {name: Dim(name, min=low, max=high) for name, (low, high) in self.dynamic.items()}
        shapes = tuple(
            {i: dims[dim] for i, dim in enumerate(spec.shape) if isinstance(dim, str)} for spec in self.inputs
        )
        examples = self.example_inputs()
        self._name_placeholders()
        try:
            return _export(self.graph_module, examples, {}, shapes if dims else None)
        except UnsupportedError:
            if not dims:
                raise
            # A relation between dims that plain named dims cannot state: let torch infer it.
            automatic = tuple(
                {i: Dim.AUTO for i, d in enumerate(s.shape) if isinstance(d, str)} for s in self.inputs
            )
            return _export(self.graph_module, examples, {}, automatic)

    def _name_placeholders(self) -> None:
        placeholders = [n for n in self.graph.nodes if n.op == "placeholder"]
        for node, spec in zip(placeholders, self.inputs, strict=True):
            node.target = spec.name
        self.graph_module.recompile()


def _export(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any
) -> ExportedProgram:
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            return torch.export.export(module, args, kwargs, dynamic_shapes=shapes)
    except Exception as error:  # torch.export raises whatever the traced code raises
        reason = next((line.strip() for line in str(error).splitlines() if line.strip()), "")
        raise UnsupportedError(
            "torch.export cannot trace this model",
            got=f"{type(error).__name__}: {reason[:300]}",
            remedy="keep data-dependent Python control flow out of forward(), and check the input's shape",
        ) from error


def _at_least_two(value: Any) -> Any:
    if isinstance(value, Tensor) and value.dim() and value.shape[0] == 1:
        return torch.cat([value, value])
    return value


def _batch_dims(arguments: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    tensors = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor) and leaf.dim()]
    if not tensors or len({t.shape[0] for t in tensors}) != 1:
        return None
    batch = Dim("batch", min=1, max=MAX_BATCH)
    args, kwargs = pytree.tree_map(
        lambda v: {0: batch} if isinstance(v, Tensor) and v.dim() else None, arguments
    )
    return (*args, *kwargs.values()) if not kwargs else {**_positional(args), **kwargs}


def _positional(args: tuple[Any, ...]) -> dict[str, Any]:
    if args:
        raise UnsupportedError("give the example inputs either all by position or all by name")
    return {}


def _retie(program: ExportedProgram, module: fx.GraphModule) -> None:
    """Parameters that share all their storage become one object again (loading a file separates them)."""
    seen: dict[tuple[Any, ...], torch.nn.Parameter] = {}
    for name, parameter in list(module.named_parameters(remove_duplicate=False)):
        if parameter.is_meta or not parameter.numel():
            continue
        key = (parameter.data_ptr(), parameter.shape, parameter.stride(), parameter.dtype)
        if key in seen and seen[key] is not parameter:
            prefix, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(prefix), leaf, seen[key])
        seen.setdefault(key, parameter)
    # One get_attr target per parameter, so that editing by name reaches every reader.
    first: dict[int, str] = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        first.setdefault(id(parameter), name)
    for node in module.graph.nodes:
        if node.op == "get_attr":
            value: Any = module
            for part in str(node.target).split("."):
                value = getattr(value, part)
            if isinstance(value, torch.nn.Parameter):
                node.target = first[id(value)]


def _output_names(program: ExportedProgram) -> list[str]:
    spec = program.call_spec.out_spec
    if spec is None:
        return []
    try:
        tree = pytree.tree_unflatten(list(range(spec.num_leaves)), spec)
        paths = [path for path, _ in pytree.tree_flatten_with_path(tree)[0]]
    except Exception:  # a container type that this process does not know: positions will do
        return []
    arguments = list(program.graph.output_node().args[0])[-len(paths) :] if paths else []
    names = []
    for path, argument in zip(paths, arguments):
        if isinstance(argument, fx.Node):
            name = "_".join(str(getattr(k, "key", getattr(k, "idx", getattr(k, "name", k)))) for k in path)
            names.append(name if name and not name.isdigit() else f"output_{name}" if name else "output")
    return ["output"] if names == ["output_0"] else names


def _input_specs(
    module: fx.GraphModule, program: ExportedProgram, known: Sequence[InputSpec] | None
) -> tuple[list[InputSpec], dict[str, tuple[int, int | None]]]:
    placeholders = [n for n in module.graph.nodes if n.op == "placeholder"]
    examples = dict(zip(placeholders, _example_leaves(program)))
    named = {spec.name: spec for spec in known or ()}
    dims: dict[str, str] = {}  # sympy symbol -> our name
    dynamic: dict[str, tuple[int, int | None]] = {}
    specs = []
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
            if isinstance(size, int):
                shape.append(size)
                continue
            symbol = str(size.node.expr)
            if symbol not in dims:
                previous = old.shape[axis] if old else None
                default = "batch" if axis == 0 and "batch" not in dims.values() else f"dim{len(dims)}"
                dims[symbol] = previous if isinstance(previous, str) else default
                dynamic[dims[symbol]] = _bounds(program, size.node.expr)
            shape.append(dims[symbol])
        spec = InputSpec(name, str(value.dtype).removeprefix("torch."), tuple(shape))
        if old is not None:
            spec = replace(spec, low=old.low, high=old.high)
        elif not value.dtype.is_floating_point:
            low, high = _integer_range(module, node, examples.get(node))
            spec = replace(spec, low=low, high=high)
        specs.append(spec)
    return specs, dynamic


def _example_leaves(program: ExportedProgram) -> list[Any]:
    if program.example_inputs is None:
        return []
    return [v for v in pytree.tree_leaves(program.example_inputs) if isinstance(v, Tensor)]


def _bounds(program: ExportedProgram, expression: Any) -> tuple[int, int | None]:
    bounds = program.range_constraints.get(expression)
    if bounds is None:
        return (1, MAX_BATCH)
    # compared before they become ints: an unbounded symbol reaches to infinity
    return int(max(bounds.lower, 1)), int(min(bounds.upper, MAX_BATCH))


def _integer_range(module: fx.GraphModule, node: fx.Node, example: Tensor | None) -> tuple[int, int]:
    rows = _embedding_rows(node)
    if rows:
        return 0, min(rows)
    if isinstance(example, Tensor) and example.numel() and example.dtype != torch.bool:
        return int(example.min()), int(example.max()) + 1
    return (1, 2)  # a mask that hides nothing


# what ids pass through on their way to an embedding, unchanged
_MOVES = {
    "view",
    "reshape",
    "to",
    "unsqueeze",
    "squeeze",
    "slice",
    "contiguous",
    "expand",
    "flatten",
    "select",
}


def _embedding_rows(ids: fx.Node) -> list[int]:
    """The sizes of the tables that `ids` index, directly or after being reshaped or cast."""
    rows: list[int] = []
    for user in ids.users:
        if op_name(user) == "embedding" and user.args[1] is ids and isinstance(user.args[0], fx.Node):
            rows.append(int(user.args[0].meta["val"].shape[0]))
        elif op_name(user) in _MOVES and user.args and user.args[0] is ids:
            rows += _embedding_rows(user)
    return rows


def _random(spec: InputSpec, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    dtype = spec.torch_dtype()
    if dtype.is_floating_point or dtype.is_complex:
        return torch.randn(shape, generator=generator, dtype=torch.float32).to(dtype)
    if dtype == torch.bool:
        return torch.ones(shape, dtype=dtype)
    return torch.randint(spec.low, max(spec.high, spec.low + 1), shape, generator=generator).to(dtype)
