"""Critical points: planted ones by plain torch, searches on functions whose critical points are known and on the candidate target, certificates in closed form, symmetries by hand."""

import copy

import numpy as np
import pytest
import torch
from problems import F64, Gated, close, draw, planted
from torch import nn

from landscape import critical, units
from landscape.errors import UsageError
from landscape.objectives import Objective, Rows
from landscape.seeds import global_stream


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(4, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0].mean(1)


def convolutional(norm):
    layers = [nn.Conv2d(1, 3, 3), norm, nn.Tanh(), nn.Conv2d(3, 2, 3), nn.GELU(), nn.Flatten(), nn.Linear(8, 2)]
    return nn.Sequential(*layers)


NETWORKS = {
    "tanh": (lambda: nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2)), (40, 3), "eval"),
    "relu": (lambda: nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 1)), (60, 3), "eval"),
    "cnn": (lambda: convolutional(nn.Identity()), (60, 1, 6, 6), "eval"),
    "norm": (lambda: convolutional(nn.BatchNorm2d(3)), (60, 1, 6, 6), "eval"),
    "batch": (lambda: convolutional(nn.BatchNorm2d(3)), (60, 1, 6, 6), "batch"),
    "head": (Attending, (80, 3, 4), "eval"),
    "swiglu": (Gated, (60, 3), "eval"),
}  # fmt: skip


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("residual", [0.1, 3.0])
def test_planted_points_are_critical_by_plain_torch(name, residual):
    make, shape, norm = NETWORKS[name]
    with global_stream(3, name):
        module = make()
    inputs = draw(*shape, seed=1).float()
    before = copy.deepcopy(module.state_dict())
    f, point = critical.plant(module, inputs, residual=residual, seed=2, norm=norm)
    # the same loss as torch writes it, on a copy of the module
    own = copy.deepcopy(module).double().train(norm == "batch")
    loss = nn.functional.mse_loss(own(inputs.double()), f.rows.targets)
    slopes = torch.autograd.grad(loss, list(own.parameters()))
    # (2 / N K) J^T e with |J| and e of order 1 to 3: rounding is some eps each of N K terms, below 1e-13 by two digits
    assert torch.cat([slope.flatten() for slope in slopes]).norm() <= 1e-13
    assert loss.item() == pytest.approx(residual**2, rel=1e-12)
    close(point, torch.cat([p.detach().flatten() for p in own.parameters()]), 0)
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())


def test_planted_residuals_need_a_null_space():
    module = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    with pytest.raises(UsageError, match="more rows"):
        critical.plant(module, draw(6, 3))
    one, two = (critical.plant(module, draw(40, 3), seed=seed)[0].rows.targets for seed in (0, 1))
    assert not torch.allclose(one, two)


# -- searches ---------------------------------------------------------------------------------------------------------


def wells():
    """sum_i (w_i^2 - 1)^2 / 4 in 3 dimensions: minima at (+-1, +-1, +-1), a maximum at 0, saddles where some w_i are 0."""
    return Objective.from_function(lambda w: ((w**2 - 1) ** 2).sum() / 4, 3)


def test_expansions_of_a_polynomial():
    points = draw(5, 3, seed=3)
    value, gradient, hessian = critical.expansion(wells(), points)
    close(value, ((points**2 - 1) ** 2).sum(1) / 4)
    close(gradient, points * (points**2 - 1))
    close(hessian, torch.diag_embed(3 * points**2 - 1))


def test_expansions_of_a_network_that_goes_in_no_lockstep():
    # the Hessian of squares of a linear map of patches is a Gram matrix: y = mean over places of (v . patch), one output
    inputs = draw(7, 1, 4, 4, seed=4)
    module = nn.Sequential(nn.Conv2d(1, 1, 3, bias=False), nn.Flatten(), nn.AvgPool1d(4))
    f, point = Objective.of(module, "mse", Rows(inputs, torch.zeros(7, 1, 1).squeeze(2)), dtype=F64)
    assert not f.model.lockstep
    patches = nn.functional.unfold(inputs, 3).mean(2)  # (7, 9)
    _, gradient, hessian = critical.expansion(f, torch.stack([point, 2 * point]))
    gram = 2 * patches.T @ patches / 7
    close(hessian, torch.stack([gram, gram]))
    close(gradient, torch.stack([gram @ point, 2 * gram @ point]))


