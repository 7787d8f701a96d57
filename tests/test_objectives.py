"""Values and derivatives against closed forms and finite differences; the laws of means over rows; nothing of the user's is touched."""

import contextlib
import copy
import dataclasses

import numpy as np
import pytest
import torch
from problems import (
    DIFFERENCES,
    F64,
    LAYERS,
    MODULES,
    REGRESSIONS,
    PartFrozen,
    Tied,
    close,
    draw,
    filled,
    layer,
    module,
    objective,
    quadratic,
    regression,
    ring,
    rows,
    slopes,
)
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from landscape import curvature
from landscape.curvature import Kernels, _batch_norm, _weight_norm
from landscape.descent import Recipe, descend
from landscape.errors import LandscapeError, UsageError
from landscape.objectives import CURVATURES, Loss, Objective, Rows, require_finite
from landscape.seeds import generator
from landscape.subspaces import coordinates, segment, span
from landscape.subspaces import random as random_subspace

ROUNDING = 1e-12  # sums of at most some thousand float64 terms of size 1, in another order: 1e3 eps = 2e-13

CLOSED = {
    "quadratic": lambda: quadratic(np.linspace(-1, 3, 8)),
    "ring": ring,
    **{kind: lambda kind=kind: regression(kind) for kind in REGRESSIONS},
}
AFFINE = {kind: CLOSED[kind] for kind in REGRESSIONS}


def by_name(problems):
    return pytest.mark.parametrize("make", problems.values(), ids=problems)


every_module = pytest.mark.parametrize("name", MODULES)


# -- closed forms -----------------------------------------------------------------------------------------------------


@by_name(CLOSED)
def test_value_gradient_and_hessian_have_their_closed_forms(make):
    p = make()
    w = p.point.numpy()
    value, gradient = p.f.value_and_gradient(p.point)
    close(p.f(p.point), p.value(w))
    close(value, p.value(w))
    close(gradient, p.gradient(w))
    close(p.f.gradient(p.point), p.gradient(w))
    close(p.f.hessian(p.point).dense(), p.hessian(w))


@by_name(CLOSED)
def test_products_with_a_vector_and_with_a_block_are_those_of_the_matrix(make):
    p = make()
    v, block = draw(p.f.dim, seed=5), draw(p.f.dim, 3, seed=6)
    close(p.f.hessian(p.point) @ v, p.hessian(p.point.numpy()) @ v.numpy())
    close(p.f.hessian(p.point) @ block, p.hessian(p.point.numpy()) @ block.numpy())


@by_name(CLOSED)
def test_a_restriction_has_gradient_Bg_and_hessian_BHB(make):
    p = make()
    b, z = draw(3, p.f.dim, seed=7), draw(3, seed=8)
    g, w = p.f.restrict(span(p.point, b)), (p.point + z @ b).numpy()
    close(g(z), p.value(w))
    close(g.gradient(z), b.numpy() @ p.gradient(w))
    close(g.hessian(z).dense(), b.numpy() @ p.hessian(w) @ b.numpy().T)


@by_name(AFFINE)
def test_gauss_newton_is_the_hessian_of_a_linear_model(make):
    p = make()
    close(p.f.gauss_newton(p.point).dense(), p.hessian(p.point.numpy()))
    b = draw(3, p.f.dim, seed=7)
    close(
        p.f.restrict(span(p.point, b)).gauss_newton(torch.zeros(3, dtype=F64)).dense(),
        b.numpy() @ p.hessian(p.point.numpy()) @ b.numpy().T,
    )


def test_linear_regression_hessian_is_two_over_N_K_times_XX_for_every_output():
    p = regression("linear", n=11, features=4)
    x = np.hstack([p.f.rows.inputs.numpy()])
    close(p.f.hessian(p.point).dense()[:12, :12], np.kron(np.eye(3), 2 / (11 * 3) * x.T @ x))


def test_a_loss_linear_in_w_has_no_curvature():
    f = Objective.from_function(lambda w: w.sum(), 3)
    assert torch.equal(f.hessian(torch.ones(3, dtype=F64)).dense(), torch.zeros(3, 3, dtype=F64))
    linear, z = Objective.of(nn.Linear(2, 1), lambda o, t: o[:, 0] * t, Rows(draw(5, 2), draw(5)), dtype=F64)
    assert torch.equal(linear.gauss_newton(z).dense(), torch.zeros(3, 3, dtype=F64))


# -- finite differences -----------------------------------------------------------------------------------------------


@every_module
def test_gradient_is_the_slope_of_the_values(name):
    f, z = objective(name)
    close(f.gradient(z), slopes(f, z), DIFFERENCES)


@every_module
def test_hessian_is_the_slope_of_the_gradients_and_symmetric(name):
    f, z = objective(name)
    dense = f.hessian(z).dense()
    close(dense, dense.T, ROUNDING)
    close(dense, slopes(f.gradient, z), DIFFERENCES)


@every_module
def test_gauss_newton_is_JHJ_with_J_from_differences_of_the_outputs(name):
    f, z = objective(name)
    jacobian = slopes(f.outputs, z).numpy()  # (D, N, K)
    n, k = jacobian.shape[1:]
    p = torch.softmax(f.outputs(z), 1).numpy()
    bend = (
        np.broadcast_to(2 / k * np.eye(k), (n, k, k))
        if name == "mlp-mse"
        else p[:, :, None] * np.eye(k) - p[:, :, None] * p[:, None, :]
    )
    dense = f.gauss_newton(z).dense()
    close(dense, np.einsum("dik,ikl,eil->de", jacobian, bend, jacobian) / n, DIFFERENCES)
    assert np.linalg.eigvalsh(dense.numpy()).min() >= -ROUNDING


def test_a_softmax_net_has_negative_curvature_that_gauss_newton_drops():
    f, z = objective("mlp")
    assert np.linalg.eigvalsh(f.hessian(z).dense().numpy()).min() < -1e-3


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", [(6, 3), (6, 3, 2), (6, 3, 2, 2)])
def test_batch_norm_by_running_statistics_is_its_affine_map(affine, shape):
    x, mean, var = draw(*shape), draw(3, seed=1), 0.1 + draw(3, seed=2).abs()
    weight, bias = (draw(3, seed=3), draw(3, seed=4)) if affine else (None, None)
    own = Kernels()
    close(_batch_norm(own, x, mean, var, weight, bias), functional.batch_norm(x, mean, var, weight, bias), ROUNDING)
    close(
        _batch_norm(own, x, None, None, weight, bias, True),
        functional.batch_norm(x, None, None, weight, bias, True),
        0,
    )


def test_batch_mode_normalises_by_the_statistics_of_the_rows():
    f, z = objective("batchnorm")
    net, x = module("batchnorm"), f.rows.inputs
    h = (x @ net[0].weight.T + net[0].bias).detach().numpy()
    h = (h - h.mean(0)) / np.sqrt(h.var(0) + net[1].eps) * net[1].weight.detach().numpy() + net[1].bias.detach().numpy()
    outputs = np.tanh(h) @ net[3].weight.detach().numpy().T + net[3].bias.detach().numpy()
    close(f.with_buffers(f.buffers, "batch").outputs(z), outputs)
    assert f.with_buffers(f.buffers).norm == "eval"


# -- means over rows --------------------------------------------------------------------------------------------------


@every_module
@pytest.mark.parametrize("chunk", [1, 5, 7, 13])  # 13 rows: the last chunk is short for 5 and 7
def test_the_size_of_the_chunks_changes_only_rounding(name, chunk):
    f, z = objective(name, chunk=chunk)
    whole, _ = objective(name, chunk=32)
    v = draw(f.dim, seed=3)
    for question in (
        lambda g: g(z),
        lambda g: g.gradient(z),
        lambda g: g.hessian(z) @ v,
        lambda g: g.gauss_newton(z) @ v,
        lambda g: g.outputs(z),
    ):
        close(question(f), question(whole), ROUNDING)


def test_rows_are_taken_as_tensors_are_indexed():
    rows = Rows({"a": draw(5, 2, 3), "b": draw(5, seed=1)}, torch.arange(5))
    for index in (torch.tensor([3, 0, 3]), torch.tensor([-1, 2]), torch.tensor([True, False, True, False, False]), slice(1, 3), torch.tensor([[0, 1], [4, 4]]), torch.tensor([1, 2], dtype=torch.int32)):  # fmt: skip
        found = rows.take(index)
        assert torch.equal(found.targets, rows.targets[index])
        assert all(torch.equal(found.inputs[name], tensor[index]) for name, tensor in rows.inputs.items())
    with pytest.raises(IndexError):
        rows.take(torch.tensor([5]))


@every_module
def test_outputs_of_many_points_are_those_of_each(name):
    f, z = objective(name, chunk=5)
    points = torch.stack([z, z + draw(len(z), seed=4), 2 * z])
    owns = [{key: value * k if value.is_floating_point() else value for key, value in f.buffers.items()} for k in (1, 2, 3)]  # fmt: skip
    given = f.outputs(points, owns)
    for k, own in enumerate(owns):
        assert torch.equal(given[k], f.with_buffers(own).outputs(points[k]))
    assert torch.equal(f.outputs(points)[2], f.outputs(2 * z))
    plane = random_subspace(z, 3, generator(0, "plane"))
    coordinates = draw(2, 3, seed=5)
    close(f.restrict(plane).outputs(coordinates)[1], f.outputs(plane.lift(coordinates[1])), ROUNDING)


