"""Every known way in which a `.pt2` makes `torch.export.load` run code is closed.

Each attack is a file that creates a marker. The test first shows that torch, given the file, does create it
(so that a refusal proves something), then that `read_pt2` does not.
"""

from __future__ import annotations

import functools
import io
import json
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch
from pt2_members import CONSTANTS, GRAPH, WEIGHTS, Members, edit_json, write

from nncompress.errors import ModelFileError, NNCompressError, UnsafeFileError
from nncompress.loading import load_model
from nncompress.loading.pt2.archive import read_pt2


class _Creates:
    """Unpickling this creates the file `marker`."""

    def __init__(self, marker: Path) -> None:
        self.marker = str(marker)

    def __reduce__(self):
        return open, (self.marker, "w")


def torch_pickle(value: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


# --- the attacks: each turns the innocent members into hostile ones ----------------------------------------


def sample_inputs(members: Members, marker: Path) -> None:
    members["data/sample_inputs/model.pt"] = torch_pickle(((_Creates(marker),), {}))


def pickled_weight(members: Members, marker: Path) -> None:
    def edit(document):
        document["config"]["fc.weight"]["use_pickle"] = True

    edit_json(members, WEIGHTS, edit)
    path_name = json.loads(members[WEIGHTS])["config"]["fc.weight"]["path_name"]
    members[f"data/weights/{path_name}"] = torch_pickle(_Creates(marker))


def pickled_constant(members: Members, marker: Path) -> None:
    def edit(document):
        document["config"]["offset"]["use_pickle"] = True

    edit_json(members, CONSTANTS, edit)
    members["data/constants/tensor_0"] = torch_pickle(_Creates(marker))


def opaque_constant(members: Members, marker: Path) -> None:
    def edit(document):
        document["config"]["extra"] = {
            "path_name": "opaque_obj_0",
            "is_param": False,
            "use_pickle": True,
            "tensor_meta": None,
        }

    edit_json(members, CONSTANTS, edit)
    members["data/constants/opaque_obj_0"] = pickle.dumps(_Creates(marker))


def legacy_weights(members: Members, marker: Path) -> None:
    members["data/weights/model.pt"] = torch_pickle({"fc.weight": _Creates(marker)})


def legacy_constants(members: Members, marker: Path) -> None:
    members["data/constants/model.pt"] = torch_pickle({"offset": _Creates(marker)})


def expression(members: Members, marker: Path) -> None:
    def edit(document):
        graph = document["graph_module"]["graph"]
        graph["tensor_values"]["x"]["sizes"][0] = {
            "as_expr": {"expr_str": f"__import__('pathlib').Path({str(marker)!r}).touch() or 2", "hint": None}
        }

    edit_json(members, GRAPH, edit)


def guards(members: Members, marker: Path) -> None:
    def edit(document):
        document["guards_code"] = [f"__import__('pathlib').Path({str(marker)!r}).touch() is None"]

    edit_json(members, GRAPH, edit)


def default_factory(members: Members, marker: Path) -> None:
    """The output's specification names a module to import; one on sys.path that creates the marker."""
    module = marker.parent / "imported_by_treespec.py"
    module.write_text(f"open({str(marker)!r}, 'w')\nfactory = list\n")

    def edit(document):
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        spec = json.loads(signature["out_spec"])
        spec[1]["type"] = "collections.defaultdict"
        spec[1]["context"] = {
            "default_factory_module": module.stem,
            "default_factory_name": "factory",
            "dict_context": ["y"],
        }
        signature["out_spec"] = json.dumps(spec)

    edit_json(members, GRAPH, edit)


def enum_context(members: Members, marker: Path) -> None:
    module = marker.parent / "imported_by_enum.py"
    module.write_text(
        f"import enum\nopen({str(marker)!r}, 'w')\nclass E(enum.Enum):\n    a = 1\n",
    )

    def edit(document):
        signature = document["graph_module"]["module_call_graph"][0]["signature"]
        spec = json.loads(signature["out_spec"])
        spec[1]["context"] = json.dumps([{"__enum__": True, "fqn": f"{module.stem}:E", "name": "a"}])
        signature["out_spec"] = json.dumps(spec)

    edit_json(members, GRAPH, edit)


def imported_function(members: Members, marker: Path) -> None:
    """A node that imports a module by name, with a function that torch's own verifier allows."""
    module = marker.parent / "imported_by_node.py"
    module.write_text(f"open({str(marker)!r}, 'w')\n")

    def edit(document):
        node = {
            "target": "torch.export.custom_ops._call_custom_autograd_function_in_pre_dispatch",
            "inputs": [{"name": "", "arg": {"as_string": f"{module.stem}.Function"}, "kind": 1}],
            "outputs": [{"as_none": True}],
            "metadata": {},
            "is_hop_single_tensor_return": None,
            "name": "called",
        }
        document["graph_module"]["graph"]["nodes"].insert(0, node)

    edit_json(members, GRAPH, edit)


def operator_that_writes_files(members: Members, marker: Path) -> None:
    """aten::from_file makes a file of the name and size it is given, and maps it into memory."""

    def edit(document):
        node = {
            "target": "torch.ops.aten.from_file.default",
            "inputs": [
                {"name": "filename", "arg": {"as_string": str(marker)}, "kind": 1},
                {"name": "shared", "arg": {"as_bool": True}, "kind": 1},
                {"name": "size", "arg": {"as_int": 16}, "kind": 1},
            ],
            "outputs": [{"as_tensor": {"name": "written"}}],
            "metadata": {},
            "is_hop_single_tensor_return": None,
            "name": "written",
        }
        graph = document["graph_module"]["graph"]
        graph["nodes"].insert(0, node)
        graph["tensor_values"]["written"] = {
            **graph["tensor_values"]["p_fc_bias"],
            "sizes": [{"as_int": 16}],
            "requires_grad": False,
        }

    edit_json(members, GRAPH, edit)


def input_name(members: Members, marker: Path) -> None:
    """A default value smuggled into the generated signature by way of the input's name."""
    code = f"x=__import__('pathlib').Path({str(marker)!r}).touch()"

    def edit(document):
        text = json.dumps(document).replace('"name": "x"', f'"name": {json.dumps(code)}')
        changed = json.loads(text)
        values = changed["graph_module"]["graph"]["tensor_values"]
        values[code] = values.pop("x")
        changed["graph_module"]["module_call_graph"][0]["signature"]["forward_arg_names"] = [code]
        document.clear()
        document.update(changed)

    edit_json(members, GRAPH, edit)


@dataclass
class Attack:
    prepare: Callable[[Members, Path], None]
    error: type[Exception] | None  # None: the hostile part is left out, the rest loads


ATTACKS = [
    Attack(sample_inputs, None),
    Attack(pickled_weight, UnsafeFileError),
    Attack(pickled_constant, UnsafeFileError),
    Attack(opaque_constant, UnsafeFileError),
    Attack(legacy_weights, UnsafeFileError),
    Attack(legacy_constants, UnsafeFileError),
    Attack(expression, UnsafeFileError),
    Attack(guards, None),
    Attack(default_factory, None),
    Attack(enum_context, ModelFileError),
    Attack(imported_function, UnsafeFileError),
    Attack(operator_that_writes_files, UnsafeFileError),
    Attack(input_name, ModelFileError),
]


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: attack.prepare.__name__)
def test_attack_runs_in_torch_and_not_here(attack, members, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    marker = tmp_path / "marker"
    hostile = dict(members)
    attack.prepare(hostile, marker)
    path = write(hostile, tmp_path / "hostile.pt2")
    x = torch.randn(2, 4)

    try:
        torch.export.load(path).module()(x)
    except Exception as error:
        print(f"torch: {error!r}"[:300])
    assert marker.exists(), "the attack does nothing, so refusing it proves nothing"
    marker.rmdir() if marker.is_dir() else marker.unlink()
    for module in tmp_path.glob("imported_by_*.py"):
        monkeypatch.delitem(__import__("sys").modules, module.stem)

    if attack.error is None:
        program, _ = read_pt2(path)
        assert program.module()(x)["y"].shape == (2, 3)
    else:
        with pytest.raises(attack.error) as caught:
            read_pt2(path)
        assert "hostile.pt2" in str(caught.value)
    assert not marker.exists()


def test_innocent_archive_loads(members, tmp_path):
    """The archive that all attacks start from is itself fine."""
    program, record = read_pt2(write(members, tmp_path / "innocent.pt2"))
    x = torch.randn(5, 4)
    weight, bias = program.state_dict["fc.weight"], program.state_dict["fc.bias"]
    assert torch.allclose(program.module()(x)["y"], x @ weight.T + bias + torch.arange(3.0), atol=1e-6)
    assert record == {}


@pytest.mark.parametrize(
    "name",
    [
        "data/aotinductor/model/wrapper.so",
        "data/aotinductor/model/weights_config.json",
        "data/constants/custom_obj_0",
        "data/weights/model.pkl",
        "executorch/model.pte",
        "models/other.json",
        "../../escape",
    ],
)
def test_unknown_members_are_refused(name, members, tmp_path):
    path = write({**members, name: b"\x7fELF"}, tmp_path / "extra.pt2")
    with pytest.raises((UnsafeFileError, ModelFileError), match=r"member"):
        read_pt2(path)


def test_compiled_library_is_called_code(members, tmp_path):
    path = write({**members, "data/aotinductor/model/wrapper.so": b"\x7fELF"}, tmp_path / "aoti.pt2")
    with pytest.raises(UnsafeFileError, match="AOTInductor"):
        read_pt2(path)


@pytest.mark.parametrize(
    ("what", "edit"),
    [
        ("unknown key", lambda d: d.update(surprise=1)),
        ("a list for a record", lambda d: d.update(graph_module=[])),
        ("a custom object", lambda d: d["graph_module"]["graph"].update(custom_obj_values={"a": {}})),
        ("an int that is a string", lambda d: d["schema_version"].update(minor="20")),
        ("another schema", lambda d: d["schema_version"].update(major=9)),
        ("an unknown verifier", lambda d: d.update(verifiers=["os"])),
        ("a symbol that is code", lambda d: d.update(range_constraints={"print()": {}})),
        ("a quote in a name", lambda d: _rename_parameter(d, 'a"),print(("')),
    ],
)
def test_graph_that_says_anything_unknown_is_refused(what, edit, members, tmp_path):
    hostile = dict(members)
    edit_json(hostile, GRAPH, edit)
    with pytest.raises((UnsafeFileError, ModelFileError), match=r"models/model\.json"):
        read_pt2(write(hostile, tmp_path / "unknown.pt2"))


def _rename_parameter(document: Any, name: str) -> None:
    document["graph_module"]["signature"]["input_specs"][0]["parameter"]["parameter_name"] = name


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.load",
        "_operator.methodcaller",
        "torch.ops.aten.save.default",  # TorchScript's builtin, which pickles into the file it is named
        "torch.ops.aten.__class__.mro",
        "torch.ops.aten._reshape_alias.default",  # reads beyond the end of its tensor
        "torch.ops.aten._sparse_coo_tensor_unsafe.default",
        "torch.ops.aten.sparse_coo_tensor.indices",
        "torch.ops.aten.resize_.default",
        "torch.ops.aten.ctc_loss.IntList",
        "torch.ops.mylibrary.op.default",
        "torch.ops.higher_order.triton_kernel_wrapper_functional",
        "#extension:op",
    ],
)
def test_function_that_is_no_tensor_operator_is_refused(target, members, tmp_path):
    hostile = dict(members)
    edit_json(hostile, GRAPH, lambda d: d["graph_module"]["graph"]["nodes"][0].update(target=target))
    with pytest.raises((UnsafeFileError, ModelFileError), match=r"nodes\[0\]\.target"):
        read_pt2(write(hostile, tmp_path / "function.pt2"))


