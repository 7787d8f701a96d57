"""`diffuse`: its verdicts on planted paths and clouds, its statistics against closed forms, and its command.

Paths and clouds are drawn here in plain numpy. p-values by rank of B draws are at least 1 / (B + 1): 0.05 for B = 19.
"""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from pathlib import Path

import cyclopts
import numpy as np
import pytest
import torch
from matplotlib.figure import Figure as Sheet
from torch import nn

from landscape import distances
from landscape.analysis import diffusions, styles
from landscape.analysis.diffusions import SLOTS, Diffusion, answers, diffuse, joint, protocol, taken
from landscape.cli.diffusing import diffuse as command
from landscape.descent import Recipe, Start, descend
from landscape.errors import UsageError
from landscape.kernels import bandwidth
from landscape.objectives import Objective, Rows
from landscape.recordings import row_of
from landscape.results import Result
from landscape.runs import Run
from landscape.seeds import child_seed
from landscape.trajectories import Trajectory, TrajectoryWriter

T = 120


def draws(name: str) -> np.ndarray:
    """Planted points (T, D)."""
    random = np.random.default_rng(3)
    if name == "walk":
        return random.standard_normal((T, 400)).cumsum(axis=0)
    if name == "line":
        return np.linspace(0, 4, T)[:, None] * random.standard_normal(300) + 0.2 * random.standard_normal((T, 300))
    if name == "gaussian cloud":
        return random.standard_normal((T, 30)) * np.linspace(0.1, 2, 30)
    if name == "3-sphere":  # in 80 dimensions, by smooth functions
        directions = random.standard_normal((200, 4))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)
        return np.cos(directions @ random.standard_normal((4, 80)) + 6 * random.random(80))
    raise KeyError(name)


@functools.cache
def found(name: str, nulls: int = 19) -> Diffusion:
    return diffuse(
        distances.of_points(draws(name)), ordered=name in ("walk", "line"), nulls=nulls, components=6, bandwidth="bgh"
    )


# -- verdicts ---------------------------------------------------------------------------------------------------------


def test_a_random_walk_shows_nothing_that_a_random_walk_does_not() -> None:
    one = found("walk")
    verdict = one.verdict()
    assert "nothing that a random walk (p = " in verdict
    assert "cosines of time that an evenly run straight line and every long random walk have too" in verdict
    assert "no more low-dimensional than" in verdict
    assert "A path cannot show a manifold's dimension, since it is a curve: see `landscape cloud`." in verdict
    assert one.summary().endswith("nothing that a random walk does not show.")
    # D10: cosines of 0.95 and more, a kernel sum of slope 1
    assert (one.cosines > 0.95).all()
    assert one.dimensions[one.estimators.index("bgh")] == pytest.approx(2, abs=0.15)
    assert one.unique.tolist() == [0]


def test_a_line_with_noise_is_told_from_walks_and_not_from_a_line() -> None:
    one = found("line")
    by_null = dict(zip(one.nulls, one.joint_p, strict=True))
    assert by_null["line"] > 0.05
    assert by_null["isotropic-walk"] == by_null["matched-walk"] == 0.05
    verdict = one.verdict()
    nothing = verdict[verdict.index("nothing that") : verdict.index("not show")]
    assert "a straight line with noise" in nothing
    assert "random walk" not in nothing


def test_a_planted_3_sphere_is_found_at_its_level() -> None:
    one = found("3-sphere")
    assert one.joint_p.max() == one.p_values("dimensions")[:, one.judged].max() == 0.05
    # three times its standard error, and a tenth for the bias of the estimator
    assert abs(one.dimensions[one.judged] - 3) < 3 * one.errors[one.judged] + 0.3
    verdict = one.verdict()
    assert "more low-dimensional than every null model" in verdict
    assert "they lie near a curved set of about that dimension" in verdict
    assert "landscape cloud" not in verdict
    assert not one.fits.size and not one.cosines.size


def test_a_gaussian_cloud_shows_nothing_but_its_covariance() -> None:
    one = found("gaussian cloud")
    verdict = one.verdict()
    assert "nothing that a Gaussian cloud of the same covariance" in verdict
    assert "They are unlike an isotropic Gaussian cloud (p ≤ 0.05)." in verdict
    assert "no more low-dimensional than a Gaussian cloud of the same covariance" in verdict
    # what a null keeps is no evidence
    assert (one.p_values("shares")[one.nulls.index("matched-cloud")] == 1).all()


