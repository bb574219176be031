"""Run by `test_distributed` under torchrun: train on half of every batch, save gradients and weights, and
continue a killed run on machines that have changed places.

usage: two_processes.py DATA OUT
"""

import sys
from contextlib import suppress
from pathlib import Path

import torch
from kills import Kill, Killed
from torch import Tensor, nn

from nncompress.data import Dataset, open_data
from nncompress.ir import Model
from nncompress.progress import NullProgress
from nncompress.train import Group, TrainSettings, process_group, train
from nncompress.train.run import Run


def network() -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    return Model.from_module(module, (torch.randn(2, 6),))


class TwoHeads(nn.Module):
    """The second output is no part of the loss."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.other = nn.Linear(6, 8), nn.Linear(8, 2), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.body(x).relu()
        return self.head(y), self.other(y)


def two_heads() -> Model:
    torch.manual_seed(0)
    return Model.from_module(TwoHeads().eval(), (torch.randn(2, 6),))


def settings(loss: str) -> TrainSettings:
    return TrainSettings(epochs=3, batch=10, lr=0.1, loss=loss, task="regression", l2=0.01, device="cpu")


def gradients(dataset: Dataset, loss: str) -> list[dict[str, Tensor]]:
    """Of every step of one epoch, as the optimizer takes them."""
    run = Run(network(), dataset, settings(loss), None, None, NullProgress())
    found = []
    for batch in run.rest_of_epoch():
        run.step(batch)
        found.append({name: p.grad.clone() for name, p in run.trained.items() if p.grad is not None})
    return found


def continued(dataset: Dataset, out: str, group: Group) -> Model:
    """Killed in the second epoch; the checkpoint is then found by the process that did not write it."""
    kept = Path(f"{out}.{group.rank}.checkpoint")
    with suppress(Killed):
        train(network(), dataset, settings("mse"), checkpoint=kept, checkpoint_seconds=0.0, progress=Kill(6))
    if group.main:
        kept.rename(f"{out}.1.checkpoint")
    torch.distributed.barrier()
    return train(network(), dataset, settings("mse"), checkpoint=kept, resume=True)[0]


if __name__ == "__main__":
    data, out = sys.argv[1:]
    torch.set_num_threads(1)
    with process_group() as group:
        assert group.agree(lambda: {"rank": group.rank}) == {"rank": 0}
        for loss in ("mse", "rmse"):
            model = network()
            dataset = open_data(data, model.inputs)
            steps = gradients(dataset, loss)
            trained, result = train(model, dataset, settings(loss))
            if loss == "mse":
                again = continued(dataset, out, group).state_dict()
                assert all(torch.equal(again[name], t) for name, t in trained.state_dict().items())
            forked, _ = train(two_heads(), dataset, settings(loss))
            if group.main:
                weights = {"size": group.size, "loss": result.loss, "weights": dict(trained.state_dict())}
                weights["forked"] = dict(forked.state_dict())
                torch.save({**weights, "gradients": steps}, f"{out}.{loss}")
