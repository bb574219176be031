"""Calls to `torch.export`, and what of its result needs mending or reading off."""

from __future__ import annotations

import inspect
import re
import traceback
import warnings
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import Dim, ExportedProgram
from torch.export.graph_signature import ExportGraphSignature
from torch.utils import _pytree as pytree

from nncompress.errors import UnsupportedError
from nncompress.ir.as_run import trace_as_run
from nncompress.ir.free_sizes import FreeSizes
from nncompress.ir.python_names import is_argument_name
from nncompress.ir.recurrent_shapes import recurrent_shapes
from nncompress.ir.torch_logs import unlogged
from nncompress.ir.unchanged import unchanged

MAX_BATCH = 4096  # upper bound of the dynamic batch; without one, torch.export cannot bound products of sizes
_FIXES = "Suggested fixes:"  # a line of torch.export's, before one for every dim
MAX_LENGTH = 2**24  # of a dim that has a bound of its own: samples of a sound


def trace(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], shapes: Any
) -> ExportedProgram:
    """`torch.export.export`, without its warnings; the module stays as it was.

    torch.export computes with tensors that are neither parameters nor buffers as they are: what forward
    writes to them is undone, for the graph writes it when it runs.

    Raises:
        UnsupportedError: it cannot trace the module; the message gives torch's reason in one line.
    """
    try:
        with (
            unlogged(),
            warnings.catch_warnings(),
            torch.no_grad(),
            without_stack_traces(),
            recurrent_shapes(),
            unchanged(module, traced=True),
            FreeSizes(),
        ):
            warnings.simplefilter("ignore")
            trace_as_run(module)
            program = torch.export.export(module, args, kwargs, dynamic_shapes=shapes)
            program = program.run_decompositions({}) if _is_transformed(program) else program
            _name_inputs(program, module)
            return program
    except Exception as error:  # torch.export raises whatever the traced code raises
        lines = [line.strip() for line in str(error).splitlines() if line.strip()]
        reason = next(iter(lines), "")
        remedy = "keep data-dependent Python control flow out of forward(), and check the input's shape"
        if "fake tensor in the exported program" in str(error):
            remedy = "let forward() compute with tensors themselves, not with their .data"
        elif "not a known type" in str(error):
            remedy = "let forward() return tensors, or tuples, lists, dicts or dataclasses of them"
        elif "Unsupported dtype" in reason or "not implemented for '" in reason:
            remedy = "torch has no kernel for this dtype of one of its ops: use float32, or convert there"
        elif _runs_packed(error):
            remedy = (
                "run recurrent layers on padded sequences, without pack_padded_sequence, and pick what they "
                "return by the lengths: y[torch.arange(y.shape[0]), lengths - 1]"
            )
        elif "Constraints violated" in reason:  # by dims that are asked to be free
            reason = next((line[2:].split(". ")[0] for line in lines if line.startswith("- ")), reason)
            fixes = lines[lines.index(_FIXES) + 1 : -1] if _FIXES in lines else []
            remedy = "let forward() take any size there" + "".join(f"; or state {fix}" for fix in fixes)
        raise UnsupportedError(
            "torch.export cannot trace this model",
            got=f"{type(error).__name__}: {reason[:300]}",
            remedy=remedy,
        ) from error


def _runs_packed(error: Exception) -> bool:
    """It was raised in a recurrent layer that was given a packed sequence, whose batch sizes are values."""
    frames = (frame for frame, _ in traceback.walk_tb(error.__traceback__))
    return any(
        frame.f_locals.get("batch_sizes") is not None
        and isinstance(frame.f_locals.get("self"), torch.nn.RNNBase)
        for frame in frames
    )


