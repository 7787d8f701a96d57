"""Objectives with known answers: closed forms in numpy, small modules of every kind, and finite differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from landscape.objectives import Objective, Rows
from landscape.seeds import generator, global_stream

F64 = torch.float64
EPS = float(np.finfo(float).eps)

# Central differences with step h: truncation h^2 |f'''| / 6 and roundoff eps |f| / h are least at h = eps^(1/3), where both are eps^(2/3) = 4e-11 times
# the size of f and its derivatives. These are within 100 on the problems below.
STEP = EPS ** (1 / 3)
DIFFERENCES = 100 * (STEP**2 + EPS / STEP)  # 7e-9


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = F64) -> Tensor:
    """Standard normal numbers of the seed."""
    return torch.randn(*shape, generator=generator(seed, "problems", *shape), dtype=dtype)


def rotation(d: int, seed: int = 0) -> np.ndarray:
    """A random orthogonal matrix (d, d)."""
    return np.linalg.qr(draw(d, d, seed=seed).numpy())[0]


def planted(spectrum: np.ndarray, seed: int = 0) -> np.ndarray:
    """The symmetric matrix of that spectrum in a random orthonormal frame."""
    q = rotation(len(spectrum), seed)
    matrix = (q * spectrum) @ q.T
    return (matrix + matrix.T) / 2


# -- closed forms -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """An objective, a point, and the truth about it in numpy: value, gradient (D,) and Hessian (D, D) at any w (D,); for one target a row the mean of g_i g_i^T."""

    f: Objective
    point: Tensor
    value: Callable[[np.ndarray], float]
    gradient: Callable[[np.ndarray], np.ndarray]
    hessian: Callable[[np.ndarray], np.ndarray]
    covariance: Callable[[np.ndarray], np.ndarray] | None = None


def quadratic(spectrum: np.ndarray, seed: int = 0) -> Problem:
    """(w - c)^T A (w - c) / 2 with A of the given spectrum and a random centre c."""
    matrix, centre = planted(spectrum, seed), draw(len(spectrum), seed=seed + 1).numpy()
    a, c = torch.from_numpy(matrix), torch.from_numpy(centre)
    return Problem(
        Objective.from_function(lambda w: (w - c) @ a @ (w - c) / 2, len(spectrum)),
        draw(len(spectrum), seed=seed + 2),
        lambda w: float((w - centre) @ matrix @ (w - centre) / 2),
        lambda w: matrix @ (w - centre),
        lambda w: matrix,
    )


def ring(d: int = 3) -> Problem:
    """(|w|^2 - 1)^2 / 4: zero on the unit sphere, negative curvature inside. Gradient (|w|^2 - 1) w, Hessian (|w|^2 - 1) I + 2 w w^T."""
    return Problem(
        Objective.from_function(lambda w: (w @ w - 1) ** 2 / 4, d),
        draw(d),
        lambda w: float((w @ w - 1) ** 2 / 4),
        lambda w: (w @ w - 1) * w,
        lambda w: (w @ w - 1) * np.eye(d) + 2 * np.outer(w, w),
    )


def _softmax(o: np.ndarray) -> np.ndarray:
    e = np.exp(o - o.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def _squared(o: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    k = o.shape[1]  # nn.MSELoss means over rows and over outputs
    return ((o - y) ** 2).mean(1), 2 * (o - y) / k, np.broadcast_to(2 / k * np.eye(k), (len(o), k, k))


def _logistic(o: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    p = 1 / (1 + np.exp(-o))
    return (np.logaddexp(0, o) - y * o)[:, 0], p - y, (p * (1 - p))[:, :, None]


def _cross_entropy(o: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    p, hot = _softmax(o), np.eye(o.shape[1])[y]
    return -np.log((p * hot).sum(1)), p - hot, p[:, :, None] * np.eye(o.shape[1]) - p[:, :, None] * p[:, None, :]


_LINEAR = {
    "linear": (3, "mse", _squared),
    "logistic": (1, nn.BCEWithLogitsLoss(), _logistic),
    "softmax": (4, "cross-entropy", _cross_entropy),
}
REGRESSIONS = tuple(_LINEAR)


def regression(kind: str, n: int = 23, features: int = 5, chunk: int | None = None) -> Problem:
    """A linear model with bias under one of three losses: with J_i (K, D) the fixed Jacobian of row i, outputs are J_i w and

    f = mean l_i,  gradient = mean J_i^T l_i',  Hessian = mean J_i^T l_i'' J_i.
    """
    k, loss, by_outputs = _LINEAR[kind]
    x = draw(n, features)
    y = {"linear": draw(n, k, seed=1), "logistic": (draw(n, 1, seed=1) > 0).to(F64), "softmax": torch.arange(n) % k}[
        kind
    ]
    module = filled(nn.Linear(features, k))
    f, point = Objective.of(module, loss, Rows(x, y), dtype=F64, chunk=chunk)
    # weight (K, F) row by row, then bias (K,)
    jacobian = np.concatenate([np.kron(np.eye(k), row[None]) for row in x.numpy()]).reshape(n, k, k * features)
    jacobian = np.concatenate([jacobian, np.broadcast_to(np.eye(k), (n, k, k))], axis=2)

    def at(w: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return by_outputs(jacobian @ w, y.numpy())

    return Problem(
        f,
        point,
        lambda w: float(at(w)[0].mean()),
        lambda w: np.einsum("ikd,ik->d", jacobian, at(w)[1]) / n,
        lambda w: np.einsum("ikd,ikl,ile->de", jacobian, at(w)[2], jacobian) / n,
        lambda w: np.einsum("ikd,ik,il,ile->de", jacobian, at(w)[1], at(w)[1], jacobian) / n,
    )


# -- modules ----------------------------------------------------------------------------------------------------------


def filled(module: nn.Module, seed: int = 0, size: float = 0.7) -> nn.Module:
    """The module in float64 with normal parameters of the seed and, where it has them, positive running variances that are not 1."""
    module = module.to(F64)
    with torch.no_grad():
        for i, parameter in enumerate(module.parameters()):
            if parameter.is_floating_point():
                parameter.copy_(size * draw(*parameter.shape, seed=seed + i))
        for name, buffer in module.named_buffers():
            if name.endswith("running_var"):
                buffer.copy_(0.5 + draw(*buffer.shape, seed=seed).abs())
            elif name.endswith("running_mean"):
                buffer.copy_(draw(*buffer.shape, seed=seed))
    return module


class Tied(nn.Module):
    """Two layers that share one weight; the first has no bias."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.out = nn.Linear(4, 4, bias=False), nn.Linear(4, 4), nn.Linear(4, 3)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.out(torch.tanh(self.second(torch.tanh(self.first(x)))))


