import pytest
import torch
from networks import built_once
from torch import nn

import nncompress
from nncompress import pipeline
from nncompress.errors import VerificationError
from nncompress.ir import Model
from nncompress.ir.graph.verify import Distances, drift, not_finite, outputs_checked, spoiling
from nncompress.passes import Context, PruneNodes, Quantize


@built_once
def complex_model() -> Model:
    torch.manual_seed(0)
    return Model.from_module(nn.Linear(3, 2, dtype=torch.complex64), (torch.randn(2, 3).cfloat(),))


def test_complex_weights_and_outputs_that_are_not_numbers_are_seen():
    model = complex_model()
    assert not_finite(model) is None
    with torch.no_grad():
        model.tensor("bias")[1] = complex(0, float("nan"))
    assert not_finite(model) == "bias"
    with pytest.raises(VerificationError, match="NaN"):
        outputs_checked(model, model.example_inputs(), "the model")


def test_drift_counts_imaginary_parts():
    y = torch.tensor([[3.0 + 4.0j]])
    (row,) = drift(complex_model(), (y.real + 0j,), (y,))
    assert (row.relative, row.largest) == (pytest.approx(0.8), pytest.approx(4.0))


def test_drift_of_whole_numbers_is_the_share_of_entries_that_differ():
    before, now = torch.tensor([1, 2, 3, 4]), torch.tensor([1, 2, 3, 9])
    distances = Distances(["answer", "yes"])
    distances.add((now, now > 8), (before, before > 8))
    distances.add((before, before > 8), (before, before > 8))
    answer, yes = distances.rows()
    assert (answer.relative, answer.largest, answer.counted) == (0.125, 5.0, True)
    assert yes.relative == 0.125


def test_drift_is_measured_where_both_are_finite_and_other_places_are_counted():
    inf = float("inf")
    before = torch.tensor([[3.0, 4.0, -inf, -inf]])
    (row,) = drift(complex_model(), (torch.tensor([[3.0, 2.0, -inf, 7.0]]),), (before,))
    assert (row.relative, row.misplaced) == (pytest.approx(0.4), 0.25)
    (row,) = drift(complex_model(), (torch.tensor([[3.0, 4.0, -inf, inf]]),), (before,))
    assert (row.relative, row.misplaced, row.amount) == (0, 0.25, 0.25)


class Masked(nn.Module):
    def __init__(self, low: float) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 4)
        self.low = low

    def forward(self, x):
        return torch.cat([self.linear(x)[:, :2], self.linear(x)[:, 2:] * 0 + self.low], 1)


def test_infinities_that_the_original_has_are_taken_and_others_refused():
    masked, plain = (Model.from_module(Masked(low), (torch.randn(2, 3),)) for low in (-float("inf"), 0.0))
    x = masked.example_inputs()
    reference = outputs_checked(masked, x, "the original")
    assert outputs_checked(masked, x, "prune", reference)
    with pytest.raises(VerificationError, match="prune: output 'output' has NaN or infinite"):
        outputs_checked(masked, x, "prune", outputs_checked(plain, x, "the original"))
    positive = [-t for t in reference]
    with pytest.raises(VerificationError, match="infinite"):
        outputs_checked(masked, x, "prune", positive)


def test_an_original_without_a_finite_number_is_one_message():
    class Overflowing(nn.Module):
        def forward(self, x):
            return x.exp() / 0.0

    model = Model.from_module(Overflowing(), (torch.randn(2, 3),))
    with pytest.raises(VerificationError, match="'output' has NaN or infinite values only"):
        outputs_checked(model, model.example_inputs(), "the original")


def test_a_constant_of_the_code_may_hold_nan_and_a_statistic_may_not():
    class Marks(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(4)

        def forward(self, x):
            return self.norm(torch.where(x > 3, torch.tensor(float("nan")), x))

    model = Model.from_module(Marks().eval(), (torch.randn(2, 4),))
    assert not_finite(model) is None
    model.tensor("norm.running_var")[0] = float("nan")
    assert not_finite(model) == "norm.running_var"


def test_outputs_of_8_bit_floats_are_checked_too():
    class Net(torch.nn.Module):
        def forward(self, x):
            return (x * 2).to(torch.float8_e5m2)

    x = torch.ones(2, 3)
    (made,) = outputs_checked(Model.from_module(Net(), (x,)), (x,), "a pass")
    assert made.dtype == torch.float8_e5m2


@pytest.mark.parametrize(
    ("forward", "reason"),
    [
        (lambda x: (x.abs() * -1 - 1).log(), "log behind input x makes NaN of finite values"),
        (
            lambda x: x.masked_fill(x > 0, -float("inf")).sub(-float("inf")),
            "a difference behind input x makes NaN of infinite values",
        ),
        (lambda x: (x.abs() + 100).exp(), "exp behind input x makes infinities of finite values"),
    ],
    ids=["log", "difference-of-infinities", "exp"],
)
def test_the_first_op_that_makes_a_value_that_is_not_finite_is_named(forward, reason):
    class Net(nn.Module):
        def forward(self, x):
            return forward(x)

    model = Model.from_module(Net(), (torch.randn(4, 3),))
    x = (model.example_inputs()[0].abs(),)
    with pytest.raises(VerificationError) as error:
        outputs_checked(model, x, "the model as loaded", [torch.zeros(2, 3)])
    assert reason in error.value.got


class Switched(nn.Module):
    """x [n, 6] -> shares of 3 classes [n, 3], the second switched off, after features that nothing caps."""

    def __init__(self):
        super().__init__()
        self.features, self.classes = nn.Linear(6, 8), nn.Linear(8, 3)
        self.register_buffer("floor", torch.full((8,), torch.nan))
        with torch.no_grad():
            self.classes.bias[1] = -torch.inf

    def forward(self, x):
        return self.classes(torch.fmax(self.features(x).relu(), self.floor)).softmax(-1)


@pytest.mark.parametrize(
    "work", [PruneNodes(ratio=0.25), Quantize(every_layer=True), Quantize(mode="dynamic")]
)
def test_values_that_are_not_finite_and_do_no_harm_stop_no_pass(work):
    torch.manual_seed(0)
    model, x = Model.from_module(Switched().eval(), (torch.randn(2, 6),)), torch.randn(64, 6)
    assert not_finite(model) is not None
    assert spoiling(model) is None
    smaller, _ = pipeline.run(model, [work], Context(data=nncompress.dataset((x.numpy(),), model)))
    far = (smaller(x) - model(x)).abs().max()
    assert far < (0.4 if work.name == "prune-nodes" else 0.02)
    with torch.no_grad():
        model.tensor("floor")[0] = torch.inf  # each output is NaN
    assert spoiling(model) is not None