def test_without_nulls_it_is_judged_against_nothing() -> None:
    one = found("walk", 0)
    assert one.summary().endswith("judged against nothing.")
    assert "judged against nothing: without null models no number here is evidence of low dimension" in one.verdict()
    assert one.nulls == [] and one.null_eigenvalues.shape == (0, 0, 6)
    assert one.table()[0] == ("", "value", "±", "r", "cosine")


def test_too_few_draws_are_said_to_tell_nothing() -> None:
    one = diffuse(distances.of_points(draws("line")[:40]), nulls=5, components=3)
    assert "5 draws of a null cannot give a p-value of 0.05" in one.verdict()
    # nor is anything else said of them
    assert "no more low-dimensional" not in one.verdict()
    assert one.summary().endswith("5 draws of each null model are too few to judge it.")


def test_points_of_one_walk_are_no_cloud() -> None:
    random = np.random.default_rng(0)
    points = random.standard_normal((T, 40))
    for i in range(1, T):  # a stationary Gaussian process: no manifold, but each point near the one before
        points[i] = 0.8 * points[i - 1] + 0.6 * points[i]
    one = diffuse(distances.of_points(points), ordered=False, nulls=19, components=4)
    # a Gaussian law, which a null model that takes points for independent rejects
    assert one.joint_p.max() == 0.05
    assert "no independent draws" in one.verdict() and "low-dimensional" not in one.verdict()
    assert one.summary().endswith("cannot be judged.")
    assert not found("gaussian cloud")._dependent


def test_order_of_independent_points_is_judged_exactly() -> None:
    random = np.random.default_rng(1)
    p = []
    for seed in range(400):
        points = random.standard_normal((12, 3))
        p.append(diffusions.succession(np.sum((points[:, None] - points) ** 2, axis=2), seed))
    # uniform on 200 places: p <= 0.1 in 40 of 400, with a standard error of 6
    assert abs(np.count_nonzero(np.array(p) <= 0.1) - 40) < 4 * 6
    line = np.arange(12.0)[:, None]
    assert diffusions.succession((line - line.T) ** 2, 0) == 1 / 200


def test_a_projected_walk_is_judged_in_the_space_it_is_projected_to() -> None:
    # few signs and many dimensions: the projection of an isotropic walk is one again, to 1 / sqrt(D)
    points = distances.of_points(np.random.default_rng(5).standard_normal((60, 20000)).cumsum(axis=0), approximation="random:8")  # fmt: skip
    assert points.kept == 8 and points.dim == 20000
    one = diffuse(points, nulls=19, components=4, bandwidth="median", subsamples=0)
    assert one.joint_p[one.nulls.index("isotropic-walk")] > 0.05
    # five principal components of a walk are five cosines, smoother than any walk: so are those of each draw
    cut = diffuse(distances.of_points(draws("walk"), approximation="principal:5"), nulls=19, components=4, subsamples=0)
    assert cut.p_values("eigenvalues").min() > 0.05 and cut.joint_p[cut.nulls.index("isotropic-walk")] > 0.05


def test_pieces_and_bandwidths_that_tell_nothing() -> None:
    points = np.r_[draws("gaussian cloud")[:30], draws("gaussian cloud")[30:50] + 1e4]
    two = diffuse(distances.of_points(points), ordered=False, nulls=0, bandwidth=50.0, components=3)
    assert two.pieces.tolist() == [30, 20]
    assert (
        "first 3 coordinates tell"
        in diffuse(distances.of_points(points), nulls=0, bandwidth=1e-6, components=3).verdict()
    )
    assert "fall into 2 pieces (30 and 20), and the first coordinate tells these apart" in two.verdict()
    assert any("pieces" in warning for warning in two.warnings)
    tiny = diffuse(distances.of_points(draws("walk")), nulls=0, bandwidth=1e-6, components=3)
    assert "All 3 eigenvalues are above 0.95" in tiny.verdict()
    assert not tiny.informative.size


# -- statistics -------------------------------------------------------------------------------------------------------


def test_the_joint_p_value_is_exact() -> None:
    random = np.random.default_rng(0)
    p = np.array([joint(one[0], one[1:]) for one in random.standard_normal((2000, 20, 4)).cumsum(axis=2)])
    counts = Counter(np.round(20 * p).astype(int).tolist())
    # of exchangeable ones the rank is uniform on 20 places; chi^2 of 19 degrees of freedom is below 44 in 999 of 1,000
    assert sum((counts[j] - 100) ** 2 / 100 for j in range(1, 21)) < 44


