"""Embeddings. Truth: wide networks put together by hand, dense matrices, planted critical points, finite differences, brute force; and broken embeddings, that have to fail."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Callable

import pytest
import torch
from problems import DIFFERENCES, F64, SelfAttention, close, draw, filled, slopes
from test_units import Block, Packed, Stream, SwiGLU, Written
from torch import Tensor, nn

from landscape import embeddings, units
from landscape.embeddings import Embedding
from landscape.errors import UsageError
from landscape.objectives import Objective, Rows
from landscape.seeds import global_stream
from landscape.units import Layer

# sums of at most 100 terms of size 1 to 10 through at most 6 layers, in another order: 3,000 eps
SAME = 1e-12
# eigenvalues that are zero come out within some 20 eps of the largest; those that are not are chosen above 1e-8 of it, so that any cut between tells them apart
ZERO = 1e-12


def _made(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    with global_stream(0, "embeddings"):
        return filled(make(), seed).eval()


def _mlp(*sizes: int, activation: type[nn.Module] = nn.Tanh, bias: bool = True) -> Callable[[], nn.Module]:
    def make() -> nn.Module:
        parts = [
            part for ins, outs in itertools.pairwise(sizes) for part in (nn.Linear(ins, outs, bias=bias), activation())
        ]
        return nn.Sequential(*parts[:-1])

    return make


def _plant(module: nn.Module, x: Tensor, size: float = 1.0, seed: int = 0) -> tuple[Objective, Tensor]:
    """The MSE objective of which the module's point is exactly critical: targets f - e with J^T e = 0, |e| of `size` an entry."""
    outputs = module(x).detach()
    f, theta = Objective.of(module, "mse", Rows(x, outputs), dtype=F64)

    def answers(w: Tensor) -> Tensor:
        return f.model.forward(f.model.split(w), f.buffers, x)[0].flatten()

    jacobian = torch.autograd.functional.jacobian(answers, theta)
    left, values, _ = torch.linalg.svd(jacobian, full_matrices=True)
    rank = int((values > 1e-10 * values[0]).sum())
    assert rank < len(left), "more rows are needed"
    free = left[:, rank:]
    e = free @ (free.T @ draw(len(left), seed=seed))
    e = size * e / e.abs().max()
    return f.on(Rows(x, outputs - e.reshape(outputs.shape))), theta


CASES: dict[str, tuple[Callable[[], nn.Module], Tensor]] = {
    "tanh": (_mlp(3, 2, 3, 2), draw(20, 3)),
    "gelu": (_mlp(3, 2, 2, activation=nn.GELU), draw(12, 3)),
    "relu": (_mlp(3, 3, 2, activation=nn.ReLU), draw(16, 3)),
    "conv": (
        lambda: nn.Sequential(
            nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2), nn.Tanh(), nn.Conv2d(2, 2, 2), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(2, 2)
        ),
        draw(30, 1, 5, 5),
    ),
    "attention": (lambda: Block(Written(4, 2)), draw(65, 3, 4)),
    "packed": (lambda: Block(Packed(4, 2)), draw(65, 3, 4)),
    "torch's attention": (SelfAttention, draw(50, 3, 4)),
    "gated": (lambda: nn.Sequential(SwiGLU(3, 2), nn.Linear(3, 2)), draw(20, 3)),
    "stream": (Stream, draw(40, 3)),
}  # fmt: skip


def _layers(module: nn.Module, x: Tensor) -> tuple[Layer, ...]:
    return units.layers(module, x[:3])


# -- one step, against networks put together by hand --------------------------------------------------------------------


