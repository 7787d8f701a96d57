"""Inertias against spectra that are known, and the blocks of a unit against closed forms in numpy and the dense Hessians of torch.func."""

import itertools
import math

import numpy as np
import pytest
import torch
from problems import EPS, F64, Gated, close, draw, planted
from scipy import optimize
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape import embeddings, inertias, units
from landscape.errors import LandscapeError, UsageError
from landscape.inertias import Blocks, Inertia, blocks, directions, inertia, predicted
from landscape.objectives import Objective, Rows
from landscape.operators import SymmetricOperator
from landscape.seeds import global_stream

# an entry of C^T H C adds up some 50 numbers of size 1 twice, each a sum over some 50 rows: 100 eps of the largest entry, ten times over
CONGRUENT = 1e3 * EPS


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention, self.out = nn.MultiheadAttention(4, 2, batch_first=True), nn.Linear(4, 2)

    def forward(self, x):
        return self.out(self.attention(x, x, x, need_weights=False)[0].mean(1))


class Mixing(nn.Module):
    """A softmax over positions between a dense layer and its reader: no sum over positions."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x):
        return self.last(self.first(x).softmax(1))[:, 0]


def mlp(*sizes: int, activation: type[nn.Module] = nn.Tanh) -> nn.Module:
    parts: list[nn.Module] = []
    for ins, outs in itertools.pairwise(sizes):
        parts += [nn.Linear(ins, outs), activation()]
    return nn.Sequential(*parts[:-1])


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 2, 2, padding=1), nn.Tanh(), nn.AvgPool2d(2), nn.Conv2d(2, 2, 2), nn.GELU(), nn.Flatten(), nn.Linear(2, 2)
    )  # fmt: skip


MADE = {
    "two layers": (lambda: mlp(3, 4, 2), (3,)),
    "three layers": (lambda: mlp(3, 4, 3, 2, activation=nn.GELU), (3,)),
    "convolutions": (cnn, (1, 4, 4)),
    "one dimension": (lambda: nn.Sequential(nn.Conv1d(2, 3, 3, stride=2), nn.SiLU(), nn.Flatten(), nn.Linear(9, 2)), (2, 7)),
    "norm": (lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 2)), (3,)),
    "gated": (Gated, (3,)),
    "heads": (Attending, (3, 4)),
    "mixing": (Mixing, (3, 3)),
}  # fmt: skip


def random(make, seed: int) -> nn.Module:
    """With normal weights of deviation 0.7, biases too."""
    with global_stream(seed, "inertias"):
        module = make().double().eval()
        for tensor in module.parameters():
            nn.init.normal_(tensor, std=0.7)
    return module


def posed(name: str, rows: int = 13, seed: int = 0, chunk: int = 5) -> tuple[Objective, Tensor, list[units.Layer]]:
    make, shape = MADE[name]
    module, x = random(make, seed), draw(rows, *shape, seed=seed)
    f, theta = Objective.of(module, "mse", Rows(x, draw(rows, 2, seed=seed + 1)), dtype=F64, chunk=chunk)
    return f, theta, [layer for layer in units.layers(module, x[:2]) if not layer.refusals]


def value(module: nn.Module, x: Tensor, y: Tensor):
    """The mean squared error as a function of the flat parameters, by torch.func alone; and these."""
    names = [name for name, _ in module.named_parameters()]
    shapes = [tensor.shape for _, tensor in module.named_parameters()]

    def outputs(flat: Tensor) -> Tensor:
        pieces = torch.split(flat, [shape.numel() for shape in shapes])
        state = {name: piece.view(shape) for name, piece, shape in zip(names, pieces, shapes, strict=True)}
        return torch.func.functional_call(module, state, (x,))

    flat = torch.cat([tensor.detach().flatten() for tensor in module.parameters()])
    return outputs, lambda w: ((outputs(w) - y) ** 2).mean(), flat


def hessian(function):
    """torch.func's, forward over reverse: with the one attention kernel that has both."""

    def at(w: Tensor) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return torch.func.hessian(function)(w)

    return at


# -- counts -----------------------------------------------------------------------------------------------------------


