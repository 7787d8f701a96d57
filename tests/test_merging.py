"""Reduction against networks that were widened by hand, functions against their characters, bounds against what they bound."""

import itertools
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from problems import EPS, F64, draw, filled
from torch import Tensor, nn
from torch.nn import functional

from landscape import embeddings, merging, subspaces, units
from landscape.errors import LandscapeError, UsageError
from landscape.merging import CHARACTERS, grouped, neurons, reduce, spectral_order
from landscape.objectives import Objective, Rows


def mlp(*sizes: int, activation: Callable[[], nn.Module] = nn.ReLU, bias: bool = True) -> nn.Sequential:
    parts: list[nn.Module] = []
    for into, out in itertools.pairwise(sizes):
        parts += [nn.Linear(into, out, bias=bias), activation()]
    return filled(nn.Sequential(*parts[:-1]))  # type: ignore[return-value]


def problem(module: nn.Module, *shape: int, n: int = 11) -> tuple[Objective, Tensor, tuple[units.Layer, ...]]:
    x = draw(n, *shape)
    with torch.no_grad():
        y = draw(*module.eval()(x).shape, seed=5)
    f, z = Objective.of(module, "mse", Rows(x, y), dtype=F64)
    return f, z, units.layers(module, x[:2])


def appended(module: nn.Sequential, layer: int, row: Tensor, bias: Tensor, column: Tensor) -> None:
    """One more unit, by hand."""
    own, reader = module[layer], module[layer + 2]
    assert isinstance(own, nn.Linear)
    assert isinstance(reader, nn.Linear)
    own.weight = nn.Parameter(torch.cat([own.weight.detach(), row[None]]))
    if own.bias is not None:
        own.bias = nn.Parameter(torch.cat([own.bias.detach(), bias[None]]))
    reader.weight = nn.Parameter(torch.cat([reader.weight.detach(), column[:, None]], dim=1))
    own.out_features = reader.in_features = len(own.weight)


def split(module: nn.Sequential, layer: int, unit: int, ratio: float, scale: float = 1.0, sign: float = 1.0) -> None:
    """Unit `unit` loses a share `ratio` of its output to a new one with input weights scale times sign times its own."""
    own, reader = module[layer], module[layer + 2]
    column = reader.weight.detach()[:, unit].clone()
    factor = scale * sign
    with torch.no_grad():
        reader.weight[:, unit] *= 1 - ratio
    bias = own.bias.detach()[unit] * factor if own.bias is not None else torch.zeros((), dtype=F64)
    appended(module, layer, own.weight.detach()[unit] * factor, bias, column * ratio / factor)


# -- characters -------------------------------------------------------------------------------------------------------


def function(name: str) -> Callable[[Tensor], Tensor]:
    if name == "identity":
        return lambda x: x
    return getattr(functional, name, None) or getattr(torch, name)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", CHARACTERS)
def test_an_activation_has_the_character_that_is_said_of_it(name):
    sigma, character = function(name), CHARACTERS[name]
    x = torch.linspace(-12, 12, 4801, dtype=F64)
    y = sigma(x)
    # values up to 12: a few roundings of them
    near = 100 * EPS * 12

    def holds(one: Tensor, other: Tensor) -> bool:
        return bool((one - other).abs().max() < near)

    assert holds(sigma(3 * x), 3 * y) == character.homogeneous
    assert holds(sigma(-x), y) == character.even
    sums = sigma(-x) + y
    assert holds(sums, sums[:1]) == (character.level is not None)
    if character.level is not None:
        assert holds(sums, torch.full_like(sums, 2 * character.level))
    assert (abs(float(sigma(torch.zeros(1, dtype=F64)))) < near) == character.vanishes
    slope = float((y.diff() / x.diff()).abs().max())
    # a slope is a mean of derivatives: never above the supremum, and within a step of 0.005 of it, where derivatives turn by at most 1 a unit
    assert character.lipschitz * (1 - 0.005) <= slope <= character.lipschitz + 1e-12
    if character.multiplicity is not None:
        # one-sided at h = 1e-2: sigma(h) - sigma(0) is c h^p (1 + O(h)), so that its order is told by halving h
        h = torch.tensor([0.0, 0.005, 0.01], dtype=F64)
        zero, half, whole = sigma(h)
        assert round(math.log2(float((whole - zero) / (half - zero)))) == character.multiplicity


