"""What torch's reader of `.pt2` works out anew for every value: the annotations of its schema's classes.

Internal to torch; where a version does it no more, this changes nothing.
"""

from __future__ import annotations

import typing
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from types import SimpleNamespace
from typing import Any


@contextmanager
def kept() -> Iterator[None]:
    """Meanwhile `torch.export.load` evaluates the annotations of a class once."""
    from torch._export.serde import serialize

    module: Any = serialize
    given = getattr(module, "typing", None)
    if given is not typing:
        yield
        return
    hints = cache(lambda cls: typing.get_type_hints(cls, globalns=vars(module.schema)))
    own = {**vars(typing), "get_type_hints": lambda cls, globalns=None: hints(cls)}
    module.typing = SimpleNamespace(**own)
    try:
        yield
    finally:
        module.typing = given
