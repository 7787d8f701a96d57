"""Clouds: every point against a plain loop of torch.optim over the same rows, stopped ones, lost ones, and the drift of walks in closed form."""

import dataclasses
import math
import shutil

import numpy as np
import pytest
import torch
from torch import nn

from landscape import branches, clouds, tasks
from landscape.clouds import Plan
from landscape.descent import Recipe
from landscape.errors import DivergedError, UsageError
from landscape.masks import Mask
from landscape.recordings import record, site
from landscape.runs import Place, Run, last
from landscape.seeds import child_seed, generator
from landscape.trajectories import Row, TrajectoryWriter

F64, RATE, BATCH, BETA = torch.float64, 0.05, 32, 0.9
CPU = torch.device("cpu")

PROBLEM = """
import torch
from torch import nn
from sklearn.datasets import load_digits

def data(n):
    x, y = load_digits(return_X_y=True)
    return (x[:n] / 16).astype("float32"), y[:n]

def normalised():
    return nn.Sequential(nn.Linear(64, 6), nn.BatchNorm1d(6), nn.Tanh(), nn.Linear(6, 10)), "cross-entropy", data(150)

def outlier():
    x, y = data(60)
    x[:] = 0
    x[0, 0] = 1e25  # a step over this row throws its training beyond float32, and one over the others does not
    return nn.Linear(64, 1), nn.L1Loss(), (x, y[:, None].astype("float32"))
"""


def trained(folder, spec="digits-mlp", *, dtype=F64, states=(), limit=200, **changes):
    """A run of 6 steps, its task, its whole objective and its recipe."""
    task = tasks.find(spec, limit=limit)
    recipe = Recipe(**{"steps": 6, "lr": RATE, "batch_size": BATCH, "momentum": BETA, **changes})
    run = Run(folder)
    options = {"task": spec, "limit": limit, "seed": 0, "dtype": str(dtype).removeprefix("torch."), "device": "cpu"}
    run.begin("train", {**options, **dataclasses.asdict(recipe)}, {"fingerprint": task.data.fingerprint})
    for _ in record(run, task, recipe, seed=0, every=1, device=CPU, dtype=dtype, states=states):
        pass
    return run, task, site(last(run), task, device=CPU, dtype=dtype).train, recipe


def drawn(folder, source, task, f, recipe, plan):
    run = Run(folder)
    held = clouds.held(recipe, source.step, plan.length)
    run.begin("cloud", clouds.options(source, held, plan), {"fingerprint": task.data.fingerprint})
    for _ in clouds.draw(run, source, task, f, held, plan):
        pass
    return run


