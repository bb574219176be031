"""Opening the model that a command names, and where its result goes."""

from __future__ import annotations

import itertools
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from nncompress import api, exporting
from nncompress.analysis.answer import ANSWER, index_of
from nncompress.cli import session
from nncompress.cli.console import progress, say
from nncompress.errors import OutputError, UsageError
from nncompress.exporting.origin import is_ours
from nncompress.files.folders import make_folder
from nncompress.files.ledger import Ledger
from nncompress.files.targets import check_chosen, check_target
from nncompress.ir import Model
from nncompress.loading.collections import names_architecture


@dataclass(frozen=True)
class Opened:
    """A model, its path, and the files it was made from here: the original first, `path` last.

    Attributes:
        path: of the file; the architecture's name, as `timm:resnet18`, where there is none.
        arch: what builds its network, where the file does not say it.
        stated: --input says what the file alone does not.
    """

    model: Model
    path: Path
    chain: tuple[str, ...]
    arch: str | None = None
    stated: bool = False

    @property
    def stem(self) -> str:
        """What files made from it are called."""
        return _stem(self.path)

    @property
    def original(self) -> Path:
        return Path(self.chain[0])


def _stem(path: Path) -> str:
    if names_architecture(path):
        return str(path).partition("?")[0].partition(":")[2]
    return path.stem if path.is_file() else path.name  # which may have points in it, as Qwen2.5-0.5B


def open_model(
    path: str | None,
    *,
    arch: str | None = None,
    weights: str | None = None,
    weights_key: str | None = None,
    strict: bool = True,
    input: str | None = None,
    data: str | None = None,
    normalize: str | None = None,
    output_index: str | None = None,
    trust_pickle: bool = False,
) -> Opened:
    """Load MODEL, or where it is left out the previous artifact of this directory.

    Raises:
        UsageError: it was left out and there is none, or it is gone.
    """
    previous = session.read()
    if path is None:
        if previous is None:
            raise UsageError(
                "MODEL was left out, and in this directory there is no result of an earlier command",
                remedy="nncompress COMMAND model.pt",
            )
        path = previous.artifact
        say(f"using {path}, the previous result in this directory")
    with progress() as bar:
        bar.step(f"loading {path}", 0, None)
        model = api.load(
            path,
            arch=arch,
            weights=weights,
            weights_key=weights_key,
            strict=strict,
            input=input,
            data=data,
            normalize=normalize,
            trust_pickle=trust_pickle,
            notice=say,
        )
    if output_index is not None:
        model.metadata[ANSWER] = index_of(model.outputs, output_index)
    if weights is not None:  # the same, said with the file first
        path, arch = weights, path
    return Opened(model, Path(path), _ancestors(previous, str(Path(path))), arch, input is not None)


def _ancestors(previous: session.Session | None, path: str) -> tuple[str, ...]:
    """What `path` was made from in this directory, the original first, `path` itself last."""
    if previous is None or path not in previous.chain or not Path(previous.original).is_file():
        return (path,)
    return previous.chain[: previous.chain.index(path) + 1]


def read_by(opened: Opened | None, *named: str | None) -> tuple[Path, ...]:
    """Files and folders that a command reads, which it must not write.

    Args:
        named: values of options as the user wrote them: `data.npz`, `texts.csv?tokenizer=DIR`,
            `net.py:build`, `package.module:function`.
    """
    found = [] if opened is None else [opened.path, opened.original]
    for text in filter(None, named):
        bare, _, asked = text.partition("?")
        place = bare.rpartition(":")[0]
        found += [Path(each) for each in (text, bare, place, bare.partition(":")[2]) if each]
        values = [Path(pair.partition("=")[2] or os.devnull) for pair in asked.split("&")]
        for value in values:  # of a tokenizer's folder, which may be the working directory, its own files
            found += value.glob("*.json") if value.is_dir() else [value]
        module = getattr(sys.modules.get(place), "__file__", None)
        if module is not None:
            found.append(Path(module))
    return tuple(found)


def output_for(output: str | None, chosen: Path, reads: tuple[Path, ...]) -> Path:
    """Where the result goes: to what the user named, else to the name that we chose.

    Raises:
        OutputError: it cannot be written, is one of `reads`, or we chose the name of a file that is not ours.
    """
    target = Path(output) if output else chosen
    check_target(target, reads)
    if not output:
        check_chosen(target, is_ours)
    return target


def remember(opened: Opened, artifact: Path, original: Model, result: Model) -> None:
    """Make `artifact` the MODEL of the next command.

    The original is kept in a form that loads without options, and so is a result that was written as another
    format than .pt2: a pass could not start from that. Weights alone (.safetensors) open nowhere without
    their architecture, and are not remembered. Where that cannot be written, `artifact` is there all the
    same: it is said, and is no error.
    """
    chain = opened.chain
    made = [] if artifact.suffix.lower() == ".safetensors" else [str(artifact)]
    try:
        if opened.original.suffix != ".pt2" or (opened.stated and len(chain) == 1):
            chain = (_keep(original, f"{_stem(opened.original)}.original.pt2"), *chain[1:])
        if artifact.suffix != ".pt2" and result is not opened.model:
            made.insert(0, _keep(result, f"{artifact.stem}.pt2", opened.chain))
        if made:
            session.write(session.Session((*(c for c in chain if c not in made), *made)))
    except OutputError as error:
        _say_not_remembered(error)


def begin_session(artifact: Path) -> None:
    """Make a model that was made of nothing the MODEL of the next command."""
    try:
        session.write(session.Session((str(artifact),)))
    except OutputError as error:
        _say_not_remembered(error)


def _say_not_remembered(error: OutputError) -> None:
    reason = f" ({error.got})" if error.got else ""
    say(f"{error.what}{reason}: the next command has to name its MODEL")


def _keep(model: Model, name: str, read: tuple[str, ...] = ()) -> str:
    """Write the model to the session's folder, under another name where the model of that name was read."""
    stem, path = Path(name).stem, session.FOLDER / name
    for number in itertools.count(2):
        if str(path) not in read:
            break
        path = path.with_name(f"{stem}.{number}.pt2")
    with Ledger(make_folder(session.FOLDER)).writing(path.name) as temporary:
        exporting.write(model, temporary)
    return str(path)


def default_output(opened: Opened, suffix: str) -> Path:
    """`model.prune.pt2` beside the working directory's other results, from `model.pt` and "prune"."""
    return Path(f"{opened.stem}.{suffix}.pt2")
