"""`package.module:function` or `file.py:function`: your own code gives the data.

From Python, an object in memory does.

The function takes no arguments and returns (and what is given in memory is)
- `(x, y)`, arrays or tensors with one row per sample (`((x0, x1), y)` for several inputs; y may be None), or
- a dictionary of arrays: labels under y, label, labels, target or targets, inputs under the names of the
  model's (or a single one under any), or
- an iterable of such batches: a list, a generator, a `DataLoader`. It is called again for every pass over
  the data, and never held as a whole.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.utils._pytree import tree_leaves

from nncompress.data.fit import ExpectedInput
from nncompress.data.kind import Asked, Kind
from nncompress.data.normalization import Normalization
from nncompress.data.source import ArraySource, Field, Raw, check_finite, check_labels, native
from nncompress.data.sources.npz import LABEL_NAMES
from nncompress.errors import RAISED_BY_OTHERS, DataError
from nncompress.extensions import Registry
from nncompress.user_code import imported, last_line

MOST_KEPT = 2**32  # bytes of batches of an iterator
RETURNS = "(x, y) arrays, a dictionary of arrays, or an iterable of such batches"


def open_python(spec: str, expected: list[ExpectedInput] | None) -> ArraySource | PythonStream:
    """Import the function and look at what it returns.

    Raises:
        DataError: it cannot be imported or called, or returns something else.
    """
    return _opened(_import(spec), spec, expected)


def open_memory(
    given: Any, expected: list[ExpectedInput] | None, names: Sequence[str] = ()
) -> ArraySource | PythonStream:
    """Data in memory: a tensor or array, `(x, y)`, a `Dataset` or `DataLoader` of torch, any iterable of
    batches, or a function that returns one of these.

    Args:
        names: of the model's inputs, where `expected` is None.

    An iterator can be gone through once only: its batches are kept, up to `MOST_KEPT` bytes of them.

    Raises:
        DataError: it is something else, or an iterator of more than that.
    """
    name = name_of(given)
    if isinstance(given, Iterator):
        given = kept(given)
    gives = callable(given) and not isinstance(given, Iterable)
    return _opened(given if gives else lambda: given, name, expected, names)


def name_of(given: Any) -> str:
    """What messages call data in memory."""
    return f"the data given ({type(given).__name__})"


def kept(batches: Iterator[Any]) -> list[Any]:
    """The batches of an iterator, which can be gone through only once.

    Raises:
        DataError: it raises, or they are more than `MOST_KEPT` bytes.
    """
    name = name_of(batches)
    held: list[Any] = []
    size = 0
    try:
        for batch in batches:
            held.append(batch)
            size += sum(leaf.nbytes for leaf in tree_leaves(batch) if _is_array(leaf))
            if size > MOST_KEPT:
                raise DataError(
                    f"{name} can be gone through only once, and is too much to be kept",
                    got=f"more than {MOST_KEPT / 2**30:.0f} GiB",
                    remedy="give a DataLoader, or the function that makes the iterator: it is called anew",
                )
    except DataError:
        raise
    except RAISED_BY_OTHERS as problem:
        raise _raised(name, problem) from problem
    return held


def _opened(
    function: Callable[[], Any], spec: str, expected: list[ExpectedInput] | None, order: Sequence[str] = ()
) -> ArraySource | PythonStream:
    returned = _call(function, spec)
    count = None if expected is None else len(expected)
    names = None if expected is None else tuple(e.name for e in expected)
    if _is_arrays(returned):
        inputs, labels = _pair(returned, count, spec)
        named = _named(inputs, names)
        shared = [name for name, e in zip(named, expected or ()) if e.batch_dim is None]
        return ArraySource(named, labels, origin=spec, shared=shared)
    if any(e.batch_dim is None for e in expected or ()):
        raise DataError(
            f"{spec} gives batches, and the model has an input that all samples share",
            got=", ".join(e.name for e in expected or () if e.batch_dim is None),
            expected="((x0, x1, ...), y) as arrays, where a shared input has no dim for samples",
        )
    return PythonStream(function, returned, names, spec, order)


class PythonStream:
    """Batches from an iterable, checked one by one."""

    class_names: tuple[str, ...] | None = None
    normalization: Normalization | None = None

    def __init__(
        self,
        function: Callable[[], Any],
        returned: Any,
        names: tuple[str, ...] | None,
        spec: str,
        order: Sequence[str] = (),
    ) -> None:
        self._function, self._names, self._spec = function, names, spec
        self._order = tuple(order)
        first = next(self._batches(returned), None)
        if first is None:
            raise DataError(f"{spec} gives no batches", expected=RETURNS)
        named = _named(first[0], names)
        self.fields: tuple[Field, ...] = tuple(Field(n, str(a.dtype), a.shape[1:]) for n, a in named.items())
        self.has_labels = first[1] is not None
        self._checked(first, 0)

    def stream(self) -> Iterator[Raw]:
        sample = 0
        for batch in self._batches(_call(self._function, self._spec)):
            inputs, labels = self._checked(batch, sample)
            yield inputs, labels
            sample += len(inputs[0])

    def _batches(self, iterable: Iterable[Any]) -> Iterator[Raw]:
        count = None if self._names is None else len(self._names)
        try:
            for batch in iterable:
                if isinstance(batch, Mapping):
                    yield self._of_names(batch)
                else:
                    yield _pair(batch, count, self._spec)
        except DataError:
            raise
        except RAISED_BY_OTHERS as problem:
            raise _raised(self._spec, problem) from problem

    def _of_names(self, batch: Mapping[Any, Any]) -> Raw:
        """The inputs in the model's order, and the labels, of a batch that is a dictionary."""
        label = next((name for name in LABEL_NAMES if name in batch), None)
        given = [name for name in batch if name != label]
        wanted = list(self._names or [name for name in self._order if name in given])
        if len(given) == 1 and len(wanted) < 2:
            wanted = given
        if not given or set(wanted) != set(given):
            raise DataError(
                f"{self._spec} gives dictionaries of other names than the model's inputs",
                got=", ".join(map(str, given))[:300] + (f", and {label}" if label else ""),
                expected=", ".join(wanted or self._order)[:300] or "a single input",
                remedy="make batches with these inputs, and y, alone",
            )
        return _pair((tuple(batch[name] for name in wanted), label and batch[label]), None, self._spec)

    def _checked(self, batch: Raw, sample: int) -> Raw:
        """The batch, if it is made as the first one was; `sample` is the number of its first sample."""
        inputs, labels = batch
        where = f"{self._spec}: the batch from sample {sample} on"
        if len(inputs) != len(self.fields) or (labels is not None) != self.has_labels:
            raise DataError(
                f"{where} is made of other parts than the first one",
                got=f"{len(inputs)} inputs, {'no ' if labels is None else ''}labels",
                expected=f"{len(self.fields)} inputs, {'' if self.has_labels else 'no '}labels",
            )
        for field, array in zip(self.fields, inputs):
            if (str(array.dtype), array.shape[1:]) != (field.dtype, field.shape):
                raise DataError(
                    f"{where} differs from the first one",
                    got=f"{field.name}: {array.dtype} {list(array.shape[1:])} a sample",
                    expected=f"{field.dtype} {list(field.shape)}",
                )
            if len(array) != len(inputs[0]):
                raise DataError(
                    f"{where} has inputs of different lengths", got=f"{len(array)}, {len(inputs[0])}"
                )
            check_finite(array, field.name, self._spec, sample, mask=True)
        return inputs, None if labels is None else check_labels(labels, len(inputs[0]), self._spec, sample)


