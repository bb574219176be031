"""The fit against least squares done the long way, and what it must not change."""

from __future__ import annotations

import pytest
import torch
from networks import NETWORKS, inputs, model, network
from torch import nn
from torch.nn import functional as F

from nncompress.analysis.compensation import Cut, compensate, cut_walk, sequential, without_data
from nncompress.analysis.compensation.affine import Affine
from nncompress.analysis.compensation.rectified import rectified
from nncompress.analysis.couplings import ZeroedReference, find_couplings
from nncompress.analysis.observe.budget import ByteBudget
from nncompress.analysis.observe.layerwise import LayerwiseRunner
from nncompress.analysis.observe.residual import find_branches
from nncompress.ir import Model
from nncompress.ir.layers.weights import layers
from nncompress.passes.cut import apply_cut
from nncompress.progress import NullProgress


def fitted(each: Model, cut: Cut, x: torch.Tensor, **options):
    """The model with the fitted weights, at full size."""
    batches = [(part,) for part in x.split(32)]
    found = compensate(
        each, find_couplings(each), cut, find_branches(each), batches, progress=NullProgress(), **options
    )
    full = each.copy()
    with torch.no_grad():
        for name, value in found.weights.items():
            full.tensor(name).copy_(value)
    return full, found


def value_of(side: LayerwiseRunner, node: torch.fx.Node) -> torch.Tensor:
    """Its value in the only batch."""
    ((found,),) = side.values(node)
    return found


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 10), nn.Linear(10, 8), nn.Linear(8, 3)

    def forward(self, x):
        return self.c(F.relu(self.b(F.relu(self.a(x)))))


def perceptron() -> tuple[Perceptron, Model, torch.Tensor]:
    torch.manual_seed(0)
    module = Perceptron().eval()
    return module, Model.from_module(module, (torch.randn(2, 6),)), torch.randn(256, 6)