def test_a_split_is_the_one_of_the_definition() -> None:
    module, x, ratio = _made(_mlp(3, 2, 3, 2)), draw(7, 3), -0.4
    f, theta = Objective.of(module, "mse", Rows(x, draw(7, 2)), dtype=F64)
    w1, b1, w2, b2, w3, b3 = (p.detach() for p in module.parameters())
    layer = units.find(_layers(module, x), "2")
    e = embeddings.split(module, layer, 1, ratio)
    first = torch.cat([w3[:, :1], (1 - ratio) * w3[:, 1:2], w3[:, 2:], ratio * w3[:, 1:2]], 1)
    truth = [w1, b1, torch.cat([w2, w2[1:2]]), torch.cat([b2, b2[1:2]]), first, b3]
    assert torch.equal(e.lift(theta), torch.cat([part.flatten() for part in truth]))
    # the module of the embedding is that network, in torch's own eyes
    for got, part in zip(e.module.parameters(), truth, strict=True):
        assert torch.equal(got, part)
    assert (e.module[2].out_features, e.module[4].in_features) == (4, 4)
    # the gradient law, at a point that is not critical (theorem 1 of the source and its proof)
    wide = e.wide_objective(f)
    narrow = f.model.split(f.gradient(theta))
    law = wide.model.split(wide.gradient(e.lift(theta)))
    rows = torch.tensor([1, 1 - ratio, 1, ratio], dtype=F64)
    close(law[2], rows.unsqueeze(1) * narrow[2][[0, 1, 2, 1]], 1e-15)
    close(law[3], rows * narrow[3][[0, 1, 2, 1]], 1e-15)
    close(law[4], narrow[4][:, [0, 1, 2, 1]], 1e-15)
    for place in (0, 1, 5):
        close(law[place], narrow[place], 1e-15)


def test_null_and_inactive_units_are_those_of_the_definition() -> None:
    module, x = _made(_mlp(3, 2, 2)), draw(7, 3)
    (layer,) = _layers(module, x)
    theta = torch.cat([p.detach().flatten() for p in module.parameters()])
    w1, b1, w2, b2 = (p.detach() for p in module.parameters())
    zeros = torch.zeros(2, 1, dtype=F64)
    for e, row, bias in (
        (embeddings.null(module, layer, 0.7), torch.zeros(1, 3, dtype=F64), 0.7),
        (embeddings.inactive(module, layer, torch.tensor([1.0, 2, 3, 4])), torch.tensor([[1.0, 2, 3]], dtype=F64), 4.0),
    ):
        truth = [torch.cat([w1, row]), torch.cat([b1, torch.tensor([bias], dtype=F64)]), torch.cat([w2, zeros], 1), b2]
        assert torch.equal(e.lift(theta), torch.cat([part.flatten() for part in truth]))
        assert torch.equal(e.module[0].weight, truth[0])
    assert embeddings.incoming(module, layer, 1).tolist() == [3, 4, 5, 7]


def _dense(e: Embedding) -> Tensor:
    """A (M', M), column by column."""
    eye = torch.eye(e.narrow.dim, dtype=F64)
    return (e.lift(eye) - e.lift(torch.zeros_like(eye))).T


def test_the_map_is_affine_and_its_adjoint_is_the_transpose() -> None:
    module = _made(_mlp(3, 2, 2, 1))
    first, second = _layers(module, draw(3, 3))
    e = embeddings.to_width(module, {first: 4, second: 3})
    a = _dense(e)
    v, g = draw(2, e.narrow.dim), draw(2, e.wide.dim)
    close(e.push(v), v @ a.T, 1e-14)
    close(e.adjoint(g), g @ a, 1e-14)
    assert torch.linalg.matrix_rank(a) == e.narrow.dim  # injective
    s = e.subspace()
    close(s.lift(v), e.lift(v), 0.0)
    close(s.project(g), e.adjoint(g), 0.0)


