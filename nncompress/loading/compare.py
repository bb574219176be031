"""Is the model that was loaded the one in the file? Its outputs are compared with those of its source.

The source is what the file holds, run by torch as it is: the module, or the exported program. Runs of it
leave its state and the inputs as they were.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram
from torch.utils import _pytree as pytree

from nncompress.errors import ModelFileError, UnsupportedError, VerificationError
from nncompress.ir import Model
from nncompress.ir.as_run import in_dicts
from nncompress.ir.formats.samples import moved_sizes, other_batch, samples_of, verification_inputs
from nncompress.ir.graph.form import same_calls
from nncompress.ir.graph.inputs import BATCH, LEAST_BATCH
from nncompress.ir.graph.state import changed_tensors
from nncompress.ir.graph.tracing import without_clashes
from nncompress.ir.graph.verify import drift
from nncompress.ir.unchanged import unchanged
from nncompress.loading.random_numbers import changing_answers
from nncompress.runtimes.free_sizes import usual_sizes

# Allowed ‖difference‖₂ / ‖output‖₂. The same ops run in the same order on both sides; only fused kernels
# that the module takes and the graph does not (attention, in eval mode) round differently.
TOLERANCE = {torch.float64: 1e-9, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}

NO_KERNEL = ("not implemented for 'Half'", "not implemented for 'BFloat16'")  # how torch says it


def compare_with_source(
    model: Model,
    source: nn.Module,
    path: object,
    notice: Callable[[str], None],
    batches: Sequence[int] | None = None,
) -> float | None:
    """The largest relative error of any output, at these batch sizes (None: two) where any size is free,
    each at other sizes of the other free dims.

    None where nothing could be compared, of which `notice` is told. It is the model's `agreement` from then.

    Args:
        source: takes the model's inputs, in their order.

    Raises:
        VerificationError: the graph computes something else.
        UnsupportedError: two runs of the source differ, or give no tensor.
    """
    worst: float | None = None
    undefined, same = False, _is_same(model, source)
    batches = batches or (2, other_batch(model.inputs))
    for turn, batch in enumerate(batches if model.dynamic else batches[:1]):
        inputs = _inputs(model, batch, turn)
        attributes = not isinstance(source, AsExported)  # of Python, which a graph has none of
        twice = attributes and turn == 0 and not changed_tensors(model.graph)
        try:
            results, second = _run_twice(source, inputs) if twice else (_run(source, inputs), None)
        except Exception as error:  # whatever the user's forward raises on random values
            reason = next(iter(str(error).splitlines()), type(error).__name__)[:160]
            what = "the samples that it keeps" if samples_of(model.inputs) else "random inputs"
            notice(f"not compared with {path} at batch {batch}: it does not run on {what} ({reason})")
            continue
        expected = _tensors(results)
        if turn == 0 and (others := _others(results)):
            notice(f"{path} returns more than tensors, which are all that is kept: {others}")
        try:
            with torch.no_grad():
                got = tuple(expected) if same else model.outputs_of(*inputs)
        except Exception as error:  # whatever an operator raises
            raise VerificationError(
                f"{path} was loaded as a graph that does not run",
                got=f"{next(iter(str(error).splitlines()), type(error).__name__)[:200]}, at batch {batch}",
                remedy="this is a defect of the import; please report it",
            ) from error
        found = _beyond(model, expected, got)
        if found is not None and not _beyond(
            model, filled := _by_plain_attention(source, inputs, expected), got
        ):
            found, expected = None, filled
            undefined = True
        if found is None:
            if second is not None:
                _say_if_calls_differ(model, expected, second, path, notice)
            worst = max([worst or 0.0, *(row.relative for row in drift(model, got, expected))])
            continue
        if _beyond(model, run_source(source, inputs, seed=1), run_source(source, inputs, seed=2)):
            raise changing_answers(path)
        raise VerificationError(
            f"{path} was loaded as a graph that computes something else",
            got=f"{found}, at batch {batch}",
            expected="what the source computes, to rounding",
            remedy="this is a defect of the import; save torch.export.export(model, …) as .pt2 and report it",
        )
    if undefined:
        notice(
            f"{path} gives NaN where a mask leaves nothing to attend to, by torch's fast path of attention: "
            "what was loaded gives numbers there, as the module does in training"
        )
    model.agreement = worst
    _settle_single_samples(model, source, same, path, notice)
    return worst


def _is_same(model: Model, source: nn.Module) -> bool:
    """Both make the same calls on the same memory: of two runs the second would tell nothing."""
    if not isinstance(source, AsExported):
        return False
    ours, theirs = (_windows(each.state_dict()) for each in (model, source.module))

    def same_tensor(one: str, other: str) -> bool:
        return one in ours and ours[one] == theirs.get(other)

    return same_calls(model.graph, source.module.graph, same_tensor)


def _windows(tensors: Mapping[str, Tensor]) -> dict[str, Hashable]:
    return {name: (t.data_ptr(), t.shape, t.stride(), t.dtype) for name, t in tensors.items()}


def _inputs(model: Model, batch: int, turn: int) -> tuple[Tensor, ...]:
    """Of that batch; after the first turn its sizes are others, where they are free."""
    return verification_inputs(model, batch, seed=batch, sizes=moved_sizes(model, turn) if turn else None)


def _settle_single_samples(
    model: Model, source: nn.Module, same: bool, path: object, notice: Callable[[str], None]
) -> None:
    """Let the model take two samples or more, where of a single one its graph makes something else.

    Of the `same` graph on both sides it cannot, unless that takes none.

    torch.export takes every free dim for at least two: a forward that asks `x.shape[0] > 1` becomes the
    graph of several samples, whatever range was stated.
    """
    if model.dynamic.get(BATCH, (2, None))[0] > 1:
        return
    inputs = verification_inputs(model, 1, seed=1)
    try:
        expected = run_source(source, inputs)
    except Exception:  # whatever the user's forward raises: it takes no single sample itself
        with suppress(Exception), torch.no_grad():
            model.outputs_of(*inputs)
            return
        _take_several(model)
        notice(f"{path} takes no single sample: batches of 2 or more")
        return
    if same:
        return
    try:
        with torch.no_grad():
            got = model.outputs_of(*inputs)
        found = _beyond(model, expected, got)
        found = found and _beyond(model, _by_plain_attention(source, inputs, expected), got)
    except Exception as error:  # whatever an operator raises
        found = next(iter(str(error).splitlines()), type(error).__name__)[:160]
    if found:
        _take_several(model)
        notice(
            f"{path} treats a single sample otherwise than several, by which it was traced ({found}): "
            "the graph is that of several, right for batches of 2 or more"
        )


def _take_several(model: Model) -> None:
    model.dynamic = {**model.dynamic, BATCH: (2, model.dynamic[BATCH][1])}
    model.metadata[LEAST_BATCH] = 2


def _say_if_calls_differ(
    model: Model,
    first: Sequence[Tensor],
    second: Sequence[Tensor] | Exception,
    path: object,
    notice: Callable[[str], None],
) -> None:
    """What a call leaves in attributes that are no buffers (numbers, lists, other tensors) is in no graph."""
    if isinstance(second, Exception):
        found: str | None = f"it raises {type(second).__name__}"
    else:
        found = _beyond(model, first, second)
    if found:
        notice(
            f"{path} keeps something of a call in attributes that are no buffers: the same input again, and "
            f"{found}. What was loaded does what its first call does; register what it keeps as buffers"
        )


def check_graph_runs(model: Model, path: object) -> None:
    """Refuse a graph whose kernels take no input at all: mixed dtypes, weights that shape rules let pass.

    Random values may be none that it takes (an index, an assertion); zeros and ones are tried, too.

    Raises:
        ModelFileError: it runs on none of them.
    """
    inputs = model.example_inputs(batch=2)
    reasons = []
    for values in (inputs, tuple(map(torch.zeros_like, inputs)), tuple(map(torch.ones_like, inputs))):
        try:
            with torch.no_grad():
                model.outputs_of(*values)
            return
        except Exception as error:  # whatever an operator raises
            reasons.append(next(iter(str(error).splitlines()), type(error).__name__))
    narrow = any(reason.endswith(NO_KERNEL) for reason in reasons)
    raise ModelFileError(
        f"{path} holds a graph that cannot run here, on random numbers, zeros or ones",
        got=reasons[0][:300],
        remedy="export and save the model in float32, which CPUs have that op for: model.float()"
        if narrow
        else "export and save the model again",
    )


def settle_sizes(model: Model) -> None:
    """Remember sizes of its free dims at which the model runs, where it does not run at the usual ones."""
    if not model.dynamic.keys() - {BATCH, *model.sizes} or _runs(model):
        return
    before = model.sizes
    for sizes in usual_sizes([spec.shape for spec in model.inputs], BATCH, _traced_sizes(model) | before):
        model.sizes = {dim: size for dim, size in sizes.items() if dim != BATCH}
        if _runs(model):
            return
    model.sizes = before


def _traced_sizes(model: Model) -> dict[str, int]:
    """The sizes of its free dims that it was exported with, where the file tells."""
    found = {}
    placeholders = (node for node in model.graph.nodes if node.op == "placeholder")
    for node, spec in zip(placeholders, model.inputs):
        for size, name in zip(node.meta["val"].shape, spec.shape):
            hint = size.node.hint if isinstance(size, torch.SymInt) else None
            if isinstance(name, str) and isinstance(hint, int):
                found[name] = hint
    return found


def _runs(model: Model) -> bool:
    try:
        with torch.no_grad():
            model.outputs_of(*model.example_inputs())
    except Exception:  # whatever an operator raises
        return False
    return True


class AsExported(nn.Module):
    """An exported program as torch runs it, given the tensors among its inputs in their order."""

    def __init__(self, program: ExportedProgram) -> None:
        super().__init__()
        self.spec = program.call_spec.in_spec
        self.module = without_clashes(program).module(check_guards=False)

    def forward(self, *inputs: Tensor) -> Any:
        args, kwargs = pytree.tree_unflatten(inputs, self.spec)  # a ValueError where numbers are among them
        return self.module(*args, **kwargs)


def run_source(source: nn.Module, inputs: Sequence[Tensor], seed: int = 0) -> list[Tensor]:
    """The tensors among its outputs; its state, the inputs and torch's random numbers stay as they are.

    Raises:
        UnsupportedError: it gives none.
    """
    return _tensors(_run(source, inputs, seed))


def _run(source: nn.Module, inputs: Sequence[Tensor], seed: int = 0) -> list[Any]:
    """What it returns, out of its containers."""
    with _left_alone(source, seed):
        return _call(source, inputs)


def _by_plain_attention(
    source: nn.Module, inputs: Sequence[Tensor], expected: Sequence[Tensor]
) -> list[Tensor]:
    """`expected`, with what the source gives without torch's fast path of attention in the places of NaN."""
    before = torch.backends.mha.get_fastpath_enabled()
    if not before or not any(each.isnan().any() for each in expected):
        return list(expected)
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        plain = run_source(source, inputs)
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
    return [torch.where(each.isnan(), other, each) for each, other in zip(expected, plain)]


