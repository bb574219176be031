"""Ops that ONNX lacks: computed before it is written, said in others, or refused with op and layer."""

import onnxruntime
import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

import nncompress
from nncompress import pipeline
from nncompress.cli.app import run
from nncompress.errors import UnsupportedError
from nncompress.ir import Model


class Rare(nn.Module):
    """x [n, 5, 6] -> [n, 5, 6] by ops without an ONNX name on data, and weights that such ops compute."""

    def __init__(self):
        super().__init__()
        self.a = parametrizations.orthogonal(nn.Linear(6, 6), orthogonal_map="matrix_exp")
        self.b = parametrizations.orthogonal(nn.Linear(6, 6), orthogonal_map="householder")
        self.w = nn.Parameter(torch.randn(6, 6))
        self.register_buffer("bounds", torch.tensor([-0.5, 0.1, 0.9]))

    def forward(self, x):
        h = self.a(x) @ torch.linalg.qr(self.w)[0] * torch.linalg.det(self.w + 3 * torch.eye(6))
        h = torch.hypot(h, x) + h.sigmoid().cumprod(1) + h.cummax(1)[0] + h.cummin(-1)[0]
        values, _ = h.kthvalue(2, 1, keepdim=True)
        h = h + values + h.median(-1, keepdim=True)[0]
        holes = h.masked_fill(x > 1, torch.nan).nanmedian(-1, keepdim=True)[0].nan_to_num(0.5)
        h = h + holes + x.masked_fill(x > 9, torch.nan).nanmedian(1)[0][:, None]
        return self.b(h) + torch.searchsorted(self.bounds, x) + torch.searchsorted(self.bounds, h, right=True)


def test_ops_without_an_onnx_name_are_computed_or_said_in_others(tmp_path):
    torch.manual_seed(0)
    net = Rare().eval()
    nncompress.export(nncompress.load(net, input="Bx5x6"), tmp_path / "m.onnx")
    x = torch.randn(7, 5, 6)
    (got,) = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"x": x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(got), net(x), rtol=1e-3, atol=1e-3)


class Matrices(nn.Module):
    """x [n, 2, 6, 6] -> numbers [n] by ops on small matrices and by windows whose sizes differ."""

    def forward(self, x):
        square = x[:, :, :3, :3] + 3 * torch.eye(3)
        pair = square[..., 1:, :-1]
        h = torch.linalg.det(square).sum(1) + torch.linalg.inv(square).mean((1, 2, 3))
        h = h + torch.linalg.inv(pair + torch.eye(2)).square().mean((1, 2, 3)).sqrt()
        wide, low = (
            nn.functional.adaptive_max_pool2d(x, (4, 5)),
            nn.functional.adaptive_max_pool1d(x[:, 0], 4),
        )
        whole = nn.functional.adaptive_max_pool3d(x, (1, 2, 5)) * 2
        signed = torch.copysign(x, -x.relu())  # of -0., too
        return h + (wide.mean((1, 2, 3)) - low.mean((1, 2)) + whole.mean((1, 2, 3)) + signed.mean((1, 2, 3)))


def test_small_matrices_and_uneven_windows_are_said_in_others(tmp_path):
    net, x = Matrices().eval(), torch.randn(5, 2, 6, 6)
    nncompress.export(nncompress.load(net, input="Bx2x6x6"), tmp_path / "m.onnx")
    (got,) = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), net(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("words", "op"),
    [
        ("inv", lambda h: torch.linalg.inv(h + 9 * torch.eye(4))),
        ("modified bessel i1", lambda h: torch.special.modified_bessel_i1(h)),
        ("mode", lambda h: h.mode(1)[1].float()),
        (
            "polygamma",
            lambda h: torch.hypot(h, h) + torch.polygamma(2, h),
        ),  # not the one that has other words
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_an_op_on_data_that_onnx_lacks_is_refused_with_its_layer(words, op, tmp_path):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)

        def forward(self, x):
            return op(self.inner(x))

    model = nncompress.load(Net(), input=torch.randn(2, 4, 4))
    with pytest.raises(UnsupportedError, match=rf"{words}.* (behind|in) inner"):
        nncompress.export(model, tmp_path / "m.onnx")


class Numbers(nn.Module):
    """x [n, 3] -> [n, 3]: what is no number gives way."""

    def forward(self, x):
        return torch.fmax(x, x.flip(1).sqrt()) + torch.fmin(x.log(), x)


def test_the_one_that_is_a_number(tmp_path):
    x = torch.tensor([[1.0, -2.0, 3.0], [-1.0, 0.5, -0.25]])
    nncompress.export(nncompress.load(Numbers(), input="Bx3", notice=lambda _: None), tmp_path / "m.onnx")
    (got,) = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), Numbers()(x))


@pytest.mark.parametrize(
    "op", [torch.special.i1, lambda h: torch.linalg.svd(h[:, None], full_matrices=False)[1]]
)
def test_an_op_that_no_onnx_can_say_is_refused_before_any_pass(tmp_path, monkeypatch, capsys, op):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, x):
            return op(self.fc(x).exp())

    monkeypatch.chdir(tmp_path)
    nncompress.export(nncompress.load(Net(), input="Bx4"), "m.pt2")
    monkeypatch.setattr(pipeline, "run", None)  # no work is done
    assert run(["prune", "m.pt2", "--sparsity", "0.5", "-o", "m.onnx"]) == UnsupportedError.exit_code
    assert "ONNX cannot express this op" in capsys.readouterr().err


