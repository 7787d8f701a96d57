"""Pruning limits of quadratics against dense algebra and closed forms, of a small network against themselves in order; what is said where theory fails; the picture and the command."""

import dataclasses

import numpy as np
import pytest
import torch
from problems import F64, draw, planted
from torch import nn

from landscape import pruning
from landscape.analysis import limits, styles
from landscape.analysis.limits import Limit, limit
from landscape.cli.app import main
from landscape.errors import LandscapeError, UsageError
from landscape.masks import Mask
from landscape.objectives import Objective, Rows
from landscape.results import Result

D = 40
VALUES = np.geomspace(0.01, 1, D)
RISES = (0.05, 0.3, 1.0)


def well(values=VALUES, seed=0):
    """A quadratic of loss 2 at its minimum: objective, minimum, matrix."""
    matrix, bottom = planted(values, seed), draw(len(values), seed=seed + 7)
    a = torch.from_numpy(matrix)
    return Objective.from_function(lambda w: 2 + (w - bottom) @ a @ (w - bottom) / 2, len(values)), bottom, matrix


def among(f, kept=None):
    """A mask of these coordinates; all of them."""
    return Mask(f.model.layout, np.ones(f.model.layout.dim, dtype=bool) if kept is None else kept)


def obs(matrix, w, order):
    """(4) for every prefix of an order, by inverses."""
    inverse = np.linalg.inv(matrix)
    return np.array([0.0] + [w[order[:k]] @ np.linalg.solve(inverse[np.ix_(order[:k], order[:k])], w[order[:k]]) / 2 for k in range(1, len(order) + 1)])  # fmt: skip


def orders(f, w, may, mask=None, draws=3, seed=0):
    """As the analysis makes them, from the scores of `pruning`."""
    found = {}
    for kind, seeds in (("random", [limits.child_seed(seed, "limit", i) for i in range(draws)]), ("magnitude", [seed])):
        scores = [pruning.score(kind, f, w, mask or among(f), seed=one).numpy() for one in seeds]
        found[kind] = [np.flatnonzero(may)[np.argsort(one[may], kind="stable")] for one in scores]
    return found


# -- quadratics, where everything is known ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def known():
    """A limit where ten coordinates, as biases, are never pruned; with its matrix and orders."""
    f, w, matrix = well()
    may = np.arange(D) >= 10
    found = limit(f, w, among(f, may), RISES, draws=3, seed=0)
    return found, f, w.numpy(), matrix, orders(f, w, may)


def test_limits_of_a_quadratic_are_those_of_dense_algebra(known):
    found, _, w, matrix, ways = known
    assert (found.ambient, found.dim, found.prunable, found.base) == (D, D, 30, 2.0)
    for kind, drawn in ways.items():
        exact, projected = [], []
        for order in drawn:
            minima = obs(matrix, w, order)
            exact.append([np.flatnonzero(minima <= rise).max() for rise in RISES])
            steps = np.array([np.where(np.isin(np.arange(D), order[:k]), w, 0) for k in range(31)])
            rises = np.einsum("ki,ij,kj->k", steps, matrix, steps) / 2
            projected.append([np.flatnonzero(rises > rise)[0] - 1 if (rises > rise).any() else 30 for rise in RISES])
        limit_of = found.limits[kind]
        assert limit_of["minimum"][0] == pytest.approx(np.mean(exact, axis=0) / 30, abs=1e-12)
        # on a quadratic the network at the projection is (5), and a retraining ends at (4): L-BFGS from its minimiser, at resolution 1
        assert limit_of["projection"][0] == pytest.approx(np.mean(projected, axis=0) / 30, abs=1e-12)
        assert limit_of["unretrained"][0] == pytest.approx(np.mean(projected, axis=0) / 30, abs=1e-12)
        assert limit_of["retrained"][0] == pytest.approx(np.mean(exact, axis=0) / 30, abs=1e-12)
        if len(drawn) > 1:
            spread = np.std(exact, axis=0, ddof=1) / 30 / np.sqrt(3)
            assert limit_of["minimum"][1] == pytest.approx(
                spread * 4.30265 / 1.96, rel=1e-5
            )  # Student's t of 2 degrees
        else:
            assert (limit_of["minimum"][1] == 0).all()
    assert found.negative == 0
    assert found.extremes == pytest.approx([0.01, 1], rel=1e-9)
    assert found.mean == pytest.approx([VALUES.mean(), 0], rel=1e-9)
    assert found.gain < 1e-25
    assert found.warnings == ()


