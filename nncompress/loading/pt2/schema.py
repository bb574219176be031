"""What the JSON of a `.pt2` may say: the keys, types, names and operators that are admitted.

Each table below admits one record of torch's format (`torch/_export/serde/schema.py`, schema version 8) and
returns it rebuilt from checked values; nothing else of the file is passed on. So what torch reads later holds
only numbers, identifiers, whitelisted operators and the arithmetic of `expression`. Names are checked
because torch writes them into Python source and executes it.

Left out on purpose: guards (`guards_code` is executed as source; dropped), metadata except the module stack
(dropped), custom and opaque objects (refused), devices (everything is loaded to the CPU).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from nncompress.loading.json_schema import (
    Check,
    Rejected,
    at,
    dropped,
    listed,
    mapped,
    one_of,
    optional,
    plain,
    record,
    refused,
    shown,
    union,
)
from nncompress.loading.pt2.expression import TooLarge, plain_expression
from nncompress.loading.pt2.operators import operator_name
from nncompress.loading.pt2.treespec import plain_treespec

SCHEMA_MAJOR = 8


def later(name: str) -> Check:
    """A table of this module that is defined further down (graphs nest)."""
    return lambda value: globals()[name](value)


# --- plain values -----------------------------------------------------------------------------------------

_IDENTIFIER = re.compile(r"(?!__+[^_])[A-Za-z_][A-Za-z0-9_]{0,499}")
_DOTTED = re.compile(r"[A-Za-z0-9_ :/+\-]+(\.[A-Za-z0-9_ :/+\-]+)*")  # a ModuleDict's keys may hold a dash
_MODULE_STACK = re.compile(r"[A-Za-z0-9_.,;:@\[\]()' /+\-]*")


def is_identifier(text: str) -> bool:
    return _IDENTIFIER.fullmatch(text) is not None


def is_parameter_name(text: str) -> bool:
    """No part is one of Python's own: torch looks up each where it puts the tensor, and finds `__class__`."""
    own = any(len(part) > 4 and part.startswith("__") and part.endswith("__") for part in text.split("."))
    return len(text) < 1000 and _DOTTED.fullmatch(text) is not None and not own


BOOL = plain(bool)
INT = plain(int, lambda value: -(2**63) <= value < 2**64)
SIZE = plain(int, lambda value: 0 <= value < 2**48)
TEXT = plain(str, lambda value: len(value) < 10_000)
NAME = plain(str, is_identifier)
NAME_OR_EMPTY = plain(str, lambda value: value == "" or is_identifier(value))
ARGUMENT_NAME = plain(str, lambda value: len(value) < 1000 and value.isidentifier())  # of any script
DOTTED = plain(str, is_parameter_name)
_SYMBOL = re.compile(r"[a-z]{1,8}[0-9]{1,10}")
SYMBOL = plain(str, lambda value: _SYMBOL.fullmatch(value) is not None)
NONE = dropped(True)


def FLOAT(value: Any) -> float:
    if value in ("Infinity", "-Infinity", "NaN"):  # JSON has no number for them, so torch writes their names
        return float(value)
    if type(value) not in (int, float):
        raise Rejected(f"{shown(value)} is not a number")
    return float(value)


DTYPE = one_of(*range(1, 14), *range(28, 36))
LAYOUT = one_of(7)  # strided
MEMORY_FORMAT = one_of(1, 2, 3, 4)


def DEVICE(value: Any) -> dict[str, Any]:
    known = one_of("cpu", "cuda", "mps", "xpu", "hpu", "xla", "npu", "privateuseone")
    record(type=known, index=optional(INT))(value)
    return {"type": "cpu", "index": None}


def EXPRESSION(value: Any) -> str:
    try:
        return plain_expression(TEXT(value))
    except ValueError as error:
        raise Rejected(f"the symbolic size {error}", code=not isinstance(error, TooLarge)) from error


