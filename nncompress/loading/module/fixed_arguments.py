"""A module whose forward has the same value of some arguments in every call, and takes the others."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from nncompress.ir.stated_constants import Constant, left_to_fix


@dataclass(frozen=True)
class FixedArguments:
    """Which arguments of a signature have which values."""

    signature: inspect.Signature
    values: Mapping[str, Any] = field(default_factory=dict)

    @property
    def left(self) -> inspect.Signature:
        """What is still to be given."""
        parameters = self.signature.parameters.items()
        return self.signature.replace(parameters=[p for name, p in parameters if name not in self.values])

    def complete(self, *inputs: Any, **named: Any) -> inspect.BoundArguments:
        """All arguments, of those that are given."""
        given = self.left.bind(*inputs, **named)
        given.apply_defaults()
        arguments = {**given.arguments, **self.values}
        in_order: Any = {name: arguments[name] for name in self.signature.parameters}
        return inspect.BoundArguments(self.signature, in_order)


def fix_arguments(
    module: nn.Module,
    constants: Sequence[Constant],
    origin: Path | str,
    argument: Callable[[Constant, Any], Any] = Constant.argument,
) -> tuple[list[Constant], FixedArguments]:
    """Let the module's forward have these values, in place.

    An argument that is annotated as a tensor gets one; others a number, as a caller would write it.

    Args:
        argument: makes it from a constant and its annotation.
    Raises:
        UsageError: forward takes no argument of the name, or no other.
    """
    forward = module.forward
    signature = inspect.signature(forward)
    named = [p.name for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    fixed = left_to_fix(constants, named, {}, str(origin))
    values = {each.name: argument(each, signature.parameters[each.name].annotation) for each in fixed}
    arguments = FixedArguments(signature, values)
    if fixed:

        def with_values(*inputs: Any, **named: Any) -> Any:
            bound = arguments.complete(*inputs, **named)
            return forward(*bound.args, **bound.kwargs)

        with_values.__signature__ = arguments.left  # type: ignore[attr-defined]
        with_values.constants = tuple(fixed)  # type: ignore[attr-defined]
        module.__dict__["forward"] = with_values
    return fixed, arguments
