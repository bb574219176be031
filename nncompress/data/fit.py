"""From what a source holds to what the model takes: decided once at opening, applied to every batch.

| the source has             | the model takes   | what happens                                      |
|----------------------------|-------------------|---------------------------------------------------|
| uint8 [H, W, C] or [H, W]  | float [C, H, W]   | channels first, / 255, normalised                 |
| uint8 [C, H, W]            | float [C, H, W]   | / 255, normalised                                 |
| an image                   | float [C·H·W]     | the same, flattened                               |
| float [...]                | float [...]       | as it is (normalised where that was asked for)    |
| integer [...]              | integer [...]     | as it is, range checked                           |
Anything else is refused before work starts.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nncompress.data.normalization import Normalization, standardized
from nncompress.data.source import Field
from nncompress.dtypes import dtype_name
from nncompress.errors import DataError

CHANNELS = (1, 3, 4)


class ExpectedInput(Protocol):
    """What a model says of one input (`ir.InputSpec`): a str in the shape is a dynamic dimension."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> str: ...
    @property
    def shape(self) -> tuple[int | str, ...]: ...
    @property
    def batch_dim(self) -> int | None: ...


@dataclass(frozen=True)
class Conversion:
    """How one input becomes a tensor.

    Attributes:
        layout: "hwc", "hw" or "chw" for images, "as is" for the rest.
        scale: divide by 255.
        pixels: floats that are to be normalised like pixels must be on their scale, 0 … 1.
        shape: of one sample, after conversion.
        dtype: of the tensor.
        batch_dim: where the model wants the samples to lie; None: they share one tensor of `shape`.
        rows: of the table that its numbers are looked up in, where there is one.
    """

    field: Field
    layout: str
    scale: bool
    pixels: bool
    normalization: Normalization | None
    shape: tuple[int, ...]
    dtype: torch.dtype
    batch_dim: int | None = 0
    rows: int | None = None

    def __call__(self, array: np.ndarray) -> Tensor:
        """array [N, *field.shape] → tensor [N, *shape], its samples along `batch_dim`."""
        if self.batch_dim is None:
            return self._samples_first(array[None])[0]
        converted = self._samples_first(array)
        return converted.movedim(0, self.batch_dim).contiguous() if self.batch_dim else converted

    def _samples_first(self, array: np.ndarray) -> Tensor:
        if not self.dtype.is_floating_point:
            return self._to_integer(array)
        x = self.unrounded(array)
        given = x.to(self.dtype)
        if given.dtype.itemsize < x.dtype.itemsize:
            self._check_finite(x, given)
        return given

    def unrounded(self, array: np.ndarray) -> Tensor:
        """array [N, *field.shape] → tensor [N, *shape] of what a model of floats is given, before its dtype
        rounds it."""
        if self.layout == "hwc":
            array = array.transpose(0, 3, 1, 2)
        elif self.layout == "hw":
            array = array[:, None]
        x = torch.from_numpy(np.ascontiguousarray(array))
        x = x if x.dtype == torch.float64 else x.float()
        if self.scale:
            x = x / 255
        if self.pixels and not (x.min() >= 0 and x.max() <= 1):
            raise DataError(
                f"{self.field.name} is not on the scale of pixels, so it cannot be normalised",
                got=f"{x.min():.3g} to {x.max():.3g}",
                expected="0 to 1",
                remedy="--normalize none, if the data is normalised already",
            )
        if self.normalization is not None and self.normalization.per_image:
            x = standardized(x)
        elif self.normalization is not None:
            per_channel = (1, -1, *[1] * (x.dim() - 2))
            mean = torch.tensor(self.normalization.mean, dtype=x.dtype).reshape(per_channel)
            std = torch.tensor(self.normalization.std, dtype=x.dtype).reshape(per_channel)
            x = (x - mean) / std
        return x.reshape(len(x), *self.shape)

    def _check_finite(self, x: Tensor, narrowed: Tensor) -> None:
        beyond = x[x.isfinite() & ~narrowed.isfinite()]
        if beyond.numel():
            raise DataError(
                f"{self.field.name} holds numbers that the model's dtype cannot",
                got=f"{float(beyond.abs().max()):.3g} ({self.field.dtype})",
                expected=f"the range of {self.dtype}",
                remedy="give the data on the scale that the model was trained on",
            )

    def _to_integer(self, array: np.ndarray) -> Tensor:
        if self.dtype == torch.bool:
            return torch.from_numpy(np.ascontiguousarray(array))
        low, high, room = int(array.min()), int(array.max()), torch.iinfo(self.dtype)
        if not room.min <= low <= high <= room.max:
            raise DataError(
                f"{self.field.name} holds numbers that the model's dtype cannot",
                got=f"{low} to {high} ({self.field.dtype})",
                expected=f"the range of {self.dtype}",
            )
        if self.rows is not None and not 0 <= low <= high < self.rows:
            raise DataError(
                f"{self.field.name} holds numbers that the model has no row for",
                got=f"{low} to {high}",
                expected=f"0 to {self.rows - 1}: it looks them up in a table of {self.rows} rows",
                remedy="number the tokens as the model's own tokenizer does",
            )
        dtype = dtype_name(self.dtype)
        return torch.from_numpy(np.ascontiguousarray(array, dtype=dtype))