@pytest.mark.parametrize("chunk", [1, 7, 32, 50])
@pytest.mark.parametrize("kind", REGRESSIONS)
def test_chunks_of_a_regression_give_the_closed_forms(kind, chunk):
    p = regression(kind, n=50, chunk=chunk)
    w = p.point.numpy()
    close(p.f(p.point), p.value(w))
    close(p.f.gradient(p.point), p.gradient(w))
    close(p.f.hessian(p.point).dense(), p.hessian(w))


@every_module
def test_the_order_of_the_rows_is_irrelevant(name):
    f, z = objective(name, chunk=5)
    shuffled = f.on(torch.randperm(13, generator=generator(0, "shuffle")))
    close(shuffled(z), f(z), ROUNDING)
    close(shuffled.gradient(z), f.gradient(z), ROUNDING)


@every_module
def test_an_ensemble_is_its_members_one_by_one(name):
    f, z = objective(name, chunk=5)
    many = z + 0.3 * draw(3, f.dim, seed=9)
    values, gradients = f.value_and_gradient(many)
    close(f(many), torch.stack([f(point) for point in many]), ROUNDING)
    close(values, f(many), ROUNDING)
    close(gradients, torch.stack([f.gradient(point) for point in many]), ROUNDING)
    close(
        f.value(many).accuracy.nan_to_num(-1),
        torch.stack([f.value(point).accuracy for point in many]).nan_to_num(-1),
        0,
    )


@every_module
@pytest.mark.parametrize("matrix", ["hessian", "gauss_newton"])
def test_kept_graphs_and_fresh_ones_give_one_product(name, matrix):
    f, z = objective(name, chunk=5)
    kept, fresh, chosen = (getattr(f, matrix)(z, keep=keep) for keep in (True, False, None))
    for v in draw(2, f.dim):  # twice: a kept graph survives its products
        close(kept @ v, fresh @ v, ROUNDING)
        close(chosen @ v, fresh @ v, ROUNDING)


def test_value_over_a_union_is_the_weighted_mean_over_its_parts():
    f, z = objective("mlp")
    close(f(z), (4 * f.on(slice(0, 4))(z) + 9 * f.on(slice(4, 13))(z)) / 13, ROUNDING)
    close(f.on(rows("mlp", 6))(z), objective("mlp", 6)[0](z), 0)


def test_by_row_has_the_value_as_its_mean_and_accuracy_counts_the_largest_output():
    f, z = objective("mlp", chunk=4)
    losses, right = f.by_row(z)
    close(losses.mean(), f(z), ROUNDING)
    truth = f.outputs(z).numpy().argmax(1) == f.rows.targets.numpy()
    close(right, truth.astype(float), 0)
    close(f.value(z).accuracy, truth.mean(), ROUNDING)
    regress, point = objective("mlp-mse")
    assert torch.isnan(regress.value(point).accuracy)


# -- losses -----------------------------------------------------------------------------------------------------------

WEIGHTS = torch.tensor([0.5, 0.0, 2.0], dtype=F64)
MEANS = {
    "cross-entropy": nn.CrossEntropyLoss(),
    "class weights": nn.CrossEntropyLoss(weight=WEIGHTS),
    "ignore": nn.CrossEntropyLoss(ignore_index=1),
    "ignore below zero": nn.CrossEntropyLoss(ignore_index=-100),
    "weights and ignore": nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=0),
    "smoothed": nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=2, label_smoothing=0.1),
    "nll": nn.NLLLoss(weight=WEIGHTS),
}


@pytest.mark.parametrize("tokens", [False, True], ids=["rows", "tokens"])
@pytest.mark.parametrize("loss", MEANS.values(), ids=MEANS)
def test_classification_means_are_torchs_own(loss, tokens):
    """Torch divides by the sum of the weights of the targets counted; so must sums over chunks of 4 of 13 rows."""
    targets = torch.arange(26 if tokens else 13).reshape(13, -1).squeeze(1) % 3
    if loss.ignore_index == -100:
        targets = targets.masked_fill(targets == 2, -100)
    net = filled(nn.Conv1d(4, 3, 1) if tokens else nn.Linear(4, 3))
    x = draw(13, 4, 2) if tokens else draw(13, 4)
    f, z = Objective.of(net, loss, Rows(x, targets), dtype=F64, chunk=4)
    truth = loss(net(x), targets)
    net.zero_grad()
    truth.backward()
    close(f(z), truth, ROUNDING)
    close(f.gradient(z), torch.cat([p.grad.flatten() for p in net.parameters()]), ROUNDING)
    close(f.gradient(z[None])[0], f.gradient(z), ROUNDING)
    close(f.hessian(z).dense(), slopes(f.gradient, z), DIFFERENCES)
    losses, _ = f.by_row(z)
    close(losses.mean(), truth, ROUNDING)


def test_rows_of_weight_zero_are_as_if_they_were_not_there():
    x, y = draw(12, 4), torch.arange(12) % 3
    f, z = Objective.of(filled(nn.Linear(4, 3)), nn.CrossEntropyLoss(ignore_index=1), Rows(x, y), dtype=F64, chunk=5)
    rest = Objective.of(filled(nn.Linear(4, 3)), "cross-entropy", Rows(x[y != 1], y[y != 1]), dtype=F64)[0]
    close(f(z), rest(z), ROUNDING)
    close(f.hessian(z).dense(), rest.hessian(z).dense(), ROUNDING)
    nothing = f.on(torch.tensor([1, 4, 7]))
    assert torch.isnan(nothing(z))  # torch's own answer to a mean over nothing


def test_token_accuracy_is_a_share_of_tokens():
    x, y = draw(6, 3, 5), torch.arange(30).reshape(6, 5) % 3
    f, z = Objective.of(filled(nn.Conv1d(3, 3, 1)), "cross-entropy", Rows(x, y), dtype=F64, chunk=4)
    close(f.value(z).accuracy, (f.outputs(z).numpy().argmax(1) == y.numpy()).mean(), 1e-6)  # counted in float32


@pytest.mark.parametrize(
    "loss", [nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.HuberLoss()], ids=lambda loss: type(loss).__name__
)
def test_regression_means_are_torchs_own(loss):
    net, x, y = filled(nn.Linear(4, 3)), draw(13, 4), draw(13, 3, seed=1)
    f, z = Objective.of(net, loss, Rows(x, y), dtype=F64, chunk=4)
    close(f(z), loss(net(x), y), ROUNDING)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_class_weights_follow_the_objectives_dtype(dtype):
    """Users hold their class weights in float32; analyses run in float64 as well. 0.5 and 2 are exact in both."""
    x, y = draw(13, 4), torch.arange(13) % 3
    f, z = Objective.of(filled(nn.Linear(4, 3)), nn.CrossEntropyLoss(weight=WEIGHTS.float()), Rows(x, y), dtype=dtype)
    close(f(z), nn.CrossEntropyLoss(weight=WEIGHTS)(filled(nn.Linear(4, 3))(x), y), ROUNDING if dtype == F64 else 1e-5)


def test_probabilities_as_targets_are_a_plain_mean():
    net, x, y = filled(nn.Linear(4, 3)), draw(13, 4), torch.softmax(draw(13, 3, seed=1), 1)
    f, z = Objective.of(net, "cross-entropy", Rows(x, y), dtype=F64, chunk=4)
    close(f(z), nn.CrossEntropyLoss()(net(x), y), ROUNDING)


def test_a_function_of_outputs_and_targets_is_a_loss_by_rows():
    x, y = draw(13, 4), draw(13, 3, seed=1)
    f, z = Objective.of(filled(nn.Linear(4, 3)), lambda o, t: (o - t).abs().sum(1), Rows(x, y), dtype=F64, chunk=4)
    close(f(z), np.abs(f.outputs(z).numpy() - y.numpy()).sum(1).mean(), ROUNDING)


def test_scaling_the_loss_scales_everything():
    data = rows("mlp")
    f, z = objective("mlp")
    g, _ = Objective.of(
        module("mlp"), lambda o, t: 3 * functional.cross_entropy(o, t, reduction="none"), data, dtype=F64
    )
    close(g(z), 3 * f(z), ROUNDING)
    close(g.hessian(z).dense(), 3 * f.hessian(z).dense(), ROUNDING)


def test_permuting_neurons_leaves_value_and_spectrum():
    net = module("mlp")
    order = torch.tensor([3, 1, 4, 0, 2])
    other = copy.deepcopy(net)
    with torch.no_grad():
        other[0].weight.copy_(net[0].weight[order])
        other[0].bias.copy_(net[0].bias[order])
        other[2].weight.copy_(net[2].weight[:, order])
    (f, z), (g, y) = (Objective.of(m, "cross-entropy", rows("mlp"), dtype=F64) for m in (net, other))
    close(f(z), g(y), ROUNDING)
    close(*(np.linalg.eigvalsh(h.dense().numpy()) for h in (f.hessian(z), g.hessian(y))), ROUNDING)