def test_the_joint_p_value_by_hand() -> None:
    level = np.arange(19.0)[:, None] * np.ones(3)
    assert joint(np.full(3, 100.0), level) == 1 / 20
    assert joint(np.array([9, 9, 100.0]), level) == 1 / 20  # one is enough
    assert joint(np.full(3, 9.0), level) == 1  # the middle one
    # what varies by rounding alone, and what is not known, play no part
    assert joint(np.array([1 + 1e-15, 9, np.nan]), np.c_[np.ones(19), level[:, :2]]) == 1


def test_the_smooth_function_of_time_and_the_shares() -> None:
    time = (np.arange(200) + 0.5) / 200
    cubic = np.stack([time**3 - time, 1 - 5 * time**2], axis=1)
    # splines hold all cubics, to the rounding of 200 sums
    np.testing.assert_allclose(diffusions._fits(cubic), 1, atol=1e-12)
    # of noise they hold (m - 1) / (T - 1) in the mean, R^2 of a Gaussian regression is Beta((m - 1) / 2, (T - m) / 2)
    noise = diffusions._fits(np.random.default_rng(0).standard_normal((200, 4000)))
    a, b = (diffusions.SPLINE - 1) / 2, (200 - diffusions.SPLINE) / 2
    error = np.sqrt(a * b / (a + b) ** 2 / (a + b + 1) / 4000)
    assert abs(noise.mean() - a / (a + b)) < 4 * error
    points = draws("gaussian cloud")
    values = np.linalg.svd(points - points.mean(axis=0), compute_uv=False) ** 2
    squared = np.sum((points[:, None] - points) ** 2, axis=2)
    np.testing.assert_allclose(diffusions._shares(squared), (values / values.sum())[: diffusions.SHARES], rtol=1e-10)


def test_the_numbers_are_those_of_the_map_by_dense_algebra() -> None:
    one = found("walk")
    points = draws("walk")
    squared = np.sum((points[:, None] - points) ** 2, axis=2)
    kernel = np.exp(-squared / (4 * one.epsilon))
    kernel /= np.outer(kernel.sum(axis=0), kernel.sum(axis=0))
    walk = kernel / kernel.sum(axis=1, keepdims=True)
    values = np.sort(np.linalg.eigvals(walk).real)[::-1]
    # the nonsymmetric problem is conditioned by the ratio of the stationary weights, far below 1e4 here
    np.testing.assert_allclose(one.eigenvalues, values[1:7], atol=1e-10)
    np.testing.assert_allclose(walk @ one.vectors, one.vectors * one.eigenvalues, atol=1e-9)
    assert one.gap[1] == pytest.approx(np.max(values[1:6] - values[2:7]), abs=1e-9)
    chosen = dataclasses.replace(one, time=2.0)
    np.testing.assert_allclose(chosen.coordinates, walk @ walk @ one.vectors, atol=1e-9)


