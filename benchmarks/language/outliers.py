"""What int8 costs a language model with outliers in its activations: perplexity and the next byte.

python -m benchmarks.language.outliers DIR

DIR holds lm.pt2 of `model.py`, which makes it. Outliers are planted at no change of the function:
in every block four channels of both norms and of the values are a hundred times larger, and the weights that
read them a hundred times smaller. Or the residual stream is seen in axes of which four are the directions
that it is largest in, as the streams of large models have their outliers. Perplexity and the share of bytes
that are guessed right are of ONNX Runtime on the file as it runs, on text that the model has not seen; with
4 bits of the graph, since ONNX Runtime would round activations, too, which is another question.
"ORT static" is ONNX Runtime's own quantizer.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from onnxruntime.quantization import QuantFormat, quantize_static
from onnxruntime.quantization.shape_inference import quant_pre_process
from torch import Tensor
from torch.nn import functional as F

import nncompress
from benchmarks.language.model import CALIBRATION, CONTEXT, HELD_OUT, Reader, open_file, text, trained
from nncompress.analysis.observe.walk import Walk
from nncompress.devices import processor
from nncompress.ir import Model
from nncompress.ir.graph.ops import op_name
from nncompress.passes import Context
from nncompress.passes.invariance.rotation.streams import find_streams
from nncompress.passes.invariance.rotation.turn import Axes, rotate

TIMES, CHANNELS = 100, 4
PRINCIPAL = 4
ROWS = {
    "static, --no-smooth": "quantize:smooth=false",
    "static": "quantize",
    "static, --no-smooth --rotate": "quantize:smooth=false,rotate=true",
    "static, --rotate": "quantize:rotate=true",
    "dynamic, --no-smooth": "quantize:mode=dynamic,max-drift=0.99,smooth=false",
    "dynamic": "quantize:mode=dynamic,max-drift=0.99",
    "4 bits": "quantize:weight-bits=4,group-size=32",
    "4 bits, --rotate": "quantize:weight-bits=4,group-size=32,rotate=true",
    "4 bits, nearest": "quantize:weight-bits=4,group-size=32,rounding=nearest",
    "4 bits, nearest, --rotate": "quantize:weight-bits=4,group-size=32,rounding=nearest,rotate=true",
    "4 bits, a scale per output": "quantize:mode=weights,weight-bits=4",
    "4 bits, a scale per output, --rotate": "quantize:mode=weights,weight-bits=4,rotate=true",
}


def plant(model: Model) -> Model:
    """A copy with outliers."""
    model = model.copy()
    tensors = dict(model.graph_module.named_parameters())
    generator = torch.Generator().manual_seed(0)

    def scale(name: str, dim: int, factor: float) -> None:
        tensors[name].index_copy_(dim, at, factor * tensors[name].index_select(dim, at))

    with torch.no_grad():
        for block in sorted({name.split(".")[1] for name in tensors if name.startswith("blocks.")}):
            for makes, reads in (("norm1", ("q", "k", "v")), ("norm2", ("up",)), ("v", ("out",))):
                at = torch.randperm(128, generator=generator)[:CHANNELS]
                for part in ("weight", "bias"):
                    scale(f"blocks.{block}.{makes}.{part}", 0, TIMES)
                for layer in reads:
                    scale(f"blocks.{block}.{layer}.weight", 1, 1 / TIMES)
    return model


def aligned(model: Model, ids: Tensor) -> Model:
    """A copy whose stream has the directions that it is largest in along single channels."""
    model = model.copy()
    streams = find_streams(model)[0]
    seen: list[Tensor] = []
    walk = Walk(model)
    for node in model.graph.nodes:
        if op_name(node) == "layer_norm":
            walk.hooks[node.args[0]] = [lambda x: seen.append(x.flatten(0, 1).double() / x.std())]
    with torch.no_grad():
        walk.outputs(ids[:32])
    rows = torch.cat(seen)
    rows -= rows.mean(1, keepdim=True)
    largest = torch.linalg.eigh(rows.T @ rows)[1].flip(1)[:, :PRINCIPAL]
    at = torch.randperm(streams[0].width, generator=torch.Generator().manual_seed(0))[:PRINCIPAL]
    channels = torch.eye(streams[0].width, dtype=torch.float64)[:, at]
    matrix = _axes(largest) @ _axes(channels).T
    rotate(model, streams, Axes("", False, False, lambda *_: [matrix]), Context())
    return model


def _axes(first: Tensor) -> Tensor:
    """An orthogonal matrix that begins with the mean and these directions."""
    width = len(first)
    rest = torch.randn(width, width, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    mean = torch.full((width, 1), width**-0.5, dtype=torch.float64)
    axes, triangle = torch.linalg.qr(torch.cat([mean, first, rest], 1)[:, :width])
    return axes * triangle.diagonal().sign()


def quality(scores: Callable[[Tensor], Tensor], ids: Tensor) -> tuple[float, float]:
    """Perplexity, and the share of next bytes that are the most likely one."""
    lost, right = [], []
    for rows in ids.split(16):
        found = scores(rows)[:, :-1].flatten(0, 1)
        target = rows[:, 1:].flatten()
        lost.append(F.cross_entropy(found, target))
        right.append((found.argmax(1) == target).float().mean())
    return math.exp(torch.stack(lost).mean()), float(torch.stack(right).mean())


def as_it_runs(path: Path) -> Callable[[Tensor], Tensor]:
    session = open_file(path)
    return lambda ids: torch.from_numpy(session.run(None, {"ids": ids.numpy()})[0])


def theirs(source: Path, ids: Tensor) -> Path:
    prepared, made = source.with_suffix(".pre.onnx"), source.with_suffix(".ort.onnx")
    quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(made), Reader(ids), quant_format=QuantFormat.QDQ, per_channel=True,
                    op_types_to_quantize=["MatMul", "Gemm"], extra_options={"WeightSymmetric": True},
                    reduce_range=not {"avx512_vnni", "avx_vnni"} & processor().flags)  # fmt: skip
    return made


def forms(model: Model, base: Path, ids: Tensor) -> Iterator[tuple[str, Callable[[Tensor], Tensor]]]:
    """The model in each form, float32 first."""
    first = base.with_suffix(".onnx")
    nncompress.export(model, str(first))
    yield "float32", as_it_runs(first)
    for name, options in ROWS.items():
        small = nncompress.compress(model, [options], data=ids)
        if name.startswith("4 bits"):
            yield name, lambda rows, small=small: small.outputs_of(rows)[0].detach()
        else:
            path = base.with_name(f"{base.name}, {name}.onnx")
            nncompress.export(small, str(path), target="ort-cpu")
            yield name, as_it_runs(path)
    yield "ORT static", as_it_runs(theirs(first, ids))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("dir", type=Path)
    parser.add_argument("--networks", nargs="+", metavar="NAME", help="of those in the table")
    given = parser.parse_args()
    folder = given.dir
    torch.set_num_threads(1)
    data = text()
    known, held = data[: len(data) * 9 // 10], data[len(data) * 9 // 10 :]
    model = trained(folder, known, 120)
    at = torch.randint(0, len(known) - CONTEXT, (CALIBRATION, 1), generator=torch.Generator().manual_seed(1))
    ids = known[at + torch.arange(CONTEXT)]
    rows = held[: len(held) // CONTEXT * CONTEXT].view(-1, CONTEXT)[:HELD_OUT]
    print(f"| {len(rows)} × {CONTEXT} bytes | | perplexity | next byte | change |\n|---|---|---|---|---|")
    networks = {"as trained": model, "outliers": plant(model), "in the stream": aligned(model, ids)}
    for network in given.networks or networks:
        base = None
        for name, scores in forms(networks[network], folder / network, ids):
            found, right = quality(scores, rows)
            base = right if base is None else base
            change = 100 * (right - base)
            print(f"| {network} | {name} | {found:.3f} | {right:.2%} | {change:+.2f} |", flush=True)


if __name__ == "__main__":
    main()