# -- inputs and outputs -----------------------------------------------------------------------------------------------


class Sum(nn.Module):
    """Two arguments, the second by name; the answer wrapped in several ways."""

    def __init__(self, wrap=lambda o: o):
        super().__init__()
        self.a, self.b, self.wrap = nn.Linear(4, 3), nn.Linear(2, 3), wrap

    def forward(self, x, extra):
        return self.wrap(self.a(x) + self.b(extra))


class Answer:
    def __init__(self, logits):
        self.logits = logits


def test_tuples_and_dicts_of_inputs_are_spread_over_forward():
    x, extra, y = draw(7, 4), draw(7, 2), torch.arange(7) % 3
    net = filled(Sum())
    truth = nn.CrossEntropyLoss()(net(x, extra), y)
    for inputs in ((x, extra), {"extra": extra, "x": x}):
        f, z = Objective.of(net, "cross-entropy", Rows(inputs, y), dtype=F64, chunk=3)
        close(f(z), truth, ROUNDING)
        close(f.on(torch.tensor([2, 5]))(z), nn.CrossEntropyLoss()(net(x[[2, 5]], extra[[2, 5]]), y[[2, 5]]), ROUNDING)
        close(f.hessian(z).dense(), slopes(f.gradient, z), DIFFERENCES)


@pytest.mark.parametrize("wrap", [lambda o: (o, None), lambda o: [o], Answer], ids=["tuple", "list", "logits"])
def test_wrapped_answers_are_unwrapped(wrap):
    data = Rows((draw(7, 4), draw(7, 2)), torch.arange(7) % 3)
    plain, z = Objective.of(filled(Sum()), "cross-entropy", data, dtype=F64)
    wrapped, _ = Objective.of(filled(Sum(wrap)), "cross-entropy", data, dtype=F64)
    close(wrapped(z), plain(z), 0)


def test_integer_inputs_are_not_cast():
    net = filled(nn.Sequential(nn.Embedding(6, 4), nn.Flatten(), nn.Linear(8, 3)))
    tokens, y = torch.arange(14).reshape(7, 2) % 6, torch.arange(7) % 3
    f, z = Objective.of(net, "cross-entropy", Rows(tokens, y), dtype=F64)
    close(f(z), nn.CrossEntropyLoss()(net(tokens), y), ROUNDING)
    close(f.hessian(z).dense(), slopes(f.gradient, z), DIFFERENCES)


def test_a_row_of_nan_makes_the_value_nan_and_is_never_imputed():
    data = rows("mlp")
    data.inputs[4, 1] = float("nan")
    f, z = Objective.of(module("mlp"), "cross-entropy", data, dtype=F64, chunk=4)
    assert torch.isnan(f(z))
    assert torch.isnan(f.gradient(z)).any()
    losses, _ = f.by_row(z)
    assert torch.isnan(losses).nonzero().flatten().tolist() == [4]
    clean = torch.tensor([i for i in range(13) if i != 4])
    assert torch.isfinite(f.on(clean)(z))
    assert torch.isnan(f(torch.full_like(z, float("nan"))))


# -- parameters and buffers -------------------------------------------------------------------------------------------


def test_tied_weights_stand_once_in_the_vector():
    f, z = objective("tied")
    assert f.dim == len(z) == 4 * 4 + 4 + 3 * 4 + 3
    assert f.model.layout.aliases == {"second.weight": "first.weight"}
    net = module("tied")
    moved = z.clone()
    moved[:16] += 1
    with torch.no_grad():
        net.first.weight += 1
    close(f(moved), nn.CrossEntropyLoss()(net(f.rows.inputs), f.rows.targets), ROUNDING)


def test_frozen_parameters_and_buffers_stand_apart():
    f, z = objective("frozen")
    assert f.dim == len(z) == 5 + 5 * 3 + 3
    assert {entry.name: entry.kind for entry in f.model.layout.entries} == {
        "first.weight": "frozen", "first.bias": "parameter", "order": "frozen", "out.weight": "parameter", "out.bias": "parameter",
        "shift": "buffer", "signs": "buffer",
    }  # fmt: skip
    assert set(f.buffers) == {"shift", "signs"}
    assert f.buffers["signs"].dtype == torch.int64
    net = module("frozen")
    close(f(z), nn.CrossEntropyLoss()(net(f.rows.inputs), f.rows.targets), ROUNDING)
    with torch.no_grad():
        net.shift += 1
    moved = f.with_buffers({**f.buffers, "shift": f.buffers["shift"] + 1})
    close(moved(z), nn.CrossEntropyLoss()(net(f.rows.inputs), f.rows.targets), ROUNDING)
    assert float(abs(moved(z) - f(z))) > 1e-3


def test_the_point_is_the_parameters_in_order():
    net = module("conv-groupnorm")
    _, z = Objective.of(net, "cross-entropy", rows("conv-groupnorm"), dtype=F64)
    assert torch.equal(z, nn.utils.parameters_to_vector(net.parameters()).detach())


def everything(f, z):
    v = torch.ones(f.dim, dtype=z.dtype)
    (
        f(z),
        f.gradient(z),
        f.value(torch.stack([z, z + 1])),
        f.gradient(torch.stack([z, z + 1])),
        f.by_row(z),
        f.outputs(z),
    )
    for keep in (True, False):
        _ = f.hessian(z, keep=keep) @ v, f.gauss_newton(z, keep=keep) @ v
    f.with_buffers(f.buffers, "batch")(z)


class Snapshot:
    """All that a user could see of a module and of torch's global state."""

    def __init__(self, net):
        self.tensors = {
            name: (tensor.detach().clone(), tensor.requires_grad)
            for name, tensor in [*net.named_parameters(), *net.named_buffers()]
        }
        self.training = {name: part.training for name, part in net.named_modules()}
        self.random = torch.get_rng_state()
        self.grad = torch.is_grad_enabled()

    def __eq__(self, other):
        same = all(
            torch.equal(a, other.tensors[name][0])
            and flag == other.tensors[name][1]
            and a.dtype == other.tensors[name][0].dtype
            for name, (a, flag) in self.tensors.items()
        )
        return (
            same
            and self.training == other.training
            and torch.equal(self.random, other.random)
            and self.grad == other.grad
        )


@every_module
def test_the_users_model_and_generator_are_untouched(name):
    net = module(name)
    next(net.children()).eval()  # a mixture of modes
    before = Snapshot(net)
    f, z = Objective.of(net, "mse" if name == "mlp-mse" else "cross-entropy", rows(name), dtype=F64, chunk=5)
    kept, buffers = z.clone(), {key: value.clone() for key, value in f.buffers.items()}
    everything(f, z)
    assert Snapshot(net) == before
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(z, kept)
    assert not z.requires_grad
    assert all(torch.equal(f.buffers[key], value) for key, value in buffers.items())


def test_a_gradient_that_the_user_holds_is_not_touched():
    net = module("mlp")
    nn.CrossEntropyLoss()(net(rows("mlp").inputs), rows("mlp").targets).backward()
    held = [p.grad.clone() for p in net.parameters()]
    everything(*Objective.of(net, "cross-entropy", rows("mlp"), dtype=F64))
    assert all(torch.equal(p.grad, grad) for p, grad in zip(net.parameters(), held, strict=True))


class Bomb(Exception):
    pass


@pytest.mark.parametrize("where", ["forward", "loss"])
def test_an_exception_of_the_users_code_leaves_all_as_it_was(monkeypatch, where):
    net = module("tied")
    before = Snapshot(net)
    armed = []

    def loss(outputs, targets):
        if where == "loss" and armed:
            raise Bomb
        return functional.cross_entropy(outputs, targets, reduction="none")

    f, z = Objective.of(net, loss, rows("tied"), dtype=F64, chunk=5)
    value, dense = f(z), f.hessian(z).dense()
    armed.append(True)
    if where == "forward":
        monkeypatch.setattr(Tied, "forward", lambda self, x: (_ for _ in ()).throw(Bomb))
    for question in (f, f.gradient, f.hessian, f.gauss_newton, lambda z: f.gradient(z[None])):
        with pytest.raises(Bomb):
            question(z)
    armed.clear()
    monkeypatch.undo()
    assert Snapshot(net) == before
    assert all(p.grad is None for p in net.parameters())
    assert torch.equal(f(z), value)
    assert torch.equal(f.hessian(z).dense(), dense)


@pytest.mark.parametrize("context", [torch.no_grad, contextlib.nullcontext, torch.enable_grad])
def test_the_callers_grad_mode_is_irrelevant(context):
    f, z = objective("mlp")
    truth = f.gradient(z), f.hessian(z).dense(), f.gauss_newton(z).dense()
    with context():
        got = f.gradient(z), f.hessian(z).dense(), f.gauss_newton(z).dense()
        value = f(z.clone().requires_grad_())
    assert not value.requires_grad
    assert all(torch.equal(a, b) and not a.requires_grad for a, b in zip(got, truth, strict=True))


