"""The proof of a growth: the model computes what it did, and a gradient reaches every group of new units."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import torch

from nncompress.analysis.couplings import Couplings, find_couplings
from nncompress.analysis.couplings.groups import Growth
from nncompress.analysis.couplings.proof import TOLERANCE, distance
from nncompress.analysis.couplings.proven import without_faults
from nncompress.analysis.couplings.value import EXAMPLE_BATCH
from nncompress.analysis.growth.initial import owned
from nncompress.analysis.growth.new_units import NewUnits
from nncompress.analysis.growth.units import grow_units
from nncompress.ir import Model
from nncompress.ir.edit.widen import Gathers, anywhere

DRAWS = 5  # of initial values
FAINT = 1e-9  # of the largest gradient anywhere: less comes from silent weights only


@dataclass(frozen=True)
class Grown:
    """The outcome of `grow_proven`.

    Attributes:
        model: the larger model; gathers: per widened tensor and dim, where each index comes from.
        error: largest difference of any output, relative to that output's largest magnitude.
        refused: groups left as they were, with the reason.
    """

    model: Model
    gathers: dict[str, Gathers]
    error: float
    refused: dict[str, str]


def grow_proven(model: Model, new: NewUnits, couplings: Couplings | None = None) -> Grown:
    """Grow a copy of the model; groups whose growth cannot be proven stay as they were.

    Args:
        couplings: of this very model, if they are known already.
    """
    couplings = couplings or find_couplings(model)

    def attempt(wanted: Growth) -> tuple[Model, dict[str, Gathers], float] | str:
        failure = ""
        for draw in range(DRAWS):
            grown = couplings.model.copy()
            drawn = replace(new, beside=wanted, seed=new.seed + draw)
            try:
                gathers = grow_units(grown, drawn)
                return grown, gathers, _checked(couplings, drawn, grown, gathers)
            except _NoGradient as error:  # a few new rectifiers can all be off: draw others
                failure = str(error)
            except Exception as error:  # whatever an inconsistent graph raises while it is traced and run
                return str(error).splitlines()[0] if str(error) else type(error).__name__
        return failure

    (grown, gathers, error), refused = without_faults(attempt, new.beside)
    return Grown(grown, gathers, error, refused)


class _NotProven(Exception):
    """The outputs move."""


class _NoGradient(Exception):
    """Training would not reach a group's new units."""


def _checked(couplings: Couplings, new: NewUnits, grown: Model, gathers: Mapping[str, Gathers]) -> float:
    """How far the outputs moved, relative to their size.

    Raises:
        _NotProven: too far.
        _NoGradient: no new unit of some group gets any.
    """
    inputs = couplings.model.example_inputs(EXAMPLE_BATCH, new.seed)
    results = []
    for model in (grown, couplings.model):
        with torch.random.fork_rng(devices=()), torch.set_grad_enabled(model is grown):
            torch.manual_seed(new.seed)  # a model that draws noise draws the same
            results.append(model.outputs_of(*inputs))
    error = distance(*results)
    if not error <= TOLERANCE:
        raise _NotProven(f"new nodes would change the outputs by {error:.2g}")
    fresh = [name for name in new.beside if name not in new.split]
    dead = fresh and _without_gradient(couplings, fresh, grown, gathers, results[0], new.seed)
    if dead:
        raise _NoGradient(f"no gradient would reach the new nodes of {dead[0]}")
    return error


def _without_gradient(
    couplings: Couplings,
    names: Collection[str],
    grown: Model,
    gathers: Mapping[str, Gathers],
    outputs: tuple[torch.Tensor, ...],
    seed: int,
) -> list[str]:
    """Groups none of whose new units has a weight that moves a random combination of the outputs."""
    generator = torch.Generator().manual_seed(seed)
    stored = grown.graph_module.named_parameters()
    parameters = {n: p for n, p in stored if n in gathers and p.requires_grad and p.numel()}
    score = torch.zeros(())
    for output in outputs:
        if output.requires_grad:
            score = score + (output * torch.randn(output.shape, generator=generator)).sum()
    if not parameters or not score.requires_grad:
        return []
    found = torch.autograd.grad(score, list(parameters.values()), allow_unused=True)
    gradients = {n: g.abs() for n, g in zip(parameters, found) if g is not None}
    least = FAINT * max((float(g.max()) for g in gradients.values()), default=0.0)
    dead = []
    for name in names:
        reached = False
        for member in couplings[name].members:
            gradient = gradients.get(member.tensor)
            gather = gathers.get(member.tensor, {}).get(member.dim)
            if gradient is None or gather is None:
                continue
            new = gather.chosen(owned([couplings[name]], member.tensor, member.dim, gather))
            reached |= float((gradient * anywhere({member.dim: new}, gradient.dim())).max()) > least
        if not reached:
            dead.append(name)
    return dead