def test_counts_of_a_planted_spectrum():
    spectrum = np.array([3.0, 2, 1e-3, 0, 0, 0, 0, -1e-3, -5])
    found = inertia(planted(spectrum))
    assert found.counts == (3, 4, 2)
    assert not found.ambiguous and found.cut < 1e-10 and found.gap > 1e9
    assert inertia(torch.from_numpy(planted(spectrum))).counts == (3, 4, 2)
    assert inertia(spectrum).gap == math.inf  # the zeros are exact
    assert inertia(SymmetricOperator.from_dense(torch.from_numpy(planted(spectrum)))).counts == (3, 4, 2)


def test_what_lies_near_the_cut_is_said():
    values = np.array([1.0, 1e-6, -1.0])
    for cut, counts, ambiguous in (
        (1e-8, (2, 0, 1), False),
        (2e-7, (2, 0, 1), True),
        (5e-6, (1, 1, 1), True),
        (1e-3, (1, 1, 1), False),
    ):
        found = inertia(values, cut=cut)
        assert (found.counts, found.ambiguous) == (counts, ambiguous)
    # a gradient that is not quite 0 moves zeros by its size over that of the weights
    assert inertia(values, slope=1e-4).counts == (1, 1, 1)
    both = inertia(values, cut=1e-8) + inertia(np.array([2.0, 0.0]), cut=1e-4)
    assert both.counts == (3, 1, 1) and both.cut == 1e-4


def test_matrices_that_have_none_are_refused():
    with pytest.raises(LandscapeError, match="not finite"):
        inertia(np.array([[1.0, math.nan], [math.nan, 0]]))
    with pytest.raises(UsageError, match="square"):
        inertia(np.ones((2, 3)))


def test_large_operators_are_counted_by_lanczos(monkeypatch):
    # 30 outliers above, 10 below and a bulk far from 0: the quadrature's nodes leave nothing near the cut
    monkeypatch.setattr(inertias, "DENSE", 100)
    spectrum = torch.cat([torch.linspace(5, 9, 30), torch.linspace(0.5, 1.5, 450), -torch.linspace(2, 4, 20)]).double()
    operator = SymmetricOperator(500, lambda v: spectrum * v, F64, torch.device("cpu"))
    found = inertia(operator)
    assert found.counts == (480, 0, 20) and math.isnan(found.gap)
    # of 401 eigenvalues in [-1, 1] Lanczos tells no signs
    dense = torch.linspace(-1, 1, 401, dtype=F64)
    assert inertia(SymmetricOperator(401, lambda v: dense * v, F64, torch.device("cpu"))).ambiguous


def test_an_embedded_hessian_may_have_fewer_zeros():
    # A^T H A = h bounds the numbers of positive and negative eigenvalues, and not of zeros: the published proof of the latter has this gap
    H, A = np.array([[0.0, 1], [1, 0]]), np.array([[1.0], [0]])
    assert inertia(A.T @ H @ A).zero == 1 and inertia(H).zero == 0


# -- blocks -----------------------------------------------------------------------------------------------------------


def test_blocks_of_a_dense_layer_are_the_closed_forms():
    f, theta, layers = posed("two layers")
    first, _, last = (part for part in f.module(theta))
    w, b, a, c = (tensor.detach().numpy() for tensor in (first.weight, first.bias, last.weight, last.bias))
    x, y = f.rows.inputs.numpy(), f.rows.targets.numpy()
    h = np.tanh(x @ w.T + b)
    e = 2 * (h @ a.T + c - y) / y.size
    seen = np.concatenate([x, np.ones((len(x), 1))], 1)
    for unit in (0, 3):
        slope = 1 - h[:, unit] ** 2
        found = blocks(f, theta, layers[0], unit)
        close(found.B, e.T @ (slope[:, None] * seen), 1e-14)
        close(found.G, (seen.T * ((e @ a[:, unit]) * -2 * h[:, unit] * slope)) @ seen, 1e-14)
        # a^T B is the gradient by the unit's input side
        close(
            a[:, unit] @ found.B,
            f.gradient(theta)[inertias._places(f.model.layout, layers[0].copies, unit)].numpy(),
            1e-14,
        )