def least_squares(x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    # torch's default driver, gelsy, starts from pivots that it never set: where a unit never fires and the
    # design is short of rank, it finds another rank, and a worse fit, from run to run (pytorch issue 187411)
    design = torch.cat([x, torch.ones(len(x), 1)], 1).double()
    solution = torch.linalg.lstsq(design, t.double(), driver="gelsd").solution
    return solution[:-1].T, solution[-1]


def test_each_layer_fits_the_original_from_what_it_now_reads():
    module, each, x = perceptron()
    full, found = fitted(each, Cut({"a": [1, 4, 5]}), x, ridge=1e-9)
    assert len(found.layers) == 2
    with torch.no_grad():
        h1 = F.relu(module.a(x))
        kept = [u for u in range(10) if u not in (1, 4, 5)]
        w2, b2 = least_squares(h1[:, kept], module.b(h1))
        h2 = F.relu(h1[:, kept].double() @ w2.T + b2)
        w3, b3 = least_squares(h2.float(), module.c(F.relu(module.b(h1))))
    torch.testing.assert_close(full.tensor("b.weight")[:, kept].double(), w2, rtol=1e-3, atol=1e-3)
    assert (full.tensor("b.weight")[:, [1, 4, 5]] == 0).all()
    got = h2.float() @ full.tensor("c.weight").T + full.tensor("c.bias")
    torch.testing.assert_close(got.double(), h2 @ w3.T + b3, rtol=1e-3, atol=1e-3)


def test_in_front_of_a_relu_the_fit_is_the_best_behind_it(monkeypatch):
    """Against gradient descent: the distance where the original fires, what is above zero elsewhere."""
    monkeypatch.setattr(sequential, "ROUNDS", 300)
    module, each, x = perceptron()
    full, _ = fitted(each, Cut({"a": [1, 4, 5]}), x, ridge=1e-9, behind_relu=True)
    with torch.no_grad():
        h = F.relu(module.a(x))
        wanted = module.b(h).double()
        h[:, [1, 4, 5]] = 0

    def error(weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        now = h.double() @ weight.double().T + bias.double()
        return torch.where(wanted > 0, now - wanted, now.clamp(min=0)).square().sum()

    best = [t.detach().double().requires_grad_() for t in (module.b.weight, module.b.bias)]
    descent = torch.optim.LBFGS(best, max_iter=500, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        descent.zero_grad()
        value = error(*best)
        value.backward()
        return value

    descent.step(closure)
    found = error(full.tensor("b.weight"), full.tensor("b.bias"))
    plain, _ = fitted(each, Cut({"a": [1, 4, 5]}), x, ridge=1e-9)
    assert found < 0.9 * error(plain.tensor("b.weight"), plain.tensor("b.bias"))
    torch.testing.assert_close(found, error(*best), rtol=0.01, atol=0, check_dtype=False)


def test_a_sum_in_front_of_a_relu_is_fitted_to_what_is_left_behind_it():
    each = model("residual")
    x = inputs("residual", 256, seed=4)[0]
    cut = Cut({"stem": [1, 2], "conv1": [0, 3, 5]})
    couplings, errors = find_couplings(each), []
    (branch,) = find_branches(each)
    assert rectified(branch.add)
    wanted = value_of(LayerwiseRunner(each, [(x,)]), branch.add).relu()
    for behind_relu in (False, True):
        _, found = fitted(each, cut, x, behind_relu=behind_relu)
        side = LayerwiseRunner(ZeroedReference(couplings, cut.units), [(x,)])
        side.weights.update(found.weights)
        errors.append(float((value_of(side, branch.add).relu() - wanted).square().sum()))
    assert errors[1] < errors[0]


def test_what_something_else_reads_is_not_only_for_a_relu():
    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            y, z = self.a(x), self.b(x)
            return F.relu(y), F.relu(z) + z

    each = Model.from_module(Both(), (torch.randn(2, 4),))
    assert [rectified(layer.node) for layer in layers(each)] == [True, False]


def test_some_layers_are_fitted_anew_and_the_rest_keep_their_weights():
    _, each, x = perceptron()
    cut = Cut({"a": [1, 4, 5]})
    _, found = fitted(each, cut, x)
    _, same = fitted(each, cut, x, rest=found, only={"c"})
    _, other = fitted(each, cut, x[:128], rest=found, only={"c"})
    assert [rows.layer for rows in same.layers] == ["c"]
    assert all(torch.equal(value, same.weights[name]) for name, value in found.weights.items())
    moved = {name for name, value in found.weights.items() if not torch.equal(value, other.weights[name])}
    assert moved == {"c.weight", "c.bias"}


def test_a_walk_without_what_goes_makes_what_the_cut_model_makes():
    each, x = model("residual"), inputs("residual", 64)
    couplings = find_couplings(each)
    cut = Cut({couplings.groups[0].name: [0, 2]}, branches=find_branches(each)[:1])
    for found in (without_data(each, cut), fitted(each, cut, x[0])[1]):
        small, _ = apply_cut(each, cut, found, None, verify=False)
        torch.testing.assert_close(cut_walk(couplings, cut, found).outputs(*x), small.outputs_of(*x))


def test_a_twin_is_made_up_for_exactly():
    module, _, x = perceptron()
    with torch.no_grad():
        module.a.weight[7], module.a.bias[7] = 2 * module.a.weight[2], 2 * module.a.bias[2]
    each = Model.from_module(module, (x[:2],))
    full, _ = fitted(each, Cut({"a": [7]}), x, ridge=1e-9)
    zeroed = each.copy()
    with torch.no_grad():
        zeroed.tensor("b.weight")[:, 7] = 0
    fresh = torch.randn(64, 6)
    assert (full(fresh) - each(fresh)).norm() < 1e-3 * each(fresh).norm()
    assert (zeroed(fresh) - each(fresh)).norm() > 0.02 * each(fresh).norm()


def test_nothing_removed_leaves_every_weight():
    each = model("residual")
    _, found = fitted(each, Cut(), inputs("residual", 32)[0])
    assert found.weights == {}


def test_batch_norms_hold_the_statistics_of_what_they_now_see():
    each = model("residual")
    x = inputs("residual", 128, seed=4)[0]
    full, _ = fitted(each, Cut({"conv1": [0, 3, 5, 6, 9]}), x)
    seen = {}
    norm = next(layer for layer in layers(full) if layer.name == "conv2").node

    class Watch(torch.fx.Interpreter):
        def run_node(self, n):
            value = super().run_node(n)
            if n is norm:
                seen["conv2"] = value.movedim(1, 0).flatten(1)
            return value

    with torch.no_grad():
        Watch(full.graph_module).run(x)
    torch.testing.assert_close(full.tensor("bn2.running_mean"), seen["conv2"].mean(1), rtol=1e-3, atol=1e-3)
    want = seen["conv2"].var(1, unbiased=False)
    torch.testing.assert_close(full.tensor("bn2.running_var"), want, rtol=1e-2, atol=1e-4)


def test_the_last_layer_of_a_branch_fits_the_sum():
    """The stream's source loses channels; conv2 makes up for the shortcut, not only for itself."""
    each = model("residual")
    module = network("residual")
    x = inputs("residual", 256, seed=4)[0]
    cut = Cut({"stem": [1, 2]})
    full, _ = fitted(each, cut, x)
    with torch.no_grad():
        plain, wanted = each.copy(), module(x)
        for name, value in without_data(each, cut).weights.items():
            plain.tensor(name).copy_(value)
    couplings = find_couplings(each)

    def through(weights) -> torch.Tensor:
        side = LayerwiseRunner(ZeroedReference(couplings, cut.units), [(x,)])
        side.weights.update(weights)
        return value_of(side, each.graph.output_node().all_input_nodes[0])

    changed = {
        n: full.tensor(n) for n in each.state_dict() if not torch.equal(full.tensor(n), each.tensor(n))
    }
    before = (through({}) - wanted).norm()
    after = (through(changed) - wanted).norm()
    assert after < 0.6 * before


# Where the layer that reads the units shares its weight with another, only the layers around it are fitted.
AT_MOST = {"tied": 0.99}


@pytest.mark.parametrize("name", NETWORKS)
def test_error_falls_on_every_network(name):
    each = model(name)
    couplings = find_couplings(each)
    cut = Cut({g.name: list(range(0, g.size, 3))[: g.size - 1] for g in couplings.groups})
    x = inputs(name, 96, seed=9)
    batches = [tuple(t[i : i + 32] for t in x) for i in (0, 32, 64)]
    found = compensate(each, couplings, cut, find_branches(each), batches, progress=NullProgress())
    fresh = inputs(name, 64, seed=10)
    nodes = each.graph.output_node().all_input_nodes
    errors = []
    for weights in (without_data(each, cut).weights, found.weights):
        side = LayerwiseRunner(ZeroedReference(couplings, cut.units), [fresh])
        side.weights.update(weights)
        got = [value_of(side, n) for n in nodes]
        want = [value_of(LayerwiseRunner(each, [fresh]), n) for n in nodes]
        errors.append(sum(float((a - b).square().sum()) for a, b in zip(got, want)))
    assert errors[1] < AT_MOST.get(name, 0.9) * errors[0]


@pytest.mark.parametrize("with_statistics", [False, True])
def test_a_layer_and_its_norm_are_one_affine_map(with_statistics):
    each = model("depthwise")
    generator = torch.Generator().manual_seed(0)
    for layer in layers(each):
        affine = Affine(each, layer)
        matrix, offset = affine.matrix() * 1.5, affine.offset() + 0.25
        d = matrix.shape[1]
        rows = torch.randn(layer.groups, 50, d, generator=generator, dtype=torch.float64)
        mean = rows.mean(1)
        second = (rows - mean[:, None]).transpose(1, 2) @ (rows - mean[:, None]) / 50
        extra = (mean, second) if with_statistics else ()
        changed = each.copy()
        with torch.no_grad():
            for name, value in affine.stored(matrix, offset, *extra).items():
                changed.tensor(name).copy_(value)
        twin = Affine(changed, next(m for m in layers(changed) if m.name == layer.name))
        torch.testing.assert_close(twin.matrix(), matrix, rtol=1e-4, atol=1e-5)
        if affine.intercept:
            torch.testing.assert_close(twin.offset(), offset, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["residual", "stages", "two-inputs"])
def test_without_room_everything_is_computed_again_to_the_same_bits(name):
    each = model(name)
    couplings = find_couplings(each)
    cut = Cut({g.name: list(range(0, g.size, 3))[: g.size - 1] for g in couplings.groups})
    batches = [inputs(name, 32, seed=s) for s in (1, 2)]
    found = [
        compensate(
            each,
            couplings,
            cut,
            find_branches(each),
            batches,
            budget=ByteBudget(room),
            progress=NullProgress(),
        ).weights
        for room in (0, float("inf"))
    ]
    assert found[0].keys() == found[1].keys()
    assert all(torch.equal(found[0][n], found[1][n]) for n in found[0])
