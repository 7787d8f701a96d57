"""Which weights go, and how many: exact counts against integers, criteria against closed forms and dense algebra, paths against a search of the graph."""

import math
from fractions import Fraction

import numpy as np
import problems
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from landscape import networks
from landscape.errors import LandscapeError, UsageError
from landscape.masks import Mask
from landscape.objectives import Objective, Rows
from landscape.pruning import (
    CRITERIA,
    EXACT,
    SCOPES,
    dead_units,
    effective,
    layers,
    prunable,
    prune,
    removed,
    score,
    shuffled,
    survivors,
)
from landscape.seeds import global_stream
from landscape.trajectories import Entry, Layout

F64 = torch.float64


def layout(*shapes):
    offsets = np.cumsum([0, *(math.prod(shape) for shape in shapes)])
    return Layout(
        tuple(Entry(f"t{i}", shape, int(offsets[i]), "float64", "parameter") for i, shape in enumerate(shapes))
    )


def objective(module, shape, *, loss="cross-entropy", rows=8, outputs=3, dtype=F64):
    x = problems.draw(rows, *shape)
    return Objective.of(module.to(dtype), loss, Rows(x, torch.arange(rows) % outputs), dtype=dtype)


def built(name, inputs, **options):
    with global_stream(0, "test"):
        return networks.build(name, inputs=inputs, outputs=10, **options)


# -- counts -----------------------------------------------------------------------------------------------------------


def test_survivors_of_resnet20():
    """T11: the integer recursion, and its bounds: each ceil costs less than 1, and these shrink by 0.8 a level, so they sum to less than 5."""
    counts = survivors(270_896, 0.2, 20)
    assert [counts[level] for level in (0, 1, 5, 10, 15, 20)] == [270_896, 216_716, 88_765, 29_085, 9_529, 3_121]
    for level, n in enumerate(counts):
        assert 0.8**level * 270_896 - 5 < n <= 0.8**level * 270_896