def trace_with_batch(
    module: torch.nn.Module,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    sample_dims: Sequence[int | None] | None,
    notice: Callable[[str], None],
) -> ExportedProgram:
    """`trace` with a dynamic batch, doubled where it is 1; as it is where the network fixes it, as is told.

    Args:
        sample_dims: per positional argument; None: along the first dim of all that share its size.
    """
    if sample_dims is None:
        doubled: tuple[Any, ...] = pytree.tree_map(at_least_two, args)
        named: dict[str, Any] = pytree.tree_map(at_least_two, kwargs)
        shapes = batch_dims(module, doubled, named)
    else:
        doubled, named = tuple(map(at_least_two, args, sample_dims)), kwargs
        shapes = marked_dims(module, doubled, sample_dims)
    try:
        return trace(module, doubled, named, shapes)
    except UnsupportedError as error:
        if shapes is None:
            raise
        program = trace(module, args, kwargs, None)
        notice(f"the batch is fixed to that of the inputs, as torch.export cannot keep it free: {error.got}")
        return program


def _name_inputs(program: ExportedProgram, module: torch.nn.Module) -> None:
    """Inputs are called as in forward(): torch.export writes them in lower case, and in ASCII."""
    names: dict[str, list[str]] = {}
    for name in filter(is_argument_name, inspect.signature(module.forward).parameters):
        names.setdefault(re.sub("[^a-zA-Z0-9]", "_", name).lower(), []).append(name)
    own = {*program.graph_signature.user_inputs}
    for node in program.graph.nodes:
        if node.op == "placeholder" and node.name in own and len(names.get(node.name, ())) == 1:
            (node.target,) = names[node.name]


def _is_transformed(program: ExportedProgram) -> bool:
    """`vmap`, `grad` and `jvp` are written as steps of these machines around operators that run on tensors of
    other shapes than the graph tells."""
    modules = [part for part in program.graph_module.modules() if isinstance(part, fx.GraphModule)]
    nodes = (node for module in modules for node in module.graph.nodes)
    return any(getattr(node.target, "__module__", "") == "torch._functorch.predispatch" for node in nodes)


@contextmanager
def without_stack_traces() -> Iterator[None]:
    """Meanwhile torch does not look up, for every node, the source lines that made it: nothing of ours reads
    them, and they were a twentieth of an export."""
    config: Any = torch.fx.config  # which torch < 2.12 gives no such choice
    before = getattr(config, "do_not_emit_stack_traces", None)
    if before is None:
        yield
        return
    config.do_not_emit_stack_traces = True
    try:
        yield
    finally:
        config.do_not_emit_stack_traces = before


def named_dims(dynamic: Mapping[str, tuple[int, int | None]]) -> dict[str, Any]:
    """A dim of torch.export for every dynamic dim, whose own name may be none that Python takes."""
    names = {name: name if name.isidentifier() else f"free_{at}" for at, name in enumerate(dynamic)}
    return {name: Dim(names[name], min=low, max=high) for name, (low, high) in dynamic.items()}


def at_least_two(value: Any, dim: int | None = 0) -> Any:
    """A batch of 1 along `dim` doubled: torch.export would take 1 for a constant."""
    if isinstance(value, Tensor) and dim is not None and value.dim() > dim and value.shape[dim] == 1:
        return torch.cat([value, value], dim)
    return value


