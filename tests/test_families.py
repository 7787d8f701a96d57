"""Families of subspaces: their names, what they are taken from, and what is refused."""

from __future__ import annotations

import dataclasses
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from problems import F64, draw, quadratic

from landscape import families, subspaces, tasks
from landscape.cli.app import main
from landscape.descent import Recipe, descend
from landscape.errors import UsageError
from landscape.families import Choice, Family, Source, choose, layers_of, parse
from landscape.objectives import Objective
from landscape.runs import Run
from landscape.seeds import generator
from landscape.trajectories import Row, Trajectory, TrajectoryWriter

EPS = float(np.finfo(float).eps)
RECIPE = Recipe(steps=50, lr=0.05, batch_size=0)


def recorded(tmp_path: Path, f: Objective, points: np.ndarray) -> Source:
    """A store of these points (T, D), at steps 0, 10, 20, ..."""
    writer = TrajectoryWriter(tmp_path / "trajectory", f.model.layout)
    for k, point in enumerate(points):
        writer.append(Row(10 * k, point, np.empty(0), 0.0, 0.1))
    writer.commit()
    trajectory = Trajectory.open(tmp_path / "trajectory")
    return Source(trajectory, 10 * (len(points) - 1), "the run")


@pytest.mark.parametrize(
    ("text", "family"),
    [
        ("random:64", Family("random", 64)),
        ("burn-in:64@100", Family("burn-in", 64, 100)),
        ("burn-in@100", Family("burn-in", None, 100)),
        ("dldr", Family("dldr")),
        (" hessian:20 ", Family("hessian", 20)),
    ],
)
def test_names_are_read_and_written_alike(text: str, family: Family) -> None:
    assert parse(text) == family
    assert str(family) == text.strip()


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("randm:4", "Did you mean 'random'"),
        ("random:0", "at least 1 dimension"),
        ("random:4@10", "takes no @"),
        ("burn-in:4", "Write burn-in:4@100|Write burn-in:64@100"),
        ("random:-3", "cannot read"),
        ("", "cannot read"),
        ("lottery:4:5", "cannot read"),
    ],
)
def test_other_names_are_refused_with_what_to_write(text: str, complaint: str) -> None:
    with pytest.raises(UsageError, match=complaint):
        parse(text)


def test_a_burn_in_goes_through_the_point_after_that_many_updates() -> None:
    # gradient descent on a quadratic in closed form: w_t - c = (I - rate A)^t (w_0 - c)
    problem = quadratic(np.array([1.0, 2.0, 4.0, 0.5]))
    recipe = Recipe(steps=20, lr=0.1, momentum=0.0)
    w = problem.point
    chosen = choose(Family("burn-in", 2, 7), problem.f, w, seed=0, choice=Choice(), burn_in=recipe)
    matrix = problem.hessian(w.numpy())
    centre = w.numpy() - np.linalg.solve(matrix, problem.gradient(w.numpy()))
    truth = centre + np.linalg.matrix_power(np.eye(4) - 0.1 * matrix, 7) @ (w.numpy() - centre)
    # 7 steps of rounding, each within a few units in the last place of numbers of size |w|
    np.testing.assert_allclose(chosen.subspace.origin.numpy(), truth, atol=1e-13)


@pytest.mark.parametrize("base", ["init", "last", "mean", "own"])
def test_the_base_of_a_source_is_where_it_is_said_to_be(base: families.Base, tmp_path: Path) -> None:
    f = quadratic(np.ones(6)).f
    points = draw(5, 6, seed=3).numpy()
    own = draw(6, seed=4)
    source = recorded(tmp_path, f, points)
    chosen = choose(Family("dldr", 2), f, own, seed=0, choice=Choice(base=base), burn_in=RECIPE, source=source)
    truth = {"init": points[0], "last": points[-1], "mean": points.mean(0), "own": own.numpy()}[base]
    np.testing.assert_allclose(chosen.subspace.origin.numpy(), truth, atol=10 * EPS)
    assert chosen.facts["base"] == base