def test_composition_is_one_map_after_the_other() -> None:
    module, x = _made(_mlp(3, 2, 2, 1)), draw(9, 3)
    f, theta = Objective.of(module, "mse", Rows(x, draw(9, 1)), dtype=F64)
    first, second = _layers(module, x)
    one = embeddings.split(module, first, 0, 0.3)
    again = units.find(_layers(one.module, x), first.name)
    two = embeddings.split(one.module, again, 2, 1.4)  # the copy is split again
    three = embeddings.null(two.module, units.find(_layers(two.module, x), second.name), 0.2)
    whole = three @ (two @ one)
    close(whole.lift(theta), three.lift(two.lift(one.lift(theta))), 1e-15)
    close(_dense(whole), _dense(three) @ _dense(two) @ _dense(one), 1e-15)

    # the derivatives by the ratios and by the bias, by central differences
    def at(t: Tensor) -> Tensor:
        a = embeddings.split(module, first, 0, 0.3 + float(t[0]))
        b = embeddings.split(a.module, again, 2, 1.4 + float(t[1]))
        c = embeddings.null(b.module, units.find(_layers(b.module, x), second.name), 0.2 + float(t[2]))
        return c.lift(b.lift(a.lift(theta)))

    close(whole.directions(theta), slopes(at, torch.zeros(3, dtype=F64)), DIFFERENCES)
    assert (whole.freedom, whole.flat) == (3, True)
    assert all(check.passed for check in embeddings.check(f, theta, whole).values())


# -- at any point, every kind of layer ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_what_is_promised_holds_at_any_point_and_at_critical_ones(name: str) -> None:
    make, x = CASES[name]
    module = _made(make)
    f, theta = _plant(module, x)
    level = float(f.gradient(theta).abs().max())
    assert level <= 1e-13 * max(1.0, float(f(theta)))
    elsewhere = theta + 0.1 * draw(len(theta))
    for layer in _layers(module, x):
        made = [
            embeddings.split(module, layer, 0, -1.5),
            embeddings.to_width(module, {layer: layer.size + 3}),
            embeddings.to_width(module, {layer: layer.size + 2}, "even"),
            embeddings.null(module, layer),
        ]
        for e in made:
            wide = e.wide_objective(f)
            for point in (theta, elsewhere):
                close(wide.outputs(e.lift(point)), f.outputs(point), SAME)
                close(e.adjoint(wide.gradient(e.lift(point))), f.gradient(point), SAME)
            # errors are shared out with shares up to some 5, and nothing else is added
            assert wide.gradient(e.lift(theta)).abs().max() <= 20 * max(level, 1e-14 * float(f(theta)))
        curved = name != "relu"
        for e, curvature in ((made[1], curved), (made[3], False)):
            found = embeddings.check(f, theta, e, curvature=curvature)
            assert all(check.passed for check in found.values()), found
            assert {"walk", "walk gradient"} < set(found) and ("curvature" in found) == curvature


def test_the_hessian_of_the_narrow_network_is_found_in_the_wide_one() -> None:
    module, x = _made(_mlp(2, 2, 2, 1)), draw(9, 2)
    f, theta = Objective.of(module, "mse", Rows(x, draw(9, 1)), dtype=F64)
    first, second = _layers(module, x)
    e = embeddings.to_width(module, {first: 3, second: 4})
    wide = e.wide_objective(f)
    a = _dense(e)
    h = slopes(wide.gradient, e.lift(theta))  # by central differences
    close(a.T @ h @ a, slopes(f.gradient, theta), 10 * float((a.T @ a).abs().max()) * DIFFERENCES)
    # and the wide objective on the subspace is the narrow one
    among = wide.restrict(e.subspace())
    close(among.gradient(theta), f.gradient(theta), SAME)


@pytest.mark.parametrize("part", ["factor", "source", "constant"])
def test_a_broken_embedding_fails_its_checks(part: str) -> None:
    module, x = _made(_mlp(3, 2, 2)), draw(9, 3)
    f, theta = Objective.of(module, "mse", Rows(x, draw(9, 2)), dtype=F64)
    e = embeddings.split(module, _layers(module, x)[0], 0, 0.3)
    values = getattr(e, part).clone()
    values[6] = 1 if part == "source" else values[6] + 1e-9  # the first weight of the copy
    found = embeddings.check(f, theta, dataclasses.replace(e, **{part: values}))
    assert not found["output"].passed
    law = e.law.clone()
    law[6] += 1e-9
    assert not embeddings.check(f, theta, dataclasses.replace(e, law=law))["law"].passed


# -- the critical subspace ----------------------------------------------------------------------------------------------