@given(st.integers(0, 10**8), st.integers(0, 1000))
def test_the_count_is_of_the_fraction_as_it_is_written(n, thousandths):
    """n * 0.07 is 7.000000000000001 for n = 100: the truth is a ratio of integers."""
    assert removed(n, thousandths / 1000) == -((-n * thousandths) // 1000)


def test_the_count_forgives_the_rounding_of_a_sum():
    assert removed(10, 0.1 + 0.2) == 3  # 0.30000000000000004
    assert removed(3, 1 / 3) == 1


@settings(deadline=None, max_examples=60)
@given(st.data(), st.sampled_from(SCOPES), st.integers(0, 100))
def test_exact_counts_lowest_first_and_nothing_comes_back(data, scope, percent):
    """Against python's sort by (score, place), with many ties, a part pruned before, and one tensor that may not be pruned."""
    of = layout((4, 3), (5,), (7, 2))
    scores = np.array(data.draw(st.lists(st.integers(0, 4), min_size=31, max_size=31)), dtype=float)
    before = Mask(of, np.array(data.draw(st.lists(st.booleans(), min_size=31, max_size=31))))
    among = Mask.of(of, {"t1": np.zeros(5)})
    pruned = prune(before, torch.from_numpy(scores), percent / 100, among=among, scope=scope)
    free = [place for place in range(31) if before.kept[place] and not 12 <= place < 17]
    groups = [free]
    if scope == "layer":
        groups = [[p for p in free if p < 12], [p for p in free if p >= 17]]
    if scope == "erk":
        own = {name: n for name, (n, _) in (pruned.mask & among).counts().items()}
        groups = [[p for p in free if p < 12], [p for p in free if p >= 17]]
        gone = [len(groups[0]) - own["t0"], len(groups[1]) - own["t2"]]
        assert sum(gone) == math.ceil(Fraction(percent, 100) * len(free))
    else:
        gone = [math.ceil(Fraction(percent, 100) * len(group)) for group in groups]
    lost = set()
    for group, count in zip(groups, gone, strict=True):
        lost |= set(sorted(group, key=lambda place: (scores[place], place))[:count])
    assert set(np.flatnonzero(before.kept & ~pruned.mask.kept)) == lost
    assert pruned.mask <= before
    assert math.isnan(pruned.threshold) if not lost else pruned.threshold == max(scores[list(lost)])
    empty = {name for name, (n, _) in pruned.mask.counts().items() if not n and before.counts()[name][0]}
    assert set(pruned.dead) == empty


def test_global_and_layerwise():
    """T12: weights 1..10 and 11..20, half of them pruned."""
    of = layout((10,), (2, 5))
    full, weights = Mask.full(of), torch.arange(1.0, 21)
    one = prune(full, weights, 0.5, among=full)
    assert one.mask.counts() == {"t0": (0, 10), "t1": (10, 10)}
    assert (one.dead, one.threshold) == (("t0",), 10)
    other = prune(full, weights, 0.5, among=full, scope="layer")
    assert other.mask.counts() == {"t0": (5, 10), "t1": (5, 10)}
    assert (other.dead, other.threshold) == ((), 15)
    for scope in SCOPES:
        equal = prune(full, torch.ones(20), 0.3, among=full, scope=scope)
        assert equal.mask.size == 14
        assert equal.mask == prune(full, torch.ones(20), 0.3, among=full, scope=scope).mask


def test_a_tensor_at_its_own_rate():
    """Half the rate for the last: of 10 weights ceil(0.2 * 10) = 2 go, of the others' 30 ceil(0.4 * 30) = 12, whatever their scores."""
    of = layout((10,), (20,), (10,))
    full, weights = Mask.full(of), torch.arange(40.0)
    counts = prune(full, weights, 0.4, among=full, factors={"t2": 0.5}).mask.counts()
    assert counts == {"t0": (0, 10), "t1": (18, 20), "t2": (8, 10)}
    counts = prune(full, weights, 0.4, among=full, scope="layer", factors={"t2": 0.5, "t1": 0}).mask.counts()
    assert counts == {"t0": (6, 10), "t1": (20, 20), "t2": (8, 10)}


def test_erk_budgets():
    """Proportional to the sum of sizes over their product: layers (10, 10), (40, 10), (2, 5) weigh 20, 50, 7 (density times size). At 54 of 510 kept the factor 54 / 77

    gives 14.0, 35.1, 4.9. At 100 kept it is 100 / 77: 26.0, 64.9, 9.1. At 130 the last is whole (10), and 120 / 70 gives 34.3, 85.7.
    """
    of = layout((10, 10), (40, 10), (2, 5))
    full = Mask.full(of)
    for kept, wanted in ((54, [14, 35, 5]), (100, [26, 65, 9]), (130, [34, 86, 10])):
        found = prune(full, torch.rand(510, dtype=F64), 1 - kept / 510, among=full, scope="erk").mask
        assert [n for n, _ in found.counts().values()] == wanted
    convolution = layout((4, 2, 3, 3), (6, 4))  # (4 + 2 + 3 + 3) and (6 + 4)
    full = Mask.full(convolution)
    found = prune(full, torch.rand(96, dtype=F64), 1 - 11 / 96, among=full, scope="erk").mask
    assert [n for n, _ in found.counts().values()] == [6, 5]


@pytest.mark.parametrize("scope", SCOPES)
def test_levels_are_nested_and_add_up(scope):
    of = layout((16, 8), (8, 4, 3, 3), (10,))
    full, among = Mask.full(of), Mask.of(of, {"t2": np.zeros(10)})
    mask, counts = full, survivors(among.size, 0.36, 8)
    for level in range(1, 9):
        scores = problems.draw(of.dim, seed=level)
        pruned = prune(mask, scores, 0.36, among=among, scope=scope)
        assert pruned.mask <= mask
        if scope != "layer":
            assert (pruned.mask & among).size == counts[level]
        assert pruned.mask.counts()["t2"] == (10, 10)
        mask = pruned.mask


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"fraction": 1.1}, r"lies in \[0, 1\]; got 1.1"),
        ({"fraction": math.nan}, r"lies in \[0, 1\]; got nan"),
        ({"fraction": 0.6, "factors": {"t0": 2}}, r"lies in \[0, 1\]; got 1.2"),
        ({"factors": {"t9": 0.5}}, "unknown trained parameter 't9'"),
        ({"scope": "locl"}, "unknown scope of pruning 'locl'"),
        ({"scores": torch.ones(9)}, r"of 10 parameters, and the scores are \(9,\)"),
        ({"among": Mask.full(layout((5, 2)))}, "another network"),
    ],
)
def test_what_does_not_fit_is_refused(options, says):
    full = Mask.full(layout((10,)))
    arguments = {"scores": torch.ones(10), "fraction": 0.5, "among": full} | options
    with pytest.raises(UsageError, match=says):
        prune(full, **arguments)