def test_the_trust_region_leaves_saddles_and_newton_keeps_the_index():
    starts = torch.tensor([[0.0, 0.0, 0.0], [0.0, 0.9, -2.0], [0.3, -0.2, 0.1], [5.0, -7.0, 0.2]], dtype=F64)
    minima = critical.find(wells(), starts)
    # quadratic convergence stops at the rounding of w (w^2 - 1), a few eps
    close(minima.points.abs(), torch.ones(4, 3), 1e-14)
    assert minima.certificate.converged.all() and (minima.certificate.values > 0).all()
    near = torch.tensor([[0.1, -0.05, 0.02], [0.1, 0.95, -1.1], [1.2, 0.9, -0.8]], dtype=F64)
    found = critical.find(wells(), near, method="newton")
    close(found.points, torch.tensor([[0.0, 0, 0], [0, 1, -1], [1, 1, -1]], dtype=F64), 1e-12)
    assert (found.certificate.values < 0).sum(1).tolist() == [3, 1, 0]
    assert found.certificate.converged.all()


def test_minima_along_a_flat_direction_are_found():
    # (x y - 1)^2 / 2 has a curve of minima, with one zero eigenvalue and one of x^2 + y^2 at each
    f = Objective.from_function(lambda w: (w[0] * w[1] - 1) ** 2 / 2, 2)
    found = critical.find(f, draw(20, 2, seed=8))
    x, y = found.points.T
    assert found.certificate.converged.all()
    close(x * y, torch.ones(20), 1e-12)
    values, cut = found.certificate.values, found.certificate.cut
    assert (values[:, 0].abs() <= cut).all()
    close(values[:, 1] / (x**2 + y**2), torch.ones(20), 1e-9)


def test_bad_questions_of_a_search():
    with pytest.raises(UsageError, match="trust-region"):
        critical.find(wells(), draw(2, 3), method="adam")
    with pytest.raises(UsageError, match=r"\(points, 3\)"):
        critical.find(wells(), draw(3))
    with pytest.raises(UsageError, match="l1"):
        critical.flattest(wells(), draw(2, 3), norm="max")


@pytest.mark.parametrize("method", critical.METHODS)
def test_a_start_that_is_not_finite_stays_alone(method):
    starts = draw(3, 3)
    starts[1, 0] = torch.nan
    found, alone = critical.find(wells(), starts, method=method), critical.find(wells(), starts[[0, 2]], method=method)
    assert found.certificate.converged.tolist() == [True, False, True] and int(found.steps[1]) == 0
    assert torch.equal(found.points[[0, 2]], alone.points)


# -- certificates -----------------------------------------------------------------------------------------------------


def test_certificates_of_a_quadratic():
    spectrum = np.array([5.0, 2.0, -1.0, 0.25])
    a = torch.from_numpy(planted(spectrum))
    f = Objective.from_function(lambda w: w @ a @ w / 2, 4)
    points = draw(3, 4, seed=5)
    found = critical.certify(f, points)
    g = points @ a
    close(found.gradient, g.norm(dim=1))
    close(found.gradient_l1, g.abs().sum(1))
    # |A|^-1 of the symmetric A is (A^2)^(-1/2); no third derivative, so that the cut is the share of the largest eigenvalue
    inverse = torch.from_numpy(planted(1 / np.abs(spectrum)))
    close(found.decrement, torch.einsum("ed,dk,ek->e", g, inverse, g).sqrt())
    close(found.flat, (g @ a).norm(dim=1) / (5 * g.norm(dim=1)))
    close(found.values, torch.from_numpy(np.sort(spectrum)).expand(3, 4))
    # the change of H along a step is a difference quotient of rounding, sqrt(eps) |H|, over a step of sqrt(eps): some 1e-8, times |step| of order 1
    assert (found.cut >= 4.99e-9).all() and (found.cut < 1e-6).all()
    assert not found.converged.any()
    assert critical.certify(f, torch.zeros(1, 4, dtype=F64)).converged.all()