def fit_inputs(
    fields: tuple[Field, ...],
    expected: list[ExpectedInput] | None,
    normalization: Normalization | None,
    *,
    asked: bool,
    origin: str,
) -> tuple[Conversion, ...]:
    """One conversion per input of the model, in the model's order.

    Args:
        expected: the model's inputs; None where the model is not known yet.
        asked: the normalisation was asked for by option, so that it must find something to act on.
    Raises:
        DataError: number, dtype or shape of the inputs do not fit.
    """
    if expected is not None and len(expected) != len(fields):
        raise DataError(
            f"{origin} does not hold as many inputs as the model takes",
            got=f"{len(fields)}: {', '.join(field.name for field in fields)}",
            expected=f"{len(expected)}: " + ", ".join(f"{e.name} {list(e.shape)}" for e in expected),
            remedy=f"name the arrays {', '.join(e.name for e in expected)}; or x0, x1, ... in this order",
        )
    images = [field.dtype == "uint8" and len(field.shape) in (2, 3) for field in fields]
    conversions = []
    for i, field in enumerate(fields):
        use = normalization if images[i] or len(fields) == 1 else None
        fitted = _fit(field, expected[i] if expected is not None else None, use, origin)
        floats = asked and fitted.normalization is not None and not images[i] and len(field.shape) == 3
        conversions.append(replace(fitted, pixels=floats))
    if asked and normalization is not None and not any(c.normalization for c in conversions):
        raise DataError(
            f"{origin} has nothing to normalise",
            got=", ".join(f"{f.name}: {f.dtype} {list(f.shape)}" for f in fields),
            expected="uint8 images, or one floating-point input",
            remedy="leave --normalize out",
        )
    return tuple(conversions)


def _fit(field: Field, expected: ExpectedInput | None, norm: Normalization | None, origin: str) -> Conversion:
    dtype = _model_dtype(field, expected, origin)
    wanted = None if expected is None else _sample_shape(expected)
    image = dtype.is_floating_point and field.dtype == "uint8" and len(field.shape) in (2, 3)
    layouts = _layouts(field.shape) if image else {"as is": field.shape}
    # The first layout that fits; where none does, the likeliest one is what the error speaks of.
    layout, shape = next(
        (item for item in layouts.items() if wanted is None or _fits(item[1], wanted)),
        next(iter(layouts.items())),
    )
    if wanted is not None and not _fits(shape, wanted):
        raise _misfit(field, shape, wanted, expected, origin)
    if norm is not None and not dtype.is_floating_point:
        norm = None
    if norm is not None and len(norm.mean) not in (1, shape[0] if shape else 1):
        raise DataError(
            f"{origin}: the normalisation does not fit {field.name}",
            got=f"{len(norm.mean)} channels ({norm})",
            expected=f"1 or {shape[0] if shape else 1} channels",
            remedy="give --normalize one mean/std per channel, or one for all: 0.5/0.25",
        )
    scale = field.dtype == "uint8" and dtype.is_floating_point
    if scale and norm is not None and max(abs(m) for m in norm.mean) > 1:
        raise DataError(
            f"{origin}: the normalisation is not on the scale of the pixels",
            got=f"a mean of {max(norm.mean):g}",
            expected="means and standard deviations of pixels scaled to 0 ... 1",
            remedy="divide both by 255",
        )
    if wanted is not None and len(wanted) == 1 and len(shape) == 3:
        shape = (math.prod(shape),)
    batch_dim = 0 if expected is None else expected.batch_dim
    return Conversion(field, layout, scale, False, norm, shape, dtype, batch_dim)


