"""Every elementwise op of torch, and others that choose, round or convert, written to .onnx: at edge values.

    python -m benchmarks.onnx_ops.edges [PART OF A NAME …]

All pairs of zeros of both signs, infinities, NaN, halves, exact multiples, the largest and smallest numbers;
of integers the ends of each type, but the least: that divided by -1 ends the process. A line says where ONNX
Runtime's value is another than torch's, or the sign of a zero is.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from benchmarks.onnx_ops.precision import Called, elementwise
from nncompress.errors import NNCompressError
from nncompress.exporting.write.onnx import write_onnx
from nncompress.ir import Model
from nncompress.runtimes import open_artifact

FLOATS = torch.tensor(
    [
        *(0.0, -0.0, 0.1, -0.3, 0.5, -0.5, 1.0, -1.0, 1.5, 2.0, -2.0, 2.5, -2.5, 3.0, -3.5, 6.0, -7.0, 0.7),
        *(1e-30, -1e-30, 1e10, -1e10, 3e38, -3e38, torch.inf, -torch.inf, torch.nan),
    ]
)
INTEGERS = (0, 1, -1, 2, -2, 3, -3, 7, -7, 8, -8, 63, 64, 100, -100)
NUMBERS: dict[str, tuple[int | float, ...]] = {
    "float32": (0.0, -1.0, 2.0, 0.3, -2.5, torch.inf),
    "int": (2, -3, 0),
}
DTYPES = (torch.float32, torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool)
Function = Callable[..., Tensor]


def values(dtype: torch.dtype) -> Tensor:
    if dtype.is_floating_point:
        return FLOATS.to(dtype)
    if dtype == torch.bool:
        return torch.tensor([False, True])
    ends = torch.iinfo(dtype)
    return torch.tensor(
        [n for n in (*INTEGERS, ends.min + 1, ends.max) if ends.min <= n <= ends.max], dtype=dtype
    )


def pairs(count: int, dtype: torch.dtype) -> list[Tensor]:
    each = values(dtype)
    rows = torch.tensor(list(itertools.product(range(len(each)), repeat=min(count, 2))))
    columns = [each[rows[:, place]] for place in range(min(count, 2))]
    return [*columns, columns[0].flip(0)][:count]


def listed() -> Iterator[tuple[str, Function, list[Tensor]]]:
    """Name, function, arguments of every elementwise op, with numbers in their places."""
    for name, op, kinds in elementwise():
        if "polynomial" in name:  # which takes as many steps as its second argument says
            continue
        for dtype in DTYPES:
            count = kinds.count("Tensor")
            given = pairs(count, dtype)
            places = len(kinds) - count
            known = NUMBERS["float32" if dtype.is_floating_point else "int"] if places else (0,)
            for number in known:

                def function(*x: Tensor, op: Any = op, kinds: Any = kinds, number: Any = number) -> Tensor:
                    tensors = iter(x)
                    return op(*(next(tensors) if kind == "Tensor" else number for kind in kinds))

                said = f"{name}({number})" if places else name
                yield f"{said} of {str(dtype).removeprefix('torch.')}", function, given


def others() -> Iterator[tuple[str, Function, list[Tensor]]]:
    """Those with settings, conversions, and what chooses among several."""
    floats, one = pairs(2, torch.float32), pairs(1, torch.float32)
    integers = [pairs(2, dtype) for dtype in (torch.int64, torch.int32, torch.uint8)]
    for mode in (None, "floor", "trunc"):
        for given in (floats, *integers):
            of = f"{mode} of {given[0].dtype}"
            yield f"div {of}", lambda a, b, m=mode: torch.div(a, b, rounding_mode=m), given
            for by in (2, -3) if not given[0].is_floating_point() else (2.0, -0.3, 0.1):
                yield f"div by {by} {of}", lambda a, m=mode, n=by: torch.div(a, n, rounding_mode=m), given[:1]
    for decimals in (-1, 0, 1, 2, 3):
        yield f"round({decimals})", lambda x, d=decimals: torch.round(x, decimals=d), one
    for to in (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool, torch.float16):
        yield f"to {to}", lambda x, t=to: x.to(t), one
        for given in integers:
            yield f"{given[0].dtype} to {to}", lambda x, t=to: x.to(t), given[:1]
    for low, high in (
        (-1.0, 2.0),
        (2.0, -1.0),
        (None, 0.0),
        (0.0, None),
        (-torch.inf, 1.0),
        (torch.nan, 1.0),
    ):
        yield f"clamp({low}, {high})", lambda x, a=low, b=high: torch.clamp(x, a, b), one
    yield "clamp(tensor)", lambda a, b: torch.clamp(a, min=b), floats
    yield "clamp(tensors)", lambda a, b: torch.clamp(a, b, b + 1), floats
    yield "where", lambda a, b: torch.where(a > b, a, b), floats
    yield "where(nan)", lambda a, b: torch.where(a.isnan(), b, a * 2), floats
    yield "nan_to_num", lambda x: torch.nan_to_num(x), one
    yield "nan_to_num(1)", lambda x: torch.nan_to_num(x, 1.0, 2.0, -3.0), one
    rows = torch.stack([FLOATS, FLOATS.flip(0), FLOATS.roll(5)])
    for axis in (0, 1):
        of = f"along {axis}"
        for given in ([rows], [rows.nan_to_num(7.0)], [(rows.nan_to_num(3, 9, -9).clamp(-9, 9)).long()]):
            said = f"{of} of {given[0].dtype}{' with nan' if bool(given[0].isnan().any()) else ''}"
            yield f"max {said}", lambda x, d=axis: x.max(d).values, given
            yield f"max place {said}", lambda x, d=axis: x.max(d).indices, given
            yield f"amax {said}", lambda x, d=axis: x.amax(d), given
            yield f"amin {said}", lambda x, d=axis: x.amin(d), given
            yield f"argmax {said}", lambda x, d=axis: x.argmax(d), given
            yield f"argmin {said}", lambda x, d=axis: x.argmin(d), given
            yield f"sort {said}", lambda x, d=axis: x.sort(d).values, given
            yield f"sort down {said}", lambda x, d=axis: x.sort(d, descending=True).values, given
            yield f"stable sort {said}", lambda x, d=axis: x.sort(dim=d, stable=True).indices, given
            yield f"topk {said}", lambda x, d=axis: x.topk(2, d).values, given
            yield f"topk down {said}", lambda x, d=axis: x.topk(2, d, largest=False).values, given
            yield f"median {said}", lambda x, d=axis: x.median(d).values, given
            yield f"cummax {said}", lambda x, d=axis: x.cummax(d).values, given
            yield f"cumsum {said}", lambda x, d=axis: x.cumsum(d), given
            yield f"cumprod {said}", lambda x, d=axis: x.cumprod(d), given
            yield f"any {said}", lambda x, d=axis: x.bool().any(d), given
            yield f"prod {said}", lambda x, d=axis: x.prod(d), given
            if given[0].is_floating_point():
                yield f"softmax {said}", lambda x, d=axis: x.softmax(d), given
                yield f"log_softmax {said}", lambda x, d=axis: x.log_softmax(d), given
                yield f"logsumexp {said}", lambda x, d=axis: x.logsumexp(d), given
                yield f"nansum {said}", lambda x, d=axis: x.nansum(d), given
                yield f"nanmean {said}", lambda x, d=axis: x.nanmean(d), given
                yield f"norm {said}", lambda x, d=axis: torch.linalg.vector_norm(x, dim=d), given
                yield f"norm(inf) {said}", lambda x, d=axis: torch.linalg.vector_norm(x, torch.inf, d), given


def right(function: Function, given: list[Tensor]) -> tuple[list[Tensor], Tensor] | None:
    """The arguments that torch takes, and its result; None where it takes none."""
    try:
        return given, function(*given)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError):
        if given[0].is_floating_point():
            return None
    apart = given[-1] != 0  # by which no integer is divided
    given = [x[apart] for x in given]
    try:
        return given, function(*given)
    except (RuntimeError, ValueError, TypeError, NotImplementedError, IndexError):
        return None


def wrong(got: Tensor, expected: Tensor, given: list[Tensor]) -> str:
    if got.shape != expected.shape or got.dtype != expected.dtype:
        return f"{list(got.shape)} {got.dtype} where {list(expected.shape)} {expected.dtype} is right"
    a, b = got.double(), expected.double()
    near = (a - b).abs() <= 1e-5 * b.abs() + 1e-37
    same = (a == b) | near | (a.isnan() & b.isnan())
    what = "at" if not same.all() else "sign of zero at"
    places = ~same if not same.all() else (b == 0) & (a.signbit() != b.signbit())
    if not places.any():
        return ""
    where = places.nonzero()
    first = tuple(where[0].tolist())
    alike = all(x.shape == expected.shape for x in given)
    at = ", ".join(str(x[first].item()) for x in given) if alike else str(list(first))
    got_there, right_there = a[first].item(), b[first].item()
    return f"{what} {len(where)} of {expected.numel()}: f({at}) = {right_there:.7g}, got {got_there:.7g}"


def run(functions: list[Function], given: list[Tensor]) -> list[Tensor]:
    def together(*x: Tensor) -> tuple[Tensor, ...]:
        return tuple(function(*x) for function in functions)

    model = Model.from_module(Called(together).eval(), tuple(given), dynamic_batch=False)  # type: ignore[arg-type]
    with TemporaryDirectory() as folder:
        write_onnx(model, Path(folder) / "m.onnx")
        return list(map(torch.from_numpy, open_artifact(Path(folder) / "m.onnx").run(*given)))


def main() -> None:
    cases: dict[Any, list[tuple[str, Function, list[Tensor], Tensor]]] = {}
    for name, function, given in itertools.chain(others(), listed()):
        if sys.argv[1:] and not any(part in name for part in sys.argv[1:]):
            continue
        made = right(function, given)
        if made is not None and not made[1].is_complex():
            key = tuple((x.dtype, tuple(x.shape)) for x in made[0]), float(made[0][0].double().nansum())
            cases.setdefault(key, []).append((name, function, *made))
    for alike in cases.values():
        for start in range(0, len(alike), 24):
            compare(alike[start : start + 24])


def compare(cases: list[tuple[str, Function, list[Tensor], Tensor]]) -> None:
    """Together, as that is faster; in halves where one is refused."""
    try:
        results = run([function for _, function, _, _ in cases], cases[0][2])
    except NNCompressError as error:
        if len(cases) == 1:
            print(f"{cases[0][0]:40} refused: {error.what[:90]} {(error.got or '')[:60]}", flush=True)
            return
        compare(cases[: len(cases) // 2])
        compare(cases[len(cases) // 2 :])
        return
    for (name, _, given, expected), got in zip(cases, results, strict=True):
        if found := wrong(got, expected, given):
            print(f"{name:40} {found}", flush=True)


if __name__ == "__main__":
    main()
