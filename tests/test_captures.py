"""Replays of a recorded pass are the plain pass, or are not used. Without a device, what a graph does is played: it writes to its own tensors, from its own."""

import dataclasses

import pytest
import torch
from problems import close, draw, objective
from torch import nn

from landscape import captures, descent, subspaces
from landscape.captures import Captured
from landscape.descent import Recipe, Start, descend, redrawn
from landscape.errors import UsageError
from landscape.objectives import Objective, Rows
from landscape.seeds import generator

RECIPE = Recipe(steps=8, lr=0.1, batch_size=8)


class Player:
    """Stands for CUDA: counts what is recorded and replayed."""

    def __init__(self):
        self.records = self.replays = 0
        self.error = 0.0

    def recorded(self, function, inputs):
        self.records += 1
        outputs = [one.detach().clone() for one in function(inputs)]

        def replay():
            self.replays += 1
            for own, new in zip(outputs, function(inputs), strict=True):
                own.copy_(new + self.error if new.is_floating_point() else new)

        return replay, outputs


@pytest.fixture
def player(monkeypatch):
    played = Player()
    monkeypatch.setattr(captures, "possible", lambda device: True)
    monkeypatch.setattr(captures, "recorded", played.recorded)
    monkeypatch.setattr(descent, "CAPTURED", 1)
    return played


def states(f, start, recipe=RECIPE, seed=0, plain=False, **options):
    with pytest.MonkeyPatch.context() as patch:
        if plain:
            patch.setattr(captures, "possible", lambda device: False)
        return list(descend(f, start, recipe, seed, **options))


def same(one, other):
    for a, b in zip((one.point, one.loss, *one.moments), (other.point, other.loss, *other.moments), strict=True):
        assert torch.equal(a, b)
    assert one.buffers.keys() == other.buffers.keys()
    assert all(torch.equal(value, other.buffers[name]) for name, value in one.buffers.items())


@pytest.mark.parametrize("lend", [False, True])
@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("name", ["mlp", "batchnorm"])
def test_a_captured_descent_is_the_plain_one_and_its_states_are_values(player, name, masked, ensemble, lend):
    f, start = objective(name)
    if masked:
        f = f.restrict(subspaces.axes(torch.rand(f.dim, generator=generator(0, "mask")) < 0.5, f.dtype))
    begin, seed = (torch.stack([start, 2 * start]), [3, 4]) if ensemble else (start, 3)
    begin = f.project(begin)
    plain, made = states(f, begin, seed=seed, plain=True), states(f, begin, seed=seed, lend=lend)
    assert (player.records, player.replays) == (1, len(made))
    for one, other in zip(made, plain, strict=True):
        same(one, other)


@pytest.mark.parametrize("at", [1, 5])
def test_going_on_is_the_uninterrupted_descent(player, at):
    f, start = objective("batchnorm")
    whole = states(f, start)
    for one, other in zip(states(f, Start.of(whole[at])), whole[at:], strict=True):
        same(one, other)


def test_a_replay_that_differs_is_not_used(player):
    f, start = objective("mlp")
    plain = states(f, start, plain=True)
    player.error = 0.1
    for one, other in zip(states(f, start), plain, strict=True):
        same(one, other)
    assert player.replays == 1


def test_what_cannot_be_recorded_is_called(player, monkeypatch):
    def refused(function, inputs):
        raise RuntimeError("operation not permitted when stream is capturing")

    monkeypatch.setattr(captures, "recorded", refused)
    f, start = objective("mlp")
    for one, other in zip(states(f, start), states(f, start, plain=True), strict=True):
        same(one, other)


@pytest.mark.parametrize("name", ["dropout"])
def test_what_draws_is_not_captured(player, name):
    f, start = objective(name)
    states(f, start)
    assert not player.records


def test_few_steps_and_bases_drawn_often_are_not_captured(player, monkeypatch):
    f, start = objective("mlp")
    monkeypatch.setattr(descent, "CAPTURED", 4)
    states(f, start, dataclasses.replace(RECIPE, steps=3))
    for _ in redrawn(f, start, RECIPE, 0, lambda k, w: subspaces.random(w, 3, generator(k, "basis")), 2):
        pass
    assert not player.records
    states(f, start)
    assert player.records == 1


def test_a_solver_s_passes_are_captured_too(player):
    f, start = objective("mlp")
    recipe = Recipe(steps=6, optimizer="lbfgs", lr=0.1)
    for one, other in zip(states(f, start, recipe), states(f, start, recipe, plain=True), strict=True):
        same(one, other)
    assert player.replays > 6


def test_inputs_of_any_structure(player):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(3, 2), nn.Linear(4, 2)

        def forward(self, left, right):
            return self.a(left) + self.b(right)

    rows = Rows({"left": draw(20, 3), "right": draw(20, 4, seed=1)}, torch.arange(20) % 2)
    f, start = Objective.of(Two(), "cross-entropy", rows, dtype=torch.float64)
    for one, other in zip(states(f, start), states(f, start, plain=True), strict=True):
        same(one, other)
    assert player.replays == 9


def test_other_shapes_are_called_and_outputs_are_new(player):
    double = Captured(lambda given: [2 * given[0]], 1e-4)
    first, second = double([torch.ones(3)])[0], double([torch.zeros(3)])[0]
    assert first.tolist() == [2, 2, 2] and second.tolist() == [0, 0, 0]
    assert double([torch.ones(4)])[0].tolist() == [2] * 4
    assert player.replays == 2 and not double.failed


def test_a_diverged_pass_is_no_difference(player):
    inverse = Captured(lambda given: [1 / given[0]], 1e-4)
    assert inverse([torch.tensor([0.0, 1.0])])[0].tolist() == [float("inf"), 1]
    assert not inverse.failed
    player.error = float("nan")
    assert inverse([torch.tensor([1.0, 1.0])])[0].tolist() == [1, 1]
    assert inverse.failed


def test_a_cpu_records_nothing():
    f, start = objective("mlp")
    assert not captures.possible(torch.device("cpu"))
    assert captures.possible(torch.device("cuda"))
    rule = descent._Rule(f, dataclasses.replace(RECIPE, steps=1000), 0, (), None)
    assert rule._passes._captured is None
    close(states(f, start)[0].loss, states(f, start, plain=True)[0].loss)
    with pytest.raises(UsageError):
        states(f, start[:-1])