def test_later_training_of_the_users_model_does_not_move_the_objective():
    net = module("batchnorm")
    f, z = Objective.of(net, "cross-entropy", rows("batchnorm"), dtype=F64)
    before = f(z)
    with torch.no_grad():
        net(10 * rows("batchnorm").inputs)
        for p in net.parameters():
            p.zero_()
    assert torch.equal(f(z), before)


# -- restriction ------------------------------------------------------------------------------------------------------


def test_restricting_twice_is_restricting_to_the_composition():
    p = regression("softmax")
    outer, inner = span(p.point, draw(6, p.f.dim, seed=1)), span(draw(6, seed=2), draw(2, 6, seed=3))
    twice = p.f.restrict(outer).restrict(inner)
    once = p.f.restrict(
        span(outer.lift(inner.origin), inner.push(torch.eye(2, dtype=F64)) @ outer.push(torch.eye(6, dtype=F64)))
    )
    z = draw(2, seed=4)
    assert twice.dim == 2
    close(twice.lift(z), outer.lift(inner.lift(z)), ROUNDING)
    close(twice(z), p.value(outer.lift(inner.lift(z)).numpy()))
    close(twice.gradient(z), once.gradient(z), ROUNDING)
    close(twice.hessian(z).dense(), once.hessian(z).dense(), ROUNDING)
    close(twice.gauss_newton(z).dense(), once.gauss_newton(z).dense(), ROUNDING)
    close(twice.gradient(draw(3, 2)), torch.stack([once.gradient(point) for point in draw(3, 2)]), ROUNDING)


@pytest.mark.parametrize(
    "subspace",
    [
        lambda w: random_subspace(w, 4, generator(0, "s"), "sparse"),
        lambda w: random_subspace(w, 4, generator(0, "s"), "srht"),
        lambda w: coordinates(w, torch.arange(len(w)) % 3 == 0),
        lambda w: segment(w, w + 0.1),
    ],
    ids=["sparse", "srht", "mask", "segment"],
)
@pytest.mark.parametrize("name", ["mlp", "conv-batchnorm"])
def test_restricted_derivatives_are_slopes_too(name, subspace):
    f, w = objective(name)
    g = f.restrict(subspace(w))
    z = 0.5 * draw(g.dim, seed=3)
    close(g.gradient(z), slopes(g, z), DIFFERENCES)
    close(g.hessian(z).dense(), slopes(g.gradient, z), DIFFERENCES)


def test_rows_and_buffers_may_change_before_or_after_a_restriction():
    f, w = objective("batchnorm")
    s, z, index = segment(w, w + 1), torch.tensor([0.3], dtype=F64), torch.tensor([1, 5, 2])
    other = {name: value + 1 for name, value in f.buffers.items()}
    close(f.restrict(s).on(index).with_buffers(other)(z), f.on(index).with_buffers(other)(s.lift(z)), 0)
    close(f.with_buffers(other).on(index).restrict(s)(z), f.on(index).with_buffers(other)(s.lift(z)), 0)


# -- refusals ---------------------------------------------------------------------------------------------------------


def linear(loss="mse", data=None, **keywords):
    return Objective.of(nn.Linear(4, 3), loss, data or Rows(draw(7, 4), draw(7, 3)), dtype=F64, **keywords)


class Words(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Linear(4, 3)

    def forward(self, x):
        return "words"


REFUSED = {
    "one loss a row": lambda: (lambda f, z: f(z))(*linear(lambda o, t: ((o - t) ** 2).mean())),
    "means over unequal chunks": lambda: (lambda f, z: f.gradient(z[None]))(*linear(lambda o, t: ((o - t) ** 2).mean())),
    r"shape \(1,\) for 2 rows": lambda: (lambda f, z: f(z))(*linear(lambda o, t: (o - t)[1:].sum(1))),
    "reduction='sum'": lambda: linear(nn.MSELoss(reduction="sum")),
    r"do not fit each other. Two rows of inputs \(2, 4\) float64 with targets \(2, 3\) float64 gave": lambda: (lambda f, z: f(z))(*linear(nn.NLLLoss())),
    "Did you mean 'cross-entropy'": lambda: linear("cross-entropi"),
    "a name, a torch loss module or a function": lambda: linear(nn.MSELoss),
    r"one number of rows; got \[6, 7\]": lambda: Rows(draw(7, 4), draw(6, 3)),
    "no rows": lambda: Rows(draw(0, 4), draw(0, 3)),
    "at least 1 row": lambda: linear(chunk=0),
    r"shape \(15,\), many \(E, 15\); got \(14,\)": lambda: linear()[0](draw(14)),
    r"got \(2, 2, 15\)": lambda: linear()[0].gradient(draw(2, 2, 15)),
    r"curvature is taken at one point \(15,\)": lambda: linear()[0].hessian(draw(2, 15)),
    "subspace of 14 dimensions cannot restrict an objective of 15": lambda: linear()[0].restrict(segment(draw(14), draw(14))),
    "no trainable floating-point parameter": lambda: Objective.of(nn.Linear(4, 3).requires_grad_(False), "mse", Rows(draw(7, 4), draw(7, 3))),
    "is lazy": lambda: Objective.of(nn.LazyLinear(3), "mse", Rows(draw(7, 4), draw(7, 3))),
    "returned str": lambda: (lambda f, z: f(z))(*Objective.of(Words(), "mse", Rows(draw(7, 4), draw(7, 3)), dtype=F64)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("message", REFUSED)
def test_what_cannot_be_measured_is_refused_with_the_reason(message):
    with pytest.raises(UsageError, match=message):
        REFUSED[message]()


def test_require_finite_counts():
    require_finite(torch.ones(3), "the point")
    with pytest.raises(LandscapeError, match="the point has 2 NaN or infinite of 3"):
        require_finite(torch.tensor([float("nan"), 1.0, float("-inf")]), "the point")


def test_a_loss_object_is_taken_as_it_is():
    loss = Loss.of("mse")
    assert Loss.of(loss) is loss


def test_float32_agrees_with_float64_to_its_precision():
    (f, z), (g, _) = objective("mlp"), objective("mlp", dtype=torch.float32)
    # one pass through two layers of at most 5 terms and a mean of 13 rows: some 30 roundings of 6e-8
    close(g(z.float()), f(z), 1e-5)
    close(g.gradient(z.float()), f.gradient(z), 1e-5)
    assert g.gradient(z.float()).dtype == torch.float32
    assert PartFrozen().shift.dtype == torch.float32


# -- found in review: each of these once gave another number, or a traceback ----------------------------------------------------


@pytest.mark.parametrize("loss", [nn.MSELoss(), nn.L1Loss(), nn.SmoothL1Loss(), nn.BCEWithLogitsLoss()])
def test_targets_of_one_number_a_row_may_come_with_or_without_their_axis(loss):
    x, y, net = draw(20, 4), (draw(20) > 0).double(), nn.Linear(4, 1).double()
    (flat_f, w), (column_f, _) = (
        Objective.of(net, loss, Rows(x, t), dtype=torch.float64, chunk=7) for t in (y, y[:, None])
    )
    expected = float(loss(net(x), y[:, None]).detach())
    assert float(flat_f(w)) == pytest.approx(expected, rel=1e-12)
    assert float(column_f(w)) == pytest.approx(expected, rel=1e-12)
    assert float(next(iter(descend(flat_f, w, Recipe(steps=0), 0))).loss) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("targets", [torch.tensor([True, False, True]), torch.tensor([1, 0, 1])])
def test_binary_targets_may_be_bool_or_integer(targets):
    x, net = draw(3, 4), nn.Linear(4, 1).double()
    f, w = Objective.of(net, nn.BCEWithLogitsLoss(), Rows(x, targets), dtype=torch.float64)
    assert float(f.value(w).accuracy) == pytest.approx(
        float(((net(x)[:, 0] > 0) == targets.bool()).double().mean()), abs=1e-12
    )
    assert float(f(w)) == pytest.approx(
        float(nn.functional.binary_cross_entropy_with_logits(net(x)[:, 0], targets.double()).detach()), rel=1e-12
    )


def test_outputs_and_targets_that_would_broadcast_are_refused():
    for loss in ("mse", lambda o, t: nn.functional.mse_loss(o, t, reduction="none")):
        with pytest.raises(UsageError, match="targets"):
            Objective.of(nn.Linear(4, 2), loss, Rows(torch.randn(5, 4), torch.randn(5)))


def test_ignored_tokens_count_neither_as_right_nor_as_wrong():
    class Echo(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.tensor(5.0))

        def forward(self, x):
            return self.scale * x

    classes = torch.tensor([[0, 1, 2, 0], [2, 2, 1, 1]])
    outputs = nn.functional.one_hot(classes, 3).float().movedim(-1, 1)  # (n, classes, tokens): always right
    targets = classes.clone()
    targets[:, 2:] = -100
    f, w = Objective.of(Echo(), "cross-entropy", Rows(outputs, targets))
    assert float(f.value(w).accuracy) == 1.0
    assert f.by_row(w)[1].tolist() == [1.0, 1.0]
    assert float(f(w)) == pytest.approx(float(nn.functional.cross_entropy(5 * outputs, targets)), rel=1e-6)
    assert float(next(iter(descend(f, w, Recipe(steps=0), 0))).loss) == pytest.approx(float(f(w)), rel=1e-6)


@pytest.mark.parametrize("lockstep", [True, False])
def test_a_basis_for_each_member_is_its_own_objective(lockstep):
    f, w = Objective.of(
        nn.Linear(4, 3).double(), "cross-entropy", Rows(draw(9, 4), torch.arange(9) % 3), dtype=torch.float64
    )
    f = dataclasses.replace(f, model=dataclasses.replace(f.model, lockstep=lockstep))
    bases, z = draw(5, 2, f.dim), draw(5, 2)
    together = f.restrict(span(w, bases))
    for e in range(5):
        alone = f.restrict(span(w, bases[e]))
        assert torch.allclose(together(z)[e], alone(z[e]), rtol=1e-12)
        assert torch.allclose(together.gradient(z)[e], alone.gradient(z[e]), rtol=1e-10, atol=1e-14)


def test_batch_statistics_of_an_ensemble_are_each_members_own():
    net = nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3)).double()
    f, w = Objective.of(net, "cross-entropy", Rows(draw(9, 4), torch.arange(9) % 3), dtype=torch.float64)
    f = f.with_buffers(f.buffers, "batch")
    many = w + 0.1 * draw(3, f.dim)
    assert torch.allclose(f.gradient(many), torch.stack([f.gradient(one) for one in many]), rtol=1e-10, atol=1e-14)


@pytest.mark.parametrize("persistent", [True, False])
def test_a_module_that_counts_its_calls_is_still_a_pure_function(persistent):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3)
            self.register_buffer("calls", torch.zeros(()), persistent=persistent)

        def forward(self, x):
            self.calls += 1
            return self.inner(x) * self.calls

    f, w = Objective.of(Counting(), "cross-entropy", Rows(torch.randn(9, 4), torch.arange(9) % 3), chunk=4)
    assert len({float(f(w)) for _ in range(3)}) == 1


