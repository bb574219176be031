"""Weights that are read from a checkpoint when they are needed; the last few are held."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn

from nncompress.dtypes import dtype_name
from nncompress.errors import UnsupportedError
from nncompress.ir import Model
from nncompress.loading.module.without_weights import replace
from nncompress.loading.state_dict.shards import StoredTensor
from nncompress.streaming.layer import as_float, layer_name


class HeldWeights(Mapping[str, Tensor]):
    """float32 weights by name.

    Args:
        most: bytes that are held at a time, if one weight alone has not more.
    """

    def __init__(self, stored: Mapping[str, StoredTensor], most: int) -> None:
        self._stored, self._most = stored, most
        self._held: OrderedDict[str, Tensor] = OrderedDict()
        self._changed: dict[str, Callable[[], Tensor]] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name in self._held:
            self._held.move_to_end(name)
            return self._held[name]
        changed = self._changed.get(name)
        value = read_float(self._stored[name]) if changed is None else changed()
        self._hold(name, value)
        return value

    def __contains__(self, name: object) -> bool:
        return name in self._stored

    def __iter__(self) -> Iterator[str]:
        return iter(self._stored)

    def __len__(self) -> int:
        return len(self._stored)

    def change(self, name: str, value: Tensor, again: Callable[[], Tensor]) -> None:
        """From now on the weight has this value, which `again` gives as often as it is asked."""
        self._changed[name] = again
        self._held.pop(name, None)
        self._hold(name, value)

    @contextmanager
    def put_in(self, model: Model, name: str) -> Iterator[nn.Parameter]:
        """Meanwhile the model, whose weights are empty, holds this one, for code that changes it in place."""
        empty = model.tensor(name)
        assert isinstance(empty, nn.Parameter)
        filled = nn.Parameter(self[name].clone(), requires_grad=False)
        replace(model.graph_module, {empty: filled})
        try:
            yield filled
        finally:
            replace(model.graph_module, {filled: empty})

    def _hold(self, name: str, value: Tensor) -> None:
        self._held[name] = value
        while len(self._held) > 1 and sum(each.nbytes for each in self._held.values()) > self._most:
            self._held.popitem(last=False)


def read_float(tensor: StoredTensor) -> Tensor:
    """The weight in float32.

    Raises:
        UnsupportedError: it is none of floats of up to 32 bits, or has NaN or infinite values.
    """
    value = tensor.read()
    if value.dtype.itemsize not in (2, 4) or not value.dtype.is_floating_point:
        raise UnsupportedError(
            "--stream --data works on float32 and halves",
            got=f"{layer_name(tensor.name)} is {dtype_name(value.dtype)}",
            remedy="convert the checkpoint first, or leave --data out: each weight is then treated by itself",
        )
    value = as_float(value)
    if not all(bool(part.isfinite().all()) for part in value.flatten().split(2**20)):
        where = layer_name(tensor.name)
        raise UnsupportedError(f"the weight of {where} has NaN or infinite values")
    return value