@pytest.mark.parametrize("name", MADE)
def test_the_congruence_is_exact_at_any_point(name):
    f, theta, layers = posed(name)
    for layer in layers:
        unit, ratio = layer.size - 1, 0.3
        found = blocks(f, theta, layer, unit)
        embedding = embeddings.split(f.module(theta), layer, unit, ratio)
        point = embedding.lift(theta)
        _, wide, flat = value(embedding.module, f.rows.inputs, f.rows.targets)
        close(flat, point, 0)
        columns, q = directions(embedding.wide, layer.grown(layer.size + 1), unit, layer.size, ratio, point)
        assert found.B.shape == (q, len(columns) - q)
        frame = torch.cat([embedding.push(torch.eye(f.dim, dtype=F64)), columns])
        whole = frame @ hessian(wide)(flat) @ frame.T
        truth = torch.block_diag(
            hessian(value(f.module(theta), f.rows.inputs, f.rows.targets)[1])(theta),
            torch.from_numpy(found.K(ratio)),
        )
        close(whole, truth, CONGRUENT * float(whole.abs().max()))
        assert float(truth[f.dim :, f.dim :].abs().max()) > 1e-4  # else nothing was compared


@pytest.mark.parametrize("name", ["two layers", "three layers", "convolutions", "one dimension"])
def test_activations_and_products_give_one_answer(name):
    f, theta, layers = posed(name)
    for layer in layers:
        fast, slow = inertias.by_activations(f, theta, layer, 1), inertias.by_products(f, theta, layer, 1)
        close(fast.B, slow.B, 1e-12)
        close(fast.G, slow.G, 1e-12)


@pytest.mark.parametrize("name", ["norm", "gated", "heads", "mixing"])
def test_what_is_no_sum_over_positions_is_left_to_products(name):
    f, theta, layers = posed(name)
    assert inertias.by_activations(f, theta, layers[0], 0) is None


def test_weights_of_rows_count():
    # classes of other weights, and a row that is ignored: f = sum l / sum c
    module, x = random(lambda: mlp(3, 4, 2), 0), draw(9, 3)
    targets = torch.tensor([0, 1, 1, 0, -100, 1, 0, 0, 1])
    weights = torch.tensor([0.2, 3.0], dtype=F64)
    f, theta = Objective.of(module, nn.CrossEntropyLoss(weight=weights), Rows(x, targets), dtype=F64, chunk=4)
    (layer,) = units.layers(module, x)
    fast, slow = inertias.by_activations(f, theta, layer, 2), inertias.by_products(f, theta, layer, 2)
    close(fast.B, slow.B, 1e-13)
    close(fast.G, slow.G, 1e-13)


def test_only_trained_parameters_have_blocks():
    module, x = random(lambda: mlp(3, 4, 2), 0), draw(9, 3)
    module[0].bias.requires_grad_(False)
    f, theta = Objective.of(module, "mse", Rows(x, draw(9, 2, seed=3)), dtype=F64)
    (layer,) = units.layers(module, x)
    fast, slow = inertias.by_activations(f, theta, layer, 2), inertias.by_products(f, theta, layer, 2)
    assert fast.B.shape == (2, 3)
    close(fast.B, slow.B, 1e-13)
    close(fast.G, slow.G, 1e-13)


# -- predictions ------------------------------------------------------------------------------------------------------


def plant(module: nn.Module, x: Tensor, outputs: int, seed: int) -> tuple[Objective, Tensor]:
    """A mean squared error of which the module stands at a critical point: y = f - e with J^T e = 0."""
    ask, _, flat = value(module, x, torch.zeros(()))
    jacobian = torch.func.jacrev(lambda w: ask(w).flatten())(flat)
    left = torch.linalg.svd(jacobian, full_matrices=True)[0]
    rank = int(torch.linalg.matrix_rank(jacobian))
    e = left[:, rank:] @ draw(len(left) - rank, seed=seed)
    y = ask(flat) - (e / e.norm() * math.sqrt(len(e)) / 2).view(-1, outputs)
    return Objective.of(module, "mse", Rows(x, y), dtype=F64, chunk=len(x))


KINDS = {
    "2 layers, 1 output": (lambda: mlp(2, 3, 1), (2,), 1, 30),
    "2 layers, 3 outputs": (lambda: mlp(2, 3, 3), (2,), 3, 20),
    "3 layers, 1 output": (lambda: mlp(2, 3, 2, 1), (2,), 1, 40),
    "3 layers, 3 outputs": (lambda: mlp(2, 2, 3, 3, activation=nn.GELU), (2,), 3, 20),
    "4 layers, 1 output": (lambda: mlp(2, 2, 2, 2, 1), (2,), 1, 40),
    "4 layers, 3 outputs": (lambda: mlp(2, 2, 2, 2, 3), (2,), 3, 20),
    "convolutions": (cnn, (1, 4, 4), 2, 30),
}
DRAWN = 16  # points of each


