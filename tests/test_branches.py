"""Branches: each is the training that it would be alone, with exact zeros, and a kill costs nothing but time."""

import dataclasses
import json
import shutil

import numpy as np
import pytest
import torch

from landscape import branches, tasks
from landscape.branches import Branch, grow
from landscape.descent import Recipe, Start, descend
from landscape.errors import LandscapeError, UsageError
from landscape.masks import Mask
from landscape.objectives import Objective
from landscape.recordings import state_of
from landscape.runs import Run
from landscape.subspaces import coordinates

CONVOLUTION = """
from sklearn.datasets import load_digits
from torch import nn

def make(seed):
    x, y = load_digits(return_X_y=True)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.Linear(108, 10))
    return model, "cross-entropy", ((x / 16).reshape(-1, 1, 8, 8).astype("float32"), y)
"""
RECIPE = Recipe(steps=12, lr=0.1, batch_size=32, weight_decay=1e-2, clip=1.0)


@pytest.fixture(scope="module")
def problem():
    task = tasks.find("digits-mlp", limit=200)
    f, w = Objective.of(task.make(0), task.loss, task.data.train, dtype=torch.float64)
    return task, f, w


def parent(folder, seed=0):
    run = Run(folder)
    options = {"task": "digits-mlp", "limit": 200, "seed": seed, "dtype": "float64", "device": "cpu"}
    run.begin("train", options, {})
    return run


def half(f, seed=0):
    drawn = np.random.default_rng(seed).random(f.dim) < 0.5
    return Mask(f.model.layout, drawn)


def all_of(progress):
    return list(progress)


def alone(f, branch, recipe):
    """The end of a branch by a plain loop of projected gradient steps on all D parameters: the mask by multiplication."""
    mask = branch.mask.tensor().double() if branch.mask is not None else torch.ones(f.dim, dtype=torch.float64)
    *_, last = descend(_masked(f, mask), branch.point * mask, recipe, branch.noise)
    return last.point * mask


def _masked(f, mask):
    from landscape.subspaces import Subspace

    return f.restrict(Subspace(torch.zeros_like(mask), f.dim, lambda z: z * mask, lambda g: g * mask))


def test_a_branch_in_an_ensemble_is_the_training_that_it_would_be_alone(tmp_path, problem):
    task, f, w = problem
    run = parent(tmp_path / "a")
    asked = [
        Branch("whole-1", w, {}, noise=1),
        Branch("whole-2", w, {}, noise=2),
        Branch("pruned-1", half(f).apply(w), {}, half(f), noise=1),
        Branch("pruned-2", half(f, 1).apply(w), {}, half(f, 1), noise=1),
    ]
    all_of(grow(run, task, f, RECIPE, asked))
    points, _ = branches.ends(run, f, [one.name for one in asked])
    for point, one in zip(points, asked, strict=True):
        # the same sums in another order, 12 steps of a smooth loss
        torch.testing.assert_close(point, alone(f, one, RECIPE), rtol=0, atol=1e-11)
        if one.mask is not None:
            assert (point[~one.mask.tensor()] == 0).all()
    assert not torch.equal(points[0], points[1])  # noise matters
    final = branches.of(run, "whole-1").record()["final"]
    assert final["train_loss"] == pytest.approx(float(f.value(points[0]).loss), rel=1e-12)


@pytest.mark.parametrize("change", [{"optimizer": "adam", "lr": 1e-2}, {"weight_decay": 0.1, "momentum": 0.9}])
def test_what_is_pruned_is_exactly_zero_with_every_optimizer_and_moments_do_not_bring_it_back(
    tmp_path, problem, change
):
    task, f, w = problem
    run, recipe = parent(tmp_path / "a"), dataclasses.replace(RECIPE, **change)
    moments = tuple(torch.ones_like(w) for _ in range(2 if recipe.optimizer == "adam" else 1))
    masks = [half(f), half(f, 1)]
    asked = [Branch(f"b{i}", mask.apply(w), {}, mask, 3, moments, noise=1) for i, mask in enumerate(masks)]
    all_of(grow(run, task, f, recipe, asked))
    points, _ = branches.ends(run, f, ["b0", "b1"])
    for point, mask in zip(points, masks, strict=True):
        assert (point[~mask.tensor()] == 0).all() and (point[mask.tensor()] != 0).any()


def test_one_mask_of_all_is_the_same_as_a_mask_each(tmp_path, problem):
    task, f, w = problem
    mask = half(f)
    one, two = parent(tmp_path / "a"), parent(tmp_path / "b")
    same = [Branch(f"b{i}", mask.apply(w), {}, mask, noise=i) for i in range(2)]
    all_of(grow(one, task, f, RECIPE, same))
    all_of(grow(two, task, f, RECIPE, [*same, Branch("other", half(f, 1).apply(w), {}, half(f, 1), noise=0)]))
    torch.testing.assert_close(
        branches.ends(one, f, ["b0", "b1"])[0], branches.ends(two, f, ["b0", "b1"])[0], rtol=0, atol=1e-11
    )


def test_equal_noise_gives_equal_children_and_the_order_alone_may_differ(tmp_path, problem):
    task, f, w = problem
    run = parent(tmp_path / "a")
    asked = [Branch("a", w, {}, noise=1), Branch("b", w, {}, noise=1)]
    other = [Branch("c", w, {}, noise=1, order=5), Branch("d", w, {}, noise=1, order=1)]
    all_of(grow(run, task, f, RECIPE, [*asked, *other]))
    points, _ = branches.ends(run, f, ["a", "b", "c", "d"])
    assert torch.equal(points[0], points[1])  # bitwise: T15
    assert not torch.equal(points[0], points[2])
    torch.testing.assert_close(points[0], points[3], rtol=0, atol=1e-11)


