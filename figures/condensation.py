"""MNIST by squared error on one-hot targets, 1,000 training rows, and a two-layer ReLU network of width 400 whose parameters start at variance 1/400^6. See the gallery's condensation.

The protocol of Zhang, Zhang, Luo, Xu 2021, figure 5. Not stated there, and chosen here: no output bias (as the paper's other networks), input biases drawn as the
weights are, pixels in [0, 1], rows in the proportions of the classes. DATA in the environment is the folder of the data; by default the user's cache.
"""

import os
from collections import OrderedDict
from pathlib import Path

import torch
from torch import nn

from landscape.datasets import load
from landscape.objectives import Rows

WIDTH = 400


def make(seed: int = 0) -> tuple[nn.Module, str, dict[str, tuple[torch.Tensor, torch.Tensor]]]:
    """The network, squared error, and the rows."""
    folder = os.environ.get("DATA")
    data = load("mnist", folder=Path(folder) if folder else None, limit=1000)

    # pixels in [0, 1] again: every image has both ends of the range
    low, high = data.train.inputs.min(), data.train.inputs.max()

    def rows(part: Rows) -> tuple[torch.Tensor, torch.Tensor]:
        return ((part.inputs - low) / (high - low)).flatten(1), nn.functional.one_hot(part.targets, 10).float()

    layers = {"hidden": nn.Linear(784, WIDTH), "relu": nn.ReLU(), "output": nn.Linear(WIDTH, 10, bias=False)}
    model = nn.Sequential(OrderedDict(layers))
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=WIDTH**-3)
    return model, "mse", {"train": rows(data.train), "test": rows(data.test)}