def test_k_splits_make_a_critical_subspace_of_k_dimensions() -> None:
    module, x = _made(_mlp(2, 2, 2, 2)), draw(30, 2)
    f, theta = _plant(module, x)
    first, second = _layers(module, x)
    for sizes in ({first: 3}, {first: 4, second: 3}):
        e = embeddings.to_width(module, sizes)
        k = e.freedom
        assert k == sum(width - layer.size for layer, width in sizes.items())
        wide, point = e.wide_objective(f), e.lift(theta)
        v = e.directions(theta)
        assert torch.linalg.matrix_rank(v) == k
        for seed in range(3):
            walked = point + 3 * draw(k, seed=seed) @ v
            close(wide(walked), f(theta), SAME)
            assert wide.gradient(walked).abs().max() <= 1e-12
        narrow = torch.linalg.eigvalsh(f.hessian(theta).dense())
        values = torch.linalg.eigvalsh(wide.hessian(point).dense())
        cut = ZERO * values.abs().max()
        assert narrow.abs().min() > 1e-6  # so that the count below is of added zeros
        # K, and where two neighbours grow K_l K_(l-1) more: the general compatible ones around
        assert int((values.abs() < cut).sum()) == (k if len(sizes) == 1 else 3 + 2 * 1)


def test_general_compatible_embeddings_have_the_degrees_of_freedom_of_the_source() -> None:
    module, x = _made(_mlp(2, 2, 2, 2, 2), 14), 3 * draw(40, 2)  # a point whose own eigenvalues are 1e-6 or more
    f, theta = _plant(module, x)
    found = _layers(module, x)
    e = embeddings.compatible(module, dict.fromkeys(found, 3), seed=1)
    # K + sum of K_l K_(l-1) = 3 + 2
    assert (e.freedom, e.flat) == (5, False)
    wide, point = e.wide_objective(f), e.lift(theta)
    close(wide.outputs(point), f.outputs(theta), SAME)
    assert wide.gradient(point).abs().max() <= 1e-12
    v = e.directions(theta)
    assert torch.linalg.matrix_rank(v) == 5
    values, vectors = torch.linalg.eigh(wide.hessian(point).dense())
    flat = values.abs() < ZERO * values.abs().max()
    assert int(flat.sum()) == 5
    # critical points along each direction: the null space of the Hessian is their span
    basis = torch.linalg.qr(v.T)[0]
    close(basis.T @ vectors[:, ~flat], torch.zeros(5, int((~flat).sum()), dtype=F64), 1e-8)
    # no composition of splits: weights between two layers are not those of shares alone
    weight = e.factor[e.wide.of("parameter")[2].offset :][:9].reshape(3, 3)
    assert float((weight[0] - weight[1]).abs().max()) > 0.02


def test_maps_with_many_copies_and_units_of_none() -> None:
    module, x = _made(_mlp(2, 2, 3, 2)), draw(40, 2)
    f, theta = _plant(module, x)
    first, second = _layers(module, x)
    e = embeddings.compatible(module, {first: [1, 0, 0, -1, 1], second: [0, 1, 2, 2, -1, -1, 0]}, seed=3)
    # K = 3 + 4, block: copies 2 x 2, own units (2) x columns (2 + 1)
    assert e.freedom == 7 + 4 + 2 * 3
    assert torch.linalg.matrix_rank(e.directions(theta)) == e.freedom
    found = embeddings.check(f, theta, e)
    assert all(check.passed for check in found.values()), found
    assert e.wide_objective(f).gradient(e.lift(theta)).abs().max() <= 1e-12


