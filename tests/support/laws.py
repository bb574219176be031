"""Laws that hold for every network: each is a function that raises AssertionError where it does not.

`tests/conformance/test_laws.py` tries them on a few networks of every kind,
`benchmarks/robustness/laws_long.py` on as many as there is time for.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import random_networks
import torch
from random_networks import Net
from records import Records
from torch import Tensor

import nncompress
from nncompress import pipeline
from nncompress.errors import NNCompressError, UnsupportedError, UsageError, VerificationError
from nncompress.ir import Model
from nncompress.passes import Context
from nncompress.pipeline import Step
from nncompress.recipe import parse_pass

STEPS = (
    "prune:sparsity=0.5", "prune:std=0.7", "prune:pattern=1:2", "prune:pattern=2:4",
    "prune:sparsity=0.8,remove-dead=true",
    "prune-nodes:ratio=0.3", "prune-nodes:macs=0.7", "prune-nodes:ratio=0.4,round-to=2",
    "prune-nodes:params=0.8,scope=global",
    "cluster:codebook=8", "cluster:decimals=1", "cluster:codebook=4,per=channel",
    "factorize:energy=0.9", "factorize:rank=2", "factorize:ratio=0.7", "factorize:macs=0.8",
    "factorize:relative=0.2,form=tucker",
    "quantize", "quantize:mode=dynamic", "quantize:mode=weights,weight-bits=4", "quantize:mode=float16",
    "quantize:equalize=true,correct-bias=true",
    "substitute:with=separable,relative=1", "substitute:with=kernel-composing,relative=1",
    "share:saving=1", "grow:by=2",
    "grow:factor=1.5,init=split",
)  # fmt: skip
RELATIVE = {"float32": 1e-4, "float64": 1e-9, "float16": 3e-2, "bfloat16": 0.2}


class Irrelevant(Exception):
    """The law says nothing about this network."""


def given(net: Net) -> Model:
    made = random_networks.module(net)
    if not random_networks.depends_on_its_input(net, made):
        raise Irrelevant
    return Model.from_module(made, random_networks.inputs(net, 2))


def run(
    model: Model, steps: Sequence[str], net: Net | None = None, seed: int = 0
) -> tuple[Model, list[Step], list[str]]:
    """Apply the steps; one that refuses in so many words is left out. With `net`, on data of its kind."""
    data = None if net is None else Records(random_networks.inputs(net, 24, seed=50))
    done: list[Step] = []
    refused = []
    for text in steps:
        context = Context(data=data, seed=seed, limit=16, batch_size=8)  # type: ignore[arg-type]
        try:
            model, made = pipeline.run(model, [parse_pass(text)], context)
        except NNCompressError as error:
            refusal(text, error)
            refused.append(f"{text}: {error.what}")
            continue
        done += made
    return model, done, refused


def refusal(text: str, error: NNCompressError) -> None:
    """A refusal is one line that is no defect of ours."""
    assert not isinstance(error, VerificationError), f"{text}: {error}"
    assert "defect" not in str(error), f"{text}: {error}"
    assert "\n" not in error.what, f"{text}: {error}"
    assert "Traceback" not in str(error), f"{text}: {error}"
    assert len(str(error)) < 900, f"{text}: {error}"


def same(left: Sequence[Tensor], right: Sequence[Tensor], relative: float, what: str) -> None:
    """The same forms, infinities in the same places, and ‖left − right‖ ≤ relative · ‖right‖."""
    assert [(t.dtype, t.shape) for t in left] == [(t.dtype, t.shape) for t in right], what
    for a, b in zip(left, right):
        if not a.dtype.is_floating_point:
            assert not relative or (a == b).double().mean() >= 0.5, what
            assert relative or torch.equal(a, b), what
            continue
        finite = b.isfinite()
        assert torch.equal(a.isfinite(), finite), f"{what}: not finite in other places"
        difference, size = (a - b)[finite].double().norm(), b[finite].double().norm()
        assert difference <= relative * size + 1e-12, f"{what}: {difference / size:.2g} away"


def outputs(model: Model, net: Net, batch: int = 3, seed: int = 1) -> tuple[Tensor, ...]:
    with torch.no_grad():
        return model.outputs_of(*random_networks.inputs(net, batch, seed))


def loads_as_its_module(net: Net) -> None:
    made = random_networks.module(net)
    if not random_networks.depends_on_its_input(net, made):
        raise Irrelevant
    model = Model.from_module(made, random_networks.inputs(net, 2))
    for batch in (1, 3):
        with torch.no_grad():
            wanted = random_networks.leaves(made(*random_networks.inputs(net, batch)))
        same(outputs(model, net, batch), wanted, 1e-2 * RELATIVE[net.dtype], f"loaded, batch {batch}")


def any_order(net: Net, steps: Sequence[str], with_data: bool) -> list[str]:
    """Shapes, dtypes and finiteness stay, removals are proven, the given model is untouched; it loads."""
    model = given(net)
    before, state = outputs(model, net), {k: v.clone() for k, v in model.state_dict().items()}
    result, done, refused = run(model, steps, net if with_data else None)
    for step in done:
        assert not any("defect" in note for note in step.notes), (step.name, step.notes)
        for change in step.changes:
            assert change.numbers.get("proof_error", 0.0) <= 2e-4, change
            assert "defect" not in change.what, change
    assert all(torch.equal(v, state[k]) or v.isnan().any() for k, v in model.state_dict().items())
    for batch in (1, 3):
        after, wanted = outputs(result, net, batch), outputs(model, net, batch)
        assert [(t.dtype, t.shape) for t in after] == [(t.dtype, t.shape) for t in wanted]
        for a, b in zip(after, wanted):
            assert torch.equal(a.isfinite(), b.isfinite()), "not finite in other places"
    same(outputs(model, net), before, 0.0, "the given model")
    assert [r["pass"] for r in result.history] == [step.name for step in done if step.changed]
    file_is_model(result, net)
    return refused


def file_is_model(model: Model, net: Net) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.pt2"
        nncompress.export(model, path)
        loaded = nncompress.load(path)
    # Export writes literals in the graph with the digits they have: the same operations on the same weights.
    same(
        outputs(loaded, net),
        outputs(model, net),
        1e-6 if net.dtype != "float64" else 1e-12,
        "loaded from .pt2",
    )
    assert loaded.history == model.history
    assert loaded.outputs == model.outputs
    assert [(s.name, s.shape, s.dtype) for s in loaded.inputs] == [
        (s.name, s.shape, s.dtype) for s in model.inputs
    ]
    assert set(loaded.state_dict()) == set(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.tensor(name), value), name


def onnx_is_model(net: Net, steps: Sequence[str]) -> list[str]:
    """The export compares the file with the graph in ONNX Runtime: they never disagree."""
    result, _, refused = run(given(net), steps, net)
    with tempfile.TemporaryDirectory() as folder:
        try:
            nncompress.export(result, Path(folder) / "model.onnx")
        except UnsupportedError as error:
            refusal("onnx", error)
            refused.append(f"onnx: {error.what} ({error.got})")
    return refused


def nothing_to_do(net: Net) -> None:
    """Passes that are asked for nothing give the very model back."""
    model = given(net)
    for text in (
        "prune:threshold=1e-35",
        "prune:sparsity=0",
        "prune-nodes:ratio=0.0001",
        "factorize:energy=0.9999999",
    ):
        result, done, _ = run(model, [text])
        if done and not done[0].changed:
            assert result is model, text
        assert text.startswith("factorize") or not done or not done[0].changed, (text, done[0].changes)


def again_is_nothing(net: Net, text: str) -> None:
    """Rounding what is rounded changes nothing: the very model comes back."""
    once, done, _ = run(given(net), [text], net)
    if not done:
        raise Irrelevant
    twice, again, _ = run(once, [text], net)
    if again and not again[0].changed:
        assert twice is once
        return
    # Values that cannot be rounded to themselves do not exist: the weights stay, bit for bit.
    for name, value in once.state_dict().items():
        assert torch.equal(twice.tensor(name), value), (text, name)
    same(outputs(twice, net), outputs(once, net), 0.0, f"{text} twice")


def stronger_prune_wins(net: Net, weak: float, strong: float, scope: str) -> None:
    """Pruning to a sparsity and then to a higher one is pruning to the higher one."""
    model, weak, strong = given(net), min(weak, strong), max(weak, strong)
    for key in ("sparsity", "threshold"):
        more = f",scope={scope}" if key == "sparsity" else ""
        two, done, _ = run(model, [f"prune:{key}={weak}{more}", f"prune:{key}={strong}{more}"])
        one, _, _ = run(model, [f"prune:{key}={strong}{more}"])
        if not done:
            raise Irrelevant
        for name, value in one.state_dict().items():
            assert torch.equal(two.tensor(name), value), (key, name)


def full_rank_keeps_the_function(net: Net, rank: int) -> None:
    """A weight of low rank is replaced by factors that compute the same."""
    model = given(net)
    with torch.no_grad():
        for parameter in {id(p): p for p in model.graph_module.parameters() if p.dim() > 1}.values():
            flat = parameter.flatten(1).double()
            u, s, v = torch.linalg.svd(flat, full_matrices=False)
            low = (u[:, :rank] * s[:rank]) @ v[:rank]
            parameter.copy_(low.reshape(parameter.shape).to(parameter.dtype))
    result, done, _ = run(model, ["factorize:relative=1e-9"])
    if not done or not done[0].changed:
        raise Irrelevant
    same(outputs(result, net), outputs(model, net), 10 * RELATIVE[net.dtype], "factorized at full rank")


def growing_keeps_the_function(net: Net, text: str) -> None:
    model = given(net)
    result, done, _ = run(model, [text], net)
    if not done:
        raise Irrelevant
    same(outputs(result, net), outputs(model, net), RELATIVE[net.dtype], text)
    pruned, _, _ = run(result, ["prune-nodes:ratio=0.2"])
    assert outputs(pruned, net)


def a_copy_is_independent(net: Net) -> None:
    model = given(net)
    before, copied = outputs(model, net), model.copy()
    same(outputs(copied, net), before, 0.0, "copy")
    with torch.no_grad():
        for value in copied.state_dict().values():
            value.zero_()
    copied.history.append({"pass": "none"})
    same(outputs(model, net), before, 0.0, "the original of a changed copy")
    assert model.history == []


def sharing_equals_changes_nothing(net: Net) -> None:
    """Blocks whose weights are equal compute with one weight what they computed with two."""
    model = given(net)
    shapes: dict[torch.Size, Tensor] = {}
    with torch.no_grad():
        for parameter in model.graph_module.parameters():
            if parameter.dim() == 4:
                parameter.copy_(shapes.setdefault(parameter.shape, parameter.clone()))
    result, done, _ = run(model, ["share:saving=1"])
    if not done or not done[0].changed:
        raise Irrelevant
    same(outputs(result, net), outputs(model, net), RELATIVE[net.dtype], "shared")


Law = Callable[..., object]
__all__ = ["STEPS", "Irrelevant", "UsageError"]
