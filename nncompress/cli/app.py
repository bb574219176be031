"""Build the commands, run one, and turn whatever it raises into a message and an exit code."""

from __future__ import annotations

import difflib
import os
import signal
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import typer

from nncompress.cli.commands import passes
from nncompress.cli.console import Unwritable, Volume, warnings_told
from nncompress.cli.given_once import refuse_repeats
from nncompress.cli.help_texts import make_readable
from nncompress.cli.streams import give_up, warn
from nncompress.cli.table import COMMANDS, added_commands
from nncompress.errors import ExitCode, ExtensionError, NNCompressError, on_one_line
from nncompress.extensions import culprit
from nncompress.files.atomic import is_full, why_and_remedy
from nncompress.files.interrupts import heard
from nncompress.memory import is_refusal
from nncompress.options import shown
from nncompress.passes import PASSES

MODULES = {  # command -> the module of `nncompress.cli.commands` that registers it; the others are passes
    "inspect": "inspect",
    "sensitivity": "sensitivity",
    "train": "training.train",
    "cycle": "training.cycle",
    "reproduce": "reproduce",
    "compress": "compress",
    "optimize": "optimize",
    "export": "export",
    "eval": "evaluate",
    "bench": "bench",
    "doctor": "doctor",
    "targets": "targets",
    "report": "report",
    "new": "new",
}

QUIET, VERBOSE = ("-q", "--quiet"), ("-v", "--verbose")  # of every command


def build(command: str | None = None) -> typer.Typer:
    """The command tree: of `command` alone, where there is one, so that nothing else is imported.

    Raises:
        ExtensionError: `command` is a pass of another package, which is broken.
    """
    app = typer.Typer(
        name="nncompress",
        add_completion=True,
        no_args_is_help=True,
        rich_markup_mode="rich",
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )

    @app.callback()
    def root() -> None:
        """Make a trained PyTorch model smaller and faster, and know that it is."""

    every = dict.fromkeys((*MODULES, *PASSES))
    for name in [command] if command in every else every:
        if name in MODULES:
            import_module(f"nncompress.cli.commands.{MODULES[name]}").register(app)
            continue
        try:
            passes.register(app, name)
        except ExtensionError:  # told where it is named; the other commands go on
            if name == command:
                raise
    return app


def run(arguments: list[str]) -> int:
    """Run one command line; returns its exit code."""
    show_traceback = "--traceback" in arguments
    arguments = [a for a in arguments if a != "--traceback"]
    quiet, verbose = (bool(set(arguments) & set(flags)) for flags in (QUIET, VERBOSE))
    arguments = [a for a in arguments if a not in (*QUIET, *VERBOSE)]
    if quiet and verbose:
        return _fail("-q and -v ask for less and for more", ExitCode.USAGE, show_traceback)
    if not sys.warnoptions:  # deprecations inside the libraries are ours to mend, not the user's to read
        warnings.simplefilter("ignore")
    if _directory_is_gone():  # now: torch's libraries end the process where they find no directory
        return _fail("the working directory was deleted", ExitCode.OUTPUT, show_traceback)
    try:
        with heard(), _termination_unwinds(), Volume.of(quiet=quiet, verbose=verbose), warnings_told():
            command = typer.main.get_command(build(arguments[0] if arguments else None))
            make_readable(command)
            refuse_repeats(command)
            result = command.main(arguments, prog_name="nncompress", standalone_mode=False)
        _flush()
        if result == ExitCode.INTERRUPTED:  # the parser turns Ctrl-C into this number
            raise KeyboardInterrupt
        return int(result) if isinstance(result, int) else ExitCode.OK
    except NNCompressError as error:
        said = str(error).replace("nncompress COMMAND", f"nncompress {arguments[0]}")
        return _fail(said, error.exit_code, show_traceback)
    except (KeyboardInterrupt, typer.Abort):
        return _fail(
            "interrupted; nothing half-written was left behind", ExitCode.INTERRUPTED, show_traceback
        )
    except Terminated as ended:
        return _fail(f"{ended}; nothing half-written was left behind", ended.exit_code, show_traceback)
    except Unwritable as error:
        give_up(1)
        cause = error.__cause__
        if isinstance(cause, BrokenPipeError):  # `nncompress inspect model.pt | head`
            return ExitCode.OK
        reason = getattr(cause, "strerror", None) or str(cause)
        return _fail(f"cannot print the result: {reason.lower()}", ExitCode.OUTPUT, show_traceback)
    except BrokenPipeError:
        give_up(1)
        return ExitCode.OK
    except SystemExit as error:
        if isinstance(error.__context__, BrokenPipeError):  # how `rich` leaves where nobody reads --help
            give_up(1)
            return ExitCode.OK
        frame = traceback.extract_tb(error.__traceback__)[-1]
        if Path(frame.filename).is_relative_to(Path(typer.__file__).parent):  # completion, used or set up
            return int(error.code or 0)
        return _fail(_left(error, frame), ExitCode.USAGE, show_traceback)
    except OSError as error:
        if is_full(error):
            reason, remedy = why_and_remedy(error)
            said = f"cannot write\n  got:      {on_one_line(reason)}\n  try:      {remedy}"
            return _fail(said, ExitCode.OUTPUT, show_traceback)
        return _defect(error)
    except Exception as error:
        if hasattr(error, "format_message") and hasattr(error, "exit_code"):  # a usage error of the parser
            said = on_one_line(error.format_message()).replace("Value error, ", "")  # pydantic's, of a choice
            return _fail(
                f"{said}{_given(error, arguments)}{_suggestion(arguments)}", ExitCode.USAGE, show_traceback
            )
        if is_refusal(error):
            return _fail(
                "out of memory\n  try:      a smaller --limit or --batch", ExitCode.INTERNAL, show_traceback
            )
        return _defect(error)