def test_predicted_inertias_are_those_of_dense_hessians_at_planted_points(capsys):
    told = {name: [0, 0, 0] for name in KINDS}  # agree, differ, ambiguous
    for name, (make, shape, outputs, rows) in KINDS.items():
        for seed in range(DRAWN):
            module, x = random(make, seed), draw(rows, *shape, seed=seed)
            f, theta = plant(module, x, outputs, seed)
            assert float(f.gradient(theta).norm()) < 1e-13
            layers = units.layers(module, x[:2])
            layer = layers[seed % len(layers)]
            unit, ratio = seed % layer.size, (0.5, 0.2, -0.7, 1.0)[seed // 4]
            narrow = inertia(hessian(value(module, x, f.rows.targets)[1])(theta))
            told_before = predicted(narrow, blocks(f, theta, layer, unit), ratio)
            embedding = embeddings.split(module, layer, unit, ratio)
            _, wide, flat = value(embedding.module, x, f.rows.targets)
            truth = inertia(hessian(wide)(flat))
            place = 2 if told_before.ambiguous or truth.ambiguous else int(told_before.counts != truth.counts)
            told[name][place] += 1
    with capsys.disabled():
        print("".join(f"\n  {name}: {a} agree, {d} differ, {u} ambiguous" for name, (a, d, u) in told.items()))
    assert sum(agree for agree, _, _ in told.values()) >= 100
    assert not any(differ for _, differ, _ in told.values())


def test_the_inertia_of_k_is_the_formula():
    # (r, q - r, r) + In(ratio (1 - ratio) Z^T G Z), with B of rank r by construction
    for q, p, r in ((3, 5, 3), (3, 5, 1), (4, 2, 1), (2, 4, 0)):
        B = (draw(q, r, seed=q) @ draw(r, p, seed=p)).numpy() if r else np.zeros((q, p))
        G = planted(np.linspace(-1.1, 2, p), seed=q)  # none of them 0
        null = np.linalg.svd(B)[2][r:]
        own = np.linalg.eigvalsh(null @ G @ null.T)
        ends = (int((own > 0).sum()), int((own < 0).sum()))
        nothing = Inertia(0, 0, 0, 0.0, math.inf, False)
        for ratio in (0.5, -1.0, 3.0, 0.0, 1.0):
            sign = np.sign(ratio * (1 - ratio))
            more = ends if sign > 0 else ends[::-1] if sign < 0 else (0, 0)
            flat = q - r + (p - r if sign == 0 else 0)
            assert predicted(nothing, Blocks(B, G), ratio).counts == (r + more[0], flat, r + more[1])


def test_one_unit_split_again_and_again():
    f, theta, layers = posed("two layers")
    module, x, y = f.module(theta), f.rows.inputs, f.rows.targets
    narrow = inertia(hessian(value(module, x, y)[1])(theta))
    assert inertias.equal_ratios(4) == [1 / 4, 1 / 3, 1 / 2]
    for ratios in ([0.3, -0.5, 2.0], inertias.equal_ratios(4)):
        made, layer = module, layers[0]
        for ratio in ratios:
            made = embeddings.split(made, layer, 1, ratio).module
            layer = layer.grown(layer.size + 1)
        _, wide, flat = value(made, x, y)
        assert inertia(hessian(wide)(flat)).counts == predicted(narrow, blocks(f, theta, layers[0], 1), ratios).counts
    close(
        made[2].weight[:, [1, 4, 5, 6]].detach(), module[2].weight[:, [1]].detach() / 4 * torch.ones(4), 1e-15
    )  # equal shares


def test_null_units_add_the_rank_of_b():
    module, x = random(lambda: mlp(2, 3, 3), 1), draw(20, 2, seed=1)
    f, theta = plant(module, x, 3, 1)
    (layer,) = units.layers(module, x)
    embedding = embeddings.null(module, layer, 0.4)
    wide, point = embedding.wide_objective(f), embedding.lift(theta)
    own = blocks(wide, point, layer.grown(4), 3)
    # B = sigma'(bias) E[e f^T]
    e = (2 * (f.outputs(theta) - f.rows.targets) / f.rows.targets.numel()).numpy()
    seen = np.concatenate([x.numpy(), np.ones((20, 1))], 1)
    close(own.B, (1 - math.tanh(0.4) ** 2) * e.T @ seen, 1e-14)
    close(own.G, np.zeros((3, 3)), 0)
    rank = 2  # of 3 rows by 3 columns, of which the bias's is the gradient by output biases, 0
    before = inertia(hessian(value(module, x, f.rows.targets)[1])(theta))
    truth = inertia(hessian(value(embedding.module, x, f.rows.targets)[1])(point))
    more = np.subtract(truth.counts, before.counts)
    assert more.tolist() == [rank, 3 + 3 - 2 * rank, rank]
    assert predicted(before, own, 0.0).counts == truth.counts


def fitted() -> tuple[nn.Module, Tensor, Tensor]:
    """A strict local minimum of a 1-2-1 tanh network with a residual: from the network that made the targets, by scipy's Levenberg-Marquardt and three Newton steps to the last digit."""
    x = torch.linspace(-3, 3, 40, dtype=F64)[:, None]
    module = mlp(1, 2, 1).double()
    nn.utils.vector_to_parameters(torch.tensor([2.0, -1, 1.5, 1, 1, 1.5, 0.2], dtype=F64), module.parameters())
    outputs, _, start = value(module, x, torch.zeros(()))
    y = outputs(start) + 0.1 * draw(40, 1)
    slopes, loss = torch.func.jacrev(lambda w: outputs(w).flatten()), value(module, x, y)[1]
    found = optimize.least_squares(
        lambda w: (outputs(torch.from_numpy(w)) - y).flatten().numpy(), start.numpy(), lambda w: slopes(torch.from_numpy(w)).numpy(), method="lm"
    )  # fmt: skip
    w = torch.from_numpy(found.x)
    for _ in range(3):
        w = w - torch.linalg.solve(hessian(loss)(w), torch.func.grad(loss)(w))
    nn.utils.vector_to_parameters(w, module.parameters())
    return module, x, y


def test_threefold_splitting_makes_a_minimum_a_strict_saddle():
    module, x, y = fitted()
    f, theta = Objective.of(module, "mse", Rows(x, y), dtype=F64)
    assert float(f.gradient(theta).norm()) < 1e-12 and float(f(theta)) > 1e-6
    before = inertia(hessian(value(module, x, y)[1])(theta))
    assert before.counts == (7, 0, 0)
    (layer,) = units.layers(module, x)
    told = before
    for unit in range(2):
        told = predicted(told, blocks(f, theta, layer, unit), (-1.0, 0.5))
    wide = embeddings.threefold(module, [layer]).module
    truth = inertia(hessian(value(wide, x, y)[1])(value(wide, x, y)[2]))
    assert truth.counts == told.counts == (11, 4, 4)


def test_the_sign_table_of_fukumizu_and_amari():
    # a tanh(w x): one unit, no bias, one output; B = 0 at a critical point, and G is one number. Its sign decides on which side of 0 and 1 splits are minima
    x = draw(30, 1, seed=8)
    seen = set()
    for seed in range(8):
        module = random(
            lambda: nn.Sequential(nn.Linear(1, 1, bias=False), nn.Tanh(), nn.Linear(1, 1, bias=False)), seed
        )
        f, theta = plant(module, x, 1, seed)
        (layer,) = units.layers(module, x)
        own = blocks(f, theta, layer, 0)
        close(own.B, np.zeros((1, 1)), 1e-15)
        sign = float(np.sign(own.G[0, 0]))
        seen.add(sign)
        before = inertia(hessian(value(module, x, f.rows.targets)[1])(theta))
        for ratio in (-0.5, 0.0, 0.2, 0.5, 1.0, 1.5):
            wide = embeddings.split(module, layer, 0, ratio).module
            truth = inertia(hessian(value(wide, x, f.rows.targets)[1])(value(wide, x, f.rows.targets)[2]))
            inside = float(np.sign(ratio * (1 - ratio))) * sign
            assert np.subtract(truth.counts, before.counts).tolist() == [inside > 0, 1 + (inside == 0), inside < 0]
            assert predicted(before, own, ratio).counts == truth.counts
    assert seen == {1.0, -1.0}


# -- the way out ------------------------------------------------------------------------------------------------------


def test_the_escape_direction_has_the_curvature_it_is_said_to_have():
    module, x = random(lambda: mlp(2, 3, 3), 2), draw(20, 2, seed=2)
    f, theta = plant(module, x, 3, 2)
    (layer,) = units.layers(module, x)
    curvature, coordinates = blocks(f, theta, layer, 1).escape(0.3)
    embedding = embeddings.split(module, layer, 1, 0.3)
    wide, point = embedding.wide_objective(f), embedding.lift(theta)
    columns, _ = directions(embedding.wide, layer.grown(4), 1, 3, 0.3, point)
    v = torch.from_numpy(coordinates) @ columns
    assert curvature < 0 and float(v.norm()) == pytest.approx(1, abs=1e-14)
    # central second difference: truncation h^2 / 12 of the fourth derivative, and 4 eps f / h^2 of rounding, at h = 1e-3 below 1e-6 and 1e-9
    h = 1e-3
    second = float(wide(point + h * v) + wide(point - h * v) - 2 * wide(point)) / h**2
    assert second == pytest.approx(curvature, abs=1e-5 * max(1, abs(curvature)))
    # no unit vector of the block is lower
    frame = torch.linalg.qr(columns.T)[0].T
    block = frame @ hessian(value(embedding.module, x, f.rows.targets)[1])(point) @ frame.T
    assert float(torch.linalg.eigvalsh(block)[0]) == pytest.approx(curvature, abs=1e-13)


def test_scalings_of_homogeneous_units_are_counted():
    module, x = random(lambda: mlp(2, 3, 3, 2, activation=nn.ReLU), 3), draw(9, 2)
    layers = units.layers(module, x)
    f, theta = Objective.of(module, "mse", Rows(x, draw(9, 2, seed=1)), dtype=F64)
    assert inertias.scalings(f.model.layout, theta, layers) == 6
    dead = theta.clone()
    for slices in (layers[0].copies, layers[0].scaled):
        dead[inertias._places(f.model.layout, slices, 1)] = 0  # nothing to scale on either side
    assert inertias.scalings(f.model.layout, dead, layers) == 5
    smooth = random(lambda: mlp(2, 3, 2), 3)
    assert (
        inertias.scalings(
            Objective.of(smooth, "mse", Rows(x, draw(9, 2)), dtype=F64)[0].model.layout,
            torch.zeros(17, dtype=F64),
            units.layers(smooth, x),
        )
        == 0
    )


# -- refusals ---------------------------------------------------------------------------------------------------------


def test_kinks_are_refused_unless_pieces_are_asked_for():
    module, x = random(lambda: mlp(2, 3, 1, activation=nn.ReLU), 0), draw(12, 2)
    f, theta = Objective.of(module, "mse", Rows(x, draw(12, 1)), dtype=F64)
    (layer,) = units.layers(module, x)
    with pytest.raises(UsageError, match=r"relu.*no second derivative.*pieces"):
        blocks(f, theta, layer, 0)
    found = blocks(f, theta, layer, 0, pieces=True)
    close(found.G, np.zeros((3, 3)), 0)
    pooled = nn.Sequential(nn.Conv1d(1, 2, 2), nn.Tanh(), nn.MaxPool1d(2), nn.Flatten(), nn.Linear(4, 1)).double()
    g, w = Objective.of(pooled, "mse", Rows(draw(5, 1, 5), draw(5, 1)), dtype=F64)
    assert inertias.kinks(g, w) == ("max_pool1d",)


def test_units_that_are_not_there_are_refused():
    f, theta, layers = posed("two layers")
    with pytest.raises(UsageError, match="has no unit 4"):
        blocks(f, theta, layers[0], 4)
    with pytest.raises(UsageError, match="not restricted"):
        blocks(f.among(theta, "0.weight")[0], theta[:12], layers[0], 0)
    formula = Objective.from_function(lambda w: w.square().sum(), 3)
    with pytest.raises(UsageError, match="of a module"):
        blocks(formula, torch.zeros(3, dtype=F64), layers[0], 0)
