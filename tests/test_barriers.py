"""Barriers of paths known in closed form; BatchNorm on the path; laws of reversal, chunks and restriction."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from landscape.analysis import barriers, styles
from landscape.analysis.barriers import DEFINITIONS, POLICIES, Barrier, End, barrier, decide, hills, recomputed
from landscape.errors import UsageError
from landscape.masks import Mask
from landscape.objectives import Objective, Rows
from landscape.results import Result
from landscape.seeds import generator
from landscape.subspaces import segment

F64 = torch.float64


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=generator(seed, "test barriers"), dtype=F64)


def labelled(n, features, classes, seed=0):
    return Rows(draw(n, *features, seed=seed), torch.arange(n) % classes)


def objective(module, rows, loss="cross-entropy", **keywords):
    return Objective.of(module, loss, rows, dtype=F64, **keywords)


def filled(module, seed=0):
    """The module with parameters of the seed."""
    with torch.no_grad():
        for i, p in enumerate(module.parameters()):
            p.copy_(draw(*p.shape, seed=100 * seed + i))
    return module


def along(function):
    """The barrier's objective and ends for a given E(a)."""
    return Objective.from_function(lambda w: function(w[0]), 1), torch.zeros(1, dtype=F64), torch.ones(1, dtype=F64)


def mlp():
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4))


def same(one, other):
    """Equality of results, field by field, NaN equal to NaN."""
    for field in dataclasses.fields(one):
        np.testing.assert_equal(getattr(one, field.name), getattr(other, field.name), field.name)


@pytest.fixture
def pair():
    """A small classifier's train and test objectives, and two ends."""
    train, start = objective(filled(mlp()), labelled(60, (3,), 4))
    return train, train.on(labelled(40, (3,), 4, seed=1)), start, draw(len(start), seed=7)


# -- closed forms -----------------------------------------------------------------------------------------------------


def test_convex_quadratic_has_every_definition_in_closed_form():
    root, centre, start, end = draw(6, 6), draw(6, seed=1), draw(6, seed=2), draw(6, seed=3)
    hessian = root @ root.T
    f = Objective.from_function(lambda w: (w - centre) @ hessian @ (w - centre) / 2, 6)
    bend = float((end - start) @ hessian @ (end - start))
    first, last = (float((w - centre) @ hessian @ (w - centre) / 2) for w in (start, end))
    result = barrier(f, None, start, end, refine=0)
    a = result.alpha
    np.testing.assert_allclose(result.curves["train loss"], (1 - a) * first + a * last - a * (1 - a) * bend / 2)
    integral = -bend / 12 * (1 - 1 / 24**2)  # the trapezoidal rule's own error on a parabola of 24 intervals
    expected = {
        "linear-baseline": 0.0,
        "over-mean": abs(first - last) / 2,
        "midpoint": -bend / 8,
        "over-worse-end": 0.0,
        "integral": integral,
        "path-mean": (first + last) / 2 + integral,
        "per-example": -bend / 8,
    }
    assert list(result.definitions()["train loss"]) == list(DEFINITIONS)
    assert result.definitions()["train loss"] == pytest.approx(expected, rel=1e-11, abs=1e-11)
    assert result.distance == pytest.approx(float((end - start).norm()), rel=1e-14)


def test_indefinite_quadratic_has_barrier_k_over_8():
    signs, (start, end) = torch.tensor([1.0, -9.0], dtype=F64), draw(2, 2)
    k = -float((signs * (end - start) ** 2).sum())
    assert k > 0
    result = barrier(Objective.from_function(lambda w: (signs * w**2).sum() / 2, 2), None, start, end)
    assert result.value() == pytest.approx(k / 8, rel=1e-12)
    assert result.argmax["train loss"]["baseline"] == 0.5


@pytest.mark.parametrize("seed", range(8))
def test_softmax_regression_has_no_loss_barrier(seed):
    f, start = objective(nn.Linear(5, 3), labelled(30, (5,), 3, seed=seed))
    result = barrier(f, f, *(10 * draw(2, len(start), seed=seed)))
    # convex: an excess is rounding only, 1e-16 of losses of some tens
    assert result.value("train", "loss") <= 1e-12
    assert (
        result.value("train", "loss", "over-mean") >= abs(np.diff(result.curves["train loss"][[0, -1]])[0]) / 2 - 1e-12
    )


class Two(nn.Module):
    """v1 relu(w1 x) + v2 relu(w2 x)."""

    def __init__(self):
        super().__init__()
        self.w, self.v = nn.Parameter(torch.tensor([[1.0], [-1.0]])), nn.Parameter(torch.tensor([[1.0, -1.0]]))

    def forward(self, x):
        return torch.relu(x @ self.w.T) @ self.v.T


def test_swapped_units_have_barrier_1():
    x = torch.tensor([[-1.0], [1.0]], dtype=F64)
    f, start = objective(Two(), Rows(x, x), "mse")
    result = barrier(f, None, start, start[[1, 0, 3, 2]])
    np.testing.assert_allclose(result.curves["train loss"], (1 - (1 - 2 * result.alpha) ** 2) ** 2, atol=1e-15)
    assert (result.value(), result.argmax["train loss"]["baseline"]) == (1.0, 0.5)


@pytest.mark.parametrize(("start", "end", "expected"), [((2, 0.5), (0.5, 2), 0.31640625), ((1, 1), (-1, -1), 1.0)])
def test_scale_and_sign_symmetry(start, end, expected):
    f = Objective.from_function(lambda w: (w[0] * w[1] - 1) ** 2, 2)
    result = barrier(f, None, torch.tensor(start, dtype=F64), torch.tensor(end, dtype=F64))
    assert [result.value(definition=key) for key in ("linear-baseline", "midpoint", "over-mean")] == [expected] * 3