class Terminated(BaseException):
    """SIGTERM or SIGHUP, as what Ctrl-C is: every `finally` runs, so no temporary file stays behind."""

    def __init__(self, said: str, exit_code: ExitCode) -> None:
        super().__init__(said)
        self.exit_code = exit_code


_ENDING = {"SIGTERM": ("terminated", ExitCode.TERMINATED), "SIGHUP": ("hung up", ExitCode.HUNG_UP)}


@contextmanager
def _termination_unwinds() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # others may not set handlers
        yield
        return

    def unwind(number: int, frame: object) -> None:
        raise Terminated(*_ENDING[signal.Signals(number).name])

    before = {}
    try:
        for name in _ENDING:
            number = getattr(signal, name, None)  # Windows has no SIGHUP
            if number is not None and signal.getsignal(number) is not signal.SIG_IGN:  # nohup ignores it
                before[number] = signal.signal(number, unwind)
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _left(error: SystemExit, frame: traceback.FrameSummary) -> str:
    """What is said of code of the user's (an architecture's forward, a pickle) that called sys.exit()."""
    return (
        f"{frame.filename}, line {frame.lineno}, ended the command by exit({error.code!r})\n"
        "  try:      raise an error there instead, or leave that line out"
    )


def _flush() -> None:
    try:
        sys.stdout.flush()
    except OSError as error:
        raise Unwritable from error


def _given(error: Exception, arguments: list[str]) -> str:
    """What was typed for the option that the parser refuses, where its own message has it not."""
    names = getattr(getattr(error, "param", None), "opts", ())
    for argument, following in zip(arguments, [*arguments[1:], None]):
        option, equals, value = argument.partition("=")
        given = value if equals else following
        if option in names and given is not None and f"'{given}'" not in str(error):
            return f"\n  got:      {shown(given)}"
    return ""


def _suggestion(arguments: list[str]) -> str:
    commands = [name for group in {**COMMANDS, **added_commands()}.values() for name in group]
    if not arguments or arguments[0] in commands:
        return f"\n  try:      nncompress {arguments[0]} --help" if arguments else ""
    near = difflib.get_close_matches(arguments[0], commands, 1)
    return f"\n  try:      nncompress {near[0]}" if near else "\n  try:      nncompress --help"


def _directory_is_gone() -> bool:
    try:
        os.getcwd()
    except OSError:
        return True
    return False


def _fail(message: str, code: ExitCode, show_traceback: bool) -> ExitCode:
    if show_traceback:
        traceback.print_exc()
    warn(f"error: {message}")
    return code


def _defect(error: BaseException) -> ExitCode:
    traceback.print_exception(error)
    package = culprit(error)
    if package:
        warn(f"error: this is a defect of {package}; please report it to its authors with the lines above")
        return ExitCode.EXTENSION
    warn("error: this is a defect of nncompress, not of your input; please report it with the lines above")
    return ExitCode.INTERNAL
