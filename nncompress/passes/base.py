"""The contract of a pass.

A pass is a frozen dataclass. Its fields are its options: once declared, they are the command's flags, the
recipe's keys and the recorded settings. The driver (`nncompress.pipeline`) calls

    requires(model, context)   refuse before work starts, naming the node and the remedy
    apply(model, context)      edit the model; say what changed (nothing changed = empty list, bit for bit)
    ensures(model, changes)    state what holds now; checked on the result

What declares the options does not import torch: `nncompress prune --help` answers at once. So our own passes
say with `step` where these are; a pass of another package may define them in its class.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

from nncompress.errors import UsageError
from nncompress.extensions import named
from nncompress.options import Options, check_whole, option
from nncompress.progress import NullProgress, Progress

if TYPE_CHECKING:
    from torch import Tensor

    from nncompress.data import Dataset
    from nncompress.ir import Model

Precision = Literal["float32", "bfloat16", "int8"]

# Where nobody says how much is to change, a layer may lose the first of these shares of what it could lose at
# which no output moves by more than NEAR. Shares add up alike, whatever the size of a network's weights.
STRENGTHS = (1e-3, 1e-4, 1e-5)
NEAR = 0.05
BY_DEFAULT = f"[default: {STRENGTHS[0]:g}; less where outputs would move by more than {NEAR:.0%}]"


@dataclass(frozen=True)
class Change:
    """One thing that a pass did, or (with `applied=False`) skipped and why.

    Attributes:
        where: layer or tensor name.
        what: one phrase: "rank 12 of 64", "skipped: fewer MACs but rank 60 saves nothing".
        numbers: the figures behind it, JSON-able (`params_before`, `mse`, …).
    """

    where: str
    what: str
    numbers: dict[str, Any] = field(default_factory=dict)
    applied: bool = True


@dataclass
class Context:
    """What a pass may use besides the model.

    Attributes:
        data: calibration samples, None where the user gave none.
        seed: every random choice derives from it.
        progress: told what is being done; never printed to.
        limit: at most this many samples of `data` are used for statistics; None uses all.
        batch_size: samples per forward pass.
        target: where the result will run (`nncompress.targets`): what is timed is timed there. None: in the
            one that is fastest on this machine.
        ends_in: the precision in which the result will run, which is the one that is timed; None: as it is,
            and floats as the target computes them by itself.
        finish: with "int8", what makes the model int8 that is timed; None else.
        notes: sentences that the user should read after the pass.
        warnings: sentences that say what may be wrong with its result.
    """

    data: Dataset | None = None
    seed: int = 0
    progress: Progress = field(default_factory=NullProgress)
    limit: int | None = 512
    batch_size: int = 64
    target: str | None = None
    ends_in: Precision | None = None
    finish: Callable[[Model], Model] | None = None
    notes: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        check_whole("seed", self.seed, least=0)
        if self.limit is not None:
            check_whole("limit", self.limit)

    @property
    def ending(self) -> str:
        """ " in int8", behind where something was timed; "" where nobody said in what the result will run."""
        return f" in {self.ends_in}" if self.ends_in else ""

    def warn(self, sentence: str | None) -> None:
        """Add a warning, where there is one."""
        if sentence is not None:
            self.warnings.append(sentence)


def step(place: str) -> Any:
    """A method of a pass that is a function in another module, "module:name", imported when it is called.

    So what declares the options does not import torch, and no step has to import what imports it.
    """

    def called(self: Pass, *given: Any) -> Any:
        return named(place)(self, *given)

    called.place = place  # type: ignore[attr-defined]
    return called


@dataclass(frozen=True)
class Pass(Options):
    """Base of all passes.

    Attributes:
        recurrent: it changes fused recurrent layers (LSTM, GRU); where it does not, the driver says so.
        stored_weights: it sees stored weights only: the driver stores those that the graph computes (weight
            norm, the mask of a pruned weight) before it; where False, the pass does so itself.
        protects: the option that leaves a layer alone.
        afterwards: what usually follows, for the case that the outputs have moved far.
        amounts: the options that say how much is to change. Where none is given, `relative`, which is one of
            them, is chosen. Empty for a pass that does not ask.
        more: what to type for more than that.
        by_clock: the options with which latencies, measured as the result will run, decide what it does.
        tensorwise: the options with which it can treat one weight after the other, each as a network of its
            own (`nncompress.streaming`); None where it looks at the network as a whole.
    """

    summary: ClassVar[str]
    example: ClassVar[str] = ""
    recurrent: ClassVar[bool] = False
    stored_weights: ClassVar[bool] = True
    protects: ClassVar[str] = "exclude"
    afterwards: ClassVar[str] = ""
    amounts: ClassVar[tuple[str, ...]] = ()
    more: ClassVar[str] = ""
    by_clock: ClassVar[tuple[str, ...]] = ()
    tensorwise: ClassVar[tuple[str, ...] | None] = None

    def strengths(self) -> list[Self]:
        """What to try in turn until the outputs stay near; empty where it was said how much is to change."""
        said = any(f.name in self.amounts and getattr(self, f.name) != f.default for f in fields(self))
        if said or not self.amounts:
            return []
        return [replace(self, relative=share) for share in STRENGTHS]  # type: ignore[call-arg]  # in amounts

    @property
    def share_lost(self) -> float | None:
        """Of what a layer could lose, the share that it may; None where another option decides."""
        return STRENGTHS[0] if self.strengths() else getattr(self, "relative", None)

    @property
    def has_budget(self) -> bool:
        """A share of the MACs or of the parameters was asked for."""
        return any(getattr(self, name, None) is not None for name in ("macs", "params"))

    def treats(self, kind: str) -> bool:
        """Whether it changes weights of this kind of layer: "linear", "embedding" or "convolution"."""
        return True

    def needs_network(self) -> str:
        """Why these options do not fit one weight after the other; "" where they do."""
        return ""

    def check_shape(self, layer: str, shape: tuple[int, ...]) -> None:
        """Refuse, before any weight is read, one whose shape the options do not fit.

        Raises:
            UsageError
        """

    def requires(self, model: Model, context: Context) -> None:
        """Refuse before work starts.

        Raises:
            NNCompressError: this model, these settings or this data cannot work.
        """

    def apply(self, model: Model, context: Context) -> list[Change]:
        """Edit `model` in place."""
        raise NotImplementedError

    def ensures(self, model: Model, changes: list[Change]) -> None:
        """Check the result.

        Raises:
            VerificationError: what the pass promises does not hold.
        """

    def contributions(
        self, before: Model, after: Model, changes: list[Change], inputs: tuple[Tensor, ...], context: Context
    ) -> dict[str, float]:
        """Which layers have moved the outputs most, and how far each by itself; worst first."""
        from nncompress.analysis.distance.contributions import contributions

        return contributions(before, after, [c.where for c in changes if c.applied], inputs)

    def __str__(self) -> str:
        """The text that makes it: "prune:sparsity=0.5,exclude=head*+stem"."""
        settings = {k: "+".join(v) if isinstance(v, list) else v for k, v in self.settings().items()}
        options = ",".join(f"{k}={v}" for k, v in settings.items())
        return f"{self.name}:{options}" if options else self.name


def need_data(context: Context, name: str, why: str) -> Dataset:
    """The calibration data, or one clear refusal."""
    if context.data is None:
        raise UsageError(f"{name} needs data: {why}", remedy="add --data FILE.npz (or a folder of images)")
    return context.data


__all__ = ["Change", "Context", "Options", "Pass", "need_data", "option"]
