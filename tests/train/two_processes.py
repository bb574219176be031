"""Run by `test_distributed` under torchrun: train on half of every batch, and save the weights.

usage: two_processes.py DATA OUT
"""

import sys

import torch
from torch import nn

from nncompress.data import open_data
from nncompress.ir import Model
from nncompress.train import TrainSettings, process_group, train


def network() -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2)).eval()
    return Model.from_module(module, (torch.randn(2, 6),))


def settings(loss: str) -> TrainSettings:
    return TrainSettings(epochs=3, batch=10, lr=0.1, loss=loss, task="regression", l2=0.01, device="cpu")


if __name__ == "__main__":
    data, out = sys.argv[1:]
    torch.set_num_threads(1)
    with process_group() as group:
        for loss in ("mse", "rmse"):
            model = network()
            trained, result = train(model, open_data(data, model.inputs), settings(loss))
            if group.main:
                weights = {"size": group.size, "loss": result.loss, "weights": dict(trained.state_dict())}
                torch.save(weights, f"{out}.{loss}")