SYM_EXPR = record(expr_str=EXPRESSION, hint=optional(union(as_int=INT, as_bool=BOOL, as_float=FLOAT)))
_DERIVED = re.compile(r"([0-9]{1,10}\*)?[a-z]{1,8}[0-9]{1,10}( [+-] [0-9]{1,10})?")  # 2*s60 + 1
_BY_SYMBOL = mapped(SYMBOL, record(min_val=optional(INT), max_val=optional(INT)))


def BOUNDS(value: Any) -> dict[str, Any]:
    """Of symbols. Those of expressions (`3*s60`, a dim that was exported as a multiple) follow from them;
    torch writes and does not read them."""
    derived = [key for key in value if _DERIVED.fullmatch(key)] if type(value) is dict else []
    left_out = {key for key in derived if not _SYMBOL.fullmatch(key)}
    return _BY_SYMBOL({key: value[key] for key in value if key not in left_out} if left_out else value)


SYM_INT = union(as_expr=SYM_EXPR, as_int=INT)
SYM_FLOAT = union(as_expr=SYM_EXPR, as_float=FLOAT)
SYM_BOOL = union(as_expr=SYM_EXPR, as_bool=BOOL)


def tensor_meta(size: Check) -> Check:
    return record(
        dtype=DTYPE,
        sizes=listed(size),
        requires_grad=BOOL,
        device=DEVICE,
        strides=listed(size),
        storage_offset=size,
        layout=LAYOUT,
    )


# --- graphs -----------------------------------------------------------------------------------------------

TENSOR = record(name=NAME)
OPTIONAL_TENSOR = union(as_tensor=TENSOR, as_none=NONE)
SYM_INT_ARGUMENT = union(as_name=NAME, as_int=INT)
SYM_FLOAT_ARGUMENT = union(as_name=NAME, as_float=FLOAT)
SYM_BOOL_ARGUMENT = union(as_name=NAME, as_bool=BOOL)

ARGUMENT = union(
    as_none=NONE,
    as_tensor=TENSOR,
    as_tensors=listed(TENSOR),
    as_nested_tensors=listed(listed(TENSOR)),
    as_optional_tensor=OPTIONAL_TENSOR,
    as_optional_tensors=listed(OPTIONAL_TENSOR),
    as_int=INT,
    as_ints=listed(INT),
    as_int_lists=listed(listed(INT)),
    as_float=FLOAT,
    as_floats=listed(FLOAT),
    as_float_lists=listed(listed(FLOAT)),
    as_bool=BOOL,
    as_bools=listed(BOOL),
    as_string=TEXT,
    as_strings=listed(TEXT),
    as_complex=record(real=FLOAT, imag=FLOAT),
    as_sym_int=SYM_INT_ARGUMENT,
    as_sym_ints=listed(SYM_INT_ARGUMENT),
    as_sym_float=SYM_FLOAT_ARGUMENT,
    as_sym_floats=listed(SYM_FLOAT_ARGUMENT),
    as_sym_bool=SYM_BOOL_ARGUMENT,
    as_sym_bools=listed(SYM_BOOL_ARGUMENT),
    as_scalar_type=DTYPE,
    as_memory_format=MEMORY_FORMAT,
    as_layout=LAYOUT,
    as_device=DEVICE,
    as_graph=record(name=NAME, graph=later("GRAPH")),
    as_string_to_argument=mapped(NAME, later("ARGUMENT")),
    as_custom_obj=refused("a custom object"),
    as_operator=refused("an operator as an argument"),
)


def NODE_METADATA(value: Any) -> dict[str, str]:
    """The module each node came from (`key,path,class;…`); everything else is dropped."""
    stack = value.get("nn_module_stack") if type(value) is dict else None
    if type(stack) is not str or not _MODULE_STACK.fullmatch(stack):
        return {}
    entries = [entry.split(",") for entry in stack.split(";")]
    return {"nn_module_stack": stack} if all(len(entry) == 3 for entry in entries) else {}