def test_fuzzed_graphs_only_raise_our_errors(members, tmp_path):
    """Values of the graph replaced by others: it loads or is refused, and nothing else is raised."""
    random = Random(0)
    graph = json.loads(members[GRAPH])
    places = [place for place in _places(graph) if "metadata" not in place]
    strange = [
        None,
        -1,
        2**62,
        True,
        1.5,
        "",
        "x",
        "a b",
        [],
        {},
        {"as_int": 1},
        {"as_tensor": {"name": "x"}},
    ]
    outcomes = set()
    for _ in range(200):
        changed = json.loads(members[GRAPH])
        *path, last = random.choice(places)
        parent = functools.reduce(lambda node, key: node[key], path, changed)
        other = functools.reduce(lambda node, key: node[key], random.choice(places), graph)
        parent[last] = random.choice([other, random.choice(strange)])
        hostile = {**members, GRAPH: json.dumps(changed).encode()}
        try:
            load_model(write(hostile, tmp_path / "fuzzed.pt2"))
            outcomes.add("loaded")
        except NNCompressError as error:
            outcomes.add(type(error).__name__)
    assert {"loaded", "ModelFileError"} <= outcomes


def _places(node: Any, path: tuple = ()) -> list[tuple]:
    """The paths to everything inside a JSON document."""
    items = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [place for key, item in items for place in [(*path, key), *_places(item, (*path, key))]]


def test_torch_does_not_chatter(members, tmp_path, capfd):
    """torch logs the traceback of what is reported here in one message."""
    hostile = dict(members)
    edit_json(hostile, GRAPH, lambda d: d["graph_module"]["graph"]["nodes"][0]["inputs"].pop())
    edit_json(hostile, GRAPH, lambda d: d["graph_module"]["graph"]["nodes"][0]["inputs"].pop())
    with pytest.raises(ModelFileError, match="KeyError: 'weight'"):
        read_pt2(write(hostile, tmp_path / "broken.pt2"))
    assert capfd.readouterr().err == ""