def test_scores_that_are_nan_are_refused_where_they_count():
    full = Mask.full(layout((10,)))
    half = Mask(full.layout, np.arange(10) < 5)
    scores = torch.arange(10.0)
    scores[7] = math.nan
    assert prune(half, scores, 0.4, among=full).mask.size == 3
    with pytest.raises(LandscapeError, match="1 scores of surviving parameters are NaN"):
        prune(full, scores, 0.4, among=full)


# -- shuffles ---------------------------------------------------------------------------------------------------------


def test_a_shuffle_keeps_counts_nestedness_and_what_is_not_prunable():
    of = layout((20, 10), (30,), (10, 10))
    among = Mask.of(of, {"t1": np.zeros(30)})
    first = prune(Mask.full(of), problems.draw(330), 0.4, among=among)
    second = prune(first.mask, problems.draw(330, seed=1), 0.4, among=among)
    one, two = (shuffled(pruned.mask, among, seed=3) for pruned in (first, second))
    assert one.counts() == first.mask.counts()
    assert two.counts() == second.mask.counts()
    assert two <= one
    assert one != shuffled(first.mask, among, seed=4)
    assert one == shuffled(first.mask, among, seed=3)
    whole = shuffled(first.mask, among, seed=3, within="global")
    assert whole.size == first.mask.size
    assert whole.counts() != first.mask.counts()
    with pytest.raises(UsageError, match="unknown reach of a shuffle 'all'"):
        shuffled(first.mask, among, seed=3, within="all")


def test_a_shuffle_is_uniform():
    """Of 40 places 10 are kept: over 2,000 seeds each is kept 500 times, give or take five standard deviations sqrt(2000 / 4 * 3 / 4) = 19.4."""
    of = layout((40,))
    full, found = Mask.full(of), Mask(of, np.arange(40) < 10)
    hits = sum(shuffled(found, full, seed).kept.astype(int) for seed in range(2000))
    assert abs(hits - 500).max() < 5 * 19.4


# -- what may go ------------------------------------------------------------------------------------------------------


class Backwards(nn.Module):
    """Its layers are made in another order than they are called in; one is never called."""

    def __init__(self):
        super().__init__()
        self.out, self.spare, self.inner = nn.Linear(6, 3), nn.Linear(2, 2), nn.Linear(4, 6)

    def forward(self, x):
        return self.out(self.inner(x).relu())


def test_layers_are_in_the_order_of_execution():
    f, _ = objective(Backwards(), (4,))
    assert layers(f) == ("inner.weight", "spare.weight", "out.weight")
    assert layers(problems.quadratic(np.ones(3)).f) == ("w",)
    f, _ = objective(nn.Linear(4, 3), (4,))
    assert layers(f) == ("weight",)


class Table(nn.Module):
    """The weight of its output layer is a parameter of its own, registered first: the layer's name for it is an alias."""

    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.ones(3, 4))
        self.out = nn.Linear(4, 3)
        self.out.weight = self.table

    def forward(self, x):
        return self.out(x + self.table.sum(0))