def test_predictions_use_the_length_of_what_is_pruned(known):
    found, _, w, _, _ = known
    # (1) with biases kept: R^2 / alpha = |w_prunable|^2 D / n is the square of the distance in the paper's sum
    distance = (w[10:] @ w[10:]) * D / 30
    for row, rise in enumerate(RISES):
        axes = 2 * rise / VALUES
        expected = np.sum(axes / (distance + axes)) / 30
        assert found.limits["random"]["gordon"][0, row] == pytest.approx(min(expected, 1), rel=1e-9)
        share = found.limits["random"]["gordon"][0, row]
        assert found.robust["random"]["predicted"][row] == pytest.approx(np.sqrt(share * (w[10:] @ w[10:])), rel=1e-9)
        # the crossing of the picture: the theory's length at that share is the mask's
        if share < 1:
            reach = np.interp(share, found.shares[1:], found._reach("gordon", row)[1:])
            assert reach == pytest.approx(
                found.robust["random"]["predicted"][row], rel=0.01
            )  # between points 1/30 apart


def test_curvature_along_the_way(known):
    found, _, w, matrix, ways = known
    for kind, drawn in ways.items():
        for k in (1, 12, 30):
            truth = []
            for order in drawn:
                step = np.where(np.isin(np.arange(D), order[:k]), w, 0)
                truth.append(step @ matrix @ step / (step @ step))
            assert found.shares[k] == k / 30
            assert found.curves[kind]["curvature"][k] == pytest.approx(np.mean(truth), rel=1e-9)
            assert found.curves[kind]["spread"][k] == pytest.approx(np.std(truth), rel=1e-9, abs=1e-15)


def test_robust_distances_of_a_ball():
    # the loss 2 + 0.25 r^2 leaves 2 + epsilon at sqrt(epsilon / 0.25) in every direction; told to |w| / 2,000
    f, w, _ = well(np.full(D, 0.5))
    found = limit(f, w, among(f), [0.01, 0.09], retrain=False)
    for one in found.robust.values():
        truth = np.array([0.2, 0.6])
        assert (np.abs(one["distance"][0] - truth) <= found.norm / 2000).all()
    # and E = R^2 / 4 for every mask: the limit is exact by (3)
    assert found.limits["random"]["free-probability"][0] == pytest.approx(
        np.array([0.04, 0.36]) / float(w @ w), rel=1e-9
    )
    assert "retrained" not in found.methods


def test_survivors_are_a_smaller_problem():
    f, w, matrix = well()
    kept = np.ones(D, dtype=bool)
    kept[[3, 11, 25, 30, 31]] = False
    small = planted(VALUES)[np.ix_(kept, kept)]
    # with the pruned at 0 the minimum over the others is another
    pulled = matrix[np.ix_(kept, ~kept)] @ w.numpy()[~kept]
    inside = w.numpy()[kept] + np.linalg.solve(small, pulled)
    w = torch.zeros(D, dtype=F64)
    w[torch.from_numpy(kept)] = torch.from_numpy(inside)
    found = limit(f, w, among(f), [0.1, 0.5], mask=Mask(f.model.layout, kept), retrain=False)
    assert (found.dim, found.prunable) == (35, 35)
    minima = obs(small, inside, np.argsort(np.abs(inside)))
    assert found.limits["magnitude"]["minimum"][0] == pytest.approx([np.flatnonzero(minima <= rise).max() / 35 for rise in (0.1, 0.5)])  # fmt: skip
    assert found.gradient < 1e-12
    assert found.extremes == pytest.approx(np.linalg.eigvalsh(small)[[0, -1]], rel=1e-9)


