"""Targets: one file each, and a file that was written for one says so where it runs elsewhere."""

import json
from dataclasses import fields, replace
from pathlib import Path

import pytest

from nncompress import extras, targets
from nncompress.devices import Processor
from nncompress.errors import MissingExtraError, UsageError
from nncompress.exporting import WRITERS
from nncompress.extensions import Registry
from nncompress.extras import EXTRAS
from nncompress.runtimes import RUNTIMES
from nncompress.targets import TARGETS, written_for
from nncompress.targets.written_for import PROPERTY, notes, record


def test_each_target_is_one_file_that_says_everything():
    modules = {path.stem for path in Path(targets.__file__).parent.glob("*.py")}
    assert {name.replace("-", "_") for name in TARGETS} == modules - {
        "__init__",
        "base",
        "speed",
        "written_for",
    }
    for name, each in TARGETS.items():
        assert each.name == name
        silent = {"runtime", "extra", "rewrites", *(f.name for f in fields(each) if f.type == "bool")}
        assert all(getattr(each, field.name) for field in fields(each) if field.name not in silent)
        assert set(each.suffixes) <= set(WRITERS)
        assert not each.runtime or set(each.suffixes) <= set(RUNTIMES[each.runtime].suffixes)
        assert not each.extra or each.extra in EXTRAS


def test_what_only_one_runtime_likes_belongs_to_one_target():
    owners = {
        rewrite: [t.name for t in TARGETS.values() if rewrite in t.rewrites] for rewrite in targets.SAID
    }
    assert owners == {rewrite: ["ort-cpu"] for rewrite in targets.SAID} | {
        "float16": ["tensorrt"],
        "matrices": ["openvino"],
        "biases": ["openvino"],
        "nbits-floats": [],  # made of "nbits" where that is not right
    }


def test_a_file_is_for_the_one_target_that_reads_its_format_and_else_for_any():
    assert targets.for_file(".onnx", None) is None
    assert targets.for_file(".ort", None) is TARGETS["ort-cpu"]
    with pytest.raises(UsageError, match="no such target"):
        targets.for_file(".onnx", "tpu")
    with pytest.raises(UsageError, match="does not read such a file") as caught:
        targets.for_file(".pt2", "openvino")
    assert "-o NAME.onnx" in caught.value.remedy


def test_a_target_whose_runtime_is_missing_names_the_extra(monkeypatch):
    monkeypatch.setattr(extras, "installed", lambda extra: False)
    with pytest.raises(MissingExtraError) as caught:
        targets.for_file(".onnx", "openvino")
    assert "nncompress[openvino]" in caught.value.remedy
    assert targets.for_file(".onnx", "tensorrt") is TARGETS["tensorrt"]  # which is only written


def test_a_runtime_that_is_installed_and_does_not_load_says_why_and_how_to_mend_it(monkeypatch):
    def imported(module):
        raise ImportError("libtbb.so.12: cannot open shared object file")

    monkeypatch.setattr(extras, "installed", lambda extra: True)
    monkeypatch.setattr(extras, "import_module", imported)
    with pytest.raises(MissingExtraError, match="which is installed and cannot be imported") as caught:
        targets.for_file(".onnx", "openvino")
    assert "libtbb.so.12" in caught.value.got
    assert caught.value.remedy == "pip install --force-reinstall openvino"


@pytest.mark.parametrize(
    ("rewrites", "runtime", "flags", "said"),
    [
        ({"amx-tiles": 11}, "openvino", set(), "it was written for ort-cpu (11 weights moved by one"),
        ({}, "openvino", set(), "it was written for ort-cpu (with nothing in it"),
        ({"amx-tiles": 11}, "onnxruntime", {"amx_int8"}, ""),
        ({"amx-tiles": 11}, "onnxruntime", {"avx512_vnni"}, "this processor has no AMX"),
        ({"unsigned-weights": 3}, "onnxruntime", {"avx512_vnni"}, "needs no unsigned weights"),
        ({"unsigned-weights": 3}, "onnxruntime", {"sse4_1"}, ""),
        ({"float16": 9}, "openvino", set(), "9 tensors of floats in float16"),
    ],
)
def test_a_file_says_what_it_was_written_for_where_that_is_not_here(
    rewrites, runtime, flags, said, monkeypatch
):
    monkeypatch.setattr(written_for, "processor", lambda: Processor("here", 2, frozenset(flags)))
    found = notes(record(TARGETS["ort-cpu"], rewrites), runtime)
    assert said in " ".join(found)
    assert bool(said) == bool(found)
    assert notes(record(None, {}), runtime) == ()


def test_a_file_of_one_of_several_targets_with_a_runtime_is_at_home_there(monkeypatch):
    own = replace(TARGETS["ort-cpu"], name="npu")
    registry = Registry("nncompress.targets", {**TARGETS, "npu": own}, lambda name, found: "")
    monkeypatch.setattr(written_for, "TARGETS", registry)
    assert notes(record(own, {}), "onnxruntime") == ()
    (note,) = notes(record(own, {}), "openvino")
    assert "it was written for npu" in note
    assert "--target openvino" in note


@pytest.mark.parametrize(
    "text", ["", "[]", '{"target": 3}', '{"target": "\\u001b[31m"}', "9" * 10000, "[" * 10000, "{"]
)
def test_a_property_from_a_stranger_is_not_believed(text):
    assert notes({PROPERTY: text}, "openvino") == ()
    stranger = {"target": "ort-cpu", "rewrites": {"\x1b[31m": 1, "amx-tiles": "many"}}
    (note,) = notes({PROPERTY: json.dumps(stranger)}, "openvino")
    assert "\x1b" not in note
    assert "many" not in note