def test_tied_weights_stand_once_and_frozen_ones_not():
    f, _ = problems.objective("tied")
    assert len(layers(f)) == len(set(layers(f)))
    names = {entry.name for entry in f.model.layout.of("parameter")}
    assert set(layers(f)) <= names
    f, _ = problems.objective("frozen")
    assert layers(f) == ("out.weight",)
    f, _ = objective(Table(), (4,))
    assert layers(f) == ("table",)
    assert prunable(f).counts() == {"table": (12, 12), "out.bias": (0, 3)}


@pytest.mark.parametrize(("options", "lost"), [({}, 0), ({"output": False}, 640), ({"first": False}, 432)])
def test_prunable_weights_of_resnet20(options, lost):
    """T11: 270,896 of 272,474; the output layer has 640, the first convolution 432."""
    f, _ = objective(built("resnet20", (3, 32, 32)), (3, 32, 32), outputs=10, dtype=torch.float32, rows=2)
    found = prunable(f, **options)
    assert f.dim == 272_474
    assert found.size == 270_896 - lost
    assert not any(n for name, (n, _) in found.counts().items() if "norm" in name or name.endswith("bias"))


def test_what_is_included_and_ignored_by_name():
    f, _ = objective(built("mlp", (8,)), (8,), outputs=10, dtype=torch.float32)
    sizes = {
        "linear1.weight": 512,
        "linear1.bias": 64,
        "linear2.weight": 2048,
        "linear2.bias": 32,
        "output.weight": 320,
        "output.bias": 10,
    }

    def names(**options):
        found = prunable(f, **options).counts()
        assert all(n in (0, of) and of == sizes[name] for name, (n, of) in found.items())
        return {name for name, (n, _) in found.items() if n}

    weights = {"linear1.weight", "linear2.weight", "output.weight"}
    assert names() == weights
    assert names(include="*.bias", ignore="output*, linear1.bias") == {
        "linear1.weight",
        "linear2.weight",
        "linear2.bias",
    }
    assert names(first=False, output=False) == {"linear2.weight"}
    with pytest.raises(UsageError, match="nothing may be pruned"):
        prunable(f, ignore="*")
    with pytest.raises(UsageError, match="no trained parameter matches 'conv"):
        prunable(f, ignore="conv*")


# -- criteria ---------------------------------------------------------------------------------------------------------


def quadratic(d=12, spread=1.0):
    problem = problems.quadratic(np.linspace(0.5, 0.5 + spread, d))
    return problem.f, problem.point, problem.hessian(problem.point.numpy()), problem


def test_scores_of_a_quadratic_are_closed_forms():
    """Tolerance 1e-10: sums of 12 terms of order 1 in float64, and an inverse of condition 3."""
    f, w, hessian, problem = quadratic()
    full, x = Mask.full(f.model.layout), w.numpy()
    inverse = np.linalg.inv(hessian)
    start = problems.draw(12, seed=9)
    wanted = {
        "magnitude": abs(x),
        "weight-gradient": abs(x * problem.gradient(x)),
        "obd": x**2 * np.diag(hessian) / 2,
        "obs": x**2 / np.diag(inverse) / 2,
        "magnitude-increase": abs(x) - abs(start.numpy()),
    }
    for name, truth in wanted.items():
        assert score(name, f, w, full, start=start).numpy() == pytest.approx(truth, abs=1e-10), name