NODE = record(
    target=operator_name,
    inputs=listed(record(name=NAME_OR_EMPTY, arg=ARGUMENT, kind=optional(one_of(0, 1, 2)))),
    outputs=listed(ARGUMENT),
    metadata=NODE_METADATA,
    is_hop_single_tensor_return=optional(BOOL),
    name=optional(NAME),
)

GRAPH = record(
    inputs=listed(ARGUMENT),
    outputs=listed(ARGUMENT),
    nodes=listed(NODE),
    tensor_values=mapped(NAME, tensor_meta(SYM_INT)),
    sym_int_values=mapped(NAME, SYM_INT),
    sym_bool_values=mapped(NAME, SYM_BOOL),
    sym_float_values=mapped(NAME, SYM_FLOAT),
    is_single_tensor_return=optional(BOOL, False),
    custom_obj_values=mapped(NAME, refused("a custom object")),
)

CONSTANT = union(as_none=NONE, as_int=INT, as_float=FLOAT, as_string=TEXT, as_bool=BOOL)

SIGNATURE = record(
    input_specs=listed(
        union(
            user_input=record(arg=ARGUMENT),
            parameter=record(arg=TENSOR, parameter_name=DOTTED),
            buffer=record(arg=TENSOR, buffer_name=DOTTED, persistent=BOOL),
            tensor_constant=record(arg=TENSOR, tensor_constant_name=DOTTED),
            constant_input=record(name=NAME_OR_EMPTY, value=CONSTANT),
            custom_obj=refused("a custom object"),
            token=refused("an effect token"),
        )
    ),
    output_specs=listed(
        union(
            user_output=record(arg=ARGUMENT),
            buffer_mutation=record(arg=TENSOR, buffer_name=DOTTED),
            parameter_mutation=record(arg=TENSOR, parameter_name=DOTTED),
            user_input_mutation=record(arg=TENSOR, user_input_name=NAME),
            token=refused("an effect token"),
        )
    ),
)


def _treespec(is_name: Callable[[str], bool]) -> Check:
    def check(value: Any) -> str:
        try:
            return plain_treespec(plain(str)(value), is_name)
        except ValueError as error:
            raise Rejected(str(error)) from error

    return check


CALL_SIGNATURE = record(
    inputs=dropped([]),
    outputs=dropped([]),
    in_spec=_treespec(is_identifier),
    out_spec=_treespec(lambda key: len(key) < 500),
    forward_arg_names=optional(listed(ARGUMENT_NAME)),
)


def MODULE_CALLS(value: Any) -> list[dict[str, Any]]:
    """The root's calling convention; those of inner modules serve only to rebuild the original classes."""
    for entry in listed(plain(dict))(value):
        if entry.get("fqn") == "":
            return [{"fqn": "", "signature": at(CALL_SIGNATURE, entry.get("signature"), "signature")}]
    raise Rejected("no calling convention of the whole model")


EXPORTED_PROGRAM = record(
    graph_module=record(
        graph=GRAPH,
        signature=SIGNATURE,
        module_call_graph=MODULE_CALLS,
        metadata=dropped({}),
        treespec_namedtuple_fields=dropped({}),
    ),
    opset_version=mapped(TEXT, INT),
    range_constraints=BOUNDS,
    schema_version=record(major=one_of(SCHEMA_MAJOR), minor=INT),
    verifiers=listed(one_of("ATEN", "TRAINING", "")),
    torch_version=optional(TEXT, "<=2.4"),
    guards_code=dropped([]),
)

# weights and constants: `{"fc.weight": {"path_name": "weight_0", ...}}`
PAYLOADS = record(
    config=mapped(
        DOTTED,
        record(
            path_name=plain(str, lambda value: re.fullmatch(r"[a-z_]+_[0-9]{1,9}", value) is not None),
            is_param=BOOL,
            use_pickle=BOOL,
            tensor_meta=optional(tensor_meta(union(as_int=SIZE))),
        ),
    )
)