def test_weight_decay_belongs_to_the_loss_and_its_curvature():
    f, centre, matrix = well()
    decay = 0.3
    whole = matrix + decay * np.eye(D)
    bottom = np.linalg.solve(whole, matrix @ centre.numpy())
    found = limit(f, torch.from_numpy(bottom), among(f), [0.2], weight_decay=decay, draws=2)
    apart = bottom - centre.numpy()
    assert found.base == pytest.approx(2 + apart @ matrix @ apart / 2 + decay / 2 * bottom @ bottom, rel=1e-12)
    assert found.gradient < 1e-12
    minima = obs(whole, bottom, np.argsort(np.abs(bottom)))
    truth = np.flatnonzero(minima <= 0.2).max() / D
    assert found.limits["magnitude"]["minimum"][0, 0] == pytest.approx(truth)
    assert found.limits["magnitude"]["retrained"][0, 0] == pytest.approx(truth)
    # as levels of the loss
    same = limit(f, torch.from_numpy(bottom), among(f), [found.base + 0.2], absolute=True, weight_decay=decay, retrain=False)  # fmt: skip
    assert same.limits["magnitude"]["minimum"][0, 0] == pytest.approx(truth)
    assert "loss" in same.table()[1][0]


def test_by_products_the_same_as_by_the_matrix():
    f, w, _ = well(np.geomspace(0.02, 1, 400))
    options = {"draws": 2, "retrain": False}
    exact = limit(f, w, among(f), [0.3, 3.0], **options)
    found = limit(f, w, among(f), [0.3, 3.0], dense=0, **options)
    assert exact.dense and not found.dense
    for kind in exact.masks:
        # bisected to 4 of 400 weights, from below
        gap = exact.limits[kind]["minimum"][0] - found.limits[kind]["minimum"][0]
        assert ((gap >= 0) & (gap <= 4 / 400)).all()
        assert (np.abs(exact.limits[kind]["projection"] - found.limits[kind]["projection"])[0] < 1e-12).all()
        # the operator as it is: rounding alone
        assert found.curves[kind]["curvature"][1:] == pytest.approx(exact.curves[kind]["curvature"][1:], rel=1e-9)
        for form in ("gordon", "free-probability"):
            value, error = found.limits[kind][form]
            assert (np.abs(value - exact.limits[kind][form][0]) <= 4 * error + 1e-3).all()
    assert found.cost["products"] > 400
    assert np.isnan(found.alignment).all()


def test_negative_curvature_by_products_makes_limits_no_larger():
    # 520 dimensions, more than the products of a density, by which it would be exact
    # 0.002 beside tr H / D = 0.25 is below 1%, so that it may be shifted
    f, w, _ = well(np.concatenate([[-0.002, -0.001], np.geomspace(0.02, 1, 518)]))
    options = {"draws": 2, "retrain": False, "kinds": ["magnitude"]}
    exact, found = (limit(f, w, among(f), [1.0], dense=dense, **options) for dense in (3000, 0))
    assert exact.negative == 2
    assert found.negative == pytest.approx(2, abs=1)
    # the residual of 1e-4 of the largest eigenvalue is taken off, to the careful side
    assert -0.002 - 1e-4 <= found.extremes[0] <= -0.002
    assert found.shift == -found.extremes[0]
    assert found.limits["magnitude"]["minimum"][0, 0] <= exact.limits["magnitude"]["minimum"][0, 0]
    assert found.limits["magnitude"]["minimum"][0, 0] > 0.5 * exact.limits["magnitude"]["minimum"][0, 0]
    for one, words in ((exact, "raised"), (found, "shifted")):
        assert any(words in text for text in one.warnings)
        assert words in one.caption()