def test_gaps_by_half_samples() -> None:
    one = found("3-sphere")
    assert one.halves.shape == (20, 6)
    place, gap, error, same = one.gap
    drops = [np.diff(-half) for half in one.halves]
    assert gap == max(np.diff(-one.eigenvalues))
    assert error == pytest.approx(np.std([drop[place - 1] for drop in drops], ddof=1))
    assert same == np.mean([int(np.argmax(drop)) == place - 1 for drop in drops])
    # each is of half the points: those of the first, by dense algebra at the bandwidth of the rule
    points = draws("3-sphere")
    rows = np.random.default_rng(child_seed(0, "half sample", 0)).choice(len(points), len(points) // 2, replace=False)
    squared = np.sum((points[rows, None] - points[rows]) ** 2, axis=2)
    kernel = np.exp(-squared / (4 * bandwidth(squared, "bgh").epsilon))
    kernel /= np.outer(kernel.sum(axis=0), kernel.sum(axis=0))
    values = np.sort(np.linalg.eigvals(kernel / kernel.sum(axis=1, keepdims=True)).real)[::-1]
    np.testing.assert_allclose(one.halves[0], values[1:7], atol=1e-9)


def test_pydiffmap_gives_the_same_map() -> None:
    pytest.importorskip("pydiffmap")
    points = distances.of_points(draws("walk"))
    ours, theirs = (
        diffuse(points, nulls=0, components=4, bandwidth="median", engine=engine)
        for engine in ("landscape", "pydiffmap")
    )  # type: ignore[arg-type]
    # its ARPACK stops at about 1e-8
    np.testing.assert_allclose(theirs.eigenvalues, ours.eigenvalues, atol=1e-7)
    assert "residuals of eigenpairs" in ours.caption()
    assert "residuals of eigenpairs" not in theirs.caption()


# -- bad input --------------------------------------------------------------------------------------------------------


def test_bad_points() -> None:
    with pytest.raises(UsageError, match="takes 3 or more"):
        diffuse(distances.of_points(np.eye(2)))
    with pytest.raises(UsageError, match="nothing moved"):
        diffuse(distances.of_points(np.ones((5, 3))))
    with pytest.raises(UsageError, match="components are 1 or more"):
        diffuse(distances.of_points(np.eye(5)), components=0)
    points = draws("walk")[:20].copy()
    points[4, 2] = np.nan
    one = diffuse(distances.of_points(points), nulls=2, components=50)
    assert one.masked == 1 and len(one.steps) == 19 and one.recorded == 20
    assert len(one.eigenvalues) == 18
    assert any("50 components were asked for; 19 points have 18" in warning for warning in one.warnings)
    assert "NaN or infinity: 1 point." in one.caption()
    assert "thinned" not in one.caption().partition("distances in")[0]


def test_half_samples_of_points_that_are_all_equal_are_left_out() -> None:
    points = np.zeros((60, 3))
    points[0] = 1
    one = diffuse(distances.of_points(points), nulls=0, components=3, bandwidth="median")
    # the one point that differs is in about half of them
    assert 2 <= len(one.halves) < 20
    np.testing.assert_allclose(one.halves, one.halves[:1].repeat(len(one.halves), axis=0), atol=1e-12)


def test_which_points_are_taken() -> None:
    steps = np.array([0, 1, 2, 5, 10, 50, 100])
    assert taken(steps, None, 100).tolist() == list(range(7))
    assert steps[taken(steps, "2-50", 100)].tolist() == [2, 5, 10, 50]
    assert steps[taken(steps, "5-", 3)].tolist() == [5, 10, 100] or steps[taken(steps, "5-", 3)].tolist() == [5, 50, 100]  # fmt: skip
    assert steps[taken(steps, "-5", 100)].tolist() == [0, 1, 2, 5]
    for span in ("5", "-", "a-b", "10-1,2"):
        with pytest.raises(UsageError, match="a first and a last step"):
            taken(steps, span, 100)
    with pytest.raises(UsageError, match="1 point recorded in steps 3-5"):
        taken(steps, "3-5", 100)
    with pytest.raises(UsageError, match="3 to 2,000 points"):
        taken(steps, None, 5000)


# -- pictures and the file --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["walk", "3-sphere"])
def test_it_is_drawn_from_its_file(name: str) -> None:
    one = found(name)
    again = Result.from_json(one.to_json())
    assert isinstance(again, Diffusion)
    assert again.verdict() == one.verdict() and again.table() == one.table() and again.caption() == one.caption()
    assert ("time" in one.panels()) == (name == "walk")
    with styles.house():
        figure = Sheet()
        for panel in again.panels():
            again.plot(figure.add_subplot(), panel)
    live = again.figure()
    assert bool(live.layout.sliders) == (name == "walk")
    # the pieces of the slider hold every point, each joined to the one before
    points = sum(len(trace.x) for trace in live.data)
    assert points == len(one.steps) + len(live.data) - 1
    assert len({len(row) for row in one.table()}) == 1


def test_the_protocol_leaves_its_slots_unfilled() -> None:
    asked = {"at": None, "points": 1000, "params": "*", "bandwidth": "bgh", "alpha": 1.0, "components": 10, "time": 0.0}
    slots = protocol({"task": "digits-mlp", "lr": 0.1, "optimizer": "sgd"}, asked)
    assert tuple(slots) == SLOTS
    assert all(text.startswith("unfilled; here ") for text in slots.values())
    assert "not known" in slots["batch"]
    one = dataclasses.replace(found("walk", 0), slots=slots)
    for slot in SLOTS:
        assert f"{slot}: unfilled; here " in one.caption()
    assert "the paper's value" not in one.caption()


# -- function space and the command -----------------------------------------------------------------------------------


def recorded(folder: Path, kind: str = "train") -> Run:
    """A run of 60 recorded steps of a small classifier."""
    random = np.random.default_rng(0)
    x, y = random.standard_normal((50, 4)).astype(np.float32), random.integers(0, 3, 50)
    f, start = Objective.of(
        nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)),
        "cross-entropy",
        Rows(torch.tensor(x), torch.tensor(y)),
    )
    run = Run(folder)
    run.begin(kind, {"task": "digits-mlp", "lr": 0.1}, {})
    writer = TrajectoryWriter(run.trajectory_path, f.model.layout)
    for state in descend(f, Start(start), Recipe(optimizer="sgd", lr=0.1, steps=60, batch_size=10), 0):
        writer.append(row_of(state, f))
    writer.commit()
    run.update(state="finished")
    _RUNS[folder] = f
    return run