def test_global_embeddings() -> None:
    module, x = _made(_mlp(2, 2, 3, 2)), draw(40, 2)
    f, theta = _plant(module, x)
    found = _layers(module, x)
    w1, b1, w2, b2, w3, b3 = (p.detach() for p in module.parameters())
    three = embeddings.threefold(module, found)
    signs = torch.tensor([1.0, 1, -1], dtype=F64)
    truth = [
        w1.repeat(3, 1),
        b1.repeat(3),
        torch.block_diag(w2, w2, w2),
        b2.repeat(3),
        torch.cat([s * w3 for s in signs], 1),
        b3,
    ]
    close(three.lift(theta), torch.cat([part.flatten() for part in truth]), 1e-15)
    null = embeddings.twofold_null(module, found)
    parts = null.wide_objective(f).model.split(null.lift(theta))
    assert torch.equal(parts[0], torch.cat([w1, torch.zeros(2, 2, dtype=F64)]))
    assert torch.equal(parts[2][:3], torch.cat([w2, torch.zeros(3, 2, dtype=F64)], 1))
    assert not parts[2][3:, :2].any() and parts[2][3:, 2:].all() and parts[3][3:].all() and not parts[4][:, 3:].any()
    for e in (three, null):
        checks = embeddings.check(f, theta, e)
        assert all(check.passed for check in checks.values()), checks
        assert e.wide_objective(f).gradient(e.lift(theta)).abs().max() <= 1e-12


def test_a_threefold_split_makes_a_minimum_with_a_residual_a_strict_saddle() -> None:
    # a planted point of a small residual is a minimum: the Gauss-Newton part rules
    module, x = _made(_mlp(1, 2, 1), 12), 4 * draw(20, 1)
    f, theta = _plant(module, x, 0.01)
    (layer,) = _layers(module, x)
    values = torch.linalg.eigvalsh(f.hessian(theta).dense())
    assert values[0] > 1e-8
    e = embeddings.threefold(module, [layer])
    wide = torch.linalg.eigvalsh(e.wide_objective(f).hessian(e.lift(theta)).dense())
    cut = ZERO * wide.abs().max()
    assert int((wide < -cut).sum()) == 4 and int((wide > cut).sum()) == 7 + 4
    assert int((wide.abs() <= cut).sum()) == 4


def test_a_null_unit_adds_the_inertia_of_the_papers_block() -> None:
    module, x = _made(_mlp(2, 2, 3)), draw(30, 2)
    f, theta = _plant(module, x)
    (layer,) = _layers(module, x)
    bias = 0.4
    e = embeddings.null(module, layer, bias)
    # r = rank of E[sigma'(beta) e f^T] over the input features f, here x itself and no 1: a critical point has E[e] = 0
    error = f.outputs(theta) - f.rows.targets
    r = int(torch.linalg.matrix_rank(error.T @ x, tol=1e-9))
    assert r == 2

    def inertia(matrix: Tensor) -> tuple[int, int, int]:
        values = torch.linalg.eigvalsh(matrix)
        cut = ZERO * float(values.abs().max())
        return int((values > cut).sum()), int((values.abs() <= cut).sum()), int((values < -cut).sum())

    positive, zero, negative = inertia(f.hessian(theta).dense())
    added = 3 + 2 + 1 - 2 * r
    assert inertia(e.wide_objective(f).hessian(e.lift(theta)).dense()) == (positive + r, zero + added, negative + r)


# -- weight decay, norms, statistics --------------------------------------------------------------------------------------


@pytest.mark.parametrize("bias", [False, True])
def test_isometric_splits_keep_criticality_under_weight_decay(bias: bool) -> None:
    decay, ratio = 0.01, 0.3
    module, x = _made(_mlp(3, 2, 2, activation=nn.ReLU, bias=bias)), draw(40, 3)
    (layer,) = _layers(module, x)
    f, theta = Objective.of(module, "mse", Rows(x, draw(40, 2)), dtype=F64)
    # under decay the two sides of a unit have one norm
    parts = list(f.model.split(theta.clone()))
    inner, outer = [parts[0], parts[1]] if bias else [parts[0]], parts[2 if bias else 1]
    for unit in range(2):
        scale = (outer[:, unit].norm() / torch.cat([part[unit].flatten() for part in inner]).norm()).sqrt()
        for part in inner:
            part[unit] *= scale
        outer[:, unit] /= scale
    theta = torch.cat([part.flatten() for part in parts])

    def answers(w: Tensor) -> Tensor:
        return f.model.forward(f.model.split(w), f.buffers, x)[0].flatten()

    # targets f - e with (2 / 80) J^T e + 2 decay theta = 0: the mean is over 40 rows and 2 outputs
    jacobian = torch.func.jacrev(answers)(theta)
    e = torch.linalg.lstsq(jacobian.T, -80 * decay * theta, driver="gelsd").solution
    f = f.on(Rows(x, (answers(theta) - e).reshape(40, 2)))

    def slope(objective: Objective, w: Tensor) -> float:
        return float((objective.gradient(w) + 2 * decay * w).abs().max())

    assert slope(f, theta) <= 1e-14
    same = embeddings.isometric(module, layer, 0, ratio)
    wide = same.wide_objective(f)
    assert slope(wide, same.lift(theta)) <= 1e-14
    close(same.lift(theta).norm(), theta.norm(), 1e-15)
    close(wide.outputs(same.lift(theta)), f.outputs(theta), SAME)
    checks = embeddings.check(f, theta, same, curvature=False)
    assert all(check.passed for check in checks.values()), checks
    plain = embeddings.split(module, layer, 0, ratio)
    assert slope(plain.wide_objective(f), plain.lift(theta)) > 1e-4
    with pytest.raises(UsageError, match="isometric"):
        embeddings.split(module, layer, 0, ratio, decay=decay)