def test_what_has_no_real_landscape_is_refused_by_name():
    class Complex(nn.Module):
        def __init__(self):
            super().__init__()
            self.real, self.twisted = nn.Linear(4, 3), nn.Parameter(torch.zeros(3, dtype=torch.complex64))

        def forward(self, x):
            return self.real(x) + self.twisted.real

    data = Rows(torch.randn(9, 4), torch.arange(9) % 3)
    with torch.device("meta"):
        empty = nn.Linear(4, 3)
    scripted = torch.jit.trace(nn.Linear(4, 3), torch.ones(1, 4))
    for refused, message in (
        (scripted, "TorchScript"),
        (Complex(), "twisted"),
        (empty, "meta"),
        (nn.DataParallel(nn.Linear(4, 3)), "parallel"),
    ):
        with pytest.raises(UsageError, match=message):
            Objective.of(refused, "cross-entropy", data)


def test_dropout_by_function_draws_from_the_named_stream():
    class Functional(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 3)

        def forward(self, x):
            return self.inner(nn.functional.dropout(x, 0.5, self.training))

    f, w = Objective.of(Functional(), "cross-entropy", Rows(torch.randn(9, 4), torch.arange(9) % 3))
    assert f.model.stochastic
    before = torch.get_rng_state()
    first, second = ([state.point for state in descend(f, w, Recipe(steps=5), 3)][-1] for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(before, torch.get_rng_state())


# -- the other matrices of curvature ------------------------------------------------------------------------------------------


@by_name(AFFINE)
def test_empirical_fisher_and_gradient_covariance_have_their_closed_form(make):
    p = make()
    truth = p.covariance(p.point.numpy())
    close(p.f.empirical_fisher(p.point).dense(), truth)
    close(p.f.gradient_covariance(p.point).dense(), truth)
    b = draw(3, p.f.dim, seed=7)
    g, zero = p.f.restrict(span(p.point, b)), torch.zeros(3, dtype=F64)
    close(g.empirical_fisher(zero).dense(), b.numpy() @ truth @ b.numpy().T)
    close(g.gradient_covariance(zero, keep=False).dense(), b.numpy() @ truth @ b.numpy().T)


def standard_errors(draws, truth):
    """How far the mean of draws (R, ...) lies from the truth, in standard errors of the mean."""
    draws = np.asarray(draws)
    return np.abs(draws.mean(0) - truth) / (draws.std(0, ddof=1) / np.sqrt(len(draws)))


@by_name(AFFINE)
def test_fisher_matrices_are_the_hessian_of_a_linear_model_on_average(make):
    """E s s^T is the loss's curvature by the outputs. 100 seeds, 4 directions: by Student's law one of 12 means is beyond 5 standard errors with chance 3e-5."""
    p = make()
    v = draw(p.f.dim, 4, seed=4)
    found = [torch.einsum("dk,dk->k", v, p.f.fisher(p.point, seed=seed) @ v).numpy() for seed in range(100)]
    truth = np.einsum("dk,de,ek->k", v.numpy(), p.hessian(p.point.numpy()), v.numpy())
    assert standard_errors(found, truth).max() < 5
    many = p.f.fisher(p.point, samples=400)
    # the mean over 400 draws of each target
    errors = np.std(found, axis=0, ddof=1) / 20
    assert (np.abs(torch.einsum("dk,dk->k", v, many @ v).numpy() - truth) < 5 * errors).all()


@pytest.mark.parametrize("loss", ["cross-entropy", "mse", nn.BCEWithLogitsLoss(), nn.BCELoss(), nn.NLLLoss()])
def test_scores_of_drawn_targets_have_mean_zero_and_the_information_as_covariance(loss):
    """The law of every likelihood: E s = 0, E s s^T = I, by 40,000 draws: 5 standard errors of 12 means."""
    likelihood = Loss.of(loss).likelihood
    outputs = draw(1, 3, seed=2)
    o = outputs.numpy()[0]
    p = np.exp(o) / np.exp(o).sum()
    sigmoid = 1 / (1 + np.exp(-o))
    if isinstance(loss, nn.BCELoss):
        outputs = torch.from_numpy(sigmoid)[None]
    if isinstance(loss, nn.NLLLoss):
        outputs = torch.from_numpy(np.log(p))[None]
    viewed = likelihood.targets(outputs.expand(40_000, -1))
    noise = likelihood.noise((40_000, *viewed.shape[1:]), generator(1, "noise"))
    scores = likelihood.score(viewed, noise).numpy().reshape(40_000, 3)
    weight = float(likelihood.weights(outputs, torch.tensor([0]))[0, 0])
    name = loss if isinstance(loss, str) else type(loss).__name__
    mean = (
        -p if name == "NLLLoss" else np.zeros(3)
    )  # -log p is normalised before it gets here: its slope is -1 at the target
    information = {
        "cross-entropy": np.diag(p) - np.outer(p, p),
        "mse": 2 / 3 * np.eye(3),
        "BCEWithLogitsLoss": np.diag(sigmoid * (1 - sigmoid)),
        "BCELoss": np.diag(1 / (sigmoid * (1 - sigmoid))),
        "NLLLoss": np.diag(p),
    }[name]
    assert weight == pytest.approx(1 / 3 if "BCE" in name else 1)
    assert standard_errors(scores, mean).max() < 5
    products = scores[:, :, None] * scores[:, None]
    varying = products.std(0) > 0  # a categorical draw of log probabilities has products that are always 0
    close(products.mean(0)[~varying], information[~varying])
    assert standard_errors(products[:, varying], information[varying]).max() < 5


@pytest.mark.parametrize("tokens", [False, True], ids=["rows", "tokens"])
@pytest.mark.parametrize("loss", MEANS.values(), ids=MEANS)
def test_weighted_smoothed_and_ignored_targets_count_as_they_do_in_the_loss(loss, tokens):
    """With q the smoothed target and e = q . weights: a score is p - q weights / e (-one-hot for log probabilities), its weight e, all over the sum of torch's weights."""
    targets = torch.arange(26 if tokens else 13).reshape(13, -1).squeeze(1) % 3
    if loss.ignore_index == -100:
        targets = targets.masked_fill(targets == 2, -100)
    net = filled(nn.Conv1d(4, 3, 1) if tokens else nn.Linear(4, 3))
    x = draw(13, 4, 2) if tokens else draw(13, 4)
    f, z = Objective.of(net, loss, Rows(x, targets), dtype=F64, chunk=4)
    logits = isinstance(loss, nn.CrossEntropyLoss)
    smoothing = loss.label_smoothing if logits else 0.0
    weights = np.ones(3) if loss.weight is None else loss.weight.numpy()
    w, bias = z.numpy()[:12].reshape(3, 4), z.numpy()[12:]
    total, fisher, covariance, gauss_newton = 0.0, 0.0, 0.0, 0.0
    for row, answers in zip(
        x.reshape(13, 4, -1).numpy().transpose(0, 2, 1), targets.reshape(13, -1).numpy(), strict=True
    ):
        gradient, counted = 0.0, 0.0
        for point, target in zip(row, answers, strict=True):
            if target == loss.ignore_index:
                continue
            p = np.exp(w @ point + bias)
            p /= p.sum()
            q = (1 - smoothing) * np.eye(3)[target] + smoothing / 3
            e, slope = q @ weights, (p if logits else 0) * (q @ weights) - q * weights
            jacobian = np.hstack([np.kron(np.eye(3), point[None]), np.eye(3)])
            gauss_newton += jacobian.T @ (e * logits * (np.diag(p) - np.outer(p, p))) @ jacobian
            gradient += jacobian.T @ slope
            counted += weights[target]
            if e > 0:
                fisher += np.outer(jacobian.T @ slope, jacobian.T @ slope) / e
        total += counted
        if counted > 0:
            covariance += np.outer(gradient, gradient) / counted
    close(f.gauss_newton(z).dense(), gauss_newton / total)
    close(f.empirical_fisher(z).dense(), fisher / total)
    close(f.gradient_covariance(z).dense(), covariance / total)
    if logits:
        v = draw(15, seed=3).numpy()
        found = [float(v @ (f.fisher(z, samples=4, seed=seed) @ torch.from_numpy(v)).numpy()) for seed in range(40)]
        assert standard_errors(found, v @ gauss_newton @ v / total) < 5


def test_binary_answers_are_targets_of_their_own():
    """Of f = mean over N rows of the mean over 3 entries: every entry weighs 1/3."""
    x, y = draw(9, 4), (draw(9, 3, seed=1) > 0).double()
    f, z = Objective.of(filled(nn.Linear(4, 3)), nn.BCEWithLogitsLoss(), Rows(x, y), dtype=F64, chunk=4)
    slope = 1 / (1 + np.exp(-f.outputs(z).numpy())) - y.numpy()
    jacobian = np.stack([np.hstack([np.kron(np.eye(3), point[None]), np.eye(3)]) for point in x.numpy()])
    close(f.empirical_fisher(z).dense(), np.einsum("nkd,nk,nke->de", jacobian, slope**2, jacobian) / 27)
    together = np.einsum("nkd,nk->nd", jacobian, slope) / 3
    close(f.gradient_covariance(z).dense(), together.T @ together / 9)


def test_probabilities_as_targets_have_scores_p_minus_q():
    x, y = draw(13, 4), torch.softmax(draw(13, 3, seed=1), 1)
    f, z = Objective.of(filled(nn.Linear(4, 3)), "cross-entropy", Rows(x, y), dtype=F64, chunk=4)
    slope = torch.softmax(f.outputs(z), 1).numpy() - y.numpy()
    gradients = np.hstack([(slope[:, :, None] * x.numpy()[:, None]).reshape(13, 12), slope])
    close(f.empirical_fisher(z).dense(), gradients.T @ gradients / 13)
    close(f.gradient_covariance(z).dense(), gradients.T @ gradients / 13)


@every_module
def test_gradient_covariance_is_that_of_differences_row_by_row(name):
    f, z = objective(name, n=5, chunk=2)
    gradients = slopes(lambda point: f.by_row(point)[0], z).numpy()  # (D, N)
    close(f.gradient_covariance(z).dense(), gradients @ gradients.T / 5, 10 * DIFFERENCES)


def test_gradient_covariance_is_of_any_loss():
    f, z = Objective.of(
        filled(nn.Linear(4, 3)), lambda o, t: (o - t).abs().sum(1), Rows(draw(13, 4), draw(13, 3, seed=1)), dtype=F64
    )
    signs = np.sign((f.outputs(z) - f.rows.targets).numpy())
    gradients = np.hstack([(signs[:, :, None] * f.rows.inputs.numpy()[:, None]).reshape(13, 12), signs])
    close(f.gradient_covariance(z).dense(), gradients.T @ gradients / 13)
    p = ring()
    close(p.f.gradient_covariance(p.point).dense(), np.outer(*[p.gradient(p.point.numpy())] * 2))


@pytest.mark.parametrize("name", ["mlp", "conv-batchnorm", "mlp-mse"])
@pytest.mark.parametrize("matrix", CURVATURES)
def test_every_matrix_is_one_matrix_whatever_the_chunks_and_whatever_is_kept(name, matrix):
    whole, z = objective(name)
    v = draw(whole.dim, 2, seed=3)
    truth = whole.curvature(z, matrix, keep=True) @ v
    for chunk in (1, 5):
        f, _ = objective(name, chunk=chunk)
        for keep in (True, False):
            operator = f.curvature(z, matrix, keep=keep)
            close(operator @ v, truth, ROUNDING)
            close(operator @ v, truth, ROUNDING)


def test_draws_depend_on_the_seed_and_a_further_sample_shifts_none():
    f, z = objective("mlp")
    one, two, other = (f.fisher(z, samples=n, seed=seed).dense().numpy() for n, seed in ((1, 0), (2, 0), (1, 1)))
    assert np.abs(one - other).max() > 1e-3
    second = 2 * two - one  # what the second draw alone gives: again a sum of squares, of rank 13 at most
    values = np.linalg.eigvalsh(second)
    assert values.min() > -ROUNDING
    assert (values > ROUNDING).sum() <= 13
    close(f.curvature(z, "fisher", samples=2).dense(), two, 0)


def test_a_second_library_has_the_same_matrices():
    import curvlinops  # its import takes seconds

    for name in ("mlp", "mlp-mse", "conv-batchnorm"):
        f, z = objective(name, chunk=5)
        net = f.module(z)
        loss = nn.MSELoss() if name == "mlp-mse" else nn.CrossEntropyLoss()
        common = (net, loss, [p for p in net.parameters() if p.requires_grad], [(f.rows.inputs, f.rows.targets)])
        v = draw(f.dim, seed=3)
        close(f.gauss_newton(z) @ v, curvlinops.GGNLinearOperator(*common) @ v, ROUNDING)
        close(f.hessian(z) @ v, curvlinops.HessianLinearOperator(*common) @ v, ROUNDING)
        if name != "mlp-mse":
            close(f.empirical_fisher(z) @ v, curvlinops.EFLinearOperator(*common) @ v, ROUNDING)
        if name == "mlp":
            theirs = [
                float(v @ (curvlinops.FisherMCLinearOperator(*common, seed=seed, check_deterministic=False) @ v))
                for seed in range(30)
            ]
            ours = [float(v @ (f.fisher(z, seed=seed) @ v)) for seed in range(30)]
            error = np.sqrt((np.var(ours, ddof=1) + np.var(theirs, ddof=1)) / 30)
            assert abs(np.mean(ours) - np.mean(theirs)) < 5 * error


@pytest.mark.parametrize(
    "message, ask",
    {
        "Did you mean 'hessian'": lambda f, z: f.curvature(z, "hesian"),
        "the loss <lambda> has no known likelihood, so no fisher": lambda f, z: f.fisher(z),
        "no empirical-fisher matrix": lambda f, z: f.empirical_fisher(z),
        "at least 1 sample": lambda f, z: objective("mlp")[0].fisher(objective("mlp")[1], samples=0),
        "couples the rows": lambda f, z: f.with_buffers({}, "batch").gradient_covariance(z),
        "of a function, not of a module": lambda f, z: ring().f.module(ring().point),
        "no eval mode": lambda f, z: f.with_buffers({}, "batch").module(z),
    }.items(),
)
def test_a_matrix_that_is_not_defined_is_refused_with_the_reason(message, ask):
    with pytest.raises(UsageError, match=message):
        ask(*linear(lambda o, t: (o - t).abs().sum(1)))


@pytest.mark.parametrize(
    "loss",
    [
        nn.BCEWithLogitsLoss(pos_weight=torch.tensor(2.0)),
        nn.BCEWithLogitsLoss(weight=torch.ones(1)),
        nn.HuberLoss(),
        type("Mine", (nn.MSELoss,), {})(),
    ],
)
def test_no_likelihood_is_invented(loss):
    assert Loss.of(loss).likelihood is None


# -- kernels for second derivatives -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_has_slopes_of_its_gradients_as_hessian(name):
    f, z = layer(name)
    dense = f.hessian(z).dense()
    close(dense, dense.T, ROUNDING)
    # values of the size of 10 to 100 here: their roundings in the differences as well
    close(dense, slopes(f.gradient, z), 100 * DIFFERENCES)
    jacobian, p = slopes(f.outputs, z).numpy(), torch.softmax(f.outputs(z), 1).numpy()
    bend = p[:, :, None] * np.eye(3) - p[:, :, None] * p[:, None, :]
    close(f.gauss_newton(z).dense(), np.einsum("dik,ikl,eil->de", jacobian, bend, jacobian) / 7, 100 * DIFFERENCES)


class By(nn.Module):
    """A body and a linear map, put together by a function of (body, out, x)."""

    def __init__(self, join, body, wide=2, outputs=3):
        super().__init__()
        self.join, self.body, self.out = join, body, nn.Linear(wide, outputs)

    def forward(self, x):
        return self.join(self.body, self.out, x)


class Sign(nn.Module):
    def forward(self, x):
        return torch.sign(x)


def forces(body, out, x):
    """-dE/dx of an energy, summed over positions: what a model of molecules answers."""
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(out(torch.tanh(body(x)).mean(2)).sin().sum(), x, create_graph=True)
    return -slope.sum(2)


def steep(body, out, x):
    """A value times a function of its squared slope."""
    return out(torch.tanh(body(x)).mean(2)) * (1 + 100 * (forces(body, out, x) ** 2).sum(1, keepdim=True))


def one_by_one(body, out, x):
    return torch.func.vmap(lambda row: out(torch.tanh(body(row.unsqueeze(0))).mean(2))[0])(x)


def slopes_one_by_one(body, out, x):
    energy = torch.func.grad(lambda row: out(torch.tanh(body(row.unsqueeze(0))).mean(2)).sin().sum())
    return torch.func.vmap(energy)(x).sum(2)


def tangents(body, out, x):
    energy = lambda x: out(torch.tanh(body(x)).mean(2))  # noqa: E731
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(energy(forward_ad.make_dual(x, torch.ones_like(x)))).tangent


def plain(body, out, x):
    return out(torch.tanh(body(x)).flatten(2).mean(2))


def recomputed(reentrant):
    def join(body, out, x):
        inner = lambda x: torch.tanh(checkpoint(body, x, use_reentrant=reentrant))  # noqa: E731
        return out(torch.tanh(checkpoint(inner, x, use_reentrant=reentrant)).mean(2))

    return join


def convolution(norm=False):
    conv = nn.Conv1d(3, 2, 3)
    return nn.Sequential(conv, nn.BatchNorm1d(2)) if norm else conv


def weighted(layer, dim):
    return nn.utils.parametrizations.weight_norm(layer, dim=dim)


# name -> (model, shape of one row): models that meet torch's own transforms or torch's own faults on their way
WAYS = {
    "forces": (lambda: By(forces, convolution(), outputs=1), (3, 4)),
    "forces, normalised": (lambda: By(forces, convolution(norm=True), outputs=1), (3, 4)),
    "steep": (lambda: By(steep, convolution(norm=True)), (3, 4)),
    "vmap": (lambda: By(one_by_one, convolution(norm=True)), (3, 4)),
    "vmap of relu": (lambda: By(one_by_one, nn.Sequential(convolution(), nn.ReLU())), (3, 4)),
    "vmap of grad": (lambda: By(slopes_one_by_one, convolution(norm=True)), (3, 4)),
    "forward mode": (lambda: By(tangents, convolution(norm=True)), (3, 4)),
    "weight norm": (lambda: By(plain, weighted(nn.Conv2d(2, 2, 2), 0)), (2, 3, 3)),
    "weight norm by inputs": (lambda: By(plain, weighted(nn.Conv2d(2, 2, 2), 1)), (2, 3, 3)),
    "checkpoint": (lambda: By(recomputed(False), convolution(norm=True)), (3, 4)),
    "reentrant checkpoint": (lambda: By(recomputed(True), convolution(norm=True)), (3, 4)),
}


def way(name, n=7):
    make, shape = WAYS[name]
    torch.manual_seed(0)
    made = filled(make()).eval()
    return Objective.of(made, "cross-entropy", Rows(draw(n, *shape), torch.arange(n) % 3), dtype=F64, chunk=4)


@pytest.mark.parametrize("name", WAYS)
def test_whatever_a_model_does_on_its_way_its_derivatives_are_differences(name):
    f, z = way(name)
    close(f.gradient(z), slopes(f, z), DIFFERENCES)
    dense = f.hessian(z).dense()
    close(dense, dense.T, ROUNDING)
    close(dense, slopes(f.gradient, z), DIFFERENCES)
    jacobian, p = slopes(f.outputs, z).numpy(), torch.softmax(f.outputs(z), 1).numpy()
    bend = p[:, :, None] * np.eye(3) - p[:, :, None] * p[:, None, :]
    truth = np.einsum("dik,ikl,eil->de", jacobian, bend, jacobian) / 7
    assert np.abs(truth).max() > 1e-3  # else a zero would pass
    close(f.gauss_newton(z).dense(), truth, DIFFERENCES)


@pytest.mark.parametrize("layers", [1, 2])
def test_outputs_that_do_not_vary_have_no_curvature(layers):
    made = nn.Sequential(*(nn.Linear(3, 3) for _ in range(layers)), Sign())
    f, z = Objective.of(made, "cross-entropy", Rows(draw(5, 3), torch.arange(5) % 3))
    for matrix in CURVATURES:
        assert torch.equal(f.curvature(z, matrix).dense(), torch.zeros(len(z), len(z)))


@pytest.mark.parametrize("dim", [0, 1, 2, -1])
def test_weight_norm_is_torchs_own_for_every_axis(dim):
    v = draw(3, 2, 4)
    close(_weight_norm(v, 2 * torch.norm_except_dim(v, 2, dim), dim), 2 * v, ROUNDING)
    g = draw(*torch.norm_except_dim(v, 2, dim).shape, 1, seed=1)[..., 0]
    close(_weight_norm(v, g, dim), torch._weight_norm(v, g, dim), ROUNDING)


def test_a_checkpointed_part_that_does_not_move_has_this_point_not_that_of_the_module():
    """Nothing of it that is saved shows, so torch does not see that other tensors are there when it is recomputed."""
    whole = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
    join = lambda body, out, x: out(torch.tanh(checkpoint(lambda x: body[1](x).sin(), body[0](x), use_reentrant=False)))  # noqa: E731
    f, z = Objective.of(By(join, whole, 4), "cross-entropy", Rows(draw(7, 3), torch.arange(7) % 3), dtype=F64)
    z = z + draw(len(z))
    first = torch.arange(len(z)) < 12  # the weight of body[0]
    part = f.restrict(coordinates(z, first))
    close(part.gradient(z[first]), slopes(f, z)[first], DIFFERENCES)
    close(part.hessian(z[first]).dense(), slopes(part.gradient, z[first]), DIFFERENCES)


def test_a_graph_that_cannot_be_measured_is_built_anew_and_says_so():
    f, z = way("vmap of grad")
    fresh, kept = f.hessian(z), f.hessian(z, keep=True)
    assert ["torch.func" in note for note in fresh.notes] == [True] and not kept.notes
    close(fresh.dense(), kept.dense(), ROUNDING)


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpoints_of_the_user_are_as_they_were_after_a_pass(reentrant):
    calls = []
    f, z = way("reentrant checkpoint" if reentrant else "checkpoint")
    f.gradient(z)
    x = draw(2, 3).requires_grad_()
    checkpoint(lambda x: calls.append(0) or torch.tanh(x), x, use_reentrant=reentrant).sum().backward()
    assert len(calls) == 2  # once forward, once more in the backward pass


def test_a_model_that_views_its_images_row_by_row_is_taken_as_it_is():
    class Viewing(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.out = nn.Conv2d(2, 3, 3), nn.Linear(12, 3)

        def forward(self, x):
            x = torch.tanh(self.conv(x))
            return self.out(x.view(len(x), -1))

    x, y = draw(7, 2, 4, 4), torch.arange(7) % 3
    f, z = Objective.of(filled(Viewing()), "cross-entropy", Rows(x, y), dtype=F64, chunk=4)
    assert not f.channels_last
    close(f.hessian(z).dense(), slopes(f.gradient, z), DIFFERENCES)
    other, z = objective("conv-batchnorm")
    assert other.channels_last
    assert other.gradient(z).is_contiguous()
    close(dataclasses.replace(other, channels_last=False)(z), other(z), ROUNDING)


# -- only what moves ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matrix", CURVATURES)
def test_a_block_of_parameters_has_the_block_of_the_dense_matrix(matrix):
    f, w = objective("tied", chunk=5)
    whole = f.curvature(w, matrix).dense()
    for pattern in ("first.*", "second.weight", "out.*", "second.bias, out.weight"):
        mask = torch.from_numpy(f.model.layout.select(pattern))
        block = f.restrict(coordinates(w, mask)).curvature(w[mask], matrix).dense()
        close(block, whole[mask][:, mask], ROUNDING)
    mask = torch.arange(f.dim) % 3 == 0  # parts of every tensor
    close(f.restrict(coordinates(w, mask)).curvature(w[mask], matrix).dense(), whole[mask][:, mask], ROUNDING)


def test_the_gradient_of_a_block_is_that_block_of_the_gradient():
    f, w = objective("conv-batchnorm", chunk=5)
    mask = torch.from_numpy(f.model.layout.select("1.*"))
    g = f.restrict(coordinates(w, mask))
    close(g.gradient(w[mask]), f.gradient(w)[mask], ROUNDING)
    many = w[mask] + 0.1 * draw(3, g.dim)
    close(g.gradient(many), torch.stack([slopes(g, z) for z in many]), DIFFERENCES)


class Untouchable(torch.autograd.Function):
    """The identity, whose derivative must not be asked for."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        raise Bomb


def test_nothing_is_differentiated_by_tensors_that_no_coordinate_moves():
    class Guarded(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.out(torch.tanh(functional.linear(x, Untouchable.apply(self.first.weight), self.first.bias)))

    f, w = Objective.of(filled(Guarded()), "cross-entropy", rows("mlp"), dtype=F64)
    plain, _ = objective("mlp")
    truth = slopes(plain.gradient, w)
    with pytest.raises(Bomb):
        f.gradient(w)
    mask = torch.from_numpy(f.model.layout.select("out.*"))
    direction = torch.zeros(2, f.dim, dtype=F64)
    direction[:, mask] = draw(2, 18)
    for subspace, z in ((coordinates(w, mask), w[mask]), (span(w, direction), torch.zeros(2, dtype=F64))):
        g = f.restrict(subspace)
        b = subspace.push(torch.eye(g.dim, dtype=F64)).numpy()
        close(g.gradient(z), b @ plain.gradient(w).numpy(), ROUNDING)
        close(g.hessian(z).dense(), b @ truth.numpy() @ b.T, 10 * DIFFERENCES)
        assert g.restrict(segment(z, z + 1)).gradient(torch.zeros(1, dtype=F64)).shape == (1,)


def test_a_restriction_that_moves_nothing_has_slope_and_curvature_zero():
    f, w = objective("mlp")
    g, z = f.restrict(span(w, torch.zeros(2, f.dim, dtype=F64))), torch.zeros(2, dtype=F64)
    assert torch.equal(g.gradient(z), z)
    for matrix in CURVATURES:
        assert torch.equal(g.curvature(z, matrix).dense(), torch.zeros(2, 2, dtype=F64))


def test_a_tensor_that_the_loss_does_not_use_has_no_curvature():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(4, 3)

        def forward(self, x):
            return self.used(x)

    f, w = Objective.of(filled(Idle()), "cross-entropy", rows("mlp"), dtype=F64)
    mask = torch.from_numpy(f.model.layout.select("idle.*"))
    g = f.restrict(coordinates(w, mask))
    for matrix in CURVATURES:
        dense = f.curvature(w, matrix).dense()
        assert torch.equal(dense[mask], torch.zeros(15, 30, dtype=F64))
        assert torch.equal(g.curvature(w[mask], matrix).dense(), torch.zeros(15, 15, dtype=F64))
    assert torch.equal(g.gradient(w[mask]), torch.zeros(15, dtype=F64))


# -- memory -------------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("matrix", CURVATURES)
@pytest.mark.parametrize("keep", [None, False])
def test_rows_are_split_where_the_graph_of_a_chunk_would_not_fit(monkeypatch, matrix, keep):
    f, z = objective("mlp", n=50)
    v = draw(f.dim, seed=3)
    truth = f.curvature(z, matrix) @ v
    assert not f.curvature(z, matrix).notes
    some = f.on(slice(0, 10)).graph_bytes(z)
    monkeypatch.setattr(curvature, "free_memory", lambda device: 2 * some)  # half of it is the graph of 10 rows
    operator = f.curvature(z, matrix, keep=keep)
    (note,) = operator.notes
    assert "at a time: the graph of" in note
    assert 1 <= int(note.split()[2]) < 50
    close(operator @ v, truth, ROUNDING)


SAID = "[enforce fail at alloc_cpu.cpp:117] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes."


@pytest.mark.parametrize("error", [RuntimeError(SAID), MemoryError(), torch.OutOfMemoryError("CUDA out of memory.")])
@pytest.mark.parametrize("where", ["graph", "product"])
@pytest.mark.parametrize("most", [1, 6])
@pytest.mark.parametrize("keep", [True, None, False])
def test_what_runs_out_of_memory_is_halved_and_gives_the_same(error, where, most, keep):
    class Short(torch.autograd.Function):
        """The identity, on a machine with room for `most` rows: in a graph, or only in the product with it."""

        @staticmethod
        def forward(ctx, x):
            if where == "graph" and armed and len(x) > most:
                raise error
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            ShortSlope.calls = 0
            return ShortSlope.apply(g)

    class ShortSlope(torch.autograd.Function):
        @staticmethod
        def forward(ctx, g):
            return g.clone()

        @staticmethod
        def backward(ctx, g):
            if where == "product" and armed and len(g) > most:
                raise error
            return g

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.out = nn.Linear(4, 5), nn.Linear(5, 3)

        def forward(self, x):
            return self.out(torch.tanh(Short.apply(self.first(x)) if torch.is_grad_enabled() else self.first(x)))

    armed = []
    f, z = Objective.of(filled(Net()), "cross-entropy", rows("mlp"), dtype=F64)
    v = draw(f.dim, seed=3)
    truth = f.hessian(z) @ v
    armed.append(True)
    operator = f.hessian(z, keep=keep)
    close(operator @ v, truth, ROUNDING)
    close(operator @ v, truth, ROUNDING)
    if where == "graph":
        assert f"rows taken {most if most == 1 else 4} at a time" in operator.notes[0]


def test_a_row_that_does_not_fit_is_said_so_with_its_size():
    class Full(nn.Linear):
        def forward(self, x):
            if torch.is_grad_enabled() and full:
                raise RuntimeError(SAID)
            return super().forward(x)

    full = []
    f, z = Objective.of(filled(Full(4, 3)), "cross-entropy", rows("mlp"), dtype=F64)
    full.append(True)
    with pytest.raises(LandscapeError, match=r"the graph of 1 row does not fit in memory; .* are free\. Take float32"):
        f.hessian(z)
    full.clear()
    operator = f.hessian(z, keep=False)
    full.append(True)
    with pytest.raises(LandscapeError, match=r"does not fit in memory \(a row takes \d+ bytes\)"):
        operator @ z


def test_rows_that_depend_on_each_other_are_never_split(monkeypatch):
    f, z = objective("batchnorm", chunk=13)
    f = f.with_buffers(f.buffers, "batch")
    truth = slopes(f.gradient, z)
    monkeypatch.setattr(curvature, "free_memory", lambda device: 1)
    operator = f.hessian(z)
    assert not operator.notes
    close(operator.dense(), truth, DIFFERENCES)

    def fails(*_, **__):
        raise MemoryError

    monkeypatch.setattr(torch.autograd, "grad", fails)
    with pytest.raises(LandscapeError, match="does not allow to split"):
        f.hessian(z)


def test_other_errors_are_not_taken_for_a_lack_of_memory():
    f, z = Objective.of(filled(nn.Linear(4, 3)), "cross-entropy", rows("mlp"), dtype=F64)
    broken = dataclasses.replace(
        f, loss=dataclasses.replace(f.loss, rows=lambda o, t: (_ for _ in ()).throw(RuntimeError("shapes")))
    )
    with pytest.raises(RuntimeError, match="shapes"):
        broken.hessian(z)


def test_the_measured_size_of_a_graph_grows_with_the_rows():
    f, z = objective("mlp", n=200)
    sizes = [f.on(slice(0, n)).graph_bytes(z) for n in (50, 100, 200)]
    assert sizes[2] - sizes[1] == pytest.approx(2 * (sizes[1] - sizes[0]), rel=0.01)
    # the hidden layer alone saves 5 numbers of 8 bytes a row, in each of two passes; data and parameters are there anyway
    assert 50 * 2 * 5 * 8 < sizes[0] < 50 * 20 * 5 * 8
    more, _ = objective("mlp", n=100_000)
    assert more.on(slice(0, 50)).graph_bytes(z) == sizes[0]
    w = f.lift(z)
    mask = torch.from_numpy(f.model.layout.select("2.*"))
    assert f.restrict(coordinates(w, mask)).graph_bytes(w[mask]) < sizes[2]


# -- the same twice, and elsewhere --------------------------------------------------------------------------------------------


@every_module
def test_the_module_of_a_point_answers_as_the_objective_does(name):
    f, w = objective(name)
    f = f.with_buffers({key: value + 1 if value.is_floating_point() else value for key, value in f.buffers.items()})
    z = w + 0.1
    net = f.module(z)
    assert not any(part.training for part in net.modules())
    with torch.no_grad():
        close(net(f.rows.inputs), f.outputs(z), ROUNDING)
    original = module(name)
    assert [p.requires_grad for p in net.parameters()] == [p.requires_grad for p in original.parameters()]
    assert list(net.state_dict()) == list(original.state_dict())
    before = f(z)
    with torch.no_grad():
        for tensor in [*net.parameters(), *net.buffers()]:
            tensor.zero_()
    assert torch.equal(f(z), before)
    other = f.module(z)
    with torch.no_grad():
        close(other(f.rows.inputs), f.outputs(z), ROUNDING)
    assert all(not tensor.any() for tensor in net.parameters())  # each copy has tensors of its own


def test_the_module_of_a_restriction_stands_at_the_lifted_point():
    f, w = objective("mlp")
    g, z = f.restrict(segment(w, w + 1)), torch.tensor([0.3], dtype=F64)
    with torch.no_grad():
        close(g.module(z)(f.rows.inputs), f.outputs(w + 0.3), ROUNDING)


def test_the_page_cache_of_a_container_is_free(monkeypatch, tmp_path):
    monkeypatch.setattr(curvature, "GROUP", tmp_path)
    (tmp_path / "memory.max").write_text("3000000\n")
    (tmp_path / "memory.current").write_text("2900000\n")
    (tmp_path / "memory.stat").write_text("anon 400000\ninactive_file 2000000\nactive_file 500000\n")
    assert curvature.free_memory(torch.device("cpu")) == 2_100_000
    (tmp_path / "memory.max").write_text("max\n")
    assert curvature.free_memory(torch.device("cpu")) > 2_100_000
