"""The work of a command, imported once its line is read: it needs torch, and --help does not."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from nncompress.cli.console import starting
from nncompress.extensions import named

LARGE_PAGES = "THP_MEM_ALLOC_ENABLE"  # of torch, which looks when it makes its first tensor
TIMED = ("bench:", "targets:")  # what they time is to run as it will elsewhere


def later(place: str) -> Callable[..., None]:
    """The function at "module:name" of `nncompress.cli.work`, imported when it is called.

    Where Linux is asked for pages of 2 MB, large tensors come in these: a ResNet-50 ran 16 images in a fifth
    less CPU time, as memory that each layer takes and returns is else mapped anew in pages of 4 kB.
    """

    def work(*arguments: Any, **values: Any) -> None:
        if not place.startswith(TIMED):
            os.environ.setdefault(LARGE_PAGES, "1")
        with starting():
            function = named(f"nncompress.cli.work.{place}")
        function(*arguments, **values)

    return work
