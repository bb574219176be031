"""Which heavy ops of a lowered program its delegate runs, and which of them in int8."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import fx

from nncompress.exporting.check.int8_coverage import Coverage

HEAVY = {"convolution", "linear", "addmm", "mm", "bmm", "matmul", "scaled_dot_product_attention"}


def pte_coverage(program: Any) -> Coverage:
    """Sort the convolutions and matrix products of a program by their arithmetic.

    Args:
        program: an exported program after `to_edge_transform_and_lower`.
    """
    int8, floats, activations, conversions = [], [], [], 0
    for node, delegated in _nodes(program):
        op = _op(node)
        outside = "" if delegated else " (not in the delegate)"
        if op in HEAVY:
            reads = [_op(source) for source in node.all_input_nodes[:3]]
            entry = (op, f"{node.name}{outside}")
            if any(read == "dequantize_per_channel" for read in reads) and delegated:
                int8.append(entry)
            elif op in ("bmm", "matmul", "scaled_dot_product_attention"):
                activations.append(entry)
            else:
                floats.append(entry)
        conversions += not delegated and op.startswith(("quantize_per", "dequantize_per"))
    return Coverage(tuple(int8), (), tuple(floats), tuple(activations), conversions)


def outside_the_delegate(program: Any) -> tuple[str, ...]:
    """The names of ops that ExecuTorch's portable, slow kernels run, in graph order, without repetition."""
    names = [_op(node) for node, delegated in _nodes(program) if not delegated]
    return tuple(dict.fromkeys(name for name in names if name and not name.startswith("sym_")))


def _nodes(program: Any) -> Iterator[tuple[fx.Node, bool]]:
    """Every op, with whether it is in a delegate."""
    modules = dict(program.graph_module.named_modules())
    for node in program.graph_module.graph.nodes:
        if node.op == "get_attr" and hasattr(modules.get(str(node.target)), "original_module"):
            inner: Any = modules[str(node.target)]
            yield from (
                (each, True) for each in inner.original_module.graph.nodes if each.op == "call_function"
            )
        elif node.op == "call_function":
            yield node, False


def _op(node: fx.Node) -> str:
    """ "convolution" of an edge op; "" of what is no op (getitem, symbolic sizes, the delegate's call)."""
    target: Any = node.target
    schema = getattr(target, "_schema", None) or getattr(getattr(target, "_op", None), "_schema", None)
    return schema.name.split("::")[-1] if schema is not None and node.op == "call_function" else ""