@pytest.mark.parametrize("dense", [3000, 0])
def test_negative_curvature_beside_which_nothing_is_small(dense):
    # a fifth of the eigenvalues at -0.1, beside tr H / D = 0.26: raised or shifted, the matrix is another
    values = np.concatenate([np.full(104, -0.1), np.linspace(0.01, 0.7, 416)])
    f, w, matrix = well(values)
    found = limit(f, w, among(f), [1.0, 4.0], dense=dense, draws=2, retrain=False)
    ours = w.numpy()
    counts = np.unique(np.linspace(0, 520, limits.SHARES).round().astype(int))
    for kind, drawn in orders(f, w, np.ones(520, dtype=bool), draws=2).items():
        rises = []
        for order in drawn:
            steps = np.zeros((521, 520))
            for k in range(1, 521):
                steps[k:, order[k - 1]] = ours[order[k - 1]]
            rises.append(np.einsum("ki,ki->k", steps @ matrix, steps) / 2)
        squares = np.array([np.concatenate([[0], np.cumsum(ours[order] ** 2)]) for order in drawn])
        curvatures = 2 * np.array(rises)[:, counts[1:]] / squares[:, counts[1:]]
        # sums of 520^2 products of order 1 in float64
        assert found.curves[kind]["curvature"][1:] == pytest.approx(curvatures.mean(0), abs=1e-10)
        assert found.curves[kind]["projection"] == pytest.approx(np.mean(rises, axis=0)[counts], abs=1e-9)
        # the loss is this quadratic, so that (5) is what the network does
        assert found.limits[kind]["projection"][0] == pytest.approx(found.limits[kind]["unretrained"][0], abs=1e-12)
    assert np.isnan(found.gain)
    assert "there is no Newton step" in found.caption()
    minima = np.stack([found.limits[kind]["minimum"][0] for kind in found.masks])
    if dense:
        assert np.isfinite(minima).all()
        assert "raised" in found.caption()
    else:
        assert np.isnan(minima).all()
        assert "not bounded below" in found.caption()
        assert any("not bounded below" in text and "--matrix gauss-newton" in text for text in found.warnings)
        assert "none" in found.table()[1]
        assert "nan" not in found.summary()
        # a retraining then starts from the projection alone
        way = limits._Quadratic.of(limits._Penalised(f, 0.0).curvature(w, "hessian"), w, 0, 0, False).along(
            np.arange(520)
        )
        assert way.minimum is None
        assert way.minimiser is None
    styles.rendered(Result.from_json(found.to_json()), "svg")


def test_the_gain_leaves_out_what_was_raised():
    # curvature 0 along ten directions, a gradient along all: g^2 over 1e-8 of the largest would be a gain of order 1e6
    values = np.concatenate([np.zeros(10), np.linspace(0.1, 1, 30)])
    _, w, matrix = well(values)
    slope, a = draw(D, seed=3), torch.from_numpy(matrix)
    f = Objective.from_function(lambda v: (v - w) @ a @ (v - w) / 2 + slope @ (v - w), D)
    found = limit(f, w, among(f), [0.1], draws=2, retrain=False)
    assert found.gain == pytest.approx(slope.numpy() @ np.linalg.pinv(matrix, rcond=1e-6) @ slope.numpy() / 2, rel=1e-9)
    assert found.gain < 100


# -- bisection --------------------------------------------------------------------------------------------------------


def test_bisection_asks_no_more_than_it_must():
    asked = []

    def rise(k, goal):
        asked.append(k)
        return k**2 / 100

    assert limits._largest(rise, 100, np.array([0.5, 3.0, 1e6]), 1) == [(7, 8), (17, 18), (100, 101)]
    assert len(asked) == len(set(asked)) <= 7 + 5 + 7
    # to a width: from below
    assert limits._largest(lambda k, _: k, 1000, np.array([500.0]), 10)[0][0] in range(491, 501)


def test_the_first_crossing_counts():
    # above 1 at 10 to 12 and from 30 on; values at 0, 11, ... show the first; NaN is above
    def rise(k):
        return np.nan if k > 40 else 2.0 if 10 <= k <= 12 or k >= 30 else 0.0

    first, values = limits._first(rise, np.array([0, 11, 22, 44]), np.array([1.0, 5.0]))
    assert first.tolist() == [9, 40]
    assert np.array_equal(values, [0, 2, 0, np.nan], equal_nan=True)
    assert limits._first(rise, np.array([0, 25]), np.array([1.0]))[0].tolist() == [25]
    assert limits._first(lambda k: 1.0, np.array([0, 5]), np.array([0.5]))[0].tolist() == [0]