# -- what was split comes back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.Sigmoid])
def test_a_split_network_comes_back_to_the_bit(activation):
    f, z, _ = problem(mlp(3, 4, 3, 2, activation=activation), 3)
    wide = mlp(3, 4, 3, 2, activation=activation)
    # shares 1/4 and 2 of a binary number are exact, and so are their sums
    split(wide, 0, 1, 0.25)
    split(wide, 0, 3, 2.0)
    split(wide, 2, 0, 0.5)
    appended(wide, 2, draw(4 + 2, seed=3), draw(1, seed=4)[0], torch.zeros(2, dtype=F64))  # nothing reads it
    g, y, layers = problem(wide, 3)
    reduced = reduce(g, y, layers, similarity=1.0, share=0.0)
    assert reduced.widths == {"0": 4, "2": 3}
    assert torch.equal(reduced.point, z)
    assert [entry.name for entry in reduced.f.model.layout.entries] == [entry.name for entry in f.model.layout.entries]
    assert reduced.bound == 0
    assert reduced.layers[1].null == (4,)
    assert {merge.members for merge in reduced.layers[0].merges} == {(0,), (1, 4), (2,), (3, 5)}


def test_other_ratios_come_back_to_rounding():
    _, z, _ = problem(mlp(3, 4, 2), 3)
    wide = mlp(3, 4, 2)
    split(wide, 0, 1, 0.3)
    g, y, layers = problem(wide, 3)
    # (1 - r) a, r a and their sum are rounded once each
    assert (reduce(g, y, layers, similarity=1.0).point - z).abs().max() <= 3 * EPS * z.abs().max()


def test_a_network_without_like_units_is_left_as_it_is():
    f, z, layers = problem(mlp(3, 4, 3, 2), 3)
    reduced = reduce(f, z, layers, similarity=1.0, share=0.0)
    assert torch.equal(reduced.point, z)
    assert float(reduced.f(reduced.point)) == float(f(z))


