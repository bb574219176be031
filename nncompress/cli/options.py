"""The options that commands share."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from nncompress.cli.declared import Parameters

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
Tokenizer = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        help="of the texts in --data: tokenizer.json of the tokenizers library, or the folder that holds it",
        rich_help_panel=_PANEL,
    ),
]
NoSamples = Annotated[
    bool,
    typer.Option(
        "--no-samples",
        help="keep no samples of the data in the .pt2; exports are then compared on random inputs",
        rich_help_panel=_PANEL,
    ),
]
Limit = Annotated[
    int,
    typer.Option(min=1, metavar="N", help="samples of --data used for statistics", rich_help_panel=_PANEL),
]
Arch = Annotated[
    str | None,
    typer.Option(
        metavar="FILE.py:FACTORY",
        help="what builds a state_dict's network; also package.module:factory, timm:NAME, torchvision:NAME",
        rich_help_panel=_PANEL,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        help="the weights of a MODEL that names an architecture: timm:NAME, torchvision:NAME",
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
        help="input shape, where neither file nor --data tell it; B marks the batch: x:Bx40,state:2xBx128; "
        "one that is always the same: sr=16000",
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
        help="top1, top5, f1, miou, map, rmse, mae, mse, cosine, perplexity or wer [default: by the labels]",
        rich_help_panel=_PANEL,
    ),
]


def _checked_seed(value: int) -> int:
    """`min` and `max` would do, but the help shows them, so wide that its other columns are cut off."""
    most = 2**63 - 1
    if value < 0:
        raise typer.BadParameter("Input should be greater than or equal to 0")
    if value > most:
        raise typer.BadParameter(f"Input should be less than or equal to {most}")
    return value


Seed = Annotated[
    int,
    typer.Option(metavar="N", help="of everything random", callback=_checked_seed, rich_help_panel=_PANEL),
]
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
EndsIn = Annotated[
    Literal["float32", "bf16", "int8"] | None,
    typer.Option(
        "--for",
        metavar="PRECISION",
        help="in which the result will run, float32, bf16 or int8: what prune-nodes, factorize and grow "
        "time with --latency [default: int8 before a quantize, else as it is]",
        rich_help_panel=_PANEL,
    ),
]
Stream = Annotated[
    bool,
    typer.Option(
        "--stream",
        help="MODEL is safetensors of any size: one weight at a time, to shards in the folder -o; the "
        "architecture is needed only where quantize takes --data",
        rich_help_panel=_PANEL,
    ),
]
WithPast = Annotated[
    str | None,
    typer.Option(
        "--with-past",
        metavar="FILE",
        help="the decoder with past that belongs to MODEL, a decoder: both are changed alike",
        rich_help_panel=_PANEL,
    ),
]
Timing = Annotated[
    bool,
    typer.Option(help="measure what a budget of MACs or parameters is worth here", rich_help_panel=_PANEL),
]

Report = Annotated[
    str | None,
    typer.Option(
        "--report",
        metavar="FILE",
        help="also write a report of this run: .html, .md or .json (nncompress report)",
        rich_help_panel=_PANEL,
    ),
]

LOADING: Parameters = {  # how a model file is opened: the keywords of `open_model`
    "data": (Data, None),
    "tokenizer": (Tokenizer, None),
    "normalize": (Normalize, None),
    "arch": (Arch, None),
    "weights": (Weights, None),
    "weights_key": (WeightsKey, None),
    "strict": (Strict, True),
    "input": (Input, None),
    "output_index": (OutputIndex, None),
    "trust_pickle": (TrustPickle, False),
}
RUNNING: Parameters = {  # what running passes takes: the keywords of `run_passes`
    "output": (Output, None),
    **LOADING,
    "limit": (Limit, 512),
    "seed": (Seed, 0),
    "timing": (Timing, True),
    "target": (TargetOption, None),
    "for_": (EndsIn, None),
    "with_past": (WithPast, None),
    "report": (Report, None),
    "json": (Json, False),
}
