"""`--stream`: a pass over a checkpoint larger than memory, one weight at a time; on data block by block."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nncompress.api.opening import dataset, outline
from nncompress.cli.console import print_json, progress, say, show
from nncompress.errors import UsageError
from nncompress.loading.state_dict.shards import Checkpoint, open_checkpoint
from nncompress.options import flag_of
from nncompress.passes import Context, Pass
from nncompress.progress import Progress
from nncompress.report.streamed import streamed
from nncompress.results import SCHEMA
from nncompress.streaming import ON_DATA, Streamed, run, run_layerwise

TAKEN = ("output", "json")  # of what commands that run passes share
WITH_DATA = ("data", "limit", "seed", "arch", "input", "normalize")  # and where there is data


def run_streamed(
    each: Pass, model: str | None, values: Mapping[str, Any], defaults: Mapping[str, Any]
) -> None:
    """Run the pass over the weights of MODEL, and write the folder that -o names.

    Args:
        values, defaults: of the options that commands which run passes share.

    Raises:
        UsageError: MODEL or -o is missing, or an option is given that needs the network.
    """
    if model is None:
        raise UsageError(
            f"{each.name} --stream needs MODEL: a .safetensors file, its index, or a folder of shards",
            remedy=f"nncompress {each.name} folder --stream -o smaller",
        )
    on_data = values["data"] is not None
    if on_data and each.name not in ON_DATA:
        raise UsageError(
            f"{each.name} --stream goes without --data: it sees weights, and no network",
            remedy=f"leave one of them out; {', '.join(ON_DATA)} --stream take data",
        )
    taken = (*TAKEN, *WITH_DATA) if on_data else TAKEN
    for name, value in values.items():
        if name not in taken and value != defaults[name]:
            raise UsageError(
                f"{each.name} --stream goes without {flag_of(name)}: "
                + ("it takes the network layer by layer" if on_data else "it sees weights, and no network"),
                remedy="leave one of them out",
            )
    output = values["output"]
    if output is None or Path(output).suffix:
        raise UsageError(
            f"{each.name} --stream writes a folder of shards",
            got="no -o" if output is None else f"-o {output}",
            remedy="-o with the name of a folder",
        )
    source = open_checkpoint(model)
    with progress() as bar:
        if on_data:
            done = _on_data(each, source, output, values, bar)
        else:
            done = run(each, source, output, progress=bar)
    if values["json"]:
        print_json(
            {
                "schema": SCHEMA,
                "kind": "stream",
                "pass": each.name,
                "settings": each.settings(),
                **done.to_json(),
            }
        )
        return
    show(streamed(done))
    arch = "" if "config.json" in done.copied else " --arch file.py:factory"
    how = "changed for what it multiplies on the data" if on_data else "treated by itself"
    say(
        f"each weight was {how}: how far the outputs of the network moved was not measured; "
        f"nncompress eval {output}{arch} --data DATA tells, where memory allows it"
    )


def _on_data(
    each: Pass, source: Checkpoint, output: str, values: Mapping[str, Any], bar: Progress
) -> Streamed:
    asked = {name: values[name] for name in ("data", "arch", "input", "normalize")}
    model = outline(source, **asked, notice=say)
    samples = dataset(values["data"], model, values["normalize"], say)
    context = Context(data=samples, seed=values["seed"], limit=values["limit"], progress=bar)
    done = run_layerwise(each, source, model, output, context)
    for sentence in (*context.notes, *context.warnings):
        say(sentence)
    return done