class Gated(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.gate, self.up, self.down = nn.Linear(4, 5), nn.Linear(4, 5), nn.Linear(5, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.down(functional.silu(self.gate(x)) * self.up(x))
        return out


class Attending(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.head = nn.MultiheadAttention(6, 3, batch_first=True), nn.Linear(6, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.head(self.attention(x, x, x)[0].mean(1))
        return out


def convolutional() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(36, 3)
    )


@pytest.mark.parametrize(
    ("make", "shape"), [(convolutional, (2, 6, 6)), (Gated, (4,)), (Attending, (5, 6))], ids=["conv", "glu", "heads"]
)
def test_channels_gated_units_and_heads_come_back(make, shape):
    f, z, layers = problem(filled(make()), *shape)
    embedding = embeddings.split(f.module(z), layers[0], 1, 0.25)
    g, wide = embedding.wide_objective(f), embedding.lift(z)
    there = units.layers(g.module(wide), f.rows.inputs[:2])
    assert there[0].size == layers[0].size + 1
    reduced = reduce(g, wide, there[:1], similarity=1.0, share=0.0)
    assert torch.equal(reduced.point, z)
    for name, value in f.buffers.items():
        assert torch.equal(reduced.f.buffers[name], value)
    # attention is computed in another order of sums than torch's own
    assert (reduced.f.outputs(reduced.point) - f.outputs(z)).abs().max() < 100 * EPS * f.outputs(z).abs().max()


# -- the rules --------------------------------------------------------------------------------------------------------


def unchanged(module: nn.Sequential, width: int, *shape: int) -> merging.Reduced:
    f, z, layers = problem(module, *shape)
    reduced = reduce(f, z, layers, similarity=1.0, share=0.0)
    assert reduced.widths["0"] == width
    before, after = f.outputs(z), reduced.f.outputs(reduced.point)
    # sums of a few terms, each rounded
    assert (before - after).abs().max() <= 100 * EPS * before.abs().max()
    return reduced


def test_parallel_units_of_a_homogeneous_activation_merge_by_their_lengths():
    module = mlp(3, 4, 2)
    split(module, 0, 1, 0.4, scale=3.0)
    reduced = unchanged(module, 4, 3)
    merge = next(merge for merge in reduced.layers[0].merges if len(merge.members) > 1)
    assert merge.members == (1, 4)
    # the share 0.6 at length 1 outweighs the share 0.4 at length 3 over 3
    assert merge.kept == 1
    assert merge.scales[1] == pytest.approx(3.0, abs=10 * EPS)
    module = mlp(3, 4, 2)
    split(module, 0, 1, 0.4, sign=-1.0)  # relu tells u from -u
    unchanged(module, 5, 3)
    module = mlp(3, 4, 2, activation=nn.Tanh)
    split(module, 0, 1, 0.4, scale=3.0)  # tanh tells u from 3u
    unchanged(module, 5, 3)


def test_units_of_opposite_sign_merge_as_the_parity_says():
    odd = mlp(3, 4, 2, activation=nn.Tanh)
    split(odd, 0, 1, 0.4, sign=-1.0)
    assert next(merge.signs for merge in unchanged(odd, 4, 3).layers[0].merges if len(merge.members) > 1) == (1, -1)

    class Cosine(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x.cos()

    even = mlp(3, 4, 2, activation=Cosine)
    split(even, 0, 1, 0.4, sign=-1.0)
    with torch.no_grad():
        even[2].weight[:, 4] *= -1  # cos(-t) = cos(t)
    unchanged(even, 4, 3)

    level = mlp(3, 4, 2, activation=nn.Sigmoid)
    split(level, 0, 1, 0.4, sign=-1.0)
    reduced = unchanged(level, 4, 3)
    # 1 - sigma(t): the next bias takes up the output weight
    bias = reduced.f.module(reduced.point)[2].bias.detach()
    assert torch.allclose(bias, level[2].bias.detach() + level[2].weight.detach()[:, 4], rtol=0, atol=10 * EPS)
    # without a bias there they stay two
    level[2].bias = None
    unchanged(level, 5, 3)


def test_constants_go_into_the_next_bias_where_there_is_one():
    module = mlp(3, 4, 2, activation=nn.Tanh)
    column = draw(2, seed=7)
    appended(module, 0, torch.zeros(3, dtype=F64), torch.tensor(0.7, dtype=F64), column)
    reduced = unchanged(module, 4, 3)
    assert reduced.layers[0].constant == (4,)
    bias = reduced.f.module(reduced.point)[2].bias.detach()
    assert torch.allclose(bias, module[2].bias.detach() + math.tanh(0.7) * column, rtol=0, atol=10 * EPS)
    module[2].bias = None
    assert unchanged(module, 5, 3).layers[0].constant == ()


@pytest.mark.parametrize(("padding", "left"), [(1, 3), (0, 2)])
def test_a_constant_channel_before_zero_padding_stays(padding, left):
    # at the border the next convolution reads zeros, and no bias does that
    module = filled(nn.Sequential(nn.Conv2d(1, 3, 1), nn.Tanh(), nn.Conv2d(3, 2, 3, padding=padding), nn.Flatten()))
    with torch.no_grad():
        module[0].weight[1] = 0
    unchanged(module, left, 1, 5, 5)


def test_a_batchnorm_is_folded_into_the_weights_that_are_compared():
    module = filled(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))).eval()
    f, z, layers = problem(module, 3)
    own = neurons(f, z, layers[0])
    assert own.plain
    x = f.rows.inputs
    with torch.no_grad():
        truth = module[1](module[0](x))
    got = x @ own.inputs[:, :-1].T + own.inputs[:, -1]
    assert torch.allclose(got, truth, rtol=0, atol=100 * EPS * float(truth.abs().max()))
    # a norm after the activation is another thing: there only equal units merge
    after = filled(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2))).eval()
    f, z, layers = problem(after, 3)
    assert not neurons(f, z, layers[0]).plain


