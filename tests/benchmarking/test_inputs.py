"""A language model's prompt and its tokens one by one: what is called, with which sizes."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from scripted_machine import script

from nncompress.benchmarking.inputs import inputs_of, phases
from nncompress.cli.app import run
from nncompress.errors import ExitCode, UsageError
from nncompress.ir import InputSpec
from nncompress.results import Phase

IDS = InputSpec("input_ids", "int64", ("batch", "sequence"), high=9)
KEYS = InputSpec("past.0.key", "float32", ("batch", 2, "past", 4))
MASK = InputSpec("attention_mask", "int64", ("batch", "total"))
POSITIONS = InputSpec("position_ids", "int64", ("batch", "sequence"))
CACHED = [IDS, MASK, POSITIONS, KEYS]


def test_with_a_cache_a_token_reads_it() -> None:
    prompt, decode = phases(CACHED, 7, "m")
    assert (prompt, decode) == (Phase("prompt", 7, 0, True), Phase("decode", 1, 7, True))
    ids, mask, positions, keys = inputs_of(prompt, CACHED, 2, 0, "m")
    assert (ids.shape, mask.shape, keys.shape) == ((2, 7), (2, 7), (2, 2, 0, 4))
    assert positions.tolist() == [[*range(7)]] * 2
    ids, mask, positions, keys = inputs_of(decode, CACHED, 2, 0, "m")
    assert (ids.shape, mask.shape, keys.shape) == ((2, 1), (2, 8), (2, 2, 7, 4))
    assert (positions.tolist(), mask.min()) == ([[7], [7]], 1)


def test_sizes_may_be_expressions_of_others() -> None:
    mask = InputSpec("attention_mask", "int64", ("batch", "past + sequence"))
    _, decode = phases([IDS, mask, KEYS], 7, "m")
    assert inputs_of(decode, [IDS, mask, KEYS], 1, 0, "m")[1].shape == (1, 8)


def test_without_a_cache_every_token_computes_all_of_them() -> None:
    prompt, decode = phases([IDS], 7, "m")
    assert decode == Phase("decode", 1, 7, False)
    assert all(inputs_of(each, [IDS], 1, 0, "m")[0].shape == (1, 7) for each in (prompt, decode))


def test_graphs_for_one_phase_only() -> None:
    one = InputSpec("ids", "int64", ("batch", 1))
    assert [phase.name for phase in phases([one, KEYS], 7, "m")] == ["decode"]
    state = InputSpec("state", "float32", ("batch", 2, 16, 4))
    assert [phase.name for phase in phases([InputSpec("ids", "int64", ("batch", 7)), state], 7, "m")] == [
        "prompt"
    ]


def test_what_does_not_fit_is_refused() -> None:
    with pytest.raises(UsageError, match="takes 128 tokens") as told:
        phases([InputSpec("ids", "int64", ("batch", 128))], 7, "m")
    assert "--tokens 128" in told.value.remedy
    with pytest.raises(UsageError, match="no input of tokens"):
        phases([InputSpec("x", "float32", ("batch", 8))], 7, "m")


def write_cached(path) -> None:
    """ids [batch, seq], keys [batch, 1, past, 4] -> logits [batch, seq, 9], keys with those of ids added."""
    table = np.random.default_rng(0).standard_normal((9, 4)).astype(np.float32)
    floats = TensorProto.FLOAT
    graph = helper.make_graph(
        [
            helper.make_node("Gather", ["table", "ids"], ["x"]),
            helper.make_node("Unsqueeze", ["x", "one"], ["new"]),
            helper.make_node("Concat", ["past", "new"], ["present"], axis=2),
            helper.make_node("ReduceMean", ["present"], ["mean"], axes=[1, 2], keepdims=0),
            helper.make_node("Unsqueeze", ["mean", "one"], ["all"]),
            helper.make_node("Add", ["x", "all"], ["sum"]),
            helper.make_node("MatMul", ["sum", "turned"], ["logits"]),
        ],
        "g",
        [
            helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "seq"]),
            helper.make_tensor_value_info("past", floats, ["batch", 1, "past_length", 4]),
        ],
        [
            helper.make_tensor_value_info("logits", floats, ["batch", "seq", 9]),
            helper.make_tensor_value_info("present", floats, ["batch", 1, "total", 4]),
        ],
        [
            numpy_helper.from_array(table, "table"),
            numpy_helper.from_array(np.ascontiguousarray(table.T), "turned"),
            numpy_helper.from_array(np.array([1]), "one"),
        ],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9), path)


def test_bench_tokens_as_it_is_typed(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    script(monkeypatch)
    write_cached("a.onnx")
    write_cached("b.onnx")
    options = ["--tokens", "5", "--batch", "2", "--time", "100ms", "-o", "r.json"]
    assert run(["bench", "a.onnx", "b.onnx", *options]) == ExitCode.OK
    captured = capsys.readouterr()
    assert "--tokens 5 decides" in captured.err
    shown = " ".join(captured.out.split())
    assert "prompt: 5 tokens a call; batch 2" in shown
    assert "decode: one token a call, 5 in the cache" in shown
    assert "tokens/s" in shown
    prompt, decode = json.loads((tmp_path / "r.json").read_text())["runs"]
    assert prompt["phase"] == {"name": "prompt", "tokens": 5, "context": 0, "cached": True}
    assert decode["phase"] == {"name": "decode", "tokens": 1, "context": 5, "cached": True}
    assert run(["bench", "a.onnx", "--tokens", "5", "--compare", "r.json"]) == ExitCode.USAGE
    assert "--compare" in capsys.readouterr().err