def by_hand(task, point, buffers, velocity, seed, first, steps):
    """torch.optim.SGD over the rows of steps first, first + 1, ...: yields the point after each. Epoch e is the permutation of the stream (seed, "order", e)."""
    model = task.make(0).to(F64)
    nn.utils.vector_to_parameters(point.clone(), model.parameters())
    model.load_state_dict({**model.state_dict(), **buffers})
    model.train()
    optimiser = torch.optim.SGD(model.parameters(), lr=RATE, momentum=BETA)
    if velocity is not None:
        for parameter, part in zip(model.parameters(), velocity.split([p.numel() for p in model.parameters()]), strict=True):  # fmt: skip
            optimiser.state[parameter]["momentum_buffer"] = part.view_as(parameter).clone()
    x, y = task.data.train.inputs.to(F64), task.data.train.targets
    for step in range(first, first + steps):
        epoch, place = divmod(step, len(x) // BATCH)
        order = torch.randperm(len(x), generator=generator(seed, "order", epoch))
        rows = order[place * BATCH : (place + 1) * BATCH]
        optimiser.zero_grad()
        nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
        optimiser.step()
        yield nn.utils.parameters_to_vector(model.parameters()).detach(), {k: v.clone() for k, v in model.named_buffers()}  # fmt: skip


@pytest.mark.parametrize("kept", [True, False])
def test_restarts_are_the_ends_of_plain_trainings(tmp_path, kept):
    run, task, f, recipe = trained(tmp_path / "a", states=(4,) if kept else ())
    cloud = drawn(tmp_path / "c", Place(run, 4), task, f, recipe, Plan(5, 3, seed=7))
    path, start = cloud.trajectory(), clouds.origin(Place(run, 4), f)
    assert path.steps.tolist() == [0, 1, 2, 3, 4] and clouds.is_cloud(cloud) and not clouds.is_cloud(run)
    assert bool(start.moments) == kept
    for row in range(5):
        velocity = start.moments[0] if kept else None
        *_, (end, _) = by_hand(task, start.point, {}, velocity, child_seed(7, "cloud", 4, row), 4, 3)
        # the same sums in another order, 3 steps of a smooth loss
        np.testing.assert_allclose(path.row(row).point, end.numpy(), rtol=0, atol=1e-12)
        assert path.losses[row] == pytest.approx(float(f(end)), rel=1e-12)
    assert not np.array_equal(path.row(0).point, path.row(1).point)
    assert not (cloud.folder / "branches").exists()
    assert cloud.record()["cloud"] == {"moments": "kept" if kept else "begin at zero", "lost": 0}
    assert len(clouds.remarks(cloud)) == (0 if kept else 1)
    # and it is read as any run is
    there = site(Place(cloud, 2), task, device=CPU, dtype=F64)
    assert float(there.train(there.point)) == pytest.approx(path.losses[2], rel=1e-12)


def test_a_stationary_cloud_is_one_plain_training_from_its_burn_in_on(tmp_path):
    run, task, f, recipe = trained(tmp_path / "a")
    plan = Plan(4, 3, "stationary", burn_in=4, seed=1)
    cloud = drawn(tmp_path / "c", Place(run, 2), task, f, recipe, plan)
    start = clouds.origin(Place(run, 2), f)
    points = dict(enumerate((p for p, _ in by_hand(task, start.point, {}, None, child_seed(1, "cloud", 2), 2, 16)), 3))
    path = cloud.trajectory()
    # steps 9, 12, 15, 18: every third of the training's own, the first one after 2 + 4
    for row, step in enumerate((9, 12, 15, 18)):
        np.testing.assert_allclose(path.row(row).point, points[step].numpy(), rtol=0, atol=1e-11)
    assert len(path) == 4 and math.isfinite(cloud.record()["cloud"]["drift"])
    assert Plan(200, 100, "stationary").unused == 10_000 and Plan(200, 100).unused == 0


@pytest.mark.parametrize("kind", clouds.KINDS)
def test_a_cloud_that_was_stopped_goes_on_to_the_same_points(tmp_path, kind, monkeypatch):
    run, task, f, recipe = trained(tmp_path / "a")
    plan = Plan(5, 3, kind)
    whole = drawn(tmp_path / "whole", last(run), task, f, recipe, plan)
    monkeypatch.setattr(branches, "MEMBERS", 2)  # so that there is a between, in restarts
    again = drawn(tmp_path / "again", last(run), task, f, recipe, plan)
    held = clouds.held(recipe, last(run).step, plan.length)
    stopped = Run(tmp_path / "stopped")
    stopped.begin("cloud", clouds.options(last(run), held, plan), {})
    making = clouds.draw(stopped, last(run), task, f, held, plan)
    for _ in range(4):
        next(making)
    making.close()
    assert stopped.record()["state"] == "interrupted" and (stopped.folder / "branches").exists()
    stopped = drawn(tmp_path / "stopped", last(run), task, f, recipe, plan)
    ours, theirs, ensembles = (one.trajectory().points() for one in (stopped, again, whole))
    assert np.array_equal(ours, theirs)
    np.testing.assert_allclose(ours, ensembles, rtol=0, atol=1e-12)  # others descended together: other sums


def test_buffers_go_with_their_points(tmp_path):
    (tmp_path / "problem.py").write_text(PROBLEM)
    run, task, f, recipe = trained(tmp_path / "a", f"{tmp_path / 'problem.py'}:normalised", limit=None)
    start = clouds.origin(Place(run, 3), f)
    assert start.buffers is not None and "1.running_mean" in start.buffers
    cloud = drawn(tmp_path / "c", Place(run, 3), task, f, recipe, Plan(3, 2))
    for row in range(3):
        there = site(Place(cloud, row), task, device=CPU, dtype=F64).train
        *_, (end, buffers) = by_hand(task, start.point, start.buffers, None, child_seed(0, "cloud", 3, row), 3, 2)
        for name, value in buffers.items():
            torch.testing.assert_close(there.buffers[name].double(), value.double(), rtol=0, atol=1e-12)
        np.testing.assert_allclose(cloud.trajectory().row(row).point, end.numpy(), rtol=0, atol=1e-12)
    walk = drawn(tmp_path / "w", Place(run, 3), task, f, recipe, Plan(3, 2, "stationary"))
    for each in (cloud, walk):
        there = [site(Place(each, row), task, device=CPU, dtype=F64) for row in range(3)]
        values = [float(one.train(one.point)) for one in there]
        assert each.trajectory().losses == pytest.approx(values, rel=1e-10)


def test_what_diverges_is_left_out_and_counted(tmp_path):
    (tmp_path / "problem.py").write_text(PROBLEM)
    spec = f"{tmp_path / 'problem.py'}:outlier"
    task = tasks.find(spec)
    run = Run(tmp_path / "a")
    recipe = Recipe(steps=0, lr=1.0, momentum=0.0, batch_size=20)
    run.begin("train", {"task": spec, "seed": 0, "dtype": "float32", "device": "cpu", **dataclasses.asdict(recipe)}, {})
    for _ in record(run, task, recipe, seed=0, every=1, device=CPU, dtype=torch.float32):
        pass
    f = site(last(run), task, device=CPU, dtype=torch.float32).train
    cloud = drawn(tmp_path / "c", last(run), task, f, recipe, Plan(30, 1))
    total = len(task.data.train)
    batches = [torch.randperm(total, generator=generator(child_seed(0, "cloud", 0, i), "order", 0))[:20] for i in range(30)]  # fmt: skip
    heavy = int(task.data.train.inputs.flatten(1).amax(1).argmax())
    hit = sum(heavy in batch.tolist() for batch in batches)
    assert 0 < hit < 27
    assert cloud.record()["cloud"]["lost"] == hit and len(cloud.trajectory()) == 30 - hit
    assert np.isfinite(cloud.trajectory().points()).all()
    assert f"{hit} of 30 continuations diverged" in clouds.remarks(cloud)[0]
    # all of them: no batch leaves that row out (of all rows but one, each does in one draw of so many)
    with pytest.raises(DivergedError, match="stopped being finite"):
        drawn(tmp_path / "d", last(run), task, f, dataclasses.replace(recipe, batch_size=total - 1), Plan(3, 1))


def test_a_pruned_network_stays_within_its_mask(tmp_path):
    run, task, f, recipe = trained(tmp_path / "a")
    mask = Mask(f.model.layout, np.random.default_rng(0).random(f.dim) < 0.5)
    run.mask_path.write_bytes(mask.to_bytes())
    shutil.rmtree(run.trajectory_path)
    writer = TrajectoryWriter(run.trajectory_path, f.model.layout)
    point = mask.apply(torch.randn(f.dim, dtype=F64, generator=generator(0, "x"))).numpy()
    writer.append(Row(0, 0.1 * point, np.empty(0), 0.0, RATE))
    writer.commit()
    for kind in clouds.KINDS:
        cloud = drawn(tmp_path / kind, Place(run, 0), task, f, recipe, Plan(3, 2, kind))
        points = cloud.trajectory().points()
        assert (points[:, ~mask.kept] == 0).all() and (points[1] != points[2])[mask.kept].any()
        assert Mask.load(cloud.mask_path, f.model.layout) == mask


# -- drift ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("total", [10, 11, 200])
def test_the_drift_of_a_straight_line(total):
    # points 0, 1, ..., T-1 along a line: means T/2 apart, sum of squared deviations T (T^2 - 1) / 12, so (T/2)^2 over T (T + 1) / 12 (1/n + 1/m)
    along = np.arange(total) - (total - 1) / 2
    n = total // 2
    expected = (total / 2) ** 2 / (total * (total + 1) / 12 * (1 / n + 1 / (total - n)))
    assert clouds.drift(np.outer(along, along)) == pytest.approx(expected, rel=1e-12)
    if total == 200:
        assert expected == pytest.approx(3 * total / 4, rel=0.01)


def test_the_drift_of_independent_points_is_one():
    draws = np.random.default_rng(0).standard_normal((400, 60, 5))
    found = [clouds.drift(centred @ centred.T) for centred in draws - draws.mean(axis=1, keepdims=True)]
    # F of 5 and about 290 degrees of freedom: mean 1.007, standard deviation about sqrt(2/5) = 0.63
    assert np.mean(found) == pytest.approx(1.0, abs=4 * 0.64 / math.sqrt(400))
    assert math.isnan(clouds.drift(np.zeros((4, 4))))


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"size": 2}, "3 points or more; got 2"),
        ({"steps": 0}, "1 step or more apart; got 0"),
        ({"burn_in": 5}, "a burn-in is of a stationary cloud"),
        ({"burn_in": -1, "kind": "stationary"}, "0 steps or more; got -1"),
        ({"kind": "stationry"}, "Did you mean 'stationary'"),
    ],
)
def test_refused(asked, says):
    with pytest.raises(UsageError, match=says):
        Plan(**asked)


@pytest.mark.parametrize("rows", [0, 200])
def test_restarts_without_noise_are_refused(tmp_path, rows):
    run, task, f, made = trained(tmp_path / "a", batch_size=rows)
    with pytest.raises(UsageError, match="no noise"):
        drawn(tmp_path / "b", last(run), task, f, made, Plan(size=4, steps=2))


def test_a_rate_of_zero_and_a_subspace_are_refused(tmp_path):
    with pytest.raises(UsageError, match="rate at step 8 is 0"):
        clouds.held(Recipe(steps=8, schedule="cosine"), 8, 5)
    held = clouds.held(Recipe(steps=8, lr=0.4, schedule="cosine", warmup=2), 5, 5)
    # half-way down the cosine
    assert [held.rate(step) for step in (5, 9)] == [pytest.approx(0.2, rel=1e-12)] * 2 and held.steps == 10
    assert clouds.held(Recipe(), 3, 5, 0.7).rate(3) == 0.7
    run, *_ = trained(tmp_path / "a")
    run.update(options={**run.options, "subspace": "random:4"})
    with pytest.raises(UsageError, match="within a subspace"):
        clouds.options(last(run), Recipe(), Plan())
