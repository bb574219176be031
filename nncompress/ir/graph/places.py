"""Where in a model an op lies, in the words of who wrote the model: graphs keep no names of modules that hold
no weights, and their own names of ops and nodes ("aten.mean.dim", "linear_3") tell a user nothing."""

from __future__ import annotations

import re

from torch import fx

from nncompress.ir.graph.ops import op_name

_LITERAL = re.compile(r"_*(lifted_tensor|tensor_constant)_?\d")
_WORDS = {
    "scaled_dot_product_attention": "attention",
    "lift_fresh_copy": "a constant",
    "getitem": "a part",
    "normal_functional": "normal",
    "rrelu_with_noise": "rrelu",
    "mul": "a product",
    "div": "a quotient",
    "add": "a sum",
    "sub": "a difference",
}


def place(node: fx.Node) -> str:
    """ "lstm in encoder.rnn", "softmax behind encoder.attention", "a sum behind input x": the op in plain
    words, and the layer whose weights it reads or whose result reaches it by the fewest steps; of what comes
    of nothing, the layer that it reaches."""
    if node.op == "placeholder":
        return f"input {node.target}"
    if node.op == "get_attr":
        return str(node.target)
    if node.op == "output":
        return "output"
    seen: set[fx.Node] = set()
    ahead, inputs = [node], []
    while ahead:
        each = ahead.pop(0)
        stored = _layers(each)
        if stored:
            return f"{words(node)} {'in' if each is node else 'behind'} {stored[-1]}"
        inputs += [str(n.target) for n in each.all_input_nodes if n.op == "placeholder"]
        ahead += [n for n in each.all_input_nodes if n not in seen]
        seen.update(each.all_input_nodes)
    return f"{words(node)} behind input {inputs[0]}" if inputs else words(node) + _before(node)


def _before(node: fx.Node) -> str:
    """ " before encoder.rnn": the first layer that what comes of nothing stored or given reaches."""
    seen: set[fx.Node] = set()
    ahead = list(node.users)
    while ahead:
        each = ahead.pop(0)
        stored = _layers(each)
        if stored:
            return f" before {stored[-1]}"
        ahead += [n for n in each.users if n not in seen]
        seen.update(each.users)
    return ""


def layer_name(tensor_name: str) -> str:
    """ "layer1.0.conv1.weight" -> "layer1.0.conv1"; a bare parameter keeps its own name, quantized too."""
    tensor_name = float_name(tensor_name)
    prefix, _, leaf = tensor_name.rpartition(".")
    return prefix if prefix and leaf.startswith(("weight", "bias", "running_")) else tensor_name


def float_name(tensor_name: str) -> str:
    """What a weight was called before it was quantized."""
    return tensor_name.removesuffix("_int8").removesuffix("_int4")


def _layers(node: fx.Node) -> list[str]:
    """The layers whose tensors it reads; literals in the model's code (`lifted_tensor_0`) lie in none."""
    stored = [str(n.target) for n in node.all_input_nodes if n.op == "get_attr"]
    return [layer_name(name) for name in stored if not _LITERAL.match(name)]


def words(node: fx.Node) -> str:
    """An op as one would call it: "max pool2d", "attention"."""
    name = op_name(node)
    plain = name.strip("_").removeprefix("linalg_").removeprefix("native_").replace("_", " ")
    return _WORDS.get(name, plain)


def first_place(graph: fx.Graph, op: str) -> str:
    """`place` of its `first_call`; the op itself where there is none (what another was taken apart to)."""
    node = first_call(graph, op)
    return _plain(op).replace("_", " ") if node is None else place(node)


def first_call(graph: fx.Graph, op: str) -> fx.Node | None:
    """The first call of an op, or of the one that it is part of.

    Args:
        op: the op's name, as in "aten.linalg_qr.default" or "aten::linalg_qr"; or of the kernel of one, as in
            "aten::_cdist_forward".
    """
    wanted = _plain(op)
    calls = [n for n in graph.nodes if n.op == "call_function"]
    node = next((n for n in calls if op_name(n).strip("_") == wanted), None)
    if node is None:  # what an op was taken apart to is called like it: "linalg_inv_ex", "prod" of a cumprod
        letters = wanted.replace("_", "")
        names = [(n, op_name(n).replace("_", "")) for n in calls]
        node = next((n for n, name in names if len(name) > 2 and (name in letters or letters in name)), None)
    return node


def _plain(op: str) -> str:
    plain = re.sub(r"^(aten|prims|quantized_decomposed)\.", "", op.replace("::", "."))
    return plain.partition(".")[0].strip("_").removesuffix("_forward")
