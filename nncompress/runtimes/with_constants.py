"""A file of which some inputs are constants: runs take the others."""

from __future__ import annotations

from collections.abc import Sequence

from nncompress.ir.stated_constants import Constant, left_to_fix
from nncompress.runtimes.base import Array, Call, Runner


def with_constants(runner: Runner, constants: Sequence[Constant], origin: str) -> Runner:
    """The runner, or one that takes the inputs that are not among the constants.

    Raises:
        UsageError: it has no such input, or a value is none of the input's dtype, or the sizes are free.
    """
    names = [spec.name for spec in runner.inputs]
    fixed = left_to_fix(constants, names, runner.remembered(), origin)
    return WithConstants(runner, fixed) if fixed else runner


class WithConstants(Runner):
    """Another runner, given the same values for some of its inputs in every run."""

    def __init__(self, runner: Runner, constants: Sequence[Constant]) -> None:
        self._runner = runner
        specs = {spec.name: spec for spec in runner.inputs}
        self._fixed: dict[str, Array] = {
            each.name: each.tensor(specs[each.name].dtype, specs[each.name].shape) for each in constants
        }
        self._taken = [spec.name for spec in runner.inputs]
        self.inputs = tuple(spec for spec in runner.inputs if spec.name not in self._fixed)
        self.name, self.runtime, self.device = runner.name, runner.runtime, runner.device
        self.metadata, self.outputs, self.threads = runner.metadata, runner.outputs, runner.threads
        self.file_size, self.notes, self.sizes = runner.file_size, runner.notes, runner.sizes
        self._reuses_outputs = runner._reuses_outputs

    def complete(self, inputs: Sequence[Array]) -> tuple[Array, ...]:
        """All that the file takes, in its order."""
        given = iter(inputs)
        return tuple(self._fixed[name] if name in self._fixed else next(given) for name in self._taken)

    def _bind(self, inputs: tuple[Array, ...]) -> Call:
        return self._runner._bind(self.complete(inputs))
