"""Is a model well formed, and how far is it from another?"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from nncompress.errors import VerificationError
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.places import place


@dataclass(frozen=True)
class Drift:
    """Distance of one output from a reference, over the same inputs.

    Attributes:
        output: its name.
        relative: ‖a − b‖ / ‖b‖ (Frobenius) over what is finite in both, 0 for equal outputs; of whole numbers
            and truth values the share of entries that differ.
        largest: the largest absolute difference.
        misplaced: share of entries of which one is finite and the other is not, or is another infinity.
        counted: `relative` is a share of entries.
    """

    output: str
    relative: float
    largest: float
    misplaced: float = 0.0
    counted: bool = False

    @property
    def amount(self) -> float:
        """The worse of the two shares."""
        return max(self.relative, self.misplaced)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class Distances:
    """Streamed `Drift` of every output: `add` batch after batch, then `rows`."""

    def __init__(self, names: Sequence[str]) -> None:
        self._names = names
        self._sums = [_Sums() for _ in names]

    def add(self, now: Sequence[Tensor], before: Sequence[Tensor]) -> None:
        """Take in the outputs of one batch, and those of the reference for the same inputs."""
        for sums, a, b in zip(self._sums, now, before):
            sums.add(a.detach(), b.detach())

    def rows(self) -> list[Drift]:
        return [sums.drift(name) for name, sums in zip(self._names, self._sums)]


@dataclass
class _Sums:
    entries: int = 0
    differing: int = 0
    misplaced: int = 0
    squares: float = 0.0
    energy: float = 0.0
    largest: float = 0.0
    counted: bool = False

    def add(self, a: Tensor, b: Tensor) -> None:
        self.counted = not (b.is_floating_point() or b.is_complex())
        self.entries += b.numel()
        self.differing += int((a != b).sum())
        a, b = in_double(a), in_double(b)
        finite = a.isfinite() & b.isfinite()
        same = finite | (a == b) | (a.isnan() & b.isnan())
        self.misplaced += int((~same).sum())
        apart = (a - b)[finite].abs()
        self.squares += float(apart.square().sum())
        self.energy += float(b[finite].abs().square().sum())
        self.largest = max(self.largest, float(apart.max()) if apart.numel() else 0.0)

    def drift(self, name: str) -> Drift:
        of_all = 1 / max(self.entries, 1)
        relative = (self.squares / (self.energy or 1.0)) ** 0.5
        if self.counted:
            relative = self.differing * of_all
        return Drift(name, relative, self.largest, self.misplaced * of_all, self.counted)


def outputs_checked(
    model: Model, inputs: Sequence[Tensor], what: str, reference: Sequence[Tensor] | None = None
) -> tuple[Tensor, ...]:
    """Run the model and refuse a result that no user could want.

    Args:
        what: who made this model, for the message ("prune").
        reference: the original's outputs. A NaN, inf or -inf is refused in an output that has none there
            (some models mask classes out with -inf); without a reference, if no output has anything else.

    Raises:
        VerificationError: the graph does not lint or run, or gives values that are not finite.
    """
    try:
        model.graph.lint()
        with torch.no_grad():
            outputs = model.outputs_of(*inputs)
    except Exception as error:  # whatever an inconsistent graph raises
        raise VerificationError(
            f"{what}: the model no longer runs", got=f"{type(error).__name__}: {error}"
        ) from error
    broken = not_finite(model)
    comparable = [
        t.float() if t.is_floating_point() and t.itemsize == 1 else t for t in outputs
    ]  # float8 has no ops
    nowhere = not any(not t.numel() or t.isfinite().any() for t in comparable)
    for position, (name, tensor) in enumerate(zip(model.outputs, comparable)):
        new = _kinds(tensor)
        if reference is not None and position < len(reference):
            new -= _kinds(reference[position])
        elif broken is None and not nowhere:
            continue
        if new:
            raise VerificationError(
                f"{what}: output {name!r} has NaN or infinite values"
                + (" only" if reference is None and nowhere else ""),
                got=f"{broken} has some too"
                if broken
                else f"its weights are finite; {_origin(model, inputs, new)}",
                remedy="give inputs that it is made for: --data" if reference is None and nowhere else "",
            )
    return outputs


def _origin(model: Model, inputs: Sequence[Tensor], kinds: set[str]) -> str:
    """The first op that makes such values of others, in words."""
    try:
        with torch.no_grad():
            _FirstOf(model.graph_module, kinds).run(*(x.clone() for x in inputs))
    except _Found as found:
        return f"{place(found.node)} makes {found.made} of {found.given} values"
    return "it is given them, or holds them"


class _Found(Exception):
    def __init__(self, node: fx.Node, made: str, given: str) -> None:
        super().__init__()
        self.node, self.made, self.given = node, made, given


class _FirstOf(fx.Interpreter):
    """Stops at the first op that gives a value of these kinds where none that it is given is of that kind."""

    def __init__(self, module: fx.GraphModule, kinds: set[str]) -> None:
        super().__init__(module)
        self._wanted = kinds

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "call_function" and n.all_input_nodes:
            given = _kinds_among([self.env[each] for each in n.all_input_nodes])
            made = (_kinds_among(result) & self._wanted) - given
            if made:
                raise _Found(n, "NaN" if "nan" in made else "infinities", "infinite" if given else "finite")
        return result


def _kinds_among(values: Any) -> set[str]:
    tensors = (leaf for leaf in pytree.tree_leaves(values) if isinstance(leaf, Tensor))
    return set().union(*map(_kinds, tensors))


def _kinds(tensor: Tensor) -> set[str]:
    """Which values that are not finite it has."""
    found = {"nan"} if tensor.isnan().any() else set()
    if tensor.is_complex():
        return found | ({"inf"} if tensor.isinf().any() else set())
    return found | {str(v) for v in (math.inf, -math.inf) if (tensor == v).any()}


def not_finite(model: Model) -> str | None:
    """The name of a weight or buffer with NaN or infinite values, if there is one.

    A buffer may hold -inf on purpose (a mask added before a softmax), so only NaN counts there; and that not
    in a constant of the model's code, which may mark what is missing by it.
    """
    return next(_not_finite(model), None)


def spoiling(model: Model) -> str | None:
    """The same, unless it does no harm: no weight of a layer, and random inputs give numbers, or -inf, alone
    (`fmax(x, nan)` is x, and a bias of -inf switches a class off)."""
    found = list(_not_finite(model))
    weights = {name for name, tensor in model.graph_module.named_parameters() if tensor.dim() > 1}
    harm = next((name for name in found if name in weights), None)
    if not found or harm is not None:
        return harm
    try:
        with torch.no_grad():
            kinds = _kinds_among(model.outputs_of(*model.example_inputs(max(2, model.least_batch))))
    except Exception:  # whatever an operator raises: then nobody can tell
        return found[0]
    return None if kinds <= {"-inf"} else found[0]


def _not_finite(model: Model) -> Iterator[str]:
    constants = set(model.metadata.get("constants", []))
    parameters = {name for name, _ in model.graph_module.named_parameters(remove_duplicate=False)}
    for name, tensor in model.state_dict().items():
        bad = tensor.isnan() if name not in parameters else ~tensor.isfinite()
        if name not in constants and bad.any():
            yield name


def in_double(tensor: Tensor) -> Tensor:
    """The same values in twice the precision; complex ones stay complex."""
    return tensor.to(torch.complex128 if tensor.is_complex() else torch.float64)


def same_structure(now: Sequence[Tensor], before: Sequence[Tensor], what: str) -> None:
    """Refuse outputs that differ in number, shape or dtype.

    Raises:
        VerificationError: they do.
    """
    got, expected = ([f"{t.dtype}{tuple(t.shape)}" for t in each] for each in (now, before))
    if got != expected:
        raise VerificationError(
            f"{what}: the outputs changed their form", got=str(got), expected=str(expected)
        )


def drift(model: Model, now: Sequence[Tensor], before: Sequence[Tensor]) -> list[Drift]:
    """Distance of every output from the reference `before`."""
    distances = Distances(model.outputs)
    distances.add(now, before)
    return distances.rows()
