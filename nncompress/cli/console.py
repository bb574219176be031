"""The terminal: results on stdout, everything said along the way on stderr."""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ClassVar

from rich.console import (
    Console,
    ConsoleOptions,
    ConsoleRenderable,
    RenderableType,
    RenderHook,
    RenderResult,
)
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    SpinnerColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
)
from rich.segment import Segment
from rich.text import Text

from nncompress.cli.streams import give_up
from nncompress.errors import Told, on_one_line, printable
from nncompress.progress import NullProgress
from nncompress.progress import Progress as ProgressProtocol
from nncompress.results import plain


class _Results(Console):
    """What cannot be written is an error of the command; rich would end the process with 1."""

    def on_broken_pipe(self) -> None:
        raise BrokenPipeError


class _Printable(RenderHook):
    """Nothing that a file or a name holds reaches the terminal as a control sequence."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_WithoutControls(each) for each in renderables]


@dataclass(frozen=True)
class _WithoutControls:
    inner: ConsoleRenderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for text, style, control in console.render(self.inner, options):
            yield Segment(text if control else printable(text), style, control)


# Names in brackets or colons are names, not markup or pictures: a layer may be called "[/red]" or ":key:".
out = _Results(highlight=False, soft_wrap=False, markup=False, emoji=False)
err = _Results(stderr=True, highlight=False, markup=False, emoji=False)
for console in (out, err):
    console.push_render_hook(_Printable())


class Volume:
    """How much is said along the way: -q, -v."""

    quiet: ClassVar[bool] = False
    verbose: ClassVar[bool] = False

    @classmethod
    @contextmanager
    def of(cls, *, quiet: bool, verbose: bool) -> Iterator[None]:
        """Meanwhile it is that."""
        cls.quiet, cls.verbose = quiet, verbose
        try:
            yield
        finally:
            cls.quiet = cls.verbose = False


class Unwritable(Exception):
    """stdout takes no more; `__cause__` says why."""


def say(sentence: str) -> None:
    """A sentence for the user, on stderr so that it never mixes with --json; with -q, nothing."""
    if Volume.quiet:
        return
    try:
        err.print(on_one_line(sentence), soft_wrap=True)
    except OSError:  # closed or full: no reason to lose the result
        give_up(2)


@contextmanager
def warnings_told() -> Iterator[None]:
    """What is warned of as `Told` is said."""
    show = warnings.showwarning

    def said(message: Warning | str, category: type[Warning], *where: Any) -> None:
        if issubclass(category, Told):
            say(str(message))
        else:
            show(message, category, *where)

    warnings.simplefilter("always", Told)
    warnings.showwarning = said  # type: ignore[assignment]
    try:
        yield
    finally:
        warnings.showwarning = show


def print_json(value: Any) -> None:
    """The machine's form of a result, on stdout."""
    print_text(json.dumps(plain(value), indent=2, default=str, allow_nan=False) + "\n")


def print_text(text: str) -> None:
    """A whole document, on stdout."""
    try:
        print(text, end="", flush=True)
    except OSError as error:
        raise Unwritable from error


def show(renderable: RenderableType) -> None:
    """A result for the user, on stdout; a progress bar on the terminal makes room for it."""
    bar = _Bar.active
    if bar is not None:
        bar.stop()
    try:
        out.print(on_one_line(renderable) if isinstance(renderable, str) else renderable)
        out.file.flush()
    except OSError as error:
        raise Unwritable from error
    if bar is not None:
        bar.start()


class _Count(MofNCompleteColumn):
    """ "3/12", or nothing where the total is unknown."""

    def render(self, task: Task) -> Text:
        return Text("") if task.total is None else super().render(task)


class _Left(ProgressColumn):
    """ "0:01:10 left", or nothing where that is unknown."""

    def render(self, task: Task) -> Text:
        return Text("" if task.finished or task.time_remaining is None else _left(task.time_remaining))


def _left(seconds: float) -> str:
    return f"{timedelta(seconds=round(seconds))} left"


class _Lines:
    """`step` calls as lines: each piece of work as it begins, and how far it is every so often."""

    EVERY = 10.0  # seconds

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._now, self._begun, self._told = "", 0.0, 0.0

    def step(self, description: str, done: int, total: int | None) -> None:
        now = self._clock()
        if description != self._now:
            self._now, self._begun, self._told = description, now, now
            say(f"{description}{f': {total} to do' if total else ''}")
        elif now - self._told >= self.EVERY and done:
            self._told = now
            text = f"{description}: {done}"
            if total:
                text += f" of {total}, {_left((now - self._begun) / done * (total - done))}"
            say(text)


class _Bar:
    """Draws `step` calls as one bar per description."""

    active: ClassVar[Progress | None] = None

    def __init__(self, progress: Progress) -> None:
        self._progress = progress
        self._tasks: dict[str, Any] = {}

    def step(self, description: str, done: int, total: int | None) -> None:
        description = on_one_line(description)
        if description not in self._tasks:
            for task in self._tasks.values():
                self._progress.remove_task(task)
            self._tasks = {description: self._progress.add_task(description, total=total)}
        self._progress.update(self._tasks[description], completed=done, total=total)


@contextmanager
def progress() -> Iterator[ProgressProtocol]:
    """A progress bar on the terminal; silent where stderr is piped, and with -q; lines with -v."""
    if Volume.verbose:
        yield _Lines()
        return
    if Volume.quiet or not err.is_terminal:
        yield NullProgress()
        return
    described = TextColumn("{task.description}", markup=False)
    columns = (SpinnerColumn(), described, BarColumn(), _Count(), TimeElapsedColumn(), _Left())
    with Progress(*columns, console=err, transient=True) as bar:
        _Bar.active = bar
        try:
            yield _Bar(bar)
        finally:
            _Bar.active = None


@contextmanager
def how_to_go_on(kept: Callable[[], Path | None], has: str) -> Iterator[None]:
    """Ctrl-C and SIGTERM end a run, and it is said what the file or folder that `kept` gives has of it."""
    try:
        yield
    except BaseException as error:
        place = None if isinstance(error, Exception) else kept()
        if place is not None and place.exists():
            say(f"{place} {has}")
        raise


@contextmanager
def starting() -> Iterator[None]:
    """Around the import of what a command works with: torch takes seconds, and the bar tells of it."""
    with progress() as bar:
        bar.step("starting", 0, None)
        yield