def test_a_branch_that_starts_later_goes_on_where_the_parent_was(tmp_path, problem):
    task, f, w = problem
    run = parent(tmp_path / "a")
    all_of(grow(run, task, f, RECIPE, [Branch("parent", w, {}, noise=3, keep=(5,)), Branch("x", w, {}, noise=4)]))
    state = state_of(run.branch("parent"), 5, f)
    assert state.step == 5 and len(state.moments) == 1
    child = Branch("child", state.point, {}, None, 5, state.moments, noise=3)
    all_of(grow(run, task, f, RECIPE, [child]))
    points, _ = branches.ends(run, f, ["parent", "child"])
    torch.testing.assert_close(points[0], points[1], rtol=0, atol=1e-11)
    assert branches.of(run, "child").trajectory().steps.tolist() == [5, 12]


def test_finished_branches_are_left_alone_and_kept_states_may_be_asked_for_later(tmp_path, problem):
    task, f, w = problem
    run = parent(tmp_path / "a")
    asked = [Branch("a", w, {}, noise=1), Branch("b", w, {}, noise=2)]
    all_of(grow(run, task, f, RECIPE, asked))
    before = run.branch("a").record()["ended"], branches.ends(run, f, ["a"])[0]
    assert all_of(grow(run, task, f, RECIPE, asked)) == []
    more = [dataclasses.replace(asked[0], keep=(4,)), asked[1]]
    all_of(grow(run, task, f, RECIPE, more))
    assert state_of(run.branch("a"), 4, f).step == 4
    assert torch.equal(branches.ends(run, f, ["a"])[0], before[1])


def test_a_kill_between_two_branches_of_an_ensemble_changes_no_bit(tmp_path, problem):
    task, f, w = problem
    run = parent(tmp_path / "a")
    asked = [Branch(f"b{i}", w, {}, noise=i) for i in range(3)]
    all_of(grow(run, task, f, RECIPE, asked))
    whole, _ = branches.ends(run, f, ["b0", "b1", "b2"])
    # as a kill leaves it: the first is finished, the second has begun, the third has not written a row
    for name in ("b1", "b2"):
        own = run.branch(name)
        shutil.rmtree(own.trajectory_path)
        own.update(state="running", final=None)
    all_of(grow(run, task, f, RECIPE, asked))
    assert torch.equal(branches.ends(run, f, ["b0", "b1", "b2"])[0], whole)


def test_refusals(tmp_path, problem):
    task, f, w = problem
    run = parent(tmp_path / "a")
    with pytest.raises(UsageError, match="starts at step 13, and the training has 12"):
        all_of(grow(run, task, f, RECIPE, [Branch("late", w, {}, step=13)]))
    with pytest.raises(UsageError, match="names of their own"):
        all_of(grow(run, task, f, RECIPE, [Branch("a", w, {}), Branch("a", w, {})]))
    all_of(grow(run, task, f, RECIPE, [Branch("a", w, {}, noise=1)]))
    with pytest.raises(UsageError, match="holds another run"):
        all_of(grow(run, task, f, RECIPE, [Branch("a", 2 * w, {}, noise=1)]))


def test_a_member_that_diverges_is_named_and_the_others_are_kept(tmp_path, problem):
    task, f, w = problem
    run = parent(tmp_path / "a")
    asked = [Branch("good", w, {}, noise=1), Branch("bad", 1e160 * w, {}, noise=1)]
    with pytest.raises(LandscapeError, match="stopped being finite in bad"):
        all_of(grow(run, task, f, dataclasses.replace(RECIPE, clip=0.0), asked))
    assert run.branch("good").record()["state"] == "finished"
    assert run.branch("bad").record()["state"] == "failed"


def test_a_convolution_descends_alone_and_resumes(tmp_path):
    (tmp_path / "problem.py").write_text(CONVOLUTION)
    task = tasks.find(f"{tmp_path / 'problem.py'}:make", limit=64)
    f, w = Objective.of(task.make(0), task.loss, task.data.train)
    run = Run(tmp_path / "a")
    run.begin("train", {"task": task.name, "limit": 64, "seed": 0, "dtype": "float32", "device": "cpu"}, {})
    mask = half(f)
    recipe = Recipe(steps=6, lr=0.05, batch_size=16)
    asked = [Branch("a", mask.apply(w), f.buffers, mask, 2, noise=1), Branch("b", w, f.buffers, noise=1, keep=(3,))]
    all_of(grow(run, task, f, recipe, asked))
    points, _ = branches.ends(run, f, ["a", "b"])
    assert (points[0][~mask.tensor()] == 0).all()
    assert run.branch("a").trajectory().steps.tolist() == [2, 6]
    assert state_of(run.branch("b"), 3, f).step == 3
    *_, made = descend(f, Start(w), recipe, 1)
    torch.testing.assert_close(points[1], made.point, rtol=0, atol=1e-6)
    record = json.loads(run.branch("a").record_path.read_text())
    assert record["state"] == "finished" and record["options"]["noise"] == 1


def test_a_group_starts_together_only_where_the_moments_agree(problem):
    _, f, w = problem
    mask = half(f)
    group = [Branch("a", mask.apply(w), {}, mask), Branch("b", mask.apply(w), {}, mask)]
    restricted, start = branches._ensemble(f, Recipe(steps=1), group)
    assert restricted.dim == f.dim and torch.equal(start.point, mask.apply(w).expand(2, -1))
    # rules that invert curvature have no coordinate without any
    restricted, start = branches._ensemble(f, Recipe(steps=1, optimizer="bfgs"), group)
    assert restricted.dim == mask.size and start.point.shape == (2, mask.size)
    chart = coordinates(torch.zeros_like(w), mask.tensor())
    assert torch.equal(start.point[0], chart.project(w))
