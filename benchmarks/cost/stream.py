"""A checkpoint larger than memory through `--stream`: peak memory, a kill -9 on the way, speed beside a copy.

    python -m benchmarks.cost.stream FOLDER [--gigabytes 12] [--limit 3] [--pass "quantize --mode weights"]

Writes FOLDER/source, Llama-shaped layers (4096 wide, 11008 within, bfloat16; every layer has the same random
weights) in shards of a layer each, copies it, and runs the command in a process that may have `--limit` GB of
memory of its own (RLIMIT_DATA). The run is killed once half of its shards are there, and run again.

With --samples N the pass gets N sequences of random tokens as its data; this needs transformers.
"""

from __future__ import annotations

import argparse
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

HEADS = 32
_SIZES = "width, width within, vocabulary"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--gigabytes", type=float, default=12)
    parser.add_argument("--limit", type=float, default=3, help="GB")
    parser.add_argument("--sizes", type=int, nargs=3, default=(4096, 11008, 32000), metavar="N", help=_SIZES)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--samples", type=int, default=0, help="of data")
    parser.add_argument("--length", type=int, default=128, help="tokens of a sample")
    parser.add_argument("--pass", dest="command", default="quantize --mode weights")
    given = parser.parse_args()
    source, copy, out = (given.folder / name for name in ("source", "copy", "out"))
    shutil.rmtree(out, ignore_errors=True)
    size, largest, shards = write(given, source)
    if given.samples:
        ids = np.random.default_rng(0).integers(0, given.sizes[2], (given.samples, given.length))
        np.savez(given.folder / "tokens.npz", x=ids)
        given.command += f" --data {given.folder / 'tokens.npz'}"
    started = time.perf_counter()
    shutil.copytree(source, copy)
    copied = time.perf_counter() - started
    shutil.rmtree(copy)
    first = stream(given, source, out, until=shards // 2)
    kept = len(list(out.glob("*.safetensors")))
    second = stream(given, source, out)
    written = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    seconds, cpu = (first[key] + second[key] for key in ("seconds", "cpu"))
    print(f"source {size / 1e9:.2f} GB, largest tensor {largest / 1e6:.0f} MB, limit {given.limit:g} GB")
    print(f"{given.command} --stream: {written / 1e9:.2f} GB written")
    print(f"killed with {kept} shards there; resumed {second['resumed']} of {second['shards']}")
    print(f"peak memory {first['peak'] / 1e9:.2f} and {second['peak'] / 1e9:.2f} GB")
    print(f"{seconds:.0f} s of wall clock ({cpu:.0f} s of CPU time), {size / seconds / 1e6:.0f} MB/s")
    print(f"a copy: {copied:.0f} s, {size / copied / 1e6:.0f} MB/s")


def write(given: argparse.Namespace, folder: Path) -> tuple[int, int, int]:
    """Bytes that are written, those of the largest tensor, and shards that the result will have."""
    generator = torch.Generator().manual_seed(0)
    dtype = getattr(torch, given.dtype)
    hidden, inner, vocabulary = given.sizes

    def random(*shape: int) -> torch.Tensor:
        return (0.02 * torch.randn(*shape, generator=generator)).to(dtype)

    layer = {f"self_attn.{name}_proj.weight": random(hidden, hidden) for name in "qkvo"}
    layer |= {f"mlp.{name}_proj.weight": random(inner, hidden) for name in ("gate", "up")}
    layer |= {"mlp.down_proj.weight": random(hidden, inner)}
    norms = ("input_layernorm", "post_attention_layernorm")
    layer |= {f"{name}.weight": torch.ones(hidden, dtype=dtype) for name in norms}
    ends = {"model.embed_tokens.weight": random(vocabulary, hidden)}
    ends |= {
        "lm_head.weight": random(vocabulary, hidden),
        "model.norm.weight": torch.ones(hidden, dtype=dtype),
    }
    each = sum(tensor.nbytes for tensor in layer.values())
    around = sum(tensor.nbytes for tensor in ends.values())
    count = max(1, int(given.gigabytes * 1e9 - around) // each)
    parts = [{f"model.layers.{n}.{name}": t for name, t in layer.items()} for n in range(count)] + [ends]
    folder.mkdir(parents=True, exist_ok=True)
    listed = {}
    for number, part in enumerate(parts, 1):
        file = folder / f"model-{number:05d}-of-{len(parts):05d}.safetensors"
        save_file(part, file)
        listed |= dict.fromkeys(part, file.name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": listed}))
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": hidden}
    config |= {"intermediate_size": inner, "vocab_size": vocabulary, "num_hidden_layers": count}
    config |= {"num_attention_heads": HEADS, "num_key_value_heads": HEADS, "tie_word_embeddings": False}
    (folder / "config.json").write_text(json.dumps(config))
    size = count * each + around
    largest = max(tensor.nbytes for tensor in [*layer.values(), *ends.values()])
    return size, largest, len(parts) if given.samples else -(-size // 2**28)


def stream(given: argparse.Namespace, source: Path, out: Path, until: int | None = None) -> dict[str, float]:
    """Run the command, and kill it where `until` shards are there."""
    most = int(given.limit * 1e9)
    name, *options = given.command.split()
    command = [sys.executable, "-m", "nncompress", name, str(source), "--stream", *options, "-o", str(out)]
    started = time.perf_counter()
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    process = subprocess.Popen(
        [*command, "--json"],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (most, most)),
    )
    peak = 0
    while until is not None and process.poll() is None and len(list(out.glob("*.safetensors"))) < until:
        peak = max(peak, _peak(process.pid))
        time.sleep(0.2)
    if until is not None:
        process.kill()
    printed, _ = process.communicate()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    found = {"seconds": time.perf_counter() - started, "peak": peak or 1024 * after.ru_maxrss}
    found["cpu"] = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    if until is None:
        if process.returncode:
            sys.exit(process.returncode)
        found |= {key: json.loads(printed)[key] for key in ("resumed", "shards")}
    return found


def _peak(process: int) -> int:
    """Bytes that the process had in memory at most."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return 0
    return 1024 * next((int(line.split()[1]) for line in lines if line.startswith("VmHWM")), 0)


if __name__ == "__main__":
    main()