# -- bounds -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Tanh, nn.GELU, nn.Identity, nn.Sigmoid, nn.Softplus])
@pytest.mark.parametrize("similarity", [0.3, 0.7])
def test_the_outputs_never_move_by_more_than_the_bound(activation, similarity):
    f, z, layers = problem(mlp(2, 12, 9, 3, activation=activation), 2, n=40)
    reduced = reduce(f, z, layers, similarity=similarity, share=0.05)
    assert sum(reduced.widths.values()) < 21
    moved = torch.linalg.vector_norm(reduced.f.outputs(reduced.point) - f.outputs(z), dim=1).max()
    assert 0 < moved <= reduced.bound < math.inf
    # for any input: the slope of one layer alone, times the input's length and what comes after
    alone = reduce(f, z, layers[-1:], similarity=similarity, share=0.05)
    told = alone.layers[0]
    assert told.after == 1
    hidden = torch.nn.Sequential(*list(f.module(z))[:2])(f.rows.inputs).detach()
    lengths = torch.linalg.vector_norm(torch.cat([hidden, torch.ones(len(hidden), 1)], dim=1), dim=1)
    off = torch.linalg.vector_norm(alone.f.outputs(alone.point) - f.outputs(z), dim=1)
    assert bool((off <= told.slope * lengths).all())
    assert told.change <= told.slope * float(lengths.max()) * (1 + 100 * EPS)


def test_what_comes_after_counts_by_its_norms():
    module = mlp(2, 6, 5, 4, 3, activation=nn.SiLU)
    f, z, layers = problem(module, 2)
    norms = [np.linalg.svd(module[k].weight.detach().numpy(), compute_uv=False)[0] for k in (4, 6)]
    told = [reduce(f, z, [layer], similarity=0.2, share=0.0).layers[0].after for layer in layers]
    # the second layer's activation, its reader's weights, and so on
    truth = [1.0999**2 * norms[0] * norms[1], 1.0999 * norms[1], 1.0]
    assert told == pytest.approx(truth, rel=1e-12)


def test_small_units_that_do_not_vanish_at_zero_stay():
    for activation, left in ((nn.Sigmoid, 4), (nn.Tanh, 3)):
        module = mlp(3, 4, 2, activation=activation)
        with torch.no_grad():  # sigma(0) = 1/2 however small the weights
            module[0].weight[2] *= 1e-6
            module[0].bias[2] *= 1e-6
        f, z, layers = problem(module, 3)
        assert reduce(f, z, layers, similarity=1.0).widths == {"0": left}


def test_the_bound_is_reached_where_it_can_be():
    # two active relus at an angle t, of lengths 1 and 2 and output weights 3 and 1: merged into the first, whose amplitude is larger, the output moves by 1 * (u_2 - 2 u_1) . h
    t = 0.3
    module = filled(nn.Sequential(nn.Linear(2, 2, bias=False), nn.ReLU(), nn.Linear(2, 1, bias=False)))
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0, 0.0], [2 * math.cos(t), 2 * math.sin(t)]], dtype=F64))
        module[2].weight.copy_(torch.tensor([[3.0, 1.0]]))
    x = torch.tensor([[1.0, 0.5]], dtype=F64)
    f, z = Objective.of(module, "mse", Rows(x, torch.zeros(1, 1)), dtype=F64)
    reduced = reduce(f, z, units.layers(module, x.repeat(2, 1)), similarity=math.cos(t) - 1e-9, share=0.0)
    told = reduced.layers[0]
    assert reduced.point.tolist() == pytest.approx([1, 0, 5], abs=10 * EPS)
    assert told.merges[0].similarity == pytest.approx(math.cos(t), abs=10 * EPS)
    # |u_2 - 2 u_1| = 2 |u_2| sin(t / 2)
    assert told.slope == pytest.approx(4 * math.sin(t / 2), abs=20 * EPS)
    moved = abs(2 * math.cos(t) + math.sin(t) - 2)
    assert told.change == pytest.approx(moved, abs=20 * EPS)
    assert float((reduced.f.outputs(reduced.point) - f.outputs(z)).abs()) == pytest.approx(moved, abs=20 * EPS)


def test_rows_with_several_places_are_bounded_as_one_length():
    f, z, layers = problem(mlp(3, 10, 2, activation=nn.Tanh), 7, 3)
    reduced = reduce(f, z, layers, similarity=0.3)
    moved = (reduced.f.outputs(reduced.point) - f.outputs(z)).flatten(1)
    assert 0 < torch.linalg.vector_norm(moved, dim=1).max() <= reduced.bound < math.inf


def test_where_nothing_is_known_there_is_no_bound():
    f, z, layers = problem(mlp(3, 8, 2, activation=nn.Hardtanh), 3)
    assert math.isinf(reduce(f, z, layers, similarity=0.1).bound)
    f, z, layers = problem(filled(convolutional()), 2, 6, 6)
    assert math.isinf(reduce(f, z, layers, similarity=0.05).bound)