class Scattered(nn.Module):
    """x [n, 5, 6] -> [n, 5, 6] by every way of joining rows, from sources larger than what is taken."""

    def __init__(self):
        super().__init__()
        self.register_buffer("rows", torch.tensor([0, 1, 1, 2, 0]))

    def forward(self, x):
        index = self.rows[None, :, None].expand(x.shape)
        h = x + x.scatter(1, index, x * 2, reduce="add") + x.scatter(1, index[:, :2], 0.7, reduce="multiply")
        h = h + x.scatter(1, index[:, :2], x * 3) + x.scatter_add(1, index[:, :2, :3], x)
        for reduce in ("sum", "prod", "mean", "amin", "amax"):
            h = h + x.scatter_reduce(1, index[:, :3], x.sin(), reduce, include_self=False)
            h = h + x.scatter_reduce(1, index, x.sin(), reduce)
        for reduce, least in (("amin", torch.inf), ("amax", -torch.inf)):
            extreme = x.scatter_reduce(1, index, x.masked_fill(x < 1, least), reduce, include_self=False)
            h = h + extreme.masked_fill(extreme.isinf(), 7.0)
        h = (
            h
            + x.index_reduce(1, self.rows, x.cos(), "mean")
            + x.index_reduce(-1, self.rows, x[..., 1:], "amax")
        )
        return h + torch.cdist(x, x.flip(1), p=3.0).sum(-1, keepdim=True)


def test_what_is_scattered_is_joined_as_torch_does(tmp_path):
    net, x = Scattered().eval(), torch.randn(4, 5, 6)
    nncompress.export(nncompress.load(net, input="Bx5x6"), tmp_path / "m.onnx")
    (got,) = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), net(x), rtol=1e-5, atol=1e-5)


class Bounds(nn.Module):
    """Bounds of two types, and numbers that follow from the batch beside the result."""

    def forward(self, x):
        return x.clamp(-2, 1.9) + x.clamp(min=-0.5, max=1), x.shape[0] * 0.5, x.shape[0]


def test_bounds_of_two_types_are_floats_and_numbers_are_no_outputs(tmp_path):
    """The exporter had no such clamp, and a load ended in a traceback on the number."""
    model = nncompress.load(Bounds(), input=torch.randn(2, 4))
    assert len(model.outputs) == 1
    nncompress.export(model, tmp_path / "m.onnx")
    x = 3 * torch.randn(5, 4)
    (got,) = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"x": x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), Bounds()(x)[0])


class Found(nn.Module):
    """x [n, 4, 6], ids [n, 7] -> what is found in rows, and written to diagonals."""

    def forward(self, x, ids):
        rows, line = x.sort(-1).values, x[..., 0]
        return (
            torch.searchsorted(rows, x),
            torch.searchsorted(x, x, right=True, sorter=x.argsort(-1)),
            torch.isin(ids, torch.tensor([1, 3])),
            torch.isin(ids, torch.tensor([2, 4]), invert=True),
            torch.diagonal_scatter(x, line, 1, 1, 2),
            torch.diagonal_scatter(x, line[:, :2], -2, -2, -1),
            ids.mode(1).values,
            ids.mode(-1, keepdim=True).values,
        )


def test_what_is_found_in_rows_and_written_to_diagonals_is_what_torch_finds_and_writes(tmp_path):
    given = (torch.randn(5, 4, 6), torch.randint(0, 5, (5, 7)))
    nncompress.export(Model.from_module(Found().eval(), given), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(str(tmp_path / "m.onnx"))
    given = (torch.randn(3, 4, 6), torch.randint(0, 5, (3, 7)))
    results = session.run(None, dict(zip(("x", "ids"), (each.numpy() for each in given))))
    for got, right in zip(results, Found()(*given), strict=True):
        assert torch.equal(torch.from_numpy(got), right)


class Places(nn.Module):
    """x [n, 9] -> extremes with their places, and functions of the gamma function's kind."""

    def forward(self, x):
        whole = x.median() + x.masked_fill(x > 1, torch.nan).nanmedian() + sum(torch.aminmax(x))
        gamma = torch.lgamma(x), torch.digamma(x.abs() + 0.1)
        return (
            x.squeeze((0, 1)),
            *x.round().cummax(1),
            *x.round().cummin(1),
            *(x > 1).cummax(1),
            *(x < 1).cummin(0),
            *x[0, 0].cummax(0),
            *(x[0, 0] > 1).cummin(-1),
            *torch.aminmax(x, dim=1),
            *gamma,
            whole,
        )


def test_extremes_with_places_and_the_gamma_function_are_said_in_others(tmp_path):
    x = torch.randn(4, 9) * 3
    nncompress.export(Model.from_module(Places().eval(), (x,), dynamic_batch=False), tmp_path / "m.onnx")
    got = onnxruntime.InferenceSession(str(tmp_path / "m.onnx")).run(None, {"x": x.numpy()})
    for found, right in zip(got, Places()(x), strict=True):
        torch.testing.assert_close(torch.from_numpy(found), right, rtol=1e-5, atol=1e-5)
