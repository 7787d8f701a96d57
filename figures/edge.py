"""Regression on 400 digits: descended in full batches, it goes to the edge of stability (Cohen et al. 2021). A run of it: figures/README.md."""

import torch
from sklearn.datasets import load_digits
from torch import nn


def make(seed: int = 0) -> tuple[nn.Module, str, tuple[torch.Tensor, torch.Tensor]]:
    """A tanh network, squared error, rows with one-hot targets of size 3."""
    digits = load_digits()
    inputs = torch.tensor(digits.data[:400] / 16 - 0.3, dtype=torch.float32)
    targets = 3 * nn.functional.one_hot(torch.tensor(digits.target[:400]), 10).float()
    layers = (nn.Linear(64, 50), nn.Tanh(), nn.Linear(50, 50), nn.Tanh(), nn.Linear(50, 10))
    return nn.Sequential(*layers), "mse", (inputs, targets)