@pytest.mark.parametrize("name", ["obd", "obs"])
def test_second_order_scores_are_the_loss_they_predict(name):
    """Of a quadratic at its minimum, within the axial subspace of a mask: removing weight i alone raises the loss by obd's score as it stands, and by obs's

    once the other survivors are at their best again (solved densely). Both are exact, to rounding.
    """
    hessian, centre = problems.planted(np.linspace(0.5, 3, 10)), problems.draw(10, seed=1).numpy()
    a, c = torch.from_numpy(hessian), torch.from_numpy(centre)
    f = Objective.from_function(lambda w: (w - c) @ a @ (w - c) / 2, 10)
    mask = Mask(f.model.layout, np.arange(10) % 4 != 1)
    alive = np.flatnonzero(mask.kept)

    def best(places):
        w = np.zeros(10)
        others = [i for i in range(10) if i not in places]
        w[places] = centre[places] - np.linalg.solve(
            hessian[np.ix_(places, places)], hessian[np.ix_(places, others)] @ -centre[others]
        )
        return w, (w - centre) @ hessian @ (w - centre) / 2

    point, low = best(list(alive))
    found = score(name, f, torch.from_numpy(point), mask)
    for place in alive:
        if name == "obs":
            raised = best([i for i in alive if i != place])[1] - low
        else:
            cut = np.where(np.arange(10) == place, 0, point)
            raised = (cut - centre) @ hessian @ (cut - centre) / 2 - low
        assert found[place].item() == pytest.approx(raised, abs=1e-10)
    assert not found[~mask.tensor()].any()


def test_obs_of_an_indefinite_hessian_is_finite():
    """Eigenvalues (-1, 0, 4) along the axes: the first two count as 4e-6, so w^2 lambda / 2 is 2e-6, 2e-6 and 2 at w = 1."""
    spectrum = torch.tensor([-1.0, 0.0, 4.0], dtype=F64)
    f = Objective.from_function(lambda w: (spectrum * w**2).sum() / 2, 3)
    found = score("obs", f, torch.ones(3, dtype=F64), Mask.full(f.model.layout))
    assert found.tolist() == pytest.approx([2e-6, 2e-6, 2])
    assert score("obd", f, torch.ones(3, dtype=F64), Mask.full(f.model.layout)).tolist() == [-0.5, 0, 2]


def test_fisher_scores_are_of_single_rows():
    """Of softmax regression the gradient of a row is known; C is the mean of its outer product."""
    problem = problems.regression("softmax")
    w = problem.point
    found = score("fisher", problem.f, w, Mask.full(problem.f.model.layout)).numpy()
    truth = w.numpy() ** 2 * np.diag(problem.covariance(w.numpy())) / 2
    assert found == pytest.approx(truth, abs=1e-10)


def test_snip_is_weight_gradient_by_finite_differences():
    """At an initial point |dL/dc_i| at c = 1 of the loss at c * w (Lee et al. 2019): central differences, within DIFFERENCES of problems.py times 10 for size."""
    f, w = objective(built("mlp", (6,), width=0.1, activation="tanh"), (6,), outputs=10)
    found = score("weight-gradient", f, w, Mask.full(f.model.layout))
    for place in range(0, f.dim, 13):
        ends = []
        for sign in (1, -1):
            moved = w.clone()
            moved[place] *= 1 + sign * problems.STEP
            ends.append(f(moved).item())
        assert found[place].item() == pytest.approx(
            abs(ends[0] - ends[1]) / 2 / problems.STEP, abs=10 * problems.DIFFERENCES
        )


def test_synflow_is_conserved():
    """Through a network without biases what flows through each layer is R itself (Tanaka et al. 2020, theorem 1), whatever norm and activations do."""
    with global_stream(0, "test"):
        module = nn.Sequential(
            nn.Conv2d(2, 4, 3, bias=False), nn.BatchNorm2d(4), nn.Tanh(), nn.AvgPool2d(2), nn.Flatten(), nn.Linear(16, 5, bias=False), nn.LayerNorm(5), nn.GELU(), nn.Linear(5, 3, bias=False)
        )  # fmt: skip
    f, w = objective(module, (2, 6, 6))
    found = score("synflow", f, w, Mask.full(f.model.layout))
    flows = [
        found[e.offset : e.offset + e.size].sum().item() for e in f.model.layout.of("parameter") if e.name in layers(f)
    ]
    parts = {
        e.name: abs(w[e.offset : e.offset + e.size].reshape(e.shape).numpy()) for e in f.model.layout.of("parameter")
    }
    # all ones in: each channel of the convolution is its sum, everywhere, and pooling and flattening keep it
    signal = parts["0.weight"].sum((1, 2, 3)).repeat(4) @ parts["5.weight"].T @ parts["8.weight"].T
    assert flows == pytest.approx([signal.sum()] * 3, rel=1e-12)


