"""Several processes, one step: `torchrun --nproc-per-node 2 -m nncompress train MODEL --data ...`.

Plain `DistributedDataParallel` over `torch.distributed`, on one machine or many. A launcher library
(Accelerate, Fabric) would bring samplers and random states of its own; here data order and randomness follow
from seed and step alone, which is what makes a resumed run the same run, so nothing is left for one to do.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn

from nncompress.data import Batch

T = TypeVar("T")


@dataclass(frozen=True)
class Group:
    """The processes that share every step."""

    rank: int = 0
    size: int = 1

    @property
    def main(self) -> bool:
        """This one writes files."""
        return self.rank == 0

    @classmethod
    def current(cls) -> Group:
        """The group this process is in; of one, where none was set up."""
        distributed = torch.distributed
        if distributed.is_available() and distributed.is_initialized():
            return cls(distributed.get_rank(), distributed.get_world_size())
        return cls()

    def average(self, value: Tensor) -> Tensor:
        """The mean of `value` over all processes."""
        if self.size == 1:
            return value
        value = value.clone()
        torch.distributed.all_reduce(value)
        return value / self.size

    def furthest(self, value: Any, place: int) -> Any:
        """What the process has whose `place` is highest: on machines without a common folder, the one that
        wrote the checkpoint, which need not be the first process this time."""
        if self.size == 1:
            return value
        places: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(places, place)
        source = places.index(max(places))
        values = [value if self.rank == source else None]
        torch.distributed.broadcast_object_list(values, source)
        return values[0]

    def part(self, batch: Batch, least: int = 1) -> tuple[Batch, float] | None:
        """This process's samples of a step, and their weight: samples here · processes / samples in all.

        None where some process would get fewer than `least` samples: all of them skip the step.
        """
        if len(batch) < self.size * least:
            return None
        if self.size == 1:
            return batch, 1.0
        part = batch.part(slice(self.rank, None, self.size))
        return part, len(part) * self.size / len(batch)

    def wrap(self, module: nn.Module) -> nn.Module:
        """`module` with gradients averaged over processes; all its parameters must get one in every step."""
        return module if self.size == 1 else nn.parallel.DistributedDataParallel(module)

    def agree(self, decide: Callable[[], T]) -> T:
        """What the first process decides, where the others would not come to the very same (clocks)."""
        decision = [decide() if self.main else None]
        if self.size > 1:
            torch.distributed.broadcast_object_list(decision)
        return cast(T, decision[0])

    def share_buffers(self, module: nn.Module) -> None:
        """Every process takes the first one's running statistics."""
        if self.size > 1:
            for buffer in module.buffers():
                torch.distributed.broadcast(buffer, 0)


@contextmanager
def process_group() -> Iterator[Group]:
    """Join the group that `torchrun` set up in the environment; a group of one without it."""
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        yield Group()
        return
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    options: dict[str, Any] = {"backend": "nccl" if cuda else "gloo"}
    torch.distributed.init_process_group(**options)
    try:
        yield Group.current()
    finally:
        torch.distributed.destroy_process_group()