def _layouts(shape: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    """How a uint8 sample of this shape may be read as an image: layout → [C, H, W], likeliest first."""
    if len(shape) == 2:
        return {"hw": (1, *shape)}
    hwc = {"hwc": (shape[2], shape[0], shape[1])}
    chw = {"chw": shape}
    return chw | hwc if shape[0] in CHANNELS and shape[2] not in CHANNELS else hwc | chw


def _fits(shape: tuple[int, ...], wanted: tuple[int | str, ...]) -> bool:
    if len(wanted) == 1 and len(shape) == 3:  # an image for a model of flat features
        shape = (math.prod(shape),)
    return len(shape) == len(wanted) and all(isinstance(w, str) or s == w for s, w in zip(shape, wanted))


def _sample_shape(expected: ExpectedInput) -> tuple[int | str, ...]:
    """The shape of one sample, or of what all samples share."""
    dim = expected.batch_dim
    return expected.shape if dim is None else (*expected.shape[:dim], *expected.shape[dim + 1 :])


def _model_dtype(field: Field, expected: ExpectedInput | None, origin: str) -> torch.dtype:
    kind = np.dtype(field.dtype).kind
    floating, integer, boolean = kind == "f", kind in "ui", kind == "b"
    if not (floating or integer or boolean):
        raise DataError(f"{origin}: {field.name} does not hold numbers", got=f"dtype {field.dtype}")
    if expected is None:
        image = field.dtype == "uint8" and len(field.shape) in (2, 3)
        return torch.float32 if floating or image else torch.bool if boolean else torch.int64
    wanted = getattr(torch, expected.dtype.removeprefix("torch."), None)
    if not isinstance(wanted, torch.dtype):
        raise DataError(f"the model's input {expected.name} has a dtype unknown here", got=expected.dtype)
    same_kind = (
        (wanted.is_floating_point and (floating or field.dtype == "uint8"))
        or (wanted == torch.bool and boolean)
        or (not wanted.is_floating_point and wanted != torch.bool and integer)
    )
    if not same_kind or wanted.is_complex:
        raise DataError(
            f"{origin}: {field.name} has another dtype than the model takes",
            got=field.dtype,
            expected=f"{expected.dtype} (input {expected.name})",
            remedy=f"save the array as {expected.dtype}"
            + (", or images as uint8 0 ... 255" if wanted.is_floating_point else ""),
        )
    return wanted


def _misfit(
    field: Field,
    shape: tuple[int, ...],
    wanted: tuple[int | str, ...],
    expected: ExpectedInput | None,
    origin: str,
) -> DataError:
    remedy = "give the data this model was trained on"
    if len(field.shape) == 3 and _fits((field.shape[2], *field.shape[:2]), wanted):
        remedy = "put the channels first: x.transpose(0, 3, 1, 2)"
    elif len(shape) == len(wanted) == 3 and shape[1:] == wanted[1:]:
        remedy = f"the model takes {wanted[0]} channels and the data has {shape[0]}"
    name = expected.name if expected is not None else ""
    return DataError(
        f"{origin}: the samples of {field.name} have another shape than the model takes",
        got=f"{field.dtype} {list(field.shape)}"
        + (f", read as {list(shape)}" if shape != field.shape else "")
        + " a sample",
        expected=f"{list(wanted)} a sample (input {name})",
        remedy=remedy,
    )