class PartFrozen(nn.Module):
    """A frozen weight, a frozen integer parameter, a float buffer, an integer buffer and one that is not saved: all of them in use."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.out = nn.Linear(4, 5), nn.Linear(5, 3)
        self.first.weight.requires_grad_(False)
        self.order = nn.Parameter(torch.tensor([4, 2, 0, 1, 3]), requires_grad=False)
        self.register_buffer("shift", torch.linspace(-1, 1, 5))
        self.register_buffer("signs", torch.tensor([1, -1, 1, 1, -1]))
        self.register_buffer("scale", torch.tensor(1.5), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x) + self.shift)[:, self.order] * self.signs
        return self.out(h * self.scale)


class SelfAttention(nn.Module):
    """One attention layer and a mean over positions."""

    def __init__(self) -> None:
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Gated(nn.Module):
    """SwiGLU units: silu(gate x) * up x, read by a dense layer."""

    def __init__(self):
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(3, 4), nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.down(nn.functional.silu(self.gate(x)) * self.up(x))


class MeanOut(nn.Module):
    """A mean over positions and a linear map."""

    def __init__(self, features: int, outputs: int) -> None:
        super().__init__()
        self.out = nn.Linear(features, outputs)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(x.mean(1))


def _conv(norm: nn.Module) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), norm, nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 3)
    )


# name -> (module, shape of one row, loss); every one has second derivatives everywhere
_MODULES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], str]] = {
    "mlp": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,), "cross-entropy"),
    "mlp-mse": (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), (4,), "mse"),
    "dropout": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Dropout(0.5), nn.Linear(5, 3)),
        (4,),
        "cross-entropy",
    ),
    "batchnorm": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)),
        (4,),
        "cross-entropy",
    ),
    "conv-batchnorm": (lambda: _conv(nn.BatchNorm2d(4)), (2, 4, 4), "cross-entropy"),
    "conv-groupnorm": (lambda: _conv(nn.GroupNorm(2, 4)), (2, 4, 4), "cross-entropy"),
    "layernorm": (
        lambda: nn.Sequential(nn.Linear(4, 5), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3)),
        (4,),
        "cross-entropy",
    ),
    "tied": (Tied, (4,), "cross-entropy"),
    "frozen": (PartFrozen, (4,), "cross-entropy"),
    "attention": (SelfAttention, (3, 4), "cross-entropy"),
    "transformer": (
        lambda: nn.Sequential(
            nn.TransformerEncoderLayer(4, 2, 6, dropout=0.2, activation="gelu", batch_first=True), MeanOut(4, 3)
        ),
        (3, 4),
        "cross-entropy",
    ),
    "lstm": (lambda: nn.Sequential(Last(nn.LSTM(4, 3, batch_first=True)), nn.Linear(3, 3)), (3, 4), "cross-entropy"),
}
MODULES = tuple(_MODULES)

# convolutions of every kind, ReLU in and out of place: layers with kernels of our own for second derivatives. The ReLUs are differentiable at normal points
_LAYERS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "stride": (lambda: nn.Conv2d(2, 4, 3, stride=2, padding=1), (2, 5, 5)),
    "dilated": (lambda: nn.Conv2d(2, 4, 2, dilation=2, bias=False), (2, 4, 4)),
    "groups": (lambda: nn.Conv2d(2, 4, (1, 3), padding=(0, 1), groups=2), (2, 3, 4)),
    "same": (lambda: nn.Conv2d(2, 3, 3, padding="same"), (2, 3, 3)),
    "reflect": (lambda: nn.Conv2d(2, 3, 3, padding=1, padding_mode="reflect"), (2, 3, 3)),
    "conv1d": (lambda: nn.Conv1d(2, 4, 3, stride=2), (2, 6)),
    "conv3d": (lambda: nn.Conv3d(1, 3, 2), (1, 2, 3, 3)),
    "transposed": (lambda: nn.ConvTranspose2d(2, 3, 2), (2, 2, 2)),
    "relu": (nn.ReLU, (6,)),
    "relu in place": (lambda: nn.ReLU(inplace=True), (6,)),
    "norm": (lambda: nn.BatchNorm2d(2), (2, 3, 3)),
    "norm without weights": (lambda: nn.BatchNorm1d(2, affine=False), (2, 4)),
    "norm with a frozen weight": (lambda: _frozen(nn.BatchNorm2d(2), "weight"), (2, 3, 3)),
}
LAYERS = tuple(_LAYERS)


def _frozen(layer: nn.Module, name: str) -> nn.Module:
    layer.get_parameter(name).requires_grad_(False)
    return layer


def layer(name: str, n: int = 7) -> tuple[Objective, Tensor]:
    """The layer between a smooth bend, a sum over all but the channels (which gives expanded gradients back) and a linear map."""
    make, shape = _LAYERS[name]
    with global_stream(0, "problems"):
        middle = make()
        with torch.no_grad():
            channels = middle(torch.zeros(2, *shape)).shape[1]
        made = nn.Sequential(Bent(shape), middle, Pooled(), nn.Linear(channels, 3))
    return Objective.of(filled(made), "cross-entropy", Rows(draw(n, *shape), torch.arange(n) % 3), dtype=F64, chunk=4)


class Bent(nn.Module):
    """tanh(a x) + x, with one a for every entry of a row."""

    def __init__(self, shape: tuple[int, ...]) -> None:
        super().__init__()
        self.slopes = nn.Parameter(torch.ones(shape))

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.slopes * x) + x


class Pooled(nn.Module):
    """A sum and a mean of squares over all axes but rows and channels."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(2) if x.ndim > 2 else x.unsqueeze(2)
        return x.sum(2) + (x**2).mean(2)


