"""`--with-past`: a decoder and its decoder with past go through passes as one model, and come out as two."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from nncompress import exporting
from nncompress.cli.console import say
from nncompress.cli.work import model_files
from nncompress.errors import UsageError
from nncompress.exporting.origin import is_ours
from nncompress.files.targets import check_chosen, check_target
from nncompress.ir import Model
from nncompress.ir.edit.apart import take_apart
from nncompress.ir.edit.joined import join
from nncompress.ir.edit.pair import Pair
from nncompress.ir.stated_constants import with_its_own, with_remembered
from nncompress.passes import Pass
from nncompress.pipeline import chooses_by_clock


@dataclass(frozen=True)
class Paired:
    """Two files that were opened together.

    Attributes:
        joined: the model of both, under the first's name.
        step: the second.
    """

    joined: model_files.Opened
    step: model_files.Opened
    pair: Pair

    def file(self, first: Path, label: str, output: str | None, reads: Iterable[Path]) -> Path:
        """Where the second's result goes: beside the first's, under its own name.

        Raises:
            OutputError, UsageError: it cannot be written, is one of `reads`, the first's, or a file that is
                not ours.
        """
        stem = self.step.stem if output else f"{self.step.stem}.{label}"
        file = first.with_name(f"{stem}{first.suffix}")
        if file == first:
            raise UsageError(
                "--with-past: both results would be called alike",
                got=str(file),
                remedy="-o with another name",
            )
        check_target(file, tuple(reads))
        check_chosen(file, is_ours, "")
        return file

    def write(self, result: Model, files: Sequence[Path], **how: Any) -> list[exporting.ExportReport]:
        """Take the result apart, and write its graphs: both, or none."""
        parts = take_apart(result, self.pair)
        return exporting.write_together((parts.prompt, parts.step), files, **how)


def open_paired(
    first: model_files.Opened,
    second: str,
    passes: Sequence[Pass],
    input: str | None,
    *,
    trust_pickle: bool,
) -> Paired:
    """Open the file that --with-past names, and join it to MODEL.

    Args:
        input: what was said of MODEL's; constants of it are the second's, too.

    Raises:
        UsageError: the two are no pair, or a pass measures latencies of a model that runs as two.
    """
    timed = next(filter(chooses_by_clock, passes), None)
    if timed is not None:
        flag = "--latency" if getattr(timed, "latency", None) is not None else "--faster"
        raise UsageError(
            f"{timed.name} {flag} times a model as it runs, and with --with-past it runs as two, whose "
            "shares of the time depend on how long prompts and answers are",
            remedy="--macs or --params instead of --latency"
            if flag == "--latency"
            else f"leave {flag} out; nncompress bench tells what became faster",
        )
    step, lacks = with_its_own(
        with_remembered(input, first.model.metadata),
        lambda said: model_files.open_model(second, trust_pickle=trust_pickle, input=said),
    )
    for lack in lacks.values():
        say(lack.told)
    pair = Pair(first.model, step.model)
    if pair.guessed:
        say(f"names do not tell which cache is which, so they are taken in order: {pair.guessed}")
    joined = replace(first, model=join(pair), chain=(str(first.path),))
    return Paired(joined, step, pair)