def test_refinement_finds_a_peak_off_the_grid():
    f, start, end = along(lambda a: torch.exp(-(((a - 0.37) / 0.02) ** 2)))
    coarse, fine = barrier(f, None, start, end, refine=0), barrier(f, None, start, end)
    assert (len(coarse.alpha), len(fine.alpha), fine.grid, fine.refined) == (25, 33, 25, 8)
    assert set(coarse.alpha) < set(fine.alpha)
    assert np.all(np.diff(fine.alpha) > 0)
    # two points halve both intervals beside the best point at least once: after 8 the peak lies within 1/24/16 of it
    step = 1 / 24 / 16
    best = int(np.argmax(fine.curves["train loss"]))
    assert np.diff(fine.alpha)[best - 1 : best + 1].max() <= step * (1 + 1e-9)
    assert abs(fine.argmax["train loss"]["baseline"] - 0.37) <= step
    assert coarse.value() < math.exp(-((step / 0.02) ** 2)) <= fine.value() <= 1


def test_refinement_looks_on_both_sides_of_a_cliff():
    f, start, end = along(lambda a: torch.where(a <= 0.37, a, 0.0))
    assert 0.37 - 1 / 24 / 16 <= barrier(f, None, start, end).value() <= 0.37


# -- laws -------------------------------------------------------------------------------------------------------------


def test_identical_ends_give_a_constant_curve(pair):
    train, test, start, _ = pair
    result = barrier(train, test, start, start.clone())
    assert all(len(set(curve)) == 1 for curve in result.curves.values())
    assert all(result.value(*name.split()) == 0 for name in result.curves)
    assert (result.distance, result.angle, result.degenerate) == (0, 0, True)
    assert "one point" in result.warnings[0]


def test_reversal_mirrors(pair):
    train, test, start, end = pair
    there, back = barrier(train, test, start, end, refine=0), barrier(train, test, end, start, refine=0)
    for name, curve in there.curves.items():
        np.testing.assert_allclose(back.curves[name][::-1], curve, rtol=1e-12)
        assert back.definitions()[name] == pytest.approx(there.definitions()[name], abs=1e-12)


def test_permuting_the_units_of_both_ends_changes_nothing(pair):
    train, test, *ends = pair
    order = torch.tensor([3, 0, 4, 1, 2])

    def permuted(w):
        first, bias, second, rest = w.split([15, 5, 20, 4])
        return torch.cat([first.view(5, 3)[order].flatten(), bias[order], second.view(4, 5)[:, order].flatten(), rest])

    before, after = barrier(train, test, *ends), barrier(train, test, *map(permuted, ends))
    for name, curve in before.curves.items():
        np.testing.assert_allclose(after.curves[name], curve, rtol=1e-12)


def test_ends_are_the_ends_and_by_row_agrees_with_the_mean(pair):
    train, test, start, end = pair
    result = barrier(train, test, start, end)
    for split, f in (("train", train), ("test", test)):
        for place, point in ((0, start), (-1, end), (np.searchsorted(result.alpha, 0.5), (start + end) / 2)):
            value = f.value(point)
            assert result.curves[f"{split} loss"][place] == pytest.approx(float(value.loss), rel=1e-14)
            assert result.curves[f"{split} error"][place] == pytest.approx(1 - float(value.accuracy), rel=1e-14)
    for name, table in result.definitions().items():
        assert table["per-example"] == pytest.approx(table["midpoint"], abs=1e-14)
        assert 0 <= result.per_example[name]["share_positive"] <= 1
        assert result.per_example[name]["q05"] <= result.per_example[name]["q50"] <= result.per_example[name]["q95"]


def test_weighted_losses_keep_their_mean():
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 5.0, 0.5], dtype=F64))
    f, start = objective(filled(nn.Linear(4, 3)), labelled(20, (4,), 3), loss)
    result = barrier(f, None, start, draw(len(start), seed=5))
    assert result.curves["train loss"][0] == pytest.approx(float(f(start)), rel=1e-12)


@pytest.mark.parametrize("chunk", [1, 7, 59])
def test_chunks_do_not_change_sums(pair, chunk):
    train, _, start, end = pair
    whole, cut = (barrier(f, None, start, end) for f in (train, dataclasses.replace(train, chunk=chunk)))
    np.testing.assert_allclose(cut.curves["train loss"], whole.curves["train loss"], rtol=1e-13)
    np.testing.assert_array_equal(cut.curves["train error"], whole.curves["train error"])


@pytest.mark.parametrize("limits", [{"SCORED": 1}, {"SCORED": 130}, {"HELD": 100}, {"SCORED": 10**6, "HELD": 10**6}])
def test_how_many_points_are_evaluated_at_once_changes_nothing(pair, monkeypatch, limits):
    train, test, start, end = pair
    given = [barrier(train, test, start, end, points=7, refine=2)]
    for name, value in limits.items():
        monkeypatch.setattr(barriers, name, value)
    given.append(barrier(train, test, start, end, points=7, refine=2))
    for name, curve in given[0].curves.items():
        np.testing.assert_allclose(given[1].curves[name], curve, rtol=1e-13)
    for kept in (start, end, draw(len(start), seed=9)):
        one, several = (list(barriers._ground({"train": train}, None, "none needed", 0).answers(points, True)) for points in ([(kept, {})], [(end, {}), (kept, {}), (start, {})]))  # fmt: skip
        np.testing.assert_array_equal(one[0]["train"].predicted, several[1]["train"].predicted)
        np.testing.assert_allclose(one[0]["train"].loss, several[1]["train"].loss, rtol=1e-13)