def _import(spec: str) -> Callable[[], Any]:
    module_name, _, function_name = spec.rpartition(":")
    try:
        module = imported(module_name)
    except RAISED_BY_OTHERS as problem:
        raise DataError(
            f"the module of {spec} cannot be imported",
            got=last_line(problem),
            remedy="name it as Python imports it, from the directory it is in",
        ) from problem
    function = getattr(module, function_name, None)
    if not callable(function):
        raise DataError(
            f"{module_name} has no function {function_name}",
            expected="package.module:function",
        )
    return function


def _call(function: Callable[[], Any], spec: str) -> Any:
    try:
        returned = function()
    except RAISED_BY_OTHERS as problem:
        raise _raised(spec, problem) from problem
    if isinstance(returned, torch.utils.data.Dataset) and not isinstance(
        returned, torch.utils.data.IterableDataset
    ):
        return torch.utils.data.DataLoader(returned, batch_size=64)
    if isinstance(returned, Mapping):
        return [returned]
    if isinstance(returned, list) and len(returned) == 2 and all(map(_is_array, returned)):
        first, second = (tuple(each.shape[1:]) for each in returned)
        if first != second:
            raise DataError(
                f"{spec} is a list, whose parts are batches, and these are not alike",
                got=f"samples of shape {list(first)} and {list(second)}",
                remedy="inputs and labels are a tuple: (x, y)",
            )
    if not isinstance(returned, Iterable) or isinstance(returned, (str, bytes)):
        raise DataError(f"{spec} does not return data", got=type(returned).__name__, expected=RETURNS)
    return returned