class Last(nn.Module):
    """A recurrent layer's answer at the last position."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0][:, -1]


def module(name: str, seed: int = 0) -> nn.Module:
    """A small module by name, in train mode as a user's trainer leaves it."""
    with global_stream(seed, "problems"):  # the constructors draw
        made = _MODULES[name][0]()
    return filled(made, seed)


def rows(name: str, n: int = 13) -> Rows:
    """Rows that fit it: 3 classes, or 3 outputs."""
    _, shape, loss = _MODULES[name]
    return Rows(draw(n, *shape), torch.arange(n) % 3 if loss == "cross-entropy" else draw(n, 3, seed=1))


def objective(
    name: str, n: int = 13, *, chunk: int | None = None, dtype: torch.dtype = F64, device: str = "cpu"
) -> tuple[Objective, Tensor]:
    """The objective of the small module, and its point."""
    return Objective.of(module(name), _MODULES[name][2], rows(name, n), dtype=dtype, chunk=chunk, device=device)


# -- differences ------------------------------------------------------------------------------------------------------


def slopes(function: Callable[[Tensor], Tensor], z: Tensor, step: float = STEP) -> Tensor:
    """Central differences (d, ...) of a function along the d axes at z (d,)."""
    axes = step * torch.eye(len(z), dtype=z.dtype)
    return torch.stack([(function(z + axis) - function(z - axis)) / (2 * step) for axis in axes])


def close(got: Tensor | np.ndarray | float, truth: Tensor | np.ndarray | float, tolerance: float = 1e-10) -> None:
    """Assert that the largest difference is at most `tolerance` times max(1, largest entry of the truth)."""
    one, other = (np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, dtype=float) for x in (got, truth))
    assert one.shape == other.shape, f"{one.shape} is not {other.shape}"
    assert math.isfinite(np.abs(one).max(initial=0)), "not finite"
    error = np.abs(one - other).max(initial=0) / max(1.0, np.abs(other).max(initial=0))
    assert error <= tolerance, f"differ by {error:.2e}, allowed {tolerance:.0e}"
