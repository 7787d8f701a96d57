"""Tickets: exact counts, nested masks, exact zeros, starts equal to the rewound weights to the bit, and a killed ladder that ends as an uninterrupted one."""

import dataclasses
import itertools
import re
import shutil

import numpy as np
import pytest
import torch

from landscape import tasks, tickets
from landscape.descent import Recipe
from landscape.errors import UnsafeInputError, UsageError
from landscape.objectives import Objective
from landscape.recordings import state_of, taken
from landscape.runs import Place, Run, place
from landscape.tickets import Plan, climb

UNEVEN = """
import torch
from torch import nn

def make(seed):
    model = nn.Sequential(nn.Linear(2, 2), nn.Tanh(), nn.Linear(2, 9))
    with torch.no_grad():
        model[0].weight.mul_(1e-3)
    return model, "cross-entropy", (torch.randn(20, 2), torch.arange(20) % 9)
"""
RECIPE = Recipe(steps=10, lr=0.1, batch_size=32, weight_decay=1e-2)
PLAN = Plan(levels=3, rate=0.3, rewind=4)
SPEC = {"task": "digits-mlp", "width": 0.25, "limit": 128, "seed": 0, "dtype": "float64", "device": "cpu"}


@pytest.fixture(scope="module")
def problem():
    task = tasks.find("digits-mlp", width=0.25, limit=128)
    f, w = Objective.of(task.make(0), task.loss, task.data.train, dtype=torch.float64)
    return task, f, w


def ladder(folder, task, plan=PLAN, recipe=RECIPE):
    run = Run(folder)
    grid = {"levels": plan.levels, "replicates": plan.replicates, "ablations": list(plan.ablations)}
    fields = {name: value for name, value in dataclasses.asdict(plan).items() if name not in grid}
    run.begin("imp", {**SPEC, **dataclasses.asdict(recipe), **fields}, {})
    run.update(grid=grid)
    for _ in climb(run, task, plan, recipe, seed=0, every=5, device=torch.device("cpu"), dtype=torch.float64):
        pass
    return run


@pytest.fixture(scope="module")
def climbed(tmp_path_factory, problem):
    return ladder(tmp_path_factory.mktemp("ladder") / "a", problem[0])