def test_isometric_splits_are_refused_where_units_are_not_homogeneous() -> None:
    cases = {
        "units with tanh": _mlp(3, 2, 2),
        "the norm 1": lambda: nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2), nn.ReLU(), nn.Linear(2, 2)),
        "glu units": lambda: nn.Sequential(SwiGLU(3, 2), nn.Linear(3, 2)),
    }
    for why, make in cases.items():
        module = _made(make)
        with pytest.raises(UsageError, match=why):
            embeddings.isometric(module, _layers(module, draw(3, 3))[0], 0, 0.3)
    module = _made(_mlp(3, 2, 2, activation=nn.ReLU))
    with pytest.raises(UsageError, match="between 0 and 1"):
        embeddings.isometric(module, _layers(module, draw(3, 3))[0], 0, 1.0)


def test_norms_over_units_do_break_the_principle() -> None:
    """The negative control: without the refusal, a split changes the outputs."""
    for norm, shape in ((nn.LayerNorm(4), (3,)), (nn.GroupNorm(1, 4), (3,))):
        module = _made(lambda norm=norm: nn.Sequential(nn.Linear(3, 4), norm, nn.Tanh(), nn.Linear(4, 2)))
        x = draw(5, *shape)
        layer = _layers(module, x)[0]
        with pytest.raises(UsageError, match="norm over its"):
            embeddings.split(module, layer, 0, 0.3)
        open_ = dataclasses.replace(layer, refusals=())
        wide = embeddings.split(module, open_, 0, 0.3).module
        if isinstance(norm, nn.LayerNorm):
            wide[1].normalized_shape = (5,)
        else:
            wide[1].num_channels = 5
        assert float((wide(x) - module(x)).detach().abs().max()) > 1e-4


def test_statistics_and_frozen_tensors_are_copied() -> None:
    module = _made(
        lambda: nn.Sequential(nn.Conv1d(1, 2, 2), nn.BatchNorm1d(2), nn.Tanh(), nn.Flatten(), nn.Linear(4, 2))
    )
    module[0].weight.requires_grad_(False)
    module[4].weight.requires_grad_(False)
    x = draw(9, 1, 3)
    (layer,) = _layers(module, x)
    e = embeddings.split(module, layer, 1, 0.25)
    f, theta = Objective.of(module, "mse", Rows(x, draw(9, 2)), dtype=F64)
    assert torch.equal(e.module[1].running_var, module[1].running_var[[0, 1, 1]])
    assert torch.equal(e.module[0].weight, module[0].weight[[0, 1, 1]])
    other = {name: value + 1 for name, value in f.buffers.items()}
    moved = f.with_buffers(other)
    close(e.wide_objective(moved).outputs(e.lift(theta)), moved.outputs(theta), SAME)
    # by the statistics of the batch as well
    batch = f.with_buffers(f.buffers, norm="batch")
    close(e.wide_objective(batch).outputs(e.lift(theta)), batch.outputs(theta), SAME)