# -- a network --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def network():
    """A small network at a minimum of its loss with weight decay, found by scipy, and its limits."""
    from scipy.optimize import minimize

    x = draw(60, 8)
    module = nn.Sequential(nn.Linear(8, 6), nn.Tanh(), nn.Linear(6, 3)).to(F64)
    f, w = Objective.of(module, "cross-entropy", Rows(x, (x[:, :3] * x[:, 3:6]).argmax(1)), dtype=F64)
    decay = 2e-3

    def slope(z):
        value, gradient = f.value_and_gradient(torch.from_numpy(z))
        return float(value) + decay / 2 * z @ z, gradient.numpy() + decay * z

    w = minimize(slope, draw(f.dim, seed=1).numpy(), jac=True, method="L-BFGS-B", options={"gtol": 1e-8, "maxiter": 5000, "ftol": 0}).x  # fmt: skip
    return f, torch.from_numpy(w), decay, limit(f, torch.from_numpy(w), pruning.prunable(f), [0.02, 0.1], weight_decay=decay, draws=2, steps=60)  # fmt: skip


def test_limits_of_a_network_keep_their_order(network):
    f, w, decay, found = network
    assert (found.dim, found.prunable) == (75, 66)  # nine biases are kept
    assert found.gain < 1e-9
    for kind in found.masks:
        one = {name: values[0] for name, values in found.limits[kind].items()}
        # the projection is where a retraining starts, so that this can only be better, to its resolution of one weight
        assert (one["retrained"] >= one["unretrained"]).all()
        assert (one["minimum"] >= one["projection"]).all()
        assert (one["gordon"] <= one["free-probability"]).all()
        # more loss, more pruning
        assert all((np.diff(values) >= 0).all() for values in one.values())
    # magnitude beats chance
    assert (found.limits["magnitude"]["retrained"][0] > found.limits["random"]["retrained"][0]).all()
    # the network at the projection, by hand
    order = np.flatnonzero(pruning.prunable(f).kept)
    order = order[np.argsort(np.abs(w.numpy()[order]))]
    k = round(found.limits["magnitude"]["unretrained"][0, 0] * 66)
    for pruned, within in ((k, True), (k + 1, False)):
        point = w.clone()
        point[torch.from_numpy(order[:pruned])] = 0
        rise = float(f(point) + decay / 2 * point @ point) - found.base
        assert (rise <= 0.02) is within


def test_what_stops_short_is_told(network):
    f, w, decay, _ = network
    short = limit(f, w, pruning.prunable(f), [0.1], weight_decay=decay, draws=2, steps=3)
    assert any("stopped at 3 gradients" in words for words in short.warnings)
    assert short.stopped["random"]["unconverged"][0] >= 1
    # away from a minimum the quadratic leaves something out: a Newton step's gain is told
    away = limit(f, w + 0.3 * draw(f.dim, seed=5), pruning.prunable(f), [0.02], draws=2, retrain=False)
    assert any("no minimum" in words for words in away.warnings)
    assert any("not positive" in words for words in away.warnings)


def test_curvature_along_the_axes_is_told():
    values = torch.from_numpy(VALUES)
    f = Objective.from_function(lambda w: (values * (w - 1).square()).sum() / 2, D)
    found = limit(f, torch.ones(D, dtype=F64), among(f), [0.1], draws=2, retrain=False)
    assert found.alignment[0] == pytest.approx(1, rel=1e-9)
    assert any("lie along the axes" in words for words in found.warnings)
    assert found.warnings == tuple(words for words in found.warnings if "Gauss-Newton" not in words)


# -- words, pictures, questions ---------------------------------------------------------------------------------------


def test_the_answer_is_read_back_and_drawn_from_itself(known, tmp_path):
    found = known[0]
    again = Result.from_json(found.to_json())
    assert isinstance(again, Limit)
    assert again.to_json() == found.to_json()
    for text in ("prunable", "eq. 4", "seed", "biases", "training rows", "lower bound", "BatchNorm"):
        assert text.lower() in found.caption().lower()
    assert found.summary().startswith("prunable share of 30 weights at rise 0.05")
    assert len(found.table()) == 1 + 2 * 3
    assert len({len(row) for row in found.table()}) == 1
    drawn = styles.rendered(again, "svg").decode()
    assert all(f">{words}<" in drawn for words in ("Gordon (2)", "exact (4)", "retrained", "random masks", "tr H / D"))
    assert len(found.figure().data) == len(found.methods)
    with pytest.raises(UsageError, match="panel"):
        found.plot(None, "lenghts")  # type: ignore[arg-type]
    # without what was not measured
    bare = dataclasses.replace(found, alignment=np.full(2, np.nan), dense=False)
    assert "conjugate gradients" in bare.caption()