def test_counts_follow_the_integer_recursion_and_masks_are_nested(climbed, problem):
    """T11: n - ceil(f n), within 1/(1 - 0.7) + 1 < 5 below f^L n: each rounding costs less than one, and later levels keep 0.7 of it."""
    _, f, _ = problem
    found = tickets.levels(climbed)
    among = tickets.prunable(f, PLAN)
    sizes = [(level.mask & among).size for level in found]
    expected = [among.size]
    for _ in range(3):
        expected.append(expected[-1] - -(-3 * expected[-1] // 10))
    assert sizes == expected
    assert all(
        n - 5 < 0 or (1 - 0.3) ** level * sizes[0] - 5 < n <= 0.7**level * sizes[0] for level, n in enumerate(sizes)
    )
    assert all(later.mask <= earlier.mask for earlier, later in itertools.pairwise(found))
    biases = ~among.kept
    assert all(level.mask.kept[biases].all() for level in found)


def test_pruned_weights_are_the_smallest_survivors_and_exactly_zero_in_every_row(climbed, problem):
    _, f, _ = problem
    found, among = tickets.levels(climbed), tickets.prunable(f, PLAN)
    for level, later in itertools.pairwise(found):
        w, _ = taken(f, level.solution)
        gone, left = (level.mask - later.mask).tensor(), (later.mask & among).tensor()
        assert w.abs()[gone].max() <= w.abs()[left].min()
        assert later.facts["threshold"] == pytest.approx(float(w.abs()[gone].max()), rel=1e-12)
    for level in found:
        trajectory = level.run.trajectory()
        for row in range(len(trajectory)):
            assert (trajectory.row(row).point[~level.mask.kept] == 0).all()


def test_a_level_starts_at_the_rewound_weights_to_the_bit(climbed, problem):
    """T14."""
    _, f, _ = problem
    dense, _ = taken(f, Place(climbed.level(0), 4))
    for level in tickets.levels(climbed)[1:]:
        start, _ = taken(f, level.rewound)
        assert level.rewound.step == 4
        assert torch.equal(start, torch.where(level.mask.tensor(), dense, 0.0))


def test_rewinding_to_0_is_the_original_ticket(tmp_path, problem):
    task, f, w = problem
    run = ladder(tmp_path / "a", task, dataclasses.replace(PLAN, levels=1, rewind=0))
    level = tickets.levels(run)[1]
    assert torch.equal(taken(f, level.rewound)[0], level.mask.apply(w))


def test_same_noise_is_the_same_batches_and_fresh_noise_is_not(tmp_path, climbed, problem):
    task, f, _ = problem
    fresh = ladder(tmp_path / "a", task, dataclasses.replace(PLAN, levels=1, noise="fresh"))
    seeds = [run.level(1).options["noise"] for run in (climbed, fresh)]
    assert seeds[0] == climbed.level(0).options["noise"] == 0 != seeds[1]
    one, other = (taken(f, tickets.levels(run)[1].solution)[0] for run in (climbed, fresh))
    assert torch.equal(*(tickets.levels(run)[1].mask.tensor() for run in (climbed, fresh)))
    assert not torch.equal(one, other)


@pytest.mark.parametrize("variant", ["lr-rewind", "fine-tune"])
def test_variants_that_keep_the_weights_start_at_the_projection(tmp_path, problem, variant):
    task, f, _ = problem
    recipe = dataclasses.replace(RECIPE, schedule="step", milestones=(0.5,))
    run = ladder(tmp_path / "a", task, dataclasses.replace(PLAN, levels=2, variant=variant), recipe)
    for before, after in itertools.pairwise(tickets.levels(run)):
        assert torch.equal(taken(f, after.rewound)[0], after.mask.apply(taken(f, before.solution)[0]))
    rates = tickets.levels(run)[1].run.trajectory().rates
    # steps 4, 5, 10: the milestone is at step 5
    np.testing.assert_allclose(rates, [0.1, 0.01, 0.01] if variant == "lr-rewind" else [0.01] * 3)


def test_one_shot_prunes_the_dense_solution_to_the_same_counts(tmp_path, climbed, problem):
    task, f, _ = problem
    run = ladder(tmp_path / "a", task, dataclasses.replace(PLAN, variant="one-shot"))
    w, _ = taken(f, tickets.levels(run)[0].solution)
    among = tickets.prunable(f, PLAN)
    for mine, theirs in zip(tickets.levels(run), tickets.levels(climbed), strict=True):
        assert mine.mask.size == theirs.mask.size
        gone, left = (among - mine.mask).tensor(), (among & mine.mask).tensor()
        assert not gone.any() or w.abs()[gone].max() <= w.abs()[left].min()


def test_moments_are_rewound_where_that_is_asked(tmp_path, problem):
    task, f, _ = problem
    adam = dataclasses.replace(RECIPE, optimizer="adam", lr=1e-2)
    with_them, without = (
        ladder(tmp_path / name, task, dataclasses.replace(PLAN, levels=1, moments=moments), adam)
        for name, moments in (("a", True), ("b", False))
    )
    ends = [taken(f, tickets.levels(run)[1].solution)[0] for run in (with_them, without)]
    assert not torch.equal(*ends)
    assert len(state_of(with_them.level(0), 4, f).moments) == 2


@pytest.mark.parametrize("kept", ["level 1 is half trained", "the mask of level 2 is made", "level 2 has begun"])
def test_a_killed_ladder_ends_as_an_uninterrupted_one(tmp_path, climbed, problem, kept):
    """To the bit, on the CPU (T33)."""
    task, f, _ = problem
    run = Run(tmp_path / "a")
    shutil.copytree(climbed.folder, run.folder)
    run.update(state="interrupted")
    first = 1 if "level 1" in kept else 2
    for number in range(first + 1, 4):
        shutil.rmtree(run.level(number).folder)
    torn = run.level(first)
    shutil.rmtree(torn.trajectory_path)
    torn.resume_path.unlink()
    torn.metrics_path.unlink()
    if kept == "level 2 has begun":
        torn.mask_path.unlink()
    torn.update(state="running", final=None)
    ladder(run.folder, task)
    for mine, theirs in zip(tickets.levels(run), tickets.levels(climbed), strict=True):
        assert mine.mask == theirs.mask
        assert torch.equal(taken(f, mine.solution)[0], taken(f, theirs.solution)[0])


def test_levels_replicates_and_ablations_are_added_to_what_is_there(tmp_path, problem):
    task, f, w = problem
    run = ladder(tmp_path / "a", task, dataclasses.replace(PLAN, levels=1))
    before = run.level(1).record()["ended"]
    more = dataclasses.replace(PLAN, levels=2, replicates=1, ablations=("shuffled", "random", "reinit"))
    run.update(grid={"levels": 2, "replicates": 1, "ablations": list(more.ablations)})
    for _ in climb(run, task, more, RECIPE, seed=0, every=5, device=torch.device("cpu"), dtype=torch.float64):
        pass
    assert run.level(1).record()["ended"] == before and run.levels() == [0, 1, 2]
    assert len(tickets.replicates(run)) == 1
    assert {kind: list(owns) for kind, owns in tickets.ablations(run).items()} == {
        key: [1, 2] for key in more.ablations
    }
    among = tickets.prunable(f, PLAN)
    mask = tickets.levels(run)[2].mask
    dense, _ = taken(f, Place(run.level(0), 4))
    for kind in more.ablations:
        own = run.branch(tickets.ablation_name(kind, 2))
        start, _ = taken(f, Place(own, int(own.trajectory().steps[0])))
        support = start != 0
        assert int((support & among.tensor()).sum()) == (mask & among).size
        if kind == "reinit":
            assert own.trajectory().steps[0] == 0
            assert torch.equal(support | ~among.tensor(), mask.tensor())
            assert not torch.equal(start[support], w[support])
        else:
            assert torch.equal(start[support], dense[support])
            assert not torch.equal(support | ~among.tensor(), mask.tensor())
    kept = {name: n for name, (n, _) in (mask & among).counts().items()}
    own = run.branch("shuffled-level-002")
    shuffled = taken(f, Place(own, 4))[0] != 0
    assert {e.name: int(shuffled[e.offset : e.offset + e.size].sum()) for e in f.model.layout.of("parameter") if kept.get(e.name)} == {
        name: n for name, n in kept.items() if n
    }  # fmt: skip


def test_an_adaptive_level_takes_the_largest_rate_that_the_rule_allows(tmp_path, problem):
    task, f, _ = problem
    plan = dataclasses.replace(PLAN, levels=1, rate=0.2, variant="adaptive", tolerance=0.05)
    run = ladder(tmp_path / "a", task, plan)
    dense, level = tickets.levels(run)
    w, _ = taken(f, dense.solution)
    error = 1 - float(f.value(w).accuracy)
    among = tickets.prunable(f, plan)

    def projected(gone):  # error with the so many smallest weights at 0
        order = torch.argsort(torch.where(among.tensor(), w.abs(), torch.inf), stable=True)
        cut = w.clone()
        cut[order[:gone]] = 0
        return 1 - float(f.value(cut).accuracy)

    gone = among.size - level.facts["survivors"]
    assert projected(gone) <= error + 0.05 < projected(gone + 1)


def test_a_level_that_retraining_rejects_is_tried_again_at_half_the_rate(tmp_path, problem, monkeypatch):
    task, _, _ = problem
    monkeypatch.setattr(tickets, "FIRST_RATE", 0.8)
    plan = dataclasses.replace(
        PLAN, levels=1, variant="adaptive", rate=0.2, rule="retraining", tolerance=0.0, rewind=39
    )
    recipe = dataclasses.replace(RECIPE, steps=40, momentum=0.0)
    run = ladder(tmp_path / "a", task, plan, recipe)
    rejected = sorted((run.folder / "rejected").glob("level-001-try-*"))
    rates = [Run(folder).record()["pruning"]["rate"] for folder in rejected]
    assert rates
    rates.append(run.level(1).record()["pruning"]["rate"])
    assert rates == [0.8 / 2**k for k in range(len(rates))]
    assert run.level(1).record()["final"]["test_accuracy"] >= run.level(0).record()["final"]["test_accuracy"]
    dense = run.level(0).record()["final"]["test_accuracy"]
    assert all(Run(folder).record()["final"]["test_accuracy"] < dense for folder in rejected)


def test_levels_are_places(climbed):
    folder = climbed.folder
    assert place(f"{folder}@level=2").step == 10 and place(f"{folder}@level=2").run.folder == climbed.level(2).folder
    assert place(f"{folder}@level=2,init").step == 4
    assert place(f"{folder}@level=2,step=5").step == 5
    assert place(f"{folder}@level=0,step=4").run == climbed.level(0)
    with pytest.raises(UsageError, match="holds the levels 0, 1, 2, 3; got"):
        place(f"{folder}@level=7")
    with pytest.raises(UsageError, match="Say which"):
        place(str(folder))
    with pytest.raises(UsageError, match="names a level, and"):
        place(f"{climbed.level(1).folder}@level=1")


def test_chosen_levels(climbed):
    assert [level.number for level in tickets.chosen(climbed, "0-1,3")] == [0, 1, 3]
    assert [level.number for level in tickets.chosen(climbed, None)] == [0, 1, 2, 3]
    with pytest.raises(UsageError, match="levels 0 to 3; got 4"):
        tickets.chosen(climbed, "4")
    with pytest.raises(UsageError, match="cannot read the levels"):
        tickets.chosen(climbed, "one")
    with pytest.raises(UsageError, match="it has no levels"):
        tickets.levels(climbed.level(0))


def test_a_plan_and_a_recipe_are_read_back(climbed):
    assert tickets.plan(climbed) == PLAN
    assert tickets.recipe(climbed) == RECIPE


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"rewind": 10}, "rewinding goes back to step 0 to 9; got 10"),
        ({"levels": 40}, "less than one a layer.*--levels 1[0-9] at most"),
        ({"rate": 1.0}, "between 0 and 1; got 1.0"),
        ({"criterion": "magnitud"}, "magnitude"),
        ({"variant": "rewind"}, "weight-rewind"),
        ({"ablations": ("shufled",)}, "shuffled"),
        ({"noise": "none"}, "fresh"),
        ({"variant": "adaptive"}, "--rate would do nothing"),
        ({"rule": "barrier"}, "--rule and --tolerance are of the variant adaptive"),
        ({"variant": "lr-rewind", "moments": True}, "--rewind-moments would do nothing"),
    ],
)
def test_refusals_of_a_plan(tmp_path, problem, change, said):
    with pytest.raises(UsageError, match=said):
        ladder(tmp_path / "a", problem[0], dataclasses.replace(PLAN, **change))