# -- groups -----------------------------------------------------------------------------------------------------------


def test_chains_are_one_component_and_no_complete_group():
    angles = np.deg2rad([0.0, 20.0, 40.0, 180.0])
    cosines = torch.from_numpy(np.cos(angles[:, None] - angles))
    # cos 20 = 0.94, cos 40 = 0.77
    assert grouped(cosines, 0.9, linkage="components") == [[0, 1, 2], [3]]
    assert sorted(map(len, grouped(cosines, 0.9))) == [1, 1, 2]
    assert grouped(cosines, 0.9, torch.tensor([True, False, True, True])) == [[0], [2], [3]]
    with pytest.raises(UsageError, match="similarity"):
        grouped(cosines, 0.0)


def test_every_group_is_as_similar_as_was_asked():
    found = torch.nn.functional.normalize(draw(60, 3), dim=1)
    cosines = found @ found.T
    groups = grouped(cosines, 0.8)
    assert sorted(unit for group in groups for unit in group) == list(range(60))
    assert all(float(cosines[group][:, group].min()) >= 0.8 for group in groups)
    # the components of a graph, by scipy
    from scipy.sparse import csgraph

    count, labels = csgraph.connected_components((cosines >= 0.8).numpy())
    components = grouped(cosines, 0.8, linkage="components")
    assert len(components) == count
    assert {frozenset(group) for group in components} == {frozenset(np.flatnonzero(labels == k).tolist()) for k in range(count)}  # fmt: skip


def test_planted_directions_are_counted_and_stand_side_by_side():
    module = mlp(6, 30, 2)
    directions = torch.linalg.qr(draw(7, 7, seed=1)).Q[:3]
    which = torch.arange(30) % 3
    augmented = directions[which] * (1 + draw(30, 1, seed=2).abs()) + 0.02 * draw(30, 7, seed=3)
    with torch.no_grad():
        module[0].weight.copy_(augmented[:, :6])
        module[0].bias.copy_(augmented[:, 6])
        module[2].weight.fill_(1.0)
        module[2].weight[:, 5] = 1e-6
    f, z, layers = problem(module, 6)
    own = neurons(f, z, layers[0])
    assert [sorted(set(which[group].tolist())) for group in own.groups()] == [[0], [1], [2]]
    assert sum(map(len, own.groups())) == 29
    assert own.negligible().nonzero().tolist() == [[5]]
    assert own.negligible(0.0).sum() == 0
    # the leading eigenvector of three orthogonal blocks of size 10, 10 and 10 lies in one of them or mixes them: made unequal, they are told apart
    blocks = torch.cat([torch.arange(15), torch.arange(15, 25), torch.arange(25, 30)])
    similar = torch.block_diag(*(torch.ones(size, size, dtype=F64) for size in (15, 10, 5))) + 0.05
    shuffled = torch.randperm(30, generator=torch.Generator().manual_seed(0))
    labels = torch.tensor([0] * 15 + [1] * 10 + [2] * 5)[blocks][shuffled]
    found = labels[spectral_order(similar[shuffled][:, shuffled])]
    assert int((found.diff() != 0).sum()) == 2


def test_amplitude_is_what_the_smallest_have_together():
    module = mlp(1, 4, 1, bias=False)
    with torch.no_grad():
        module[0].weight.copy_(torch.tensor([[1.0], [1], [1], [1]]))
        module[2].weight.copy_(torch.tensor([[0.5, 90, 0.4, 9.1]]))
    f, z, layers = problem(module, 1)
    own = neurons(f, z, layers[0])
    assert own.negligible(0.01).tolist() == [True, False, True, False]  # 0.9 of 100
    assert own.negligible(0.0089).tolist() == [False, False, True, False]
    assert reduce(f, z, layers, similarity=1.0).layers[0].negligible == (0, 2)


# -- bad input --------------------------------------------------------------------------------------------------------


