"""Two tanh neurons on the candidate target of Zhang, Zhang, Luo, Xu 2021, figure 1: tanh(x - 7) + tanh(x) + tanh(x + 7) at 50 points of [-15, 15], no output bias. See the gallery's splitting."""

import torch
from torch import nn

from landscape.critical import candidate, shallow
from landscape.seeds import global_stream


def make(seed: int = 0) -> tuple[nn.Module, str, tuple[torch.Tensor, torch.Tensor]]:
    """The network, squared error, and the rows."""
    rows = candidate()
    with global_stream(seed, "candidate"):
        model = shallow(1, 2, 1)
    return model, "mse", (rows.inputs, rows.targets)