def _run_twice(source: nn.Module, inputs: Sequence[Tensor]) -> tuple[list[Any], list[Tensor] | Exception]:
    """As `_run`, and the tensors of a second call, which finds what the first has left; or what it raises."""
    with _left_alone(source, seed=0):
        first = _call(source, inputs)
        try:
            return first, _tensors(_call(source, inputs))
        except Exception as error:  # whatever the user's forward raises
            return first, error


@contextmanager
def _left_alone(source: nn.Module, seed: int) -> Iterator[None]:
    with unchanged(source), torch.random.fork_rng(devices=[]), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        yield


def _call(source: nn.Module, inputs: Sequence[Tensor]) -> list[Any]:
    results = pytree.tree_leaves(in_dicts(source(*(tensor.clone() for tensor in inputs))))
    return [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in results]


def _tensors(results: Sequence[Any]) -> list[Tensor]:
    """Those among what a source returns.

    Raises:
        UnsupportedError: there are none.
    """
    found = [leaf for leaf in results if isinstance(leaf, Tensor)]
    if not found:
        raise UnsupportedError(
            "the model returns no tensor",
            got=_others(results) or "nothing",
            remedy="let forward() return tensors, or tuples, lists, dicts or dataclasses of them",
        )
    return found


def _others(results: Sequence[Any]) -> str:
    """What is no tensor among what a source returns, which a graph has no place for; "" where all are."""
    found = [
        f"output {place} is {None if leaf is None else f'of type {type(leaf).__name__}'}"
        for place, leaf in enumerate(results)
        if not isinstance(leaf, Tensor)
    ]
    return ", ".join(found[:5]) + (", …" if found[5:] else "")


def _beyond(model: Model, expected: Sequence[Tensor], got: Sequence[Tensor]) -> str | None:
    """The first output that differs by more than rounding, and by how much."""
    forms = [[f"{t.dtype}{list(t.shape)}" for t in each] for each in (expected, got)]
    if forms[0] != forms[1]:
        return f"outputs {', '.join(forms[1])} instead of {', '.join(forms[0])}"
    for row, tensor in zip(drift(model, got, expected), expected):
        if row.relative > TOLERANCE.get(tensor.dtype, 0.0) or row.misplaced:
            where = f", and {row.misplaced:.2%} of its infinities elsewhere" if row.misplaced else ""
            return f"output {row.output!r} is {row.relative:.2g} away{where}"
    return None
