"""How a `.pt2` nests its inputs and outputs: only tuples, lists and dicts with string keys pass.

torch's own loader looks containers up in a registry and, for two of them, imports a module that the file
names (`default_factory_module`, `__enum__`). Here a specification is read as JSON and written anew from
tuple, list, dict and leaf. Any other container keeps its children and loses its type: one that names its
children (a dataclass, a HuggingFace `ModelOutput`) becomes a dict, every other a tuple.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

_FIELDS = {"type", "context", "children_spec"}
_SEQUENCES = {"builtins.tuple", "builtins.list"}
_MAX_DEPTH = 32

IsName = Callable[[str], bool]


def plain_treespec(text: str, is_name: IsName) -> str:
    """The specification `text`, rewritten with builtin containers.

    Args:
        text: `[1, {"type": "builtins.tuple", "context": "null", "children_spec": [...]}]`.
        is_name: which strings may be the key of a dict.

    Raises:
        ValueError: it is not a tree specification of protocol 1.
    """
    try:
        protocol, root = json.loads(text)
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError("not a tree specification") from error
    if protocol != 1:
        raise ValueError(f"tree specification protocol {protocol!r}, of which only 1 is known")
    return json.dumps([1, _plain_node(root, is_name, depth=0)])


def _plain_node(node: Any, is_name: IsName, depth: int) -> dict[str, Any]:
    if depth > _MAX_DEPTH or not isinstance(node, dict) or set(node) != _FIELDS:
        raise ValueError("not a tree specification")
    kind, context, children = node["type"], node["context"], node["children_spec"]
    if not isinstance(children, list) or not isinstance(kind, str | None):
        raise ValueError("not a tree specification")
    if kind is None:
        if children:
            raise ValueError("a leaf with children")
        return {"type": None, "context": None, "children_spec": []}
    plain = [_plain_node(child, is_name, depth + 1) for child in children]
    if kind in _SEQUENCES:
        return {"type": kind, "context": "null", "children_spec": plain}
    keys = _keys_of(context, len(plain), is_name)
    if keys is not None:
        return {"type": "builtins.dict", "context": json.dumps(keys), "children_spec": plain}
    if kind == "builtins.dict":
        raise ValueError("a dict whose keys are not plain names")
    return {"type": "builtins.tuple", "context": "null", "children_spec": plain}


def _keys_of(context: Any, count: int, is_name: IsName) -> list[str] | None:
    """The names of a container's `count` children, where its context lists them in a way known here."""
    try:
        context = json.loads(context) if isinstance(context, str) else context
    except (ValueError, RecursionError):
        return None
    match context:
        case {"dict_context": list(keys)}:  # defaultdict
            pass
        case [list(keys), list()]:  # dataclass: the fields that are set, those that are None
            pass
        case list(keys):  # dict, OrderedDict, ModelOutput
            pass
        case _:
            return None
    if len(keys) != count or not all(isinstance(key, str) and is_name(key) for key in keys):
        return None
    return keys if len(set(keys)) == count else None