def test_random_scores_keep_their_order_over_nested_masks():
    f, w, _, _ = quadratic()
    full = Mask.full(f.model.layout)
    one, two, other = (score("random", f, w, full, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


def test_a_large_diagonal_is_estimated_and_says_the_same_within_its_errors():
    """Hutchinson's diagonal of H = diag + u u^T has, from P = 64 signs, the variance sum_{j != i} (u_i u_j)^2 / P an entry: |z| below 6 for each of d entries."""
    d = EXACT + 1
    u = problems.draw(d) / math.sqrt(d)
    spectrum = torch.linspace(1, 2, d, dtype=F64)
    f = Objective.from_function(lambda w: (spectrum * w**2).sum() / 2 + (u @ w) ** 2 / 2, d)
    w = torch.ones(d, dtype=F64)
    found = score("obd", f, w, Mask.full(f.model.layout), seed=5)
    errors = (u.square() * (u.square().sum() - u.square()) / 64).sqrt() / 2
    deviations = (found - (spectrum + u**2) / 2) / errors
    assert 0.5 < deviations.std() < 2  # they are estimates, of these errors
    assert deviations.abs().max() < 6


@pytest.mark.parametrize("name", CRITERIA)
def test_every_criterion_prunes_a_network(name):
    f, w = objective(built("mlp", (5,), width=0.1), (5,), outputs=10)
    among, full = prunable(f), Mask.full(f.model.layout)
    mask = prune(full, score("magnitude", f, w, full), 0.3, among=among).mask
    scores = score(name, f, mask.apply(w), mask, start=w / 2)
    pruned = prune(mask, scores, 0.5, among=among)
    assert pruned.mask <= mask
    assert (pruned.mask & among).size == survivors((mask & among).size, 0.5, 1)[1]


def test_what_a_criterion_cannot_do_is_refused(monkeypatch):
    f, w, _, _ = quadratic()
    full = Mask.full(f.model.layout)
    with pytest.raises(UsageError, match="Did you mean 'magnitude'"):
        score("magnitud", f, w, full)
    with pytest.raises(UsageError, match="give it, or use magnitude"):
        score("magnitude-increase", f, w, full)
    with pytest.raises(UsageError, match="this is none"):
        score("synflow", f, w, full)
    monkeypatch.setattr("landscape.pruning.OBS_LIMIT", 10)
    with pytest.raises(UsageError, match=r"12 are more than 10\. Use obd"):
        score("obs", f, w, full)
    w[3] = math.nan
    with pytest.raises(LandscapeError, match="the magnitude of 1 surviving"):
        score("magnitude", f, w, full)
    assert score("magnitude", f, w, Mask(full.layout, np.arange(12) != 3))[0] == w[0].abs()


# -- what is left -----------------------------------------------------------------------------------------------------


def on_paths(weights):
    """Brute force for a chain of dense layers (out, in): reached from an input, and leading to an output."""
    ahead = [np.ones(weights[0].shape[1], dtype=bool)]
    for weight in weights:
        ahead.append((weight & ahead[-1]).any(1))
    behind = [np.ones(weights[-1].shape[0], dtype=bool)]
    for weight in reversed(weights):
        behind.append((weight.T & behind[-1]).any(1))
    behind.reverse()
    return [w & ahead[i][None] & behind[i + 1][:, None] for i, w in enumerate(weights)]


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "softplus"])
@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_effective_weights_of_an_mlp(activation, norm):
    f, w = objective(built("mlp", (6,), width=0.15, activation=activation, norm=norm), (6,), outputs=10)
    among, names = prunable(f), layers(f)
    for seed, fraction in enumerate((0.5, 0.8, 0.9, 0.95)):
        mask = prune(Mask.full(f.model.layout), problems.draw(f.dim, seed=seed), fraction, among=among).mask
        found = effective(f, mask)
        for name, truth in zip(names, on_paths([mask.tensors()[name] for name in names]), strict=True):
            assert np.array_equal(found.tensors()[name], truth)
        assert found - among == mask - among
        # without biases what is on no path carries exact zeros, where the activation is 0 at 0: without it the network is the same function
        plain = w.clone()
        for entry in f.model.layout.of("parameter"):
            if entry.name.endswith("bias"):
                plain[entry.offset : entry.offset + entry.size] = 0
        if norm != "layer" and activation in ("relu", "tanh"):
            whole, without = (f.outputs(m.apply(plain)) for m in (mask, found))
            assert torch.allclose(whole, without, rtol=0, atol=1e-12)
            assert fraction > 0.5 or whole.abs().max() > 1e-3  # there is something to tell


