"""Every pass × every network: the contract that holds for all of them."""

from __future__ import annotations

import io
import warnings

import numpy as np
import onnxruntime
import pytest
import torch
from networks import NETWORKS, context, inputs, model

from nncompress import exporting, pipeline
from nncompress.ir import Model
from nncompress.passes import PASSES, Pass

# One setting per pass that changes every network below, or says why it cannot.
SETTINGS: dict[str, dict[str, object]] = {
    "prune": {"sparsity": 0.5},
    "factorize": {"err": 1e-2},
    "prune-nodes": {"ratio": 0.3},
    "reduce": {"macs": 0.9},
    "grow": {"by": 2},
    "cluster": {"codebook": 16},
}


def make_pass(name: str) -> Pass:
    return PASSES[name](**SETTINGS.get(name, {}))


def through_file(each: Model) -> Model:
    file = io.BytesIO()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.export.save(each.exported_program(), file)
        file.seek(0)
        return Model.from_exported(torch.export.load(file), inputs=each.inputs)


@pytest.mark.parametrize("network_name", NETWORKS)
def test_the_networks_depend_on_their_input(network_name):
    each = model(network_name)
    first, second = (each.outputs_of(*inputs(network_name, 3, seed=s)) for s in (1, 2))
    for a, b in zip(first, second):
        assert a.isfinite().all()
        assert (a - b).norm() > 1e-2 * a.norm()


@pytest.mark.parametrize("network_name", NETWORKS)
@pytest.mark.parametrize("pass_name", PASSES)
def test_a_pass_keeps_what_every_pass_promises(pass_name, network_name):
    given = model(network_name)
    before = {k: v.clone() for k, v in given.state_dict().items()}
    x = inputs(network_name, 3)
    untouched = given.outputs_of(*x)
    result, steps = pipeline.run(given, [make_pass(pass_name)], context(network_name))

    # The model that was given is as it was.
    assert all(torch.equal(v, before[k]) for k, v in given.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(given.outputs_of(*x), untouched))

    # The result runs at any batch, is recorded, and its cost never grew in what the pass is for.
    for batch in (1, 2, 5):
        outputs = result.outputs_of(*inputs(network_name, batch))
        assert [len(t) for t in outputs] == [batch] * len(given.outputs)
    assert result.history == ([] if not steps[0].changed else result.history[:1])
    assert steps[0].after.nonzero <= steps[0].before.nonzero or pass_name in ("factorize", "quantize", "grow")

    # It survives a file, and computes the same there.
    loaded = through_file(result)
    for a, b in zip(loaded.outputs_of(*x), result.outputs_of(*x)):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("network_name", "forward"), [(n, at % 2 == 0) for at, n in enumerate(NETWORKS)])
def test_every_pass_in_either_order_then_onnx(network_name, forward, tmp_path):
    """Each order on half of the networks, twice over on one; other orders are for `test_laws.py`."""
    chain = [make_pass(name) for name in PASSES]
    times = 2 if network_name == "tied" else 1
    result, _ = pipeline.run(
        model(network_name), times * (chain if forward else chain[::-1]), context(network_name)
    )
    path = tmp_path / "m.onnx"
    exporting.write(result, path, target="ort-cpu")  # whose kernels run it
    session = onnxruntime.InferenceSession(path)
    x = inputs(network_name, 4)
    outputs = session.run(None, {spec.name: t.numpy() for spec, t in zip(result.inputs, x)})
    for ours, theirs in zip(result.outputs_of(*x), outputs):
        assert theirs.shape == tuple(ours.shape)
        error = np.linalg.norm(theirs - ours.detach().numpy()) / np.linalg.norm(ours.detach().numpy())
        # An int8 activation may round the other way in another runtime; without int8 they agree closely.
        assert error < (0.05 if "quantize" in PASSES else 1e-4)
