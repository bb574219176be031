"""The options that commands share, and the opening of what they name."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from nncompress.cli import session
from nncompress.cli.console import progress, say
from nncompress.cli.declared import Parameters
from nncompress.errors import OutputError, UsageError
from nncompress.files.folders import make_folder
from nncompress.files.ledger import Ledger
from nncompress.files.targets import check_chosen, check_target

if TYPE_CHECKING:
    from nncompress.ir import InputSpec, Model

_PANEL = "Input and output"
ModelArgument = Annotated[
    str | None,
    typer.Argument(metavar="MODEL", help="model file; left out: what the previous command wrote here"),
]
Output = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help=".pt2, .onnx, .ort, .xml, .pte or .safetensors [default: MODEL.PASS.pt2]",
        rich_help_panel=_PANEL,
    ),
]
Data = Annotated[
    str | None,
    typer.Option(
        metavar="DATA",
        help="file.npz, table.csv?x=a,b&y=c, folder of images by class, mnist:DIR, package.module:function",
        rich_help_panel=_PANEL,
    ),
]
Normalize = Annotated[
    str | None,
    typer.Option(
        metavar="HOW",
        help="imagenet, per-image, none, or m1,m2,m3/s1,s2,s3; remembered with the model",
        rich_help_panel=_PANEL,
    ),
]
Limit = Annotated[
    int, typer.Option(min=1, help="samples of --data used for statistics", rich_help_panel=_PANEL)
]
Arch = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.py:FACTORY",
        help="what builds a state_dict's network; also package.module:factory, timm:NAME, torchvision:NAME",
        rich_help_panel=_PANEL,
    ),
]
WeightsKey = Annotated[
    str | None,
    typer.Option(
        "--weights-key",
        metavar="KEY",
        help="where a checkpoint holds the weights, keys joined by dots: state_dict.student",
        rich_help_panel=_PANEL,
    ),
]
Strict = Annotated[
    bool,
    typer.Option(
        "--strict/--no-strict",
        help="refuse weights that --arch lacks or has beyond the file's; else list them",
        rich_help_panel=_PANEL,
    ),
]
Input = Annotated[
    str | None,
    typer.Option(
        "--input",
        metavar="1x3x32x32",
        help="input shape, where neither file nor --data tell it; B marks the batch: x:Bx40,state:2xBx128",
        rich_help_panel=_PANEL,
    ),
]
TrustPickle = Annotated[
    bool,
    typer.Option(
        "--trust-pickle", help="let a pickled model run its code while loading", rich_help_panel=_PANEL
    ),
]
OutputIndex = Annotated[
    str | None,
    typer.Option(
        "--output-index",
        metavar="N",
        help="which output labels belong to (number or name), where they fit several; remembered",
        rich_help_panel=_PANEL,
    ),
]
Metric = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="top1, top5, f1, miou, rmse, mae, mse, cosine, perplexity or wer [default: by the labels]",
        rich_help_panel=_PANEL,
    ),
]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="of everything random", rich_help_panel=_PANEL)]
Json = Annotated[bool, typer.Option("--json", help="print JSON instead of tables", rich_help_panel=_PANEL)]

TargetOption = Annotated[
    str | None,
    typer.Option(
        "--target",
        metavar="NAME",
        help="where it will run: ort-cpu, openvino, xnnpack, ort-cuda, tensorrt; files are written for it, "
        "and passes measure in it",
        rich_help_panel=_PANEL,
    ),
]
Timing = Annotated[
    bool,
    typer.Option(help="measure what a budget of MACs or parameters is worth here", rich_help_panel=_PANEL),
]

LOADING: Parameters = {  # how a model file is opened: the keywords of `open_model`
    "data": (Data, None),
    "normalize": (Normalize, None),
    "arch": (Arch, None),
    "weights_key": (WeightsKey, None),
    "strict": (Strict, True),
    "input": (Input, None),
    "output_index": (OutputIndex, None),
    "trust_pickle": (TrustPickle, False),
}
RUNNING: Parameters = {  # what running passes takes: the keywords of `nncompress.cli.compress.run_passes`
    "output": (Output, None),
    **LOADING,
    "limit": (Limit, 512),
    "seed": (Seed, 0),
    "timing": (Timing, True),
    "target": (TargetOption, None),
    "json": (Json, False),
}


@dataclass(frozen=True)
class Opened:
    """A model, its path, and the files it was made from here: the original first, `path` last."""

    model: Model
    path: Path
    chain: tuple[str, ...]

    @property
    def original(self) -> Path:
        return Path(self.chain[0])


def open_model(
    path: str | None,
    *,
    arch: str | None = None,
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
        from nncompress import api  # torch takes seconds to import, and the bar tells of it

        model = api.load(
            path,
            arch=arch,
            weights_key=weights_key,
            strict=strict,
            input=input,
            data=data,
            normalize=normalize,
            trust_pickle=trust_pickle,
            notice=say,
        )
    if output_index is not None:
        from nncompress.analysis.answer import ANSWER, index_of

        model.metadata[ANSWER] = index_of(model.outputs, output_index)
    if data is None:
        dims = ((d, n) for s in model.inputs for d, n in zip(s.shape, model.concrete_shape(s, 1)))
        guessed = {d: n for d, n in dims if isinstance(d, str) and d not in ("batch", *model.sizes)}
        say_guessed_sizes(path, model.inputs, guessed)
    return Opened(model, Path(path), _ancestors(previous, str(Path(path))))


def say_guessed_sizes(path: str, inputs: Sequence[InputSpec], guessed: Mapping[str, int]) -> None:
    """Where neither file, --input nor --data tell a size, say with which one figures are made."""
    if guessed:
        said = ", ".join(f"{name} = {size}" for name, size in guessed.items())
        sizes = {"batch": "B", **guessed}
        example = ",".join(
            f"{spec.name}:" + "x".join(str(sizes.get(str(d), d)) for d in spec.shape) for spec in inputs
        )
        say(
            f"{path} leaves sizes open, figures are made with {said}: --data decides, or --input {example} "
            "with other numbers"
        )


def _ancestors(previous: session.Session | None, path: str) -> tuple[str, ...]:
    """What `path` was made from in this directory, the original first, `path` itself last."""
    if previous is None or path not in previous.chain or not Path(previous.original).is_file():
        return (path,)
    return previous.chain[: previous.chain.index(path) + 1]


def read_by(opened: Opened | None, *named: str | None) -> tuple[Path, ...]:
    """Files and folders that a command reads, which it must not write.

    Args:
        named: values of options as the user wrote them: `data.npz`, `mnist:DIR?split=train`,
            `net.py:build`, `package.module:function`.
    """
    found = [] if opened is None else [opened.path, opened.original]
    for text in filter(None, named):
        bare = text.partition("?")[0]
        place = bare.rpartition(":")[0]
        found += [Path(each) for each in (text, bare, place, bare.partition(":")[2]) if each]
        module = getattr(sys.modules.get(place), "__file__", None)
        if module is not None:
            found.append(Path(module))
    return tuple(found)


def output_for(output: str | None, chosen: Path, reads: tuple[Path, ...]) -> Path:
    """Where the result goes: to what the user named, else to the name that we chose.

    Raises:
        OutputError: it cannot be written, is one of `reads`, or we chose the name of a file that is not ours.
    """
    from nncompress.export.origin import is_ours

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
        if opened.original.suffix != ".pt2":
            chain = (_keep(original, f"{opened.original.stem}.original.pt2"), *chain[1:])
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
    from nncompress import export

    stem, path = Path(name).stem, session.FOLDER / name
    for number in itertools.count(2):
        if str(path) not in read:
            break
        path = path.with_name(f"{stem}.{number}.pt2")
    with Ledger(make_folder(session.FOLDER)).writing(path.name) as temporary:
        export.write(model, temporary)
    return str(path)


def default_output(opened: Opened, suffix: str) -> Path:
    """`model.prune.pt2` beside the working directory's other results, from `model.pt` and "prune"."""
    return Path(f"{opened.path.stem}.{suffix}.pt2")
