"""What the folder of a search begins with: its settings, and the model that is to be compressed."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from nncompress import api, exporting
from nncompress.cli.console import progress, say
from nncompress.cli.work import model_files
from nncompress.errors import UsageError
from nncompress.files.json_file import write_json
from nncompress.files.ledger import Ledger
from nncompress.ir import Model
from nncompress.loading.json_schema import finite, one_of, optional, plain, record
from nncompress.search.promise import shared
from nncompress.search.records import read
from nncompress.targets import TARGETS

ORIGINAL, SENSITIVITY = "original.pt2", "sensitivity"  # in the folder of a search


SETTINGS = record(
    schema=one_of(1),
    kind=one_of("search"),
    model=plain(str),
    directory=plain(str),
    data=plain(str),
    fit=plain(str),
    normalize=optional(plain(str)),
    limit=plain(int, lambda limit: limit > 0),
    seed=plain(int),
    bounds=record(
        drop=optional(finite),
        size=optional(finite),
        latency=optional(finite),
        goal=one_of("latency", "macs", "size"),
        target=optional(one_of(*TARGETS)),
        metric=plain(str),
        ends_in=optional(one_of("float32", "bfloat16", "int8")),
    ),
)


def begin(
    kept: Path, settings: dict[str, Any], opened: model_files.Opened, *, named: bool, trained: bool
) -> None:
    """Write what a search is begun with, or find that it was.

    Args:
        named: the user named the folder.
        trained: what passes take is also trained on.

    Raises:
        UsageError: the folder holds another search, or other files.
    """
    begun = read(kept / "search.json", SETTINGS)
    if begun is not None and begun["model"] != settings["model"]:
        raise UsageError(
            f"{kept} holds a search of another model than {opened.path}",
            remedy="name another --folder" if named else f"--folder, or rm -r {shlex.quote(str(kept))}",
        )
    if settings["fit"] != half(settings["data"], 1):
        _check_fit(settings, opened.model, all_of_it=trained)
    if begun is None:  # the settings last: where they are, the model is
        ledger = Ledger(kept)
        if others := [name for name in ledger.others() if name != SENSITIVITY]:
            raise UsageError(
                f"{kept} holds no search, but other files",
                got=", ".join(others[:5]) + (", …" if others[5:] else ""),
                remedy="name a new --folder",
            )
        with ledger.writing(ORIGINAL) as temporary:
            exporting.write(opened.model, temporary)
        write_json(kept / "search.json", settings)


def _check_fit(settings: dict[str, Any], model: Model, all_of_it: bool) -> None:
    """Refuse --fit with samples that the promise is made on; of a few, say how many.

    Raises:
        UsageError: it has more.
    """
    names = (settings["fit"], half(settings["data"], 2))
    fitted, unseen = (api.dataset(name, model, settings["normalize"]) for name in names)
    with progress() as bar:
        both, count = shared(fitted, unseen, None if all_of_it else settings["limit"], bar)
    if both:
        say(
            f"{both} of the {count} samples that the promise is made on are in --fit, too: what is said of "
            "the loss may be too good by as many"
        )


def half(data: str, number: int) -> str:
    return f"{data}{'&' if '?' in data else '?'}half={number}"