def test_the_cut_knows_how_far_eigenvalues_may_move():
    # f = w^3 / 6: g = w^2 / 2, H = w, H' = 1, the Newton step is -w / 2, and the eigenvalue at the critical point is 0: it differs by w, twice H' |step|
    f = Objective.from_function(lambda w: (w**3).sum() / 6, 1)
    w = torch.tensor([[0.1], [0.02]], dtype=F64)
    close(critical.certify(f, w).cut, w[:, 0] / 2, 1e-6)


def test_gradient_flat_regions_are_told():
    # f = x + y^2 / 2 has no critical point, and Newton's method on |g|^2 comes to rest at y = 0, where H g = 0
    f = Objective.from_function(lambda w: w[0] + w[1] ** 2 / 2, 2)
    found = critical.find(f, torch.tensor([[0.0, 1.0]], dtype=F64), method="newton")
    close(found.points[0, 1], torch.tensor(0.0, dtype=F64), 1e-8)
    assert found.certificate.stalled.all() and not found.certificate.converged.any()


def test_the_flattest_iterate_depends_on_the_norm():
    f = Objective.from_function(lambda w: (w**2).sum() / 2, 4)
    points = torch.tensor([[3.0, 0, 0, 0], [1.2, 1.2, 1.2, 1.2], [3, 3, 3, 3]], dtype=F64)
    assert critical.flattest(f, points) == 0 and critical.flattest(f, points, norm="l2") == 1


# -- the candidate target ---------------------------------------------------------------------------------------------


def searched(width, count=16):
    module = critical.shallow(1, width, 1)
    f, _ = Objective.of(module, "mse", critical.candidate(), dtype=F64)
    starts = draw(count, 3, width, seed=width) * torch.tensor([0.4, 3.0, 2.0], dtype=F64)[:, None]
    found = critical.find(f, starts.flatten(1))
    return f, units.layers(module, f.rows.inputs[:2]), found.take(found.certificate.converged)


def signs(point, width):
    """Inertia of the Hessian at (w, b, a), by torch's own Hessian of the loss written out; zeros below 1e-11, the cut of Zhang et al. 2021, figure 3."""
    rows = critical.candidate()

    def loss(z):
        w, b, a = z.view(3, width)
        return ((torch.tanh(rows.inputs * w + b) @ a - rows.targets[:, 0]) ** 2).mean()

    values = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, point))
    return tuple(int(n) for n in ((values > 1e-11).sum(), (values.abs() <= 1e-11).sum(), (values < -1e-11).sum()))


def divided(point, width, unit, parts):
    """One unit as `parts` equal ones: by hand."""
    w, b, a = point.view(3, width)
    more = torch.full((parts - 1,), unit)
    a = torch.cat([a, a[more]])
    a[unit] /= parts
    a[width:] /= parts
    return torch.cat([w, w[more], b, b[more], a])


def test_the_best_fits_of_the_candidate_target():
    # the figures of the verified table (losses to 5 digits): .10902, .06979, 0
    for width, loss in ((1, 0.10902), (2, 0.06979)):
        _, _, found = searched(width)
        best = int(found.losses.argmin())
        assert round(float(found.losses[best]), 5) == loss
        assert signs(found.points[best], width) == (3 * width, 0, 0)
        assert found.certificate.gradient_l1[best] < 1e-13
    f, layers, found = searched(3, 24)
    best = critical.canonical(f, found.points[found.losses.argmin()][None], layers)[0]
    # the target's own weights: at a loss of 0 the errors are those of f, eps^(1/2) of nothing: |dw| <= |g| / lambda_min, far below 1e-6
    close(best, torch.tensor([1.0, 1, 1, -7, 0, 7, 1, 1, 1], dtype=F64), 1e-6)
    assert found.losses.min() < 1e-25