def _raised(spec: str, problem: BaseException) -> DataError:
    return DataError(
        f"{spec} raised {last_line(problem)}",
        remedy="run it by itself in Python, or see --traceback",
    )


def _is_array(value: Any) -> bool:
    return isinstance(value, (np.ndarray, torch.Tensor))


def _is_arrays(returned: Any) -> bool:
    """Whole arrays, not a sequence of batches."""
    if _is_array(returned):
        return True
    if not isinstance(returned, tuple) or not returned:
        return False
    first = returned[0]
    inputs_are = _is_array(first) or (isinstance(first, tuple) and all(map(_is_array, first)))
    return inputs_are and all(part is None or _is_array(part) for part in returned[1:])


def _pair(batch: Any, count: int | None, spec: str) -> Raw:
    """(inputs, labels) of what a function returned; the model's number of inputs tells labels from inputs."""
    if _is_array(batch):
        batch = (batch,)
    if not isinstance(batch, (tuple, list)) or not batch:
        raise DataError(f"{spec} gives batches of another form", got=type(batch).__name__, expected=RETURNS)
    if isinstance(batch[0], (tuple, list)):
        inputs, labels = tuple(batch[0]), batch[1] if len(batch) > 1 else None
    else:
        inputs_count = count if count is not None and len(batch) >= count else max(1, len(batch) - 1)
        inputs, labels = (
            tuple(batch[:inputs_count]),
            batch[inputs_count] if len(batch) > inputs_count else None,
        )
        if len(batch) > inputs_count + 1:
            raise DataError(
                f"{spec} gives more arrays than the model has inputs and labels",
                got=f"{len(batch)} arrays",
                expected=f"{inputs_count} and labels",
            )
    arrays = tuple(_to_numpy(x, spec) for x in inputs)
    if any(a.ndim == 0 for a in arrays):
        raise DataError(f"{spec} gives single numbers", expected="arrays whose first dimension is samples")
    return arrays, None if labels is None else _to_numpy(labels, spec)


def _to_numpy(value: Any, spec: str) -> np.ndarray:
    if isinstance(value, torch.Tensor):
        try:
            value = value.detach().cpu()
            return (value.float() if value.dtype == torch.bfloat16 else value).numpy()
        except (TypeError, NotImplementedError, RuntimeError) as problem:  # sparse, without data, ...
            raise DataError(
                f"{spec} gives a tensor that holds no plain numbers",
                got=f"{value.layout}, {value.dtype}, on {value.device}".replace("torch.", ""),
                expected="dense tensors with data (to_dense(), dequantize(), numbers instead of meta)",
            ) from problem
    array = native(np.asarray(value))
    if array.dtype == object:
        raise DataError(
            f"{spec} gives something that is not an array", got=type(value).__name__, expected=RETURNS
        )
    return array


def _named(inputs: tuple[np.ndarray, ...], names: tuple[str, ...] | None) -> dict[str, np.ndarray]:
    if names is None or len(names) != len(inputs):
        names = ("x",) if len(inputs) == 1 else tuple(f"x{i}" for i in range(len(inputs)))
    return dict(zip(names, inputs))


def _open_added(asked: Asked) -> ArraySource | PythonStream:
    opener, place = SOURCES[asked.scheme], asked.spec.partition(":")[2]
    return open_memory(lambda: opener(place), asked.expected)


SOURCES: Registry[Callable[[str], Any]] = Registry(  # what other packages add: NAME:PLACE
    "nncompress.data", {}, lambda name, it: "" if callable(it) else f"{it!r:.80} is no function"
)
ADDED = Kind("", lambda asked: asked.scheme in SOURCES, _open_added, options=None, runs_code=True)
CODE = Kind(
    "package.module:function or file.py:function",
    lambda asked: (
        not os.path.exists(asked.path) and re.fullmatch(r"([\w.]+|.+\.py):\w+", asked.path) is not None
    ),
    lambda asked: open_python(asked.path, asked.expected),
    runs_code=True,
)