_RUNS: dict[Path, Objective] = {}


def test_answers_are_outputs_and_hellinger_distances(tmp_path: Path) -> None:
    run = recorded(tmp_path / "a")
    f, trajectory = _RUNS[tmp_path / "a"], run.trajectory()
    outputs, roots = (answers(f, trajectory, [0, 30, 60], space) for space in ("predictions", "probabilities"))  # type: ignore[arg-type]
    assert outputs.shape == roots.shape == (3, 150)
    w = trajectory.row(30).point.astype(float)
    x = f.rows.inputs.double().numpy()
    hidden = np.tanh(x @ w[:20].reshape(5, 4).T + w[20:25])
    logits = hidden @ w[25:40].reshape(3, 5).T + w[40:]
    np.testing.assert_allclose(outputs[1], logits.ravel() / np.sqrt(50), atol=1e-6)  # float32 outputs

    def shares(row: int) -> np.ndarray:
        made = np.exp(outputs[row].reshape(50, 3) * np.sqrt(50))
        return made / made.sum(axis=1, keepdims=True)

    hellinger = 0.5 * np.sum((np.sqrt(shares(0)) - np.sqrt(shares(2))) ** 2, axis=1)
    assert np.sum((roots[0] - roots[2]) ** 2) == pytest.approx(hellinger.mean(), rel=1e-9)
    with pytest.raises(UsageError, match="unknown space of answers"):
        answers(f, trajectory, [0], "parameters")


class Shell:
    """The command in an app of its own."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys
        self._app = cyclopts.App(result_action="return_value")
        self._app.command(command, name="diffuse")

    def __call__(self, *argv: object) -> tuple[str, str]:
        self._capsys.readouterr()
        self._app([str(word) for word in ("diffuse", *argv)], exit_on_error=False, print_error=False)
        read = self._capsys.readouterr()
        return read.out, read.err


@pytest.fixture
def shell(capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(capsys)


def test_the_command_answers_and_finds_its_answer(shell: Shell, tmp_path: Path) -> None:
    run = recorded(tmp_path / "a")
    out, _ = shell(
        run.folder, "--nulls", 3, "--components", 3, "--at", "10-", "--protocol", "fjellstrom-nystrom", "--json"
    )
    told = json.loads(out)
    assert told["kind"] == "diffusion" and told["recorded"] == 51 and told["steps"]["array"][0] == 10
    assert told["slots"]["model"] == "unfilled; here digits-mlp"
    assert told["space"] == "parameters" and told["dim"] == 43
    out, err = shell(run.folder, "--nulls", 3, "--components", 3, "--at", "10-", "--protocol", "fjellstrom-nystrom")
    assert "answered before" in err or "answered before" in out
    assert "A path cannot show a manifold's dimension" in " ".join(out.split())
    out, _ = shell(run.folder, "--nulls", 0, "--components", 3, "--params", "2.*", "--json")
    assert json.loads(out)["dim"] == 18


def test_the_command_reads_clouds(shell: Shell, tmp_path: Path) -> None:
    run = recorded(tmp_path / "c", "cloud")
    told = json.loads(shell(run.folder, "--nulls", 2, "--components", 3, "--json")[0])
    assert told["ordered"] is False and told["nulls"] == ["isotropic-cloud", "matched-cloud"]
    with pytest.raises(UsageError, match="its points have no order"):
        shell(run.folder, "--at", "1-5")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--probes", 5], "--probes does nothing with --space parameters"),
        (["--params", "2.*", "--space", "predictions"], "--params does nothing with --space predictions"),
        (["--at", "7"], "a first and a last step"),
        (["--bandwidth", "bhg"], "bhg"),
        (["--alpha", 3], "alpha"),
        (["--points", 2], "3 to 2,000 points"),
    ],
)
def test_refused(shell: Shell, tmp_path: Path, flags: list[object], says: str) -> None:
    run = recorded(tmp_path / "a")
    with pytest.raises(UsageError, match=says):
        shell(run.folder, *flags)
    assert run.answers() == []


def test_points_of_a_run_come_from_its_trajectory(tmp_path: Path) -> None:
    trajectory = recorded(tmp_path / "a").trajectory()
    assert isinstance(trajectory, Trajectory)
    one = diffuse(distances.of(trajectory), nulls=0, components=3)
    assert np.array_equal(one.steps, trajectory.steps) and np.array_equal(one.losses, trajectory.losses)
