"""The commands that `faults` kills: every format and everything that writes."""

from __future__ import annotations

from benchmarks.robustness.fault_series import Command

SESSION = (".nncompress",)
TRAINING = ("--data", "data.npz", "--epochs", "2", "--batch", "20")
SEARCH = ("optimize", "m.pt2", "--data", "data.npz", "--goal", "macs", "--trials", "2", "--folder", "kept")
_TO_ONNX = "nncompress.exporting.write.onnx:convert"


def _pass(name: str, *arguments: str) -> Command:
    return Command(name, (name, "m.pt2", *arguments, "-o", "out.pt2"), ("out.pt2", *SESSION))


COMMANDS = (
    Command("prune .pt2", ("prune", "m.pt2", "--sparsity", "0.5", "-o", "out.pt2"), ("out.pt2", *SESSION)),
    _pass("reduce", "--data", "data.npz", "--macs", "0.7"),
    _pass("quantize", "--data", "data.npz"),
    _pass("grow", "--by", "1"),
    Command(
        "compress --report",
        ("compress", "m.pt2", "--pass", "prune:sparsity=0.5", "-o", "out.pt2", "--report", "out.html"),
        ("out.pt2", "out.html", *SESSION),
    ),
    Command(
        "export .pt2 entropy",
        ("export", "m.pt2", "--storage", "entropy", "-o", "out.pt2"),
        ("out.pt2", *SESSION),
    ),
    Command(
        "export .safetensors", ("export", "m.pt2", "-o", "out.safetensors"), ("out.safetensors", *SESSION)
    ),
    Command("export .onnx", ("export", "m.pt2", "-o", "out.onnx"), ("out.onnx", *SESSION), _TO_ONNX),
    Command(
        "export .ort",
        ("export", "m.pt2", "-o", "out.ort"),
        ("out.ort", "out.required_operators.config", *SESSION),
        _TO_ONNX,
    ),
    Command(
        "export .pte",
        ("export", "m.pt2", "-o", "out.pte"),
        ("out.pte", *SESSION),
        "nncompress.exporting.write.pte:_compile",
    ),
    Command(
        "session, .original.pt2",
        ("prune", "m.pt", "--input", "1x1x8x8", "--sparsity", "0.5"),
        ("m.prune.pt2", *SESSION),
    ),
    Command("new", ("new", "sine", "-o", "out.pt2"), ("out.pt2", *SESSION)),
    Command(
        "train",
        ("train", "m.pt2", *TRAINING, "-o", "out.pt2"),
        ("out.pt2", "out.pt2.checkpoint", "out.pt2.jsonl", *SESSION),
        continues=("--resume",),
    ),
    Command(
        "cycle",
        ("cycle", "m.pt2", *TRAINING, "--ratio", "0.5", "--max-cycles", "1", "-o", "out.pt2"),
        ("out.pt2", "m.cycles", *SESSION),
        continues=("--resume",),
    ),
    Command(
        "quantize --stream",
        ("quantize", "m.safetensors", "--stream", "--mode", "weights", "-o", "shards"),
        ("shards",),
        continues=(),
        result="shards",
    ),
    Command(
        "quantize --stream --data",
        (
            *("quantize", "m.safetensors", "--stream", "--weight-bits", "4", "--group-size", "16"),
            *("--data", "tokens.npz", "--arch", "net.py:build", "-o", "shards"),
        ),
        ("shards",),
        continues=(),
        result="shards",
    ),
    Command(
        "bench .json, .csv",
        ("bench", "m.pt2", "--time", "1s", "-o", "out.json", "-o", "out.csv"),
        ("out.json", "out.csv"),
    ),
    Command(
        "eval --report",
        ("eval", "m.pt2", "--data", "data.npz", "--report", "out.json"),
        ("out.json",),
    ),
    Command(
        "sensitivity",
        ("sensitivity", "m.pt2", "--method", "prune-nodes", "--folder", "kept"),
        ("kept",),
        fresh=True,
    ),
    Command(
        "optimize",
        (*SEARCH, "--max-drop", "90", "-o", "out.pt2"),
        ("kept", "out.pt2", "out.toml", *SESSION),
        continues=(),
    ),
    Command(  # for how long it trains, its speed says: continued, it need not end in the same weights
        "optimize, finetuned",
        (*SEARCH, "--max-drop", "1", "--fit", "fit.npz", "--finetune", "0.05", "-o", "out.pt2"),
        ("kept", "out.pt2", "out.toml", *SESSION),
        fresh=True,
    ),
    Command("report", ("report", "m.pt2", "-o", "out.html"), ("out.html",)),
    Command(  # in the runtime that has no threads of its own: they would not live on in a fork
        "latency table",
        ("factorize", "m.pt2", "--latency", "0.9", "--target", "ort-cpu", "-o", "out.pt2"),
        ("out.pt2", "cache", *SESSION),
        fresh=True,
    ),
)
