"""A decoder as two graphs, of its prompt and of a step with a key/value cache: how they fit together.

| graph  | takes                          | gives                      |
|--------|--------------------------------|----------------------------|
| prompt | tokens [batch, length], …      | logits, caches             |
| step   | a token [batch, 1], …, caches  | logits, caches of one more |

Caches are matched by their names (`present.0.key` is `past_key_values.0.key`), else by position.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nncompress.errors import UsageError, VerificationError
from nncompress.ir.graph.inputs import InputSpec
from nncompress.ir.graph.model import Model

TOLERANCE = 1e-4  # of an output's norm: kernels round otherwise for other shapes
STEP = "step."  # before the names of the step's outputs
_PREFIX = re.compile(r"^(past|present)(_key_values?)?_?")


@dataclass(frozen=True)
class Wire:
    """An output of the prompt, and the input of the step that takes it: positions.

    Attributes:
        grown: the step's output that the next step takes there; None: the cache stays as it is.
    """

    given: int
    taken: int
    grown: int | None


class Pair:
    """The two graphs of a decoder.

    Attributes:
        wires: the caches.
        length: the size along which tokens lie in the prompt's inputs: that by which caches grow.

    Raises:
        UsageError: they are no such pair: what does not fit.
    """

    def __init__(self, prompt: Model, step: Model) -> None:
        self.prompt, self.step = prompt, step
        self.guessed = ""  # what was taken for what by its place alone
        self.wires = self._wires()
        self.length = self._length()

    def along(self, name: str) -> int | None:
        """The dim of the prompt's input along which tokens lie; None: it is no part of the text."""
        spec = next(spec for spec in self.prompt.inputs if spec.name == name)
        other = self.taken(name)
        for d, size in enumerate(spec.shape):
            if size == self.length and (isinstance(size, str) or other is None or other.shape[d] != size):
                return d
        return None

    def taken(self, name: str) -> InputSpec | None:
        """The step's input of that name."""
        return next((spec for spec in self.step.inputs if spec.name == name), None)

    def run(self, inputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """What the two make of a text, one after the other: by name, the step's behind `STEP`."""
        first, second = [], {}
        for spec, value in zip(self.prompt.inputs, inputs, strict=True):
            other, d = self.taken(spec.name), self.along(spec.name)
            first.append(value if d is None else value.narrow(d, 0, value.shape[d] - 1))
            if other is not None:
                last = d is not None and other.shape[d] == 1
                second[spec.name] = value[(*[slice(None)] * (d or 0), slice(-1, None))] if last else value
        made = self.prompt.outputs_of(*first)
        second |= {self.step.inputs[w.taken].name: made[w.given] for w in self.wires}
        then = self.step.outputs_of(*(second[spec.name] for spec in self.step.inputs))
        named = {f"{STEP}{name}": value for name, value in zip(self.step.outputs, then)}
        return {**dict(zip(self.prompt.outputs, made)), **named}

    def check(self, joined: Model, what: str) -> None:
        """One after the other they make what the joined model makes.

        Raises:
            VerificationError: they do not.
        """
        inputs = joined.example_inputs(2)
        with torch.no_grad():
            expected = dict(zip(joined.outputs, joined.outputs_of(*inputs)))
            found = self.run(inputs)
        for name, value in expected.items():
            error = float(torch.linalg.vector_norm(found[name].double() - value.double()))
            size = float(torch.linalg.vector_norm(value.double()))
            if not error <= TOLERANCE * size:
                raise VerificationError(
                    f"{what}, the two graphs compute something else in {name}",
                    got=f"relative difference {error / (size or 1.0):.2g}",
                    expected=f"at most {TOLERANCE:.0e}",
                    remedy="this is a defect: please report the model's architecture",
                )

    def _wires(self) -> list[Wire]:
        prompt, step = self.prompt, self.step
        own = {spec.name for spec in prompt.inputs}
        wanted = {_bare(spec.name): at for at, spec in enumerate(step.inputs) if spec.name not in own}
        if not wanted:
            raise no_pair("the second takes no cache", ", ".join(spec.name for spec in step.inputs))
        given = {_bare(name): at for at, name in enumerate(prompt.outputs)}
        grown = {_bare(name): at for at, name in enumerate(step.outputs)}
        if not wanted.keys() <= given.keys():  # no names that tell: the last outputs, in order
            count = len(wanted)
            if len(prompt.outputs) <= count or len(step.outputs) <= count:
                names = ", ".join(step.inputs[at].name for name, at in wanted.items() if name not in given)
                raise no_pair(f"nothing that the first gives is {names}", ", ".join(prompt.outputs))
            given = dict(zip(wanted, range(len(prompt.outputs) - count, len(prompt.outputs))))
            taken_for = (
                f"{prompt.outputs[given[name]]} as {step.inputs[at].name}" for name, at in wanted.items()
            )
            self.guessed = ", ".join(taken_for)
            grown = dict(zip(wanted, range(len(step.outputs) - count, len(step.outputs))))
        shapes = prompt.output_shapes()
        for name, at in wanted.items():
            made, taken = shapes[given[name]], step.inputs[at]
            sizes = [(a, b) for a, b in zip(made, taken.shape) if isinstance(a, int) and isinstance(b, int)]
            if len(made) != len(taken.shape) or any(a != b for a, b in sizes):
                output = prompt.outputs[given[name]]
                raise no_pair(
                    f"the first's output {output} does not fit the second's input {taken.name}",
                    f"{list(made)} and {list(taken.shape)}",
                )
            if any(isinstance(a, str) != isinstance(b, str) for a, b in zip(made, taken.shape)):
                raise no_pair(
                    f"one leaves sizes of {prompt.outputs[given[name]]} free that the other fixes",
                    f"{list(made)} and {list(taken.shape)}; export both alike",
                )
        return [Wire(given[name], at, grown.get(name)) for name, at in wanted.items()]

    def _length(self) -> int | str:
        now, later = self.prompt.output_shapes(), self.step.output_shapes()
        found = {
            now[w.given][d]
            for w in self.wires
            if w.grown is not None
            for d, (before, after) in enumerate(zip(self.step.inputs[w.taken].shape, later[w.grown]))
            if before != after
        }
        length = found.pop() if len(found) == 1 else None
        if length is None or not any(length in spec.shape for spec in self.prompt.inputs):
            raise no_pair("no cache grows by the tokens of a step", ", ".join(str(list(s)) for s in later))
        return length


def _bare(name: str) -> str:
    """ "present.0.decoder.key" -> "0_decoder_key", and "past_key_values_0_decoder_key" alike."""
    return _PREFIX.sub("", re.sub(r"\W+", "_", name.lower()))


def no_pair(what: str, got: str) -> UsageError:
    return UsageError(
        f"--with-past: the two are no decoder and decoder with past: {what}",
        got=got,
        expected="MODEL: tokens -> logits, caches; --with-past: a token, caches -> logits, longer caches",
    )