def batch_dims(module: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
    """Dynamic shapes by parameter name: the first dim of all tensors is one dynamic "batch".

    None where they differ in it, or where `forward` takes no such arguments. (Of inputs that it gathers as
    **names torch.export can make none dynamic.)
    """
    try:  # as torch.export does: what goes into *inputs is one tuple
        arguments = inspect.signature(module.forward).bind(*args, **kwargs).arguments
    except (TypeError, ValueError):
        return None
    tensors = [leaf for leaf in pytree.tree_leaves(arguments) if isinstance(leaf, Tensor) and leaf.dim()]
    if not tensors or len({t.shape[0] for t in tensors}) != 1:
        return None
    batch = Dim("batch", min=1, max=MAX_BATCH)
    return pytree.tree_map(
        lambda v: {0: batch} if isinstance(v, Tensor) and v.dim() else None, dict(arguments)
    )


def marked_dims(module: torch.nn.Module, args: tuple[Any, ...], dims: Sequence[int | None]) -> Any:
    """Dynamic shapes by parameter name: one "batch" at these dims of the positional arguments."""
    batch = Dim("batch", min=1, max=MAX_BATCH)
    marked = tuple(None if dim is None else {dim: batch} for dim in dims)
    try:
        return dict(inspect.signature(module.forward).bind(*marked).arguments)
    except (TypeError, ValueError):
        return None


_STRANGE = re.compile(r"[^A-Za-z0-9_ :/+\-.]")  # what a `.pt2` of ours is not read with


def taken_names() -> set[str]:
    """The attributes of a `fx.GraphModule`, for whose names a module of the user's has no place in it."""
    return set(dir(fx.GraphModule(torch.nn.Module(), fx.Graph())))


def original_name(name: str, known: Collection[str]) -> str:
    """What a tensor of a graph is called among the `known`: `without_clashes` may have renamed it."""
    top, dot, rest = name.partition(".")
    plain = top.rstrip("_")
    called = plain + dot + rest
    return called if name not in known and called in known and plain in taken_names() else name


def without_clashes(program: ExportedProgram) -> ExportedProgram:
    """The program with those modules renamed ("code" -> "code_") that `fx.GraphModule` has no place for.

    It has attributes of its own, such as `code` and `graph`, which would hide them; and it writes code with
    the names of the others, which so may not hold quotes, newlines and their like ("a\"b" -> "a_b").
    """
    own = taken_names()
    signature = program.graph_signature
    targets = dict.fromkeys(s.target for s in signature.input_specs if s.target)
    tops = {target.split(".")[0] for target in targets}
    if not tops & own and not any(_STRANGE.search(target) for target in targets):
        return program
    fresh: dict[str, str] = {}
    for top in tops & own:
        fresh[top] = top + "_"
        while fresh[top] in tops | own:
            fresh[top] += "_"
    names: dict[str, str] = {}
    for target in targets:
        top, dot, rest = target.partition(".")
        names[target] = _STRANGE.sub("_", fresh.get(top, top) + dot + rest)
        while names[target] != target and names[target] in {*targets, *list(names.values())[:-1]}:
            names[target] += "_"

    def renamed(target: str) -> str:
        return names.get(target, target)

    def specs(old: list[Any]) -> list[Any]:
        return [replace(s, target=renamed(s.target)) if s.target else s for s in old]

    return ExportedProgram(
        program.graph_module,
        program.graph,
        ExportGraphSignature(specs(signature.input_specs), specs(signature.output_specs)),
        {renamed(name): tensor for name, tensor in program.state_dict.items()},
        program.range_constraints,
        program.module_call_graph,
        program.example_inputs,
        {renamed(name): value for name, value in program.constants.items()},
        verifiers=program.verifiers,
    )


def tie_again(module: fx.GraphModule) -> None:
    """Tensors that share all their storage become one object again (loading a file separates them)."""
    seen: dict[tuple[Any, ...], torch.Tensor] = {}
    stored = [*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)]
    for name, tensor in stored:
        if tensor.is_meta or not tensor.numel():
            continue
        is_parameter = isinstance(tensor, torch.nn.Parameter)
        key = (is_parameter, tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype)
        if key in seen and seen[key] is not tensor:
            prefix, _, leaf = name.rpartition(".")
            setattr(module.get_submodule(prefix), leaf, seen[key])
        seen.setdefault(key, tensor)
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


def output_names(program: ExportedProgram) -> list[str]:
    """A name per output tensor, from the keys of its containers; [] where torch cannot tell."""
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


def named_apart(names: Sequence[str], inputs: Sequence[str]) -> list[str]:
    """Names of outputs of which none is that of an input, or of another output, as files want them."""
    found: list[str] = []
    for name in names:
        while name in inputs or name in found:
            name += "_out"
        found.append(name)
    return found