def test_questions_put_wrongly():
    f, w, _ = well()
    for levels, text in (([], "positive and finite"), ([0.0], "positive and finite"), ([-1.0, 1.0], "positive"), ([np.nan], "finite")):  # fmt: skip
        with pytest.raises(UsageError, match=text):
            limit(f, w, among(f), levels)
    with pytest.raises(UsageError, match="above its 2"):
        limit(f, w, among(f), [1.0], absolute=True)
    with pytest.raises(UsageError, match="Did you mean 'magnitude'"):
        limit(f, w, among(f), [1.0], kinds=["magnitud"])
    with pytest.raises(UsageError, match="magnitude-increase"):
        limit(f, w, among(f), [1.0], kinds=["magnitude-increase"])
    with pytest.raises(UsageError, match="different names"):
        limit(f, w, among(f), [1.0], kinds=["random", "random"])
    for options in ({"draws": 1}, {"weight_decay": -1.0}, {"steps": 0}):
        with pytest.raises(UsageError):
            limit(f, w, among(f), [1.0], **options)
    nothing = Mask(f.model.layout, np.zeros(D, dtype=bool))
    with pytest.raises(UsageError, match="no surviving weight"):
        limit(f, w, nothing, [1.0])
    with pytest.raises(UsageError, match="restricted"):
        limit(f, w[:5], among(f), [1.0])
    hill = Objective.from_function(lambda w: -(w @ w), 3)
    with pytest.raises(LandscapeError, match="no positive eigenvalue"):
        limit(hill, torch.ones(3, dtype=F64), among(hill), [1.0])
    cliff = Objective.from_function(lambda w: w.sum() / 0, 3)
    with pytest.raises(LandscapeError, match="NaN or infinite"):
        limit(cliff, torch.ones(3, dtype=F64), among(cliff), [1.0])


def test_the_command(tmp_path, capsys):
    (tmp_path / "small.py").write_text(
        "import torch\n"
        "from torch import nn\n"
        "from torch.utils.data import TensorDataset\n"
        "def make():\n"
        "    x = torch.randn(60, 5)\n"
        "    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 3)), 'cross-entropy', TensorDataset(x, x[:, :3].argmax(1))\n"
    )
    spec, run = f"{tmp_path / 'small.py'}:make", str(tmp_path / "run")
    train = ["train", spec, "--optimizer", "lbfgs", "--lr", "1", "--batch-size", "0", "--weight-decay", "0.01", "--steps", "80", "--dtype", "float64", "--out", run]  # fmt: skip
    assert main(train) == 0
    ask = ["limit", run, "--task", spec, "--loss", "0.02,0.2", "--draws", "2", "--steps", "10", "--masks", "magnitude,obd,random"]  # fmt: skip
    assert main(ask) == 0
    said = capsys.readouterr().out
    assert "rise 0.02" in said
    assert "prunable share of 32 weights" in said
    (stored,) = (tmp_path / "run" / "results").glob("limit*.json")
    found = Result.from_json(stored.read_text())
    assert isinstance(found, Limit)
    assert found.decay == 0.01  # the run's own
    assert found.masks == ["magnitude", "obd", "random"]
    assert found.provenance["dtype"] == "float64"
    assert main(ask) == 0  # answered before
    assert len(list((tmp_path / "run" / "results").glob("limit*.json"))) == 1
    assert main([*ask, "--weight-decay", "0", "--no-retrain", "--ignore", "0.*"]) == 0
    assert "prunable share of 12 weights" in capsys.readouterr().out
    for wrong in (["--loss", "0"], ["--loss", "x"], ["--masks", "small"], ["--ignore", "nothing*"]):
        assert main([*ask, *wrong]) == 2
        assert "Traceback" not in capsys.readouterr().err