@pytest.mark.parametrize("centring", ["centred", "uncentred", "increments"])
def test_trajectory_directions_and_the_distance_of_the_last_point(centring: families.Centring, tmp_path: Path) -> None:
    f = quadratic(np.ones(8)).f
    points = draw(6, 8, seed=1).numpy()
    source = recorded(tmp_path, f, points)
    for step, used in ((50, points), (30, points[:4])):
        rows = {
            "centred": used - used.mean(0),
            "uncentred": used - used[0],
            "increments": np.diff(used, axis=0),
        }[centring]
        _, values, right = np.linalg.svd(rows)
        chosen = choose(
            Family("lottery", 2),
            f,
            draw(8),
            seed=0,
            choice=Choice(centring=centring),
            burn_in=RECIPE,
            source=dataclasses.replace(source, step=step),
        )
        assert chosen.directions is not None
        truth = right[:2].T @ right[:2]
        found = chosen.directions.numpy()
        # eigenvectors of the Gram matrix: relative error eps |G| / gap; the gap of these Gaussian rows is of the order of |G| / 10
        np.testing.assert_allclose(found.T @ found, truth, atol=1e-12)
        left = points[-1] - used[0]  # the source's last point, also where the directions are of its first steps
        assert chosen.facts["distance of the source's last point to the subspace"] == pytest.approx(
            np.linalg.norm(left - truth @ left), abs=1e-12
        )
        assert chosen.facts["distance of the source's last point to the base"] == pytest.approx(
            np.linalg.norm(left), rel=1e-14
        )
        assert chosen.facts["captured"] == pytest.approx((values[:2] ** 2).sum() / (values**2).sum(), rel=1e-12)