def test_effective_weights_of_a_residual_network_with_pools():
    """A dead branch leaves the shortcut: only the branch's own weights are lost. A dead stem takes all with it."""
    module = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.MaxPool2d(2),
        networks.Residual(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1)), nn.Identity(), nn.ReLU()),
        nn.AdaptiveMaxPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )  # fmt: skip
    f, _ = objective(module, (1, 4, 4))
    full = Mask.full(f.model.layout)
    assert effective(f, full) == full
    cut = Mask.of(f.model.layout, {"4.branch.3.weight": np.zeros((4, 4, 3, 3))})
    counts = effective(f, cut).counts()
    assert counts["4.branch.0.weight"] == (0, 144)
    assert (counts["0.weight"], counts["7.weight"]) == ((36, 36), (12, 12))
    stem = np.ones((4, 1, 3, 3))
    stem[1:] = 0
    counts = effective(f, Mask.of(f.model.layout, {"0.weight": stem})).counts()
    assert counts["0.weight"] == (9, 36)
    assert counts["4.branch.0.weight"] == (36, 144)  # one of four inputs is left
    counts = effective(f, Mask.of(f.model.layout, {"0.weight": np.zeros((4, 1, 3, 3))})).counts()
    assert {name for name, (n, _) in counts.items() if n} <= {
        name for name in counts if name.endswith("bias") or ".1." in name or name == "1.weight"
    }
    assert dead_units(effective(f, Mask.of(f.model.layout, {"0.weight": stem})))["0.weight"] == (3, 4)


def test_effective_weights_of_tied_and_frozen_layers():
    """All of them are on paths, whatever the signs of a frozen layer's weights and biases."""
    frozen = nn.Sequential(nn.Linear(4, 5).requires_grad_(False), nn.ReLU(), nn.Linear(5, 3))
    frozen[0].weight.copy_(torch.tensor([1.0, -1, 2, -2]).expand(5, 4))  # a row of ones would give 0
    for f, _ in (problems.objective("tied"), problems.objective("attention"), objective(frozen, (4,))):
        full = Mask.full(f.model.layout)
        assert effective(f, full) == full


def test_effective_weights_of_a_deep_network():
    """100^161 paths leave float64, from both ends: a unit that nothing enters, early, and one that nothing leaves, late, are found all the same."""
    f, _ = objective(nn.Sequential(*(nn.Linear(100, 100) for _ in range(160)), nn.Linear(100, 3)), (100,), rows=2)
    early, late = np.ones((100, 100)), np.ones((100, 100))
    early[0], late[:, 0] = 0, 0
    mask = Mask.of(f.model.layout, {"0.weight": early, "159.weight": late})
    counts = effective(f, mask).counts()
    lost = {name: of - n for name, (n, of) in counts.items() if n < of}
    assert lost == {"0.weight": 100, "1.weight": 100, "158.weight": 100, "159.weight": 100}