def test_a_layer_without_a_weight_is_named_and_the_levels_before_are_kept(tmp_path):
    (tmp_path / "problem.py").write_text(UNEVEN)
    task = tasks.find(f"{tmp_path / 'problem.py'}:make")
    # of 22 weights the 4 of the first layer are the smallest: level 1 takes 11
    plan = Plan(levels=2, rate=0.5, replicates=1)
    run = ladder(tmp_path / "a", task, plan, Recipe(steps=1, lr=1e-9))
    assert re.search(r"level 1 would leave no weight in 0.weight.*--levels 0", run.record()["stopped"])
    assert len(tickets.levels(run)) == 1 and len(tickets.replicates(run)) == 1
    # an adaptive rate keeps a weight in each layer, whatever it is allowed
    run = ladder(
        tmp_path / "b",
        task,
        dataclasses.replace(plan, levels=1, rate=0.2, variant="adaptive", tolerance=1.0),
        Recipe(steps=1, lr=1e-9),
    )
    counts = tickets.levels(run)[1].mask.counts()
    assert counts["0.weight"][0] >= 1 and counts["2.weight"][0] >= 1


def test_a_lost_level_and_another_mask_are_refused(tmp_path, climbed):
    run = Run(tmp_path / "a")
    shutil.copytree(climbed.folder, run.folder)
    shutil.copy(run.level(3).mask_path, run.level(2).mask_path)
    with pytest.raises(UnsafeInputError, match="not the mask that level 2 was trained with"):
        tickets.levels(run)
    shutil.rmtree(run.level(1).folder)
    with pytest.raises(UnsafeInputError, match="has lost level 1: 0, 2, 3 are there"):
        tickets.levels(run)


