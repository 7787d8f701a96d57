"""All 1,797 digits of scikit-learn (pixels over 16) and a tanh network 64-16-10, D = 1,210: small enough for the whole Hessian. See the gallery's pruning limit."""

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import TensorDataset


def make():
    x, y = load_digits(return_X_y=True)
    rows = TensorDataset(torch.tensor(x / 16, dtype=torch.float32), torch.tensor(y))
    return nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10)), "cross-entropy", rows