def test_what_cannot_be_merged_is_refused():
    f, z, layers = problem(mlp(3, 4, 2), 3)
    with pytest.raises(UsageError, match="similarity"):
        reduce(f, z, layers, similarity=1.5)
    with pytest.raises(UsageError, match="restricted"):
        reduce(f.restrict(subspaces.coordinates(z, torch.ones(len(z), dtype=torch.bool))), z, layers)
    broken = z.clone()
    broken[0] = math.nan
    with pytest.raises(LandscapeError, match="not finite"):
        reduce(f, broken, layers)
    normed = filled(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.ReLU(), nn.Linear(4, 2)))
    f, z, layers = problem(normed, 3)
    with pytest.raises(UsageError, match="cannot be split"):
        reduce(f, z, layers)
    assert len(neurons(f, z, layers[0]).groups()) > 0  # but counted


# -- units that do more than one thing --------------------------------------------------------------------------------


class Written(nn.Module):
    """One hidden layer whose function is written out, and perhaps pooled over neighbours."""

    def __init__(self, function: Callable[[Tensor], Tensor], pool: nn.Module | None) -> None:
        super().__init__()
        self.function, self.pool = function, pool
        self.first = nn.Linear(3, 4) if pool is None else nn.Conv1d(1, 4, 3)
        self.last = nn.Linear(4 if pool is None else 12, 2)

    def forward(self, x: Tensor) -> Tensor:
        if self.pool is None:
            return self.last(self.function(self.first(x)))
        return self.last(self.pool(self.function(self.first(x[:, None]))).flatten(1))


WRITTEN: dict[str, tuple[Callable[[Tensor], Tensor], nn.Module | None, int]] = {
    # name: the function, the pooling, units left of w, -w, v and 2 v
    "clamp": (lambda x: x.clamp(min=0), None, 4),
    "atan": (torch.atan, None, 4),
    "expm1": (torch.expm1, None, 4),
    "tanh plus 1": (lambda x: torch.tanh(x) + 1, None, 4),
    "softsign": (lambda x: x / (1 + x.abs()), None, 4),
    "log of abs": (lambda x: torch.log1p(x.abs()), None, 4),
    "3 tanh": (lambda x: 3 * torch.tanh(x), None, 3),
    "3 relu": (lambda x: 3 * torch.relu(x), None, 3),
    "tanh, largest": (torch.tanh, nn.MaxPool1d(2), 4),
    "tanh, mean": (torch.tanh, nn.AvgPool1d(2), 3),
    "relu, largest": (torch.relu, nn.MaxPool1d(2), 3),
    "steep leaky relu": (lambda x: functional.leaky_relu(x, 5.0), None, 3),
}


def written(name: str) -> tuple[Objective, Tensor, tuple[units.Layer, ...]]:
    function, pool, _ = WRITTEN[name]
    module = filled(Written(function, pool))
    with torch.no_grad():
        for tensor in (module.first.weight, module.first.bias):  # type: ignore[attr-defined]
            tensor[1], tensor[3] = -tensor[0], 2 * tensor[2]
    return problem(module, 3 if pool is None else 8)


@pytest.mark.parametrize("name", WRITTEN)
def test_whatever_a_unit_does_counts_in_a_merge(name):
    f, z, layers = written(name)
    reduced = reduce(f, z, layers, similarity=1, share=0)
    assert list(reduced.widths.values()) == [WRITTEN[name][2]]
    # sums of at most 13 terms of order 10, some of them in another order
    assert (reduced.f.outputs(reduced.point) - f.outputs(z)).abs().max() <= 1000 * EPS
    rough = reduce(f, z, layers, similarity=0.2, share=0)
    assert (rough.f.outputs(rough.point) - f.outputs(z)).norm(dim=1).max() <= rough.bound + 1000 * EPS


@pytest.mark.parametrize("name", WRITTEN)
def test_whatever_a_unit_does_counts_in_its_symmetries(name):
    f, z, layers = written(name)
    moved = embeddings.canonical(f.module(z), layers, z)
    assert (f.outputs(moved) - f.outputs(z)).abs().max() <= 1000 * EPS
    if "relu" in name:
        split = embeddings.isometric(f.module(z), layers[0], 0, 0.3)
        assert (split.wide_objective(f).outputs(split.lift(z)) - f.outputs(z)).abs().max() <= 1000 * EPS
    else:
        with pytest.raises(UsageError, match="homogeneous"):
            embeddings.isometric(f.module(z), layers[0], 0, 0.3)