@pytest.mark.parametrize("basis", ["gaussian", "haar", "srht", "sparse"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_first_step_is_as_long_as_in_the_whole_space(basis: subspaces.Basis, optimizer: str) -> None:
    """Root mean square over 200 bases of the first step of either rule along a fixed gradient, from d = 2 to D (of 60, no power of two)."""
    ambient, draws = 60, 200
    g = draw(ambient, seed=9)
    whole = float(g.norm()) if optimizer == "sgd" else math.sqrt(ambient)
    for dim in (2, 20, 60):
        squares = []
        for seed in range(draws):
            space = subspaces.random(torch.zeros(ambient, dtype=F64), dim, generator(seed, "step", dim), basis)
            slope = space.project(g)
            squares.append(float(space.push(slope if optimizer == "sgd" else slope.sign()).square().sum()))
        scale = Family("random", dim).scale(optimizer, ambient, basis=basis)
        mean, error = np.mean(squares), np.std(squares) / math.sqrt(draws)
        # 4 standard errors; and 4% for signs, whose correlation 2/pi is that of Gaussian projections, and an SRHT of 64 rows is coarse
        # the rounding of 60 terms squared twice, which is all the spread there is where the basis is orthonormal and d = D
        slack = 8 * ambient * EPS * mean + 4 * error + (0.0 if optimizer == "sgd" and basis != "srht" else 0.08 * mean)
        assert abs(scale**2 * mean - whole**2) <= scale**2 * slack, (dim, scale**2 * mean / whole**2)


def test_hessian_directions_are_the_top_eigenvectors(tmp_path: Path) -> None:
    spectrum = np.array([5.0, 3.0, 1.0, 0.5, 0.1])
    problem = quadratic(spectrum)
    source = recorded(tmp_path, problem.f, draw(2, 5, seed=2).numpy())
    chosen = choose(
        Family("hessian", 2), problem.f, problem.point, seed=0, choice=Choice(), burn_in=RECIPE, source=source
    )
    values, vectors = np.linalg.eigh(problem.hessian(problem.point.numpy()))
    found = chosen.directions.numpy()  # type: ignore[union-attr]
    # residuals up to 1e-4 of the largest value over a gap of 2: angles up to 2.5e-4
    np.testing.assert_allclose(found.T @ found, vectors[:, -2:] @ vectors[:, -2:].T, atol=1e-3)
    np.testing.assert_allclose(chosen.facts["eigenvalues"], values[:-3:-1], rtol=1e-6)


@pytest.mark.parametrize(
    ("family", "complaint"),
    [
        (Family("lottery", 5), "5 recorded points up to step 40.*takes at least 6.*d up to 4"),
        (Family("random", 7), "1 to 6 dimensions"),
        (Family("dldr", None), "how many dimensions"),
    ],
)
def test_sources_and_dimensions_that_do_not_fit_are_refused(family: Family, complaint: str, tmp_path: Path) -> None:
    f = quadratic(np.ones(6)).f
    source = recorded(tmp_path, f, draw(5, 6).numpy())
    with pytest.raises(UsageError, match=complaint):
        choose(family, f, draw(6), seed=0, choice=Choice(), burn_in=RECIPE, source=source)


def test_a_source_is_asked_for_and_must_be_of_the_same_model(tmp_path: Path) -> None:
    f = quadratic(np.ones(6)).f
    with pytest.raises(UsageError, match="--from RUN"):
        choose(Family("dldr", 2), f, draw(6), seed=0, choice=Choice(), burn_in=RECIPE)
    source = recorded(tmp_path, quadratic(np.ones(5)).f, draw(4, 5).numpy())
    with pytest.raises(UsageError, match=r"it has w \(5,\) where this task's has w \(6,\)"):
        choose(Family("dldr", 2), f, draw(6), seed=0, choice=Choice(), burn_in=RECIPE, source=source)
    with pytest.raises(UsageError, match="burns in for 51 steps"):
        choose(Family("burn-in", 2, 51), f, draw(6), seed=0, choice=Choice(), burn_in=RECIPE)


def test_blocks_by_layer_are_modules_in_order() -> None:
    task = tasks.find("digits-mlp")
    f, _ = Objective.of(task.make(0), task.loss, task.data.train)
    assert layers_of(f.model.layout) == [64 * 64 + 64, 64 * 32 + 32, 32 * 10 + 10]


def test_the_rate_is_scaled_so_that_steps_do_not_depend_on_the_dimension() -> None:
    assert Family("random", 25).scale("adam", 100, basis="haar") == Family("dldr", 25).scale("adam", 100) == 2
    assert Family("burn-in", None, 5).scale("sgd", 100, 4, basis="sparse") == 5
    assert Family("dldr", 4).scale("sgd", 100) == Family("hessian", 4).scale("bfgs", 100) == 1
    assert Family("random", 4).scale("newton", 100) == 1


# -- through the command ------------------------------------------------------------------------------------------------

TRAIN = [
    "train",
    "digits-mlp",
    "--limit",
    "200",
    "--steps",
    "40",
    "--record-every",
    "4",
    "--device",
    "cpu",
    "--dtype",
    "float64",
]


def points(folder: Path) -> np.ndarray:
    return Run(folder).trajectory().points().astype(float)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("source") / "a"
    assert main([*TRAIN, "--out", str(folder)]) == 0
    return folder


def rank(rows: np.ndarray) -> int:
    values = np.linalg.svd(rows - rows[0], compute_uv=False)
    return int((values > 1e-10 * values[0]).sum())


@pytest.mark.parametrize(
    "flags",
    [
        ["--subspace", "random:3"],
        ["--subspace", "random:3", "--basis", "srht", "--optimizer", "adam"],
        ["--subspace", "random:3", "--basis", "sparse", "--per-layer"],
        ["--subspace", "burn-in:3@5", "--basis", "haar"],
        ["--subspace", "lottery:3", "--from"],
        ["--subspace", "dldr:3", "--from", "--optimizer", "bfgs"],
        ["--subspace", "hessian:3", "--from", "--optimizer", "newton"],
        ["--subspace", "random:3", "--from", "--optimizer", "lbfgs"],
    ],
)
def test_descent_stays_in_the_subspace_and_lowers_the_loss(flags: list[str], source: Path, tmp_path: Path) -> None:
    if "--from" in flags:
        place = flags.index("--from") + 1
        flags = [*flags[:place], str(source), *flags[place:]]
    out = tmp_path / "b"
    assert main([*TRAIN, *flags, "--out", str(out)]) == 0
    assert rank(points(out)) <= 3
    losses = Run(out).metrics()["train_loss"]
    assert losses[-1] < losses[0]
    facts = Run(out).record()["subspace"]
    assert facts["family"] == flags[1]
    if "--from" in flags:
        assert "distance of the source's last point to the subspace" in facts


def test_a_burn_in_is_the_same_point_from_a_recorded_run(source: Path, tmp_path: Path) -> None:
    # the source's own recipe is the task's with 40 steps of constant rate, so that its step 8 is the burn-in's
    for name, more in (("own", []), ("from", ["--from", str(source)])):
        assert main([*TRAIN, "--subspace", "burn-in:4@8", *more, "--out", str(tmp_path / name)]) == 0
    np.testing.assert_array_equal(points(tmp_path / "own")[0], points(source)[2])
    np.testing.assert_array_equal(points(tmp_path / "own"), points(tmp_path / "from"))


def test_the_basis_of_one_initialisation_serves_another(source: Path, tmp_path: Path) -> None:
    flags = ["--subspace", "lottery:3", "--from", str(source), "--base", "own", "--seed", "1"]
    assert main([*TRAIN, *flags, "--out", str(tmp_path / "b")]) == 0
    assert main([*TRAIN, "--seed", "1", "--out", str(tmp_path / "c")]) == 0
    np.testing.assert_array_equal(points(tmp_path / "b")[0], points(tmp_path / "c")[0])


def test_another_source_at_the_same_path_is_another_run(
    source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = tmp_path / "a"
    shutil.copytree(source, moved)
    words = [*TRAIN, "--subspace", "dldr:3", "--from", str(moved), "--out", str(tmp_path / "b")]
    assert main(words) == 0
    shutil.rmtree(moved)
    assert main(words) == 0  # it has what it needs
    assert main([*words[:-3], str(tmp_path / "elsewhere"), *words[-2:]]) == 2  # which is not said of another
    assert main([*TRAIN, "--seed", "7", "--out", str(moved)]) == 0
    assert main(words) == 2
    assert "holds another run (source" in capsys.readouterr().err


def test_the_hessian_is_taken_with_the_statistics_of_its_point(tmp_path: Path) -> None:
    train = [
        "train",
        "digits-mlp",
        "--norm",
        "batch",
        "--limit",
        "100",
        "--width",
        "0.25",
        "--steps",
        "30",
        "--device",
        "cpu",
        "--dtype",
        "float64",
    ]
    assert main([*train, "--out", str(tmp_path / "a")]) == 0
    words = ["--subspace", "hessian:2", "--from", str(tmp_path / "a"), "--out", str(tmp_path / "b")]
    assert main([*train, *words]) == 0
    from landscape.recordings import site, task_of
    from landscape.runs import place

    where = place(str(tmp_path / "a"))
    found = site(where, task_of(where.run), device=torch.device("cpu"), dtype=F64)
    truth = torch.linalg.eigvalsh(found.train.hessian(found.point).dense())[-2:].flip(0)
    got = Run(tmp_path / "b").record()["subspace"]["eigenvalues"]
    # residuals up to 1e-4 of the largest
    np.testing.assert_allclose(got, truth.numpy(), atol=1e-4 * float(truth[0]))


def test_a_burn_in_that_diverges_says_so_and_leaves_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "steep.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def make():\n    x = 100 * torch.randn(40, 3)\n    return nn.Linear(3, 1), 'mse', (x, x.sum(1, keepdim=True))\n"
    )
    words = ["train", f"{tmp_path / 'steep.py'}:make", "--subspace", "burn-in:2@50", "--out", str(tmp_path / "b")]
    assert main(words) == 1
    assert "the burn-in of burn-in:2@50 diverged" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_redrawn_subspaces_leave_the_first(tmp_path: Path) -> None:
    flags = ["--subspace", "random:3", "--redraw", "10"]
    assert main([*TRAIN, *flags, "--out", str(tmp_path / "b")]) == 0
    assert rank(points(tmp_path / "b")) == 10  # 11 points on 4 subspaces of 3 dimensions each
    assert rank(points(tmp_path / "b")[:3]) == 2  # steps 0, 4 and 8, on the first


@pytest.mark.parametrize(
    ("flags", "complaint"),
    [
        (["--basis", "srht"], "would do nothing without a subspace"),
        (["--subspace", "dldr:3"], "--from RUN"),
        (["--subspace", "random:7000"], "1 to 6,570"),
        (["--subspace", "random:0"], "at least 1"),
        (["--subspace", "random"], "how many dimensions"),
        (["--subspace", "random:3", "--base", "mean"], "--base would do nothing without --from"),
        (["--subspace", "random:3", "--centring", "centred"], "--centring would do nothing for random:3"),
        (["--subspace", "random:3", "--redraw", "0"], "at least 1"),
        (["--subspace", "random:3", "--lr-scale", "-1"], "positive"),
        (["--subspace", "random:3", "--redraw", "5", "--weight-decay", "0.1"], "Leave one of them out"),
        (["--subspace", "random:3", "--ridge", "1"], "--ridge would do nothing for sgd"),
        (["--optimizer", "bfgs", "--momentum", "0.5"], "--momentum would do nothing for bfgs"),
    ],
)
def test_bad_subspaces_leave_nothing_behind(
    flags: list[str], complaint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "b"
    assert main([*TRAIN, *flags, "--out", str(out)]) == 2
    assert complaint in capsys.readouterr().err
    assert not out.exists()


def test_a_killed_descent_in_a_subspace_goes_on_without_its_source(source: Path, tmp_path: Path) -> None:
    from landscape.recordings import Within, record

    moved = tmp_path / "source"
    shutil.copytree(source, moved)
    task = tasks.find("digits-mlp", limit=200)
    recipe = Recipe(steps=20, optimizer="bfgs", lr=1.0)
    ends = []
    for name, stop in (("whole", math.inf), ("cut", 8)):
        run = Run(tmp_path / name)
        run.begin("train", {"task": "digits-mlp"}, {})
        for _ in range(2):
            trajectory = Run(moved).trajectory() if moved.exists() else None
            within = Within(Family("dldr", 4), recipe, source=Source(trajectory, 40, "a") if trajectory else None)
            descent = record(
                run, task, recipe, seed=0, every=1, evaluations=20, device=torch.device("cpu"), dtype=F64, commit_seconds=1e-9,
                restrict=within.restrict(run, recipe, 0), descent=within.descent,
            )  # fmt: skip
            for progress in descent:
                if progress.step >= stop:
                    descent.close()
                    break
            stop = math.inf
            if name == "cut" and moved.exists():
                shutil.rmtree(moved)
            if name == "whole":
                break
        ends.append(run.trajectory().points())
    np.testing.assert_array_equal(ends[0], ends[1])


def test_choose_equals_a_descent_through_its_own_states() -> None:
    """The burn-in's point is the state of `descend` at that step, mini-batches and all."""
    task = tasks.find("digits-mlp", limit=100)
    f, w = Objective.of(task.make(3), task.loss, task.data.train, dtype=F64)
    recipe = Recipe(steps=30, lr=0.05, batch_size=20)
    states = {state.step: state.point for state in descend(f, w, recipe, 3)}
    chosen = choose(Family("burn-in", 4, 12), f, w, seed=3, choice=Choice(), burn_in=recipe)
    assert torch.equal(chosen.subspace.origin, states[12])