# -- symmetries ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [nn.Tanh, nn.ReLU, nn.GELU])
def test_canonical_points_are_one_for_all_images(activation: type[nn.Module]) -> None:
    module, x = _made(_mlp(3, 4, 3, 2, activation=activation)), draw(9, 3)
    found = _layers(module, x)
    f, theta = Objective.of(module, "mse", Rows(x, draw(9, 2)), dtype=F64)
    stands = embeddings.canonical(module, found, theta)
    close(f.outputs(stands), f.outputs(theta), SAME)
    # an image, made by hand: units turned round, signs or scales on both sides
    w1, b1, w2, b2, w3, b3 = f.model.split(theta)
    scales = {nn.Tanh: [1.0, -1, -1, 1], nn.ReLU: [0.5, 3, 1, 2], nn.GELU: [1.0] * 4}[activation]
    s, p = torch.tensor(scales, dtype=F64), torch.tensor([2, 0, 3, 1])
    image = torch.cat([t.flatten() for t in ((s[:, None] * w1)[p], (s * b1)[p], (w2 / s)[:, p], b2, w3, b3)])
    assert float((image - theta).abs().max()) > 0.1
    close(embeddings.canonical(module, found, image), stands, 1e-14)
    assert not torch.equal(stands, theta)


def test_counts_of_subspaces_are_those_of_enumeration() -> None:
    for r, m in ((1, 1), (2, 3), (2, 4), (3, 5), (3, 3)):
        onto = sum(len(set(f)) == r for f in itertools.product(range(r), repeat=m))
        assert embeddings.surjections(r, m) == onto
        # r groups with names and any number without: colourings of m units, the unnamed colours up to renaming
        named = set()
        for colours in itertools.product(range(m + 1), repeat=m):
            if set(range(r)) <= set(colours):
                rename: dict[int, int] = {}
                named.add(tuple(c if c < r else -1 - rename.setdefault(c, len(rename)) for c in colours))
        assert embeddings.manifolds(r, m) == len(named)
    assert embeddings.manifolds(1, 2) == 3


# -- bad input ----------------------------------------------------------------------------------------------------------


def test_bad_input() -> None:
    module, x = _made(_mlp(3, 2, 2)), draw(5, 3)
    (layer,) = _layers(module, x)
    e = embeddings.split(module, layer, 0, 0.5)
    other, theta = Objective.of(_made(_mlp(3, 3, 2)), "mse", Rows(x, draw(5, 2)), dtype=F64)
    cases: list[tuple[str, Callable[[], object]]] = [
        ("has no unit 2: it has 2", lambda: embeddings.split(module, layer, 2, 0.5)),
        ("finite number", lambda: embeddings.split(module, layer, 0, math.nan)),
        ("nothing but rounding", lambda: embeddings.split(module, layer, 0, -1e300)),
        ("network of 14 parameters", lambda: e.lift(theta)),
        ("have 20 entries", lambda: e.adjoint(theta[:5])),
        ("embedding of another network", lambda: e.wide_objective(other)),
        ("embedding of another network", lambda: e @ e),
        ("reads by 4 numbers", lambda: embeddings.inactive(module, layer, torch.zeros(3))),
        ("cannot be widened to 1", lambda: embeddings.to_width(module, {layer: 1})),
        ("unknown policy 'odd'", lambda: embeddings.to_width(module, {layer: 3}, "odd")),  # type: ignore[arg-type]
        ("at least one", lambda: embeddings.to_width(module, {})),
        ("at least once", lambda: embeddings.compatible(module, {layer: [0, 0, -1]})),
        ("at least once", lambda: embeddings.compatible(module, {layer: [0, 1, 2]})),
        ("not restricted", lambda: e.wide_objective(other.among(theta, "*weight")[0])),
        ("has shape", lambda: embeddings.canonical(module, [layer], theta)),
    ]
    for message, call in cases:
        with pytest.raises(UsageError, match=message):
            call()
    bare = _made(_mlp(3, 2, 2, bias=False))
    with pytest.raises(UsageError, match="has no bias"):
        embeddings.null(bare, _layers(bare, x)[0], 1.0)