def test_signs_of_the_eigenvalues_before_and_after_splits():
    _, _, found = searched(1, 4)
    assert [signs(divided(found.points[0], 1, 0, parts), parts) for parts in (1, 2, 3)] == [
        (3, 0, 0),
        (4, 1, 1),
        (5, 2, 2),
    ]
    _, _, found = searched(2)
    for best in (found.losses.argmin(), found.losses.argmax()):
        for unit in (0, 1):
            there = [signs(divided(found.points[best], 2, unit, parts), 1 + parts) for parts in (1, 2, 3)]
            assert there == [(6, 0, 0), (7, 1, 1), (8, 2, 2)]


def test_newton_comes_back_to_a_split_saddle():
    _, _, found = searched(1, 4)
    saddle = divided(found.points[0], 1, 0, 2)
    f, _ = Objective.of(critical.shallow(1, 2, 1), "mse", critical.candidate(), dtype=F64)
    back = critical.find(f, (saddle + 1e-3 * draw(6, seed=6) * saddle)[None], method="newton")
    assert back.certificate.converged.all()
    assert float(back.losses) == pytest.approx(float(found.losses[0]), abs=1e-13)
    assert signs(back.points[0], 2) == (4, 1, 1)


# -- which are one ----------------------------------------------------------------------------------------------------


def moved(module, order, sign):
    """The first hidden layer's units in another order and with other signs, the second's reversed: by hand."""
    found = copy.deepcopy(module)
    with torch.no_grad():
        for old, new, by in ((module[0], found[0], order), (module[2], found[2], [2, 1, 0])):
            s = torch.tensor(sign, dtype=F64)[: len(by)]
            new.weight.copy_(old.weight[by] * s[:, None])
            new.bias.copy_(old.bias[by] * s)
        first, second = (torch.tensor(sign, dtype=F64)[:n] for n in (4, 3))
        found[2].weight.copy_(found[2].weight[:, order] * first)
        found[4].weight.copy_(module[4].weight[:, [2, 1, 0]] * second)
    return found


@pytest.mark.parametrize(
    ("activation", "sign", "classes"),
    [("Tanh", [-1, 1, -1, -1], 1), ("Sigmoid", [1, 1, 1, 1], 1), ("Sigmoid", [-1, 1, -1, -1], 2)],
)
def test_symmetric_points_are_one(activation, sign, classes):
    act = getattr(nn, activation)
    with global_stream(0, "symmetric"):
        module = nn.Sequential(nn.Linear(2, 4), act(), nn.Linear(4, 3), act(), nn.Linear(3, 2)).double()
    inputs = draw(9, 2, seed=7)
    f, point = Objective.of(module, "mse", Rows(inputs, torch.zeros(9, 2)), dtype=F64)
    other = Objective.of(moved(module, [3, 0, 2, 1], sign), "mse", f.rows, dtype=F64)[1]
    layers = units.layers(module, inputs[:2])
    points = torch.stack([point, other, other + 1e-9, point + 0.01])
    found = critical.distinct(f, points, layers)
    assert found.tolist() == ([0, 0, 0, 1] if classes == 1 else [0, 1, 1, 2])
    # whichever it is, the canonical point is the same function
    same = critical.canonical(f, points, layers)
    for before, after in zip(points, same, strict=True):
        close(f.outputs(after), f.outputs(before), 1e-12)


def test_networks_of_the_paper():
    for activation, network in (("tanh", torch.tanh), ("sigmoid", torch.sigmoid)):
        module = critical.shallow(4, 5, 3, activation).double()
        x = draw(6, 4)
        close(module(x), network(x @ module.hidden.weight.T + module.hidden.bias) @ module.output.weight.T)
        assert sum(p.numel() for p in module.parameters()) == 5 * 8
    with pytest.raises(UsageError, match="tanh"):
        critical.shallow(1, 2, 1, "relu")
    with pytest.raises(UsageError, match="at least 1"):
        critical.shallow(1, 0, 1)