def test_adam_that_starts_anew_at_the_rewind_step_takes_a_first_step_of_the_rate(tmp_path, problem):
    """|first / (sqrt(second) + eps)| is 1 after bias correction, whatever the gradient: Kingma and Ba 2015, section 2."""
    task, f, _ = problem
    recipe = dataclasses.replace(RECIPE, optimizer="adam", lr=1e-3, weight_decay=0.0, steps=6)
    run = Run(tmp_path / "a")
    plan = dataclasses.replace(PLAN, levels=1, rewind=4)
    run.begin("imp", {**SPEC, **dataclasses.asdict(recipe), **dataclasses.asdict(plan)}, {})
    run.update(grid={"levels": 1, "replicates": 0, "ablations": []})
    for _ in climb(run, task, plan, recipe, seed=0, every=1, device=torch.device("cpu"), dtype=torch.float64):
        pass
    level = tickets.levels(run)[1]
    before, after = (taken(f, Place(level.run, step))[0] for step in (4, 5))
    moved = (after - before).abs()[level.mask.tensor()]
    moved = moved[moved > 0]  # a weight from a pixel that is always 0 has no gradient
    assert len(moved) > 100 and (moved - 1e-3).abs().max() < 1e-5  # eps over the least gradient, 1e-6 here


def test_a_kill_before_a_level_is_taken_back_takes_it_back_later(tmp_path, problem, monkeypatch):
    task, _, _ = problem
    monkeypatch.setattr(tickets, "FIRST_RATE", 0.8)
    plan = dataclasses.replace(
        PLAN, levels=1, variant="adaptive", rate=0.2, rule="retraining", tolerance=0.0, rewind=39
    )
    recipe = dataclasses.replace(RECIPE, steps=40, momentum=0.0)
    whole = ladder(tmp_path / "a", task, plan, recipe)
    with monkeypatch.context() as patched:
        patched.setattr(tickets.os, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            ladder(tmp_path / "b", task, plan, recipe)
    again = ladder(tmp_path / "b", task, plan, recipe)
    assert [level.mask for level in tickets.levels(again)] == [level.mask for level in tickets.levels(whole)]
    assert (again.folder / "rejected" / "level-001-try-1").exists()


def test_ablations_start_where_the_levels_of_their_variant_do(tmp_path, problem):
    task, f, _ = problem
    plan = dataclasses.replace(PLAN, levels=1, variant="fine-tune", ablations=("shuffled", "reinit"))
    run = ladder(tmp_path / "a", task, plan, dataclasses.replace(RECIPE, schedule="step"))
    dense, _ = taken(f, tickets.levels(run)[0].solution)
    shuffled = run.branch("shuffled-level-001")
    start, _ = taken(f, Place(shuffled, 4))
    support = start != 0
    assert torch.equal(start[support], dense[support]) and shuffled.options["lr"] == pytest.approx(0.001)
    again = run.branch("reinit-level-001")
    fresh, _ = taken(f, Place(again, 0))
    _, w = Objective.of(task.make(1000), task.loss, task.data.train, dtype=torch.float64)
    assert torch.equal(fresh, tickets.levels(run)[1].mask.apply(w)) and again.options["lr"] == 0.1


def test_the_output_layer_at_half_the_rate_and_the_first_layer_left_alone(tmp_path, problem):
    task, _, _ = problem
    run = ladder(tmp_path / "a", task, dataclasses.replace(PLAN, levels=1, output=0.5, first=False))
    counts = tickets.levels(run)[1].mask.counts()
    left, whole = counts["output.weight"]
    assert left == whole - -(-15 * whole // 100)
    assert counts["linear1.weight"][0] == counts["linear1.weight"][1]


def test_batch_statistics_are_rewound_with_the_weights(tmp_path):
    task = tasks.find("digits-mlp", width=0.25, limit=128, norm="batch")
    run = Run(tmp_path / "a")
    plan = dataclasses.replace(PLAN, levels=1)
    run.begin("imp", {**SPEC, "norm": "batch", **dataclasses.asdict(RECIPE), **dataclasses.asdict(plan)}, {})
    run.update(grid={"levels": 1, "replicates": 0, "ablations": []})
    for _ in climb(run, task, plan, RECIPE, seed=0, every=5, device=torch.device("cpu"), dtype=torch.float64):
        pass
    f, _ = Objective.of(task.make(0), task.loss, task.data.train, dtype=torch.float64)
    at_4, start = (taken(f, place)[1] for place in (Place(run.level(0), 4), tickets.levels(run)[1].rewound))
    assert all(torch.equal(at_4[name], start[name]) for name in at_4)
    assert not torch.equal(start["norm1.running_mean"], f.buffers["norm1.running_mean"])