def test_points_are_made_as_they_are_needed(pair):
    """A path of many points of a large network must not be held whole."""
    train, _, start, end = pair
    made = []

    def points():
        for k in range(20):
            made.append(k)
            yield torch.lerp(start, end, k / 20), {}

    ground = barriers._ground({"train": train}, None, "none needed", 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(barriers, "HELD", 3 * len(start))
        answers = ground.answers(points())
        next(answers)
        assert len(made) == 3
        assert len(list(answers)) == 19


def test_a_restriction_to_the_segment_has_the_same_barrier(pair):
    train, test, start, end = pair
    line = segment(start, end)
    whole = barrier(train, test, start, end)
    inside = barrier(train.restrict(line), test.restrict(line), torch.zeros(1), torch.ones(1))
    assert inside.distance == pytest.approx(whole.distance, rel=1e-12)
    for name, curve in whole.curves.items():
        np.testing.assert_allclose(inside.curves[name], curve, rtol=1e-10)


def test_the_angle_is_that_of_the_points():
    f = Objective.from_function(lambda w: w @ w, 2)
    x, y = torch.eye(2, dtype=F64)
    assert barrier(f, None, x, 3 * (x + y)).angle == pytest.approx(45, abs=1e-12)
    assert barrier(f, None, x, 0 * y).angle is None


# -- what makes a barrier say nothing ---------------------------------------------------------------------------------


def test_ends_at_chance_are_degenerate(pair):
    train, test, start, _ = pair
    result = barrier(train, test, torch.zeros_like(start), torch.zeros_like(start).index_fill(0, torch.tensor([0]), 1))
    assert result.value("train", "error") == result.value("test", "loss") == 0
    assert result.degenerate
    assert result.chance == {"test": 0.75, "train": 0.75}
    assert [warning.split(":")[0] for warning in result.warnings] == [
        "At chance",
        "An end is no better than uniform guessing",
    ]
    for part in (
        "test error of the start",
        "test error of the end",
        "train error of the start",
        "train error of the end",
    ):
        assert part in result.warnings[0]  # a line for each cause, with the curves that have it
    assert "test loss" in result.warnings[1] and "train loss" in result.warnings[1]
    assert "DEGENERATE" in result.summary()


def test_chance_is_that_of_the_commonest_class_unless_given():
    rows = Rows(draw(20, 2), torch.tensor([0] * 15 + [1] * 5))
    f, _ = objective(nn.Linear(2, 2), rows)
    always = torch.tensor([0.0, 0, 0, 0, 9, 0])  # weights 0, bias of class 0
    assert barrier(f, None, always, 2 * always).degenerate  # error 25 %, as guessing
    assert not barrier(f, None, always, 2 * always, chance=0.5).degenerate


@pytest.mark.parametrize(
    ("loss", "targets"),
    [
        ("cross-entropy", torch.tensor([0, 2, 2, -100, 5, 2])),
        ("cross-entropy", torch.eye(6, dtype=F64)[[0, 2, 2, 2, 5]]),
        (nn.BCEWithLogitsLoss(), torch.tensor([[0.0], [1.0], [1.0], [1.0], [0.2]], dtype=F64)),
    ],
)
def test_classes_are_counted_as_answers_are(loss, targets):
    """Three of five: also of probabilities, of which the largest is the class, and of ones and zeros."""
    n, out = len(targets), 6 if loss == "cross-entropy" else 1
    f, _ = objective(nn.Linear(2, out), Rows(draw(n, 2), targets), loss)
    assert barriers._chance(f) == pytest.approx(0.4)
    assert barriers.uniform_loss(f) == pytest.approx(math.log(3 if out == 6 else 2))


def test_points_that_are_not_finite_are_masked_and_counted():
    f, start, end = along(lambda a: torch.where((a - 0.25).abs() < 0.05, math.inf, a * (1 - a)))
    endless, *_ = along(lambda a: torch.where(a > 0.95, math.nan, a * (2 - a)))
    result = barrier(f, None, start, end, refine=3)
    bad = np.abs(result.alpha - 0.25) < 0.05
    np.testing.assert_array_equal(np.isnan(result.curves["train loss"]), bad)
    assert result.masked == {"train": bad.sum()}
    assert result.value() == 0.25
    assert math.isnan(result.value(definition="integral"))
    assert not result.degenerate
    assert any("3 of 28 points of the train loss" in warning for warning in result.warnings)
    undefined = barrier(endless, None, start, end)  # the end itself is not finite
    assert undefined.degenerate
    assert undefined.refined == 0
    assert all(math.isnan(value) for value in undefined.definitions()["train loss"].values())
    for each in (result, undefined):
        same(Result.from_json(each.to_json()), each)
        assert styles.rendered(each, "svg")
        each.figure()


def test_outputs_that_are_nan_have_no_error_either(pair):
    train, test, start, end = pair
    result = barrier(train, test, start, end * math.nan)
    assert np.isnan(result.curves["test error"][1:]).all()
    assert not np.isnan(result.curves["test error"][0])
    assert math.isnan(result.value())


def test_ends_that_differ_much_are_named():
    f, start, end = along(lambda a: 1 + 9 * a)
    (warning,) = barrier(f, None, start, end).warnings
    assert "differ much" in warning
    assert "4.5" in warning


# -- BatchNorm --------------------------------------------------------------------------------------------------------


def normalised(kind):
    # eps would break the scale symmetry by about eps / variance
    if kind == "conv":
        parts = (nn.Conv2d(1, 3, 2, bias=False), nn.BatchNorm2d(3, eps=1e-12), nn.Flatten(), nn.Linear(12, 4))
        return filled(nn.Sequential(*parts)), (1, 3, 3)
    parts = (nn.Linear(3, 6, bias=False), nn.BatchNorm1d(6, eps=1e-12), nn.Linear(6, 4))
    return filled(nn.Sequential(*parts)), (3,)


def scaled_ends(kind, factor=3.0, n=50):
    """Objective, and two ends that are one function: the first layer times a factor, its statistics with it."""
    module, features = normalised(kind)
    f, start = objective(module, labelled(n, features, 4))
    f = recomputed(f, start)
    layer = module[0].weight.numel()
    end = torch.cat([factor * start[:layer], start[layer:]])
    one = dict(f.buffers)
    other = {**one, "1.running_mean": factor * one["1.running_mean"], "1.running_var": factor**2 * one["1.running_var"]}
    return f, start, end, {"start_buffers": one, "end_buffers": other}


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_recomputed_statistics_make_the_scaled_path_flat(kind):
    f, start, end, buffers = scaled_ends(kind)
    result = barrier(f, f, start, end, bn="recompute", chance=1.0, **buffers)  # untrained, so near chance
    np.testing.assert_allclose(result.curves["test loss"], float(f(start)), rtol=1e-9)
    assert (result.bn, result.degenerate) == ("recompute", False)
    assert not any("BatchNorm" in warning for warning in result.warnings)


@pytest.mark.parametrize("kind", ["conv", "linear"])
def test_averaged_statistics_have_5_where_4_is_right(kind):
    f, start, end, buffers = scaled_ends(kind)
    result = barrier(f, f, start, end, bn="average", **buffers)
    flat = float(f(start))
    assert result.curves["test loss"][[0, -1]] == pytest.approx([flat, flat], rel=1e-9)
    # at 1/2 the layer deviates by 2 s and the averaged variance is 5 s^2: it hands on sqrt(4/5) of what it should
    narrowed = {**f.buffers, "1.running_var": f.buffers["1.running_var"] * 5 / 4}
    expected = float(f.with_buffers(narrowed)(start))
    assert abs(expected - flat) > 0.01
    assert result.curves["test loss"][np.searchsorted(result.alpha, 0.5)] == pytest.approx(expected, rel=1e-9)
    assert any("recompute" in warning for warning in result.warnings)
    assert "BatchNorm average" in result.summary()


@pytest.mark.parametrize("kind", ["conv", "linear"])
@pytest.mark.parametrize("chunk", [7, 16, 50])
def test_recomputed_statistics_are_the_population_s(kind, chunk):
    module, features = normalised(kind)
    f, point = objective(module, labelled(50, features, 4), chunk=chunk)
    with torch.no_grad():
        values = module.double()[0](f.rows.inputs).transpose(0, 1).flatten(1).numpy()
    found = recomputed(f, point).buffers
    np.testing.assert_allclose(found["1.running_mean"], values.mean(1), atol=1e-14)
    np.testing.assert_allclose(found["1.running_var"], values.var(1, ddof=1), rtol=1e-13)


def test_recomputed_agrees_with_a_cumulative_pass_of_torch():
    module = filled(
        nn.Sequential(
            nn.Linear(3, 6),
            nn.BatchNorm1d(6, momentum=None),
            nn.ReLU(),
            nn.Linear(6, 5),
            nn.BatchNorm1d(5, momentum=None),
        )
    )
    f, point = objective(module, labelled(50, (3,), 5))
    assert f.buffers["1.num_batches_tracked"] == 0
    module.double().train()(f.rows.inputs)
    found = recomputed(f, point)
    for name, value in module.named_buffers():
        if "running" in name:
            torch.testing.assert_close(found.buffers[name], value, rtol=1e-12, atol=1e-14)
    assert found.norm == "eval"


def test_nothing_of_the_user_s_is_written_to():
    module, features = normalised("linear")
    f, start = objective(module, labelled(50, features, 4), chunk=20)
    given = {name: value.clone() + 1 for name, value in f.buffers.items()}
    kept = [{n: v.clone() for n, v in place.items()} for place in (module.state_dict(), f.buffers, given)]
    recomputed(f, start)
    for bn in POLICIES:
        barrier(f, f, start, 2 * start, bn=bn, start_buffers=given, end_buffers=given, points=5)
    for place, before in zip((module.state_dict(), f.buffers, given), kept, strict=True):
        torch.testing.assert_close(dict(place), before, rtol=0, atol=0)
    assert module.training
    assert all(not part._forward_pre_hooks for skeleton in f.model.skeletons.values() for part in skeleton.modules())


class Chosen(nn.Module):
    """A linear layer on columns that an integer buffer names."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 3)
        self.register_buffer("columns", torch.tensor([0, 2]))

    def forward(self, x):
        return self.linear(x[:, self.columns])


def test_integer_buffers_are_the_start_s():
    f, start = objective(filled(Chosen()), labelled(12, (3,), 3))
    other = {"columns": torch.tensor([1, 0])}
    result = barrier(f, None, start, 2 * start, end_buffers=other)
    np.testing.assert_array_equal(result.curves["train loss"], barrier(f, None, start, 2 * start).curves["train loss"])
    assert result.bn == "none needed"
    module, features = normalised("linear")
    g, point = objective(module, labelled(12, features, 3))
    tracked = recomputed(g, point).buffers["1.num_batches_tracked"]
    assert (tracked.dtype, int(tracked)) == (torch.int64, 0)


def test_endpoint_and_batch_policies():
    f, start, end, buffers = scaled_ends("linear")
    own = f.with_buffers(buffers["start_buffers"])
    fixed = barrier(f, None, start, end, bn="endpoint", **buffers)
    assert fixed.curves["train loss"][-1] == pytest.approx(float(own(end)), rel=1e-12)
    batch = barrier(f, None, start, end, bn="batch", **buffers)
    np.testing.assert_allclose(batch.curves["train loss"], float(f.with_buffers(f.buffers, "batch")(start)), rtol=1e-9)


def test_chunks_for_batch_statistics_are_even_and_seeded():
    module, features = normalised("linear")
    f, start = objective(module, labelled(33, features, 4), chunk=32)  # torch refuses a rest of one row
    first, again, other = (barrier(f, None, start, 2 * start, bn="batch", points=3, seed=s) for s in (0, 0, 1))
    same(again, first)
    assert first.curves["train loss"][0] != other.curves["train loss"][0]
    with pytest.raises(UsageError, match="at least 2 rows"):
        recomputed(f.on(slice(0, 1)), start)


@pytest.mark.parametrize("norm", [nn.Identity(), nn.LayerNorm(6), nn.GroupNorm(2, 6)])
def test_without_batch_norm_no_policy_is_needed(norm):
    f, start = objective(filled(nn.Sequential(nn.Linear(3, 6), norm, nn.Linear(6, 4))), labelled(30, (3,), 4))
    assert recomputed(f, start) is f
    curves = [barrier(f, None, start, 2 * start, bn=bn) for bn in POLICIES]
    assert {result.bn for result in curves} == {"none needed"}
    for result in curves[1:]:
        same(result, curves[0])


def test_one_set_of_statistics_for_both_ends_is_warned_of():
    f, start, end, buffers = scaled_ends("linear")
    said = [" ".join(barrier(f, None, start, end, points=3, bn="average", **given).warnings) for given in ({}, buffers)]
    assert ["one set" in text for text in said] == [True, False]


def test_statistics_are_recomputed_unless_asked_otherwise():
    f, start, end, buffers = scaled_ends("linear")
    assert barrier(f, None, start, end, points=3, **buffers).bn == "recompute"


# -- the answer -------------------------------------------------------------------------------------------------------


def test_json_round_trip_draws_the_same(pair):
    train, test, start, end = pair
    result = barrier(train, test, start, end)
    back = Barrier.from_json(result.to_json())
    same(back, result)
    assert styles.rendered(back, "svg") == styles.rendered(result, "svg")
    assert [trace.name for trace in back.figure().data if trace.name] == [
        "test error",
        "train error",
        "test loss",
        "train loss",
    ]
    np.testing.assert_array_equal(back.figure().data[1].y, 100 * result.curves["test error"])
    assert json.loads(result.to_json())["barriers"]["test loss"]["midpoint"] == result.value("test", "loss", "midpoint")
    assert result.provenance["D"] == len(start)


def test_the_summary_names_definition_grid_place_and_unit(pair):
    train, test, start, end = pair
    result = barrier(train, test, start, end)
    line = result.summary()
    for part in (
        f"test-error barrier {100 * result.value():.1f} pp",
        "linear baseline, 25+8 points, at a = 0.",
        "test-loss barrier",
    ):
        assert part in line
    assert "\n" not in line
    assert result.panels() == ("error", "loss")
    assert "midpoint" in result.caption()
    function, *ends = along(lambda a: a * (1 - a))
    assert barrier(function, None, *ends).panels() == ("loss",)
    assert (
        barrier(function, None, *ends)
        .summary()
        .startswith("train-loss barrier 0.25 (linear baseline, 25+8 points, at a = 0.50)")
    )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"points": 30}, "odd"),
        ({"points": 1}, "Take 3"),
        ({"refine": -1}, "refine"),
        ({"bn": "recomptue"}, "Did you mean 'recompute'"),
        ({"chance": 1.5}, "chance"),
        ({"threshold": 0.0}, "above 0"),
        ({"threshold": 2.0}, "two points of error; got 2"),
        ({"end_buffers": {"x": torch.zeros(1)}}, "end_buffers"),
    ],
)
def test_wrong_options_are_refused(pair, options, match):
    train, test, start, end = pair
    with pytest.raises(UsageError, match=match):
        barrier(train, test, start, end, **options)


def test_wrong_points_and_names_are_refused(pair):
    train, test, start, end = pair
    with pytest.raises(UsageError, match="two points of shape"):
        barrier(train, test, start, end[:-1])
    result = barrier(train, None, start, end, points=3, refine=0)
    with pytest.raises(UsageError, match="train error"):
        result.value("test")
    with pytest.raises(UsageError, match="over-mean"):
        result.value(definition="over-meen")
    with pytest.raises(UsageError, match="panel 'lost'"):
        result.plot(None, "lost")


# -- what sampling the rows does -----------------------------------------------------------------------------------------


class Table(nn.Module):
    """At the place a = k / (K - 1) on the way from 0 to 1 a row (N, K) is wrong where its entry k is 1."""

    def __init__(self, points):
        super().__init__()
        self.points = points
        self.a = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        k = int(torch.round(self.a * (self.points - 1)).item())
        return torch.stack([torch.zeros_like(x[:, k]), 0.5 - x[:, k]], 1)


def tabled(wrong):
    """The objective whose errors by row and place are `wrong` (N, K), with its ends."""
    n, points = wrong.shape
    rows = Rows(torch.from_numpy(wrong.astype(float)), torch.ones(n, dtype=torch.int64))
    f, start = objective(Table(points), rows)
    return f, start, torch.ones(1, dtype=F64)


def resampled(wrong, draws=4000):
    """The bootstrap of the barrier by its definition: rows drawn one by one."""
    random = np.random.default_rng(5)
    a = np.linspace(0, 1, wrong.shape[1])
    tops = np.empty(draws)
    for i in range(draws):
        curve = wrong[random.integers(0, len(wrong), len(wrong))].mean(0)
        tops[i] = (curve - ((1 - a) * curve[0] + a * curve[-1])).max()
    return tops


def test_the_interval_of_a_single_peak_is_that_of_a_share():
    n, share = 400, 0.3
    wrong = np.zeros((n, 3))
    wrong[: int(share * n), 1] = 1
    f, start, end = tabled(wrong)
    found = barrier(f, None, start, end, points=3, refine=0, chance=0.9).intervals["none needed"]
    exact = math.sqrt(share * (1 - share) / n)
    # a standard deviation of 1,000 draws has a standard error of 1/sqrt(2,000) of it; a quantile at 2.5% one of 0.084 deviations, and a step of 1/400
    assert found["standard_error"] == pytest.approx(exact, rel=4 / math.sqrt(2000))
    assert found["bias"] == pytest.approx(0, abs=4 * exact / math.sqrt(1000))
    for name, turn in (("low", -1.96), ("high", 1.96)):
        assert found[name] == pytest.approx(share + turn * exact, abs=4 * 0.084 * exact + 1 / 400)


def test_the_bootstrap_is_that_of_rows_drawn_one_by_one():
    random = np.random.default_rng(0)
    wrong = (random.random((90, 5)) < [0.1, 0.3, 0.35, 0.3, 0.2]).astype(float)
    wrong[:30] = wrong[:30, :1]  # rows that are constant along the path
    f, start, end = tabled(wrong)
    found = barrier(f, None, start, end, points=5, refine=0, chance=0.9)
    tops = resampled(wrong)
    a = np.linspace(0, 1, 5)
    value = (wrong.mean(0) - ((1 - a) * wrong[:, 0].mean() + a * wrong[:, -1].mean())).max()
    assert found.value() == pytest.approx(value, rel=1e-12)
    own = found.intervals["none needed"]
    error = tops.std() * math.sqrt(1 / 1000 + 1 / 4000)
    assert own["bias"] == pytest.approx(tops.mean() - value, abs=4 * error)
    assert own["standard_error"] == pytest.approx(tops.std(), rel=4 * math.sqrt(1 / 2000 + 1 / 8000))
    assert own["high"] == pytest.approx(np.quantile(tops, 0.975), abs=4 * 0.094 * tops.std() + 1 / 90)


def test_the_interval_of_losses_is_that_of_rows_drawn_one_by_one():
    losses = np.random.default_rng(1).random((60, 3))
    f, start, end = tabled(
        losses
    )  # the loss log(1 + exp(x - 1/2)) is not the table's, but by rows of one place it is known
    values = np.log1p(np.exp(losses - 0.5))
    f = dataclasses.replace(f, loss=dataclasses.replace(f.loss, classifies=False))
    found = barrier(f, None, start, end, points=3, refine=0).intervals["none needed"]
    tops = resampled(values)
    assert found["standard_error"] == pytest.approx(tops.std(), rel=4 * math.sqrt(1 / 2000 + 1 / 8000))


def test_noise_alone_makes_a_barrier_and_the_interval_says_so():
    """Rows wrong by chance at every place: the true barrier is 0, the measured one is not."""
    covered = 0
    for seed in range(12):
        wrong = (np.random.default_rng(seed).random((300, 11)) < 0.2).astype(float)
        f, start, end = tabled(wrong)
        found = barrier(f, None, start, end, points=11, refine=0, chance=0.9)
        own = found.intervals["none needed"]
        assert found.value() > 0
        assert own["bias"] > 0
        covered += own["low"] == 0
    # at 95% coverage fewer than 9 of 12 has probability 0.2%
    assert covered >= 9


def test_of_one_row_there_is_no_sample():
    f, start, end = along(lambda a: a * (1 - a))
    result = barrier(f, None, start, end)
    assert result.intervals == {}
    assert "interval" not in result.summary()


def test_ignored_targets_have_no_part_in_the_error():
    x, targets = draw(12, 2), torch.tensor([0, 1, -100] * 4)
    f, _ = objective(nn.Linear(2, 2), Rows(x, targets))
    always = torch.tensor([0.0, 0, 0, 0, 9, 0])  # class 0: right for half of those that are counted
    assert barrier(f, None, always, 2 * always).curves["train error"] == pytest.approx(0.5)


# -- a threshold -----------------------------------------------------------------------------------------------------------


def peaked(n, bad, points=33):
    wrong = np.zeros((n, points))
    wrong[:bad, points // 2] = 1
    return tabled(wrong)


@pytest.mark.parametrize(("bad", "answer", "seen"), [(100, "no", 3), (0, "yes", 33), (4, "undecided", 41)])
def test_a_threshold_takes_no_more_points_than_it_needs(bad, answer, seen):
    # of 200 rows 2% are 4: half of them above is beyond doubt, none below, exactly as many undecided
    f, start, end = peaked(200, bad)
    result = barrier(f, None, start, end, points=33, threshold=0.02, chance=0.9)
    assert result.answer == answer
    assert len(result.alpha) == seen
    assert result.saved == 41 - seen
    assert f"below 2.0 pp: {answer}" in result.summary()
    assert styles.rendered(result, "svg")
    same(Result.from_json(result.to_json()), result)


@pytest.mark.parametrize(("n", "answer"), [(2, "undecided"), (182, "undecided"), (183, "yes"), (2000, "yes")])
def test_few_rows_that_are_all_right_prove_nothing(n, answer):
    # none wrong of n: a share p is missed with probability (1 - p)^n, which is 0.025 at p = 0.0201 for 182 rows and 0.01996 for 183 (Clopper-Pearson)
    f, start, end = peaked(n, 0, points=5)
    result = barrier(f, None, start, end, points=5, threshold=0.02, chance=0.9)
    interval = result.intervals["none needed"]
    assert interval["low"] == 0
    assert interval["high"] == pytest.approx(stats.beta.ppf(0.975, 1, n), rel=1e-9)
    assert result.answer == answer


def test_the_floor_of_an_interval_is_for_errors_alone():
    f, start, end = along(lambda a: a * (1 - a))
    assert barrier(f, None, start, end, threshold=0.26).answer == "yes"


def test_ends_that_know_nothing_are_never_surely_connected():
    f, start, end = peaked(2000, 0, points=5)
    result = barrier(f, None, start, end, points=5, threshold=0.02, chance=0.01)  # their error 0 is that of guessing
    assert (result.degenerate, result.answer, result.saved) == (True, "undecided", 0)
    assert "below 2.0 pp: undecided" in result.summary() and "DEGENERATE" in result.summary()


def test_the_midpoint_is_looked_at_first():
    places = []

    def value(a):
        places.append(float(a))
        return a * (1 - a)

    f, start, end = along(value)
    places.clear()
    assert barrier(f, None, start, end, points=9, threshold=0.2).answer == "no"
    assert places == [0, 1, 0.5]


# -- masks and policies ----------------------------------------------------------------------------------------------------


@pytest.fixture
def masked():
    """An indefinite quadratic of three coordinates, ends on two axial planes, their masks."""
    signs = torch.tensor([1.0, -9.0, 4.0], dtype=F64)
    f = Objective.from_function(lambda w: (signs * w**2).sum() / 2, 3)
    one, other = (Mask.of(f.model.layout, {"w": kept}) for kept in ([1, 1, 0], [0, 1, 1]))
    return f, torch.tensor([1.0, 2, 0], dtype=F64), torch.tensor([0.0, -1, 3], dtype=F64), one, other


@pytest.mark.parametrize(("mask", "kept"), [("none", [1, 1, 1]), ("union", [1, 1, 1]), ("start", [1, 1, 0]), ("end", [0, 1, 1]), ("intersection", [0, 1, 0])])  # fmt: skip
def test_masks_prune_the_path(masked, mask, kept):
    f, start, end, one, other = masked
    result = barrier(f, None, start, end, mask=mask, start_mask=one, end_mask=other, refine=0)
    a, keep = result.alpha[:, None], np.array(kept)
    w = ((1 - a) * start.numpy() + a * end.numpy()) * keep
    np.testing.assert_allclose(result.curves["train loss"], (w**2 @ [1.0, -9, 4]) / 2, rtol=1e-12, atol=1e-12)
    assert (result.mask, result.density) == (mask, None if mask == "none" else pytest.approx(sum(kept) / 3))
    assert any("moves" in warning for warning in result.warnings) == (mask not in ("none", "union"))
    assert ("mask" in result.summary()) == (mask != "none")


def test_masks_that_are_not_there_are_asked_for(masked):
    f, start, end, one, _ = masked
    with pytest.raises(UsageError, match="mask of the end"):
        barrier(f, None, start, end, mask="union", start_mask=one)
    with pytest.raises(UsageError, match="Did you mean 'union'"):
        barrier(f, None, start, end, mask="unoin", start_mask=one)
    line = segment(start, end)
    with pytest.raises(UsageError, match="before it is restricted"):
        barrier(f.restrict(line), None, torch.zeros(1), torch.ones(1), mask="start", start_mask=one)


def test_policies_stand_side_by_side():
    f, start, end, buffers = scaled_ends("linear")
    result = barrier(f, f, start, end, bn=("recompute", "average"), chance=1.0, **buffers)
    flat = float(f(start))
    assert result.bn == "recompute"
    np.testing.assert_allclose(result.curves["test loss"], flat, rtol=1e-9)
    narrowed = {**f.buffers, "1.running_var": f.buffers["1.running_var"] * 5 / 4}  # as above: 5 where 4 is right
    middle = np.searchsorted(result.alpha, 0.5)
    expected = float(f.with_buffers(narrowed)(start))
    assert result.others["average"]["test loss"][middle] == pytest.approx(expected, rel=1e-9)
    assert result.other_barriers["average"]["test loss"]["midpoint"] == pytest.approx(expected - flat, rel=1e-6)
    assert set(result.intervals) == {"recompute", "average"}
    assert ", by average" in result.summary()
    assert [trace.name for trace in result.figure().data if trace.name and "average" in trace.name] == ["test error, BatchNorm average", "test loss, BatchNorm average"]  # fmt: skip
    same(Result.from_json(result.to_json()), result)


def test_uneven_ends_are_flagged():
    wrong = np.zeros((100, 3))
    wrong[:10, -1] = 1
    f, start, end = tabled(wrong)
    assert barrier(f, None, start, end, points=3, refine=0, chance=0.9).uneven
    assert "UNEVEN" in barrier(f, None, start, end, points=3, refine=0, chance=0.9).summary()
    assert not barrier(f, None, start, start + 1e-9, points=3, refine=0, chance=0.9).uneven


def test_answers_of_before_are_read():
    """Fields are added with defaults, so that the gallery's answers stay readable."""
    old = Barrier.from_json((Path(__file__).parents[1] / "figures" / "barrier.json").read_text())
    assert (old.intervals, old.mask, old.answer) == ({}, "none", None)
    assert styles.rendered(old, "svg")


# -- many barriers ---------------------------------------------------------------------------------------------------------


def test_hills_of_an_indefinite_quadratic():
    signs, points = torch.tensor([1.0, -9.0], dtype=F64), draw(3, 2, seed=4)
    f = Objective.from_function(lambda w: (signs * w**2).sum() / 2, 2)
    ends = [End(point) for point in points]
    pairs = [(ends[0], ends[1]), (ends[1], ends[2]), (ends[2], ends[0])]
    found = hills(f, None, pairs)
    bends = [float((signs * (other.point - one.point) ** 2).sum()) for one, other in pairs]
    np.testing.assert_allclose(found.value(), [max(0, -bend / 8) for bend in bends], rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(found.value(definition="midpoint"), [-bend / 8 for bend in bends], rtol=1e-12)
    np.testing.assert_allclose(found.distance, [float((b.point - a.point).norm()) for a, b in pairs], rtol=1e-14)
    first, second = points[0].numpy(), points[1].numpy()
    cosine = first @ second / np.linalg.norm(first) / np.linalg.norm(second)
    assert found.angle[0] == pytest.approx(math.degrees(math.acos(cosine)), rel=1e-9)
    assert found.angular[0] == pytest.approx(2 * math.acos(cosine) / math.pi, rel=1e-9)
    assert np.isnan(found.disagreement).all()
    assert found.policies == ("none needed",)


def test_an_end_in_many_pairs_is_evaluated_once():
    count = 0

    def value(w):
        nonlocal count
        count += 1
        return w @ w

    f = Objective.from_function(value, 2)
    ends = [End(point) for point in draw(3, 2)]
    hills(f, None, list(itertools.combinations(ends, 2)), points=5)
    assert count == 3 + 3 * 3


def test_hills_are_barriers_and_the_lockstep_agrees(pair):
    train, test, start, end = pair
    found = hills(train, test, [(End(start), End(end))])
    line = torch.stack([torch.lerp(start, end, float(a)) for a in found.alpha])
    for split, f in (("train", train), ("test", test)):
        value = f.value(line)  # vmap over the points
        np.testing.assert_allclose(found.curves["none needed"][f"{split} loss"][0], value.loss, rtol=1e-12)
        np.testing.assert_allclose(found.curves["none needed"][f"{split} error"][0], 1 - value.accuracy, atol=1e-12)
    classes = [test.outputs(point).argmax(1) for point in (start, end)]
    assert found.disagreement[0] == pytest.approx(float((classes[0] != classes[1]).double().mean()))
    assert found.headline == "test error"
    np.testing.assert_allclose(found.intervals["none needed"].value, found.value(), rtol=1e-12)
    assert found.decided(10.0) == ["yes"]


def test_angular_distance_is_over_the_shared_weights(masked):
    f, start, end, one, other = masked
    found = hills(f, None, [(End(start, mask=one), End(end, mask=other))])
    assert found.angular[0] == pytest.approx(2)  # of (2) and (-1): opposite


def test_hills_take_batchnorm_as_barriers_do():
    f, start, end, buffers = scaled_ends("linear")
    ends = End(start, buffers["start_buffers"]), End(end, buffers["end_buffers"])
    found = hills(None, f, [ends], bn=("recompute", "average"), statistics=f, points=3)
    flat = float(f(start))
    np.testing.assert_allclose(found.curves["recompute"]["test loss"][0], flat, rtol=1e-9)
    narrowed = {**f.buffers, "1.running_var": f.buffers["1.running_var"] * 5 / 4}
    assert found.curves["average"]["test loss"][0, 1] == pytest.approx(float(f.with_buffers(narrowed)(start)), rel=1e-9)
    with pytest.raises(UsageError, match="statistics"):
        hills(None, f, [ends], bn="recompute")
    fixed = hills(None, f, [ends], bn="endpoint", points=3).curves["endpoint"]["test loss"][0]
    assert fixed[-1] == pytest.approx(float(f.with_buffers(buffers["start_buffers"])(end)), rel=1e-12)


def test_hills_of_nothing_and_wrong_names_are_refused(pair):
    train, _, start, end = pair
    with pytest.raises(UsageError, match="at least one pair"):
        hills(train, None, [])
    with pytest.raises(UsageError, match="definition"):
        hills(train, None, [(End(start), End(end))], points=3).value(definition="per-example")


@pytest.mark.parametrize(("low", "high", "answer"), [(0.0, 0.019, "yes"), (0.021, 0.5, "no"), (0.01, 0.03, "undecided"), (math.nan, math.nan, "undecided")])  # fmt: skip
def test_decide(low, high, answer):
    assert decide(low, high, 0.02) == answer
