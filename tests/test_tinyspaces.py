"""Tiny subspaces: fractions, overlaps and arms on quadratics whose eigenvectors and decays are known, tangents of planes and circles, and the command on a network.

On f(w) = w^T A w / 2 with A = Q diag(lambda) Q^T descent without noise decays each mode by itself, so that a step projected onto or out of the top modes leaves the others alone.
"""

import dataclasses
import json
import math

import cyclopts
import numpy as np
import pytest
import torch
from problems import F64, close, draw, objective, planted, regression, rotation

from landscape.analysis import tinyspaces as home
from landscape.analysis.dimensions import chance
from landscape.analysis.styles import rendered
from landscape.analysis.tinyspaces import ARMS, TinySpace, tiny
from landscape.cli import clouding
from landscape.cli.app import main
from landscape.descent import Recipe, Start, descend
from landscape.errors import UsageError
from landscape.objectives import Objective, flat_buffers
from landscape.results import Result
from landscape.runs import Place, Run
from landscape.seeds import child_seed, generator
from landscape.subspaces import coordinates
from landscape.trajectories import Entry, Layout, Row, Trajectory, TrajectoryWriter

D, K, RATE, STEPS = 24, 3, 0.02, 12
# the top three stand apart, so that Lanczos parts them from the rest; all of them decay at this rate
SPECTRUM = np.concatenate([[40.0, 25.0, 15.0], np.linspace(4.0, 0.5, D - K)])
# Lanczos stops at residuals of 1e-3 of the largest eigenvalue, 0.04, and the gap is 11: spaces are off by an angle of at most 0.04 sqrt(3) / 11 = 0.0063, and a fraction by
# twice its sine at most
ANGLE = 0.0063
# the arms are compared with exact eigenvectors: residuals of 1e-11 and angles of 6e-11, which the steps of every refresh add to
EXACT, ARM = 1e-11, 1e-9


@pytest.fixture
def exact(monkeypatch):
    monkeypatch.setattr(home, "TOLERANCE", EXACT)


def stored(folder, points) -> Trajectory:
    """A trajectory of these points (T, D) at steps 0, 1, 2, ..."""
    points = np.asarray(points, dtype=float)
    writer = TrajectoryWriter(folder, Layout((Entry("w", (points.shape[1],), 0, "float64", "parameter"),)))
    for step, point in enumerate(points):
        writer.append(Row(step, point, np.empty(0), math.nan, RATE))
    writer.commit()
    return Trajectory.open(folder)


def bowl() -> tuple[Objective, np.ndarray, np.ndarray]:
    """f(w) = w^T A w / 2, A, and its eigenvectors (D, D) in rows, those of the largest eigenvalues first."""
    matrix = planted(SPECTRUM)
    a = torch.from_numpy(matrix)
    return Objective.from_function(lambda w: w @ a @ w / 2, D), matrix, rotation(D).T


def recipe(**changes) -> Recipe:
    return Recipe(**{"steps": STEPS, "lr": RATE, "momentum": 0.0, **changes})


def asked(folder, made: Recipe, **more) -> TinySpace:
    """The answer on the bowl from a fixed start, along 60 random points."""
    f, *_ = bowl()
    points = draw(60, D, seed=4).numpy()
    return tiny(f, f, stored(folder, points), made, Start(draw(D, seed=5)), top=K, **{"at": [0, 7, 40], **more})


def losses(modes: np.ndarray) -> np.ndarray:
    """Of mode coefficients (..., D)."""
    return (SPECTRUM * modes**2).sum(axis=-1) / 2


# -- fractions --------------------------------------------------------------------------------------------------------


def test_fractions_and_overlaps_are_those_of_the_dense_eigenvectors(tmp_path):
    found = asked(tmp_path, recipe())
    _, matrix, modes = bowl()
    gradients = draw(60, D, seed=4).numpy()[[0, 7, 40]] @ matrix
    truth = ((gradients @ modes[:K].T) ** 2).sum(1) / (gradients**2).sum(1)
    close(found.in_hessian, truth, 2 * ANGLE)
    close(found.gradient_norms, np.linalg.norm(gradients, axis=1))
    close(
        found.overlaps, np.ones((3, 3)), 2 * ANGLE**2 + 1e-10
    )  # one Hessian everywhere: tr(PP')/k loses squares of sines
    assert (found.angles <= ANGLE).all()
    assert found.by_chance == pytest.approx(chance(K, D)) and found.at.tolist() == [0, 7, 40]
    assert not found.batch_size and not found.batch_in_hessian.size


def test_a_plane_is_its_own_tangent(tmp_path):
    f, matrix, modes = bowl()
    plane = rotation(D, 3)[:2]
    points = draw(80, 2, seed=1).numpy() @ plane + draw(D, seed=2).numpy()
    found = tiny(f, f, stored(tmp_path, points), recipe(), Start(draw(D)), at=[3, 50], top=2, cloud=True)
    gradients = points[[3, 50]] @ matrix
    truth = ((gradients @ plane.T) ** 2).sum(1) / (gradients**2).sum(1)
    close(found.in_tangent, truth, 1e-10)
    close(found.tangent_overlaps, np.full(2, ((plane @ modes[:2].T) ** 2).sum() / 2), 2 * ANGLE)
    assert found.neighbours == 6


def test_the_tangent_of_a_circle_is_perpendicular_to_its_radius(tmp_path):
    # evenly spaced, so that the neighbours of a point lie alike on both sides, and their first principal direction is the tangent exactly. The gradient of |w|^2 / 2 is radial,
    # that of (w - c)^2 / 2 lies along the tangent by the sine of its angle to the radius
    angles = 2 * np.pi * np.arange(40) / 40
    frame = rotation(D, 6)[:2]
    points = np.stack([np.cos(angles), np.sin(angles)], axis=1) @ frame
    centre = 0.5 * frame[0]
    a, c = torch.diag(torch.linspace(2, 1, D, dtype=F64)), torch.from_numpy(centre)
    f = Objective.from_function(lambda w: (w - c) @ a @ (w - c) / 2, D)
    found = tiny(f, f, stored(tmp_path, points), recipe(lr=0.1), Start(draw(D)), at=[4, 10, 33], top=1)
    for place, share in zip((4, 10, 33), found.in_tangent, strict=True):
        tangent = np.array([-np.sin(angles[place]), np.cos(angles[place])]) @ frame
        gradient = a.numpy() @ (points[place] - centre)
        assert share == pytest.approx((tangent @ gradient) ** 2 / (gradient @ gradient), abs=1e-10)


def test_the_tangent_is_of_the_nearest_points(tmp_path):
    # two straight legs at a right angle: all neighbours of a point well inside a leg lie on it
    legs = rotation(D, 7)[:2]
    points = np.concatenate([np.outer(np.arange(-20, 0), legs[0]), np.outer(np.arange(1, 21), legs[1])])
    f, matrix, _ = bowl()
    found = tiny(f, f, stored(tmp_path, points), recipe(), Start(draw(D)), at=[5, 34], top=1)
    for place, leg, share in zip((5, 34), legs, found.in_tangent, strict=True):
        gradient = matrix @ points[place]
        assert share == pytest.approx((leg @ gradient) ** 2 / (gradient @ gradient), rel=1e-10)


def test_too_few_points_have_no_tangent_and_say_so(tmp_path):
    f, *_ = bowl()
    found = tiny(f, f, stored(tmp_path, draw(5, D).numpy()), recipe(), Start(draw(D)), top=K)
    assert np.isnan(found.in_tangent).all() and found.neighbours == 0
    assert np.isfinite(found.in_hessian).all() and "it takes 9 neighbours, and 5 points" in found.warnings[0]
    assert "tangent" not in found.summary() and "tangent" not in found.caption().split("Overlaps")[0]


def test_points_that_are_not_finite_or_have_no_gradient_are_told(tmp_path):
    points = draw(30, D).numpy()
    points[2] = np.nan
    points[5] = 0
    f, *_ = bowl()
    found = tiny(f, f, stored(tmp_path, points), recipe(), Start(draw(D)), top=K, at=[2, 5, 9])
    assert np.isfinite(found.in_hessian).tolist() == [False, False, True]
    told = " ".join(found.warnings)
    assert "at step 2 is not finite" in told and "at step 5 is zero" in told
    assert np.isfinite(found.in_tangent[2])


def test_a_pruned_network_is_measured_and_moved_among_its_survivors(exact, tmp_path):
    whole, matrix, _ = bowl()
    mask = torch.arange(D) % 3 > 0
    points = draw(40, D, seed=4) * mask
    f = whole.restrict(coordinates(torch.zeros(D, dtype=F64), mask))
    start = draw(D, seed=5) * mask
    found = tiny(f, f, stored(tmp_path, points.numpy()), recipe(), Start(start, 0, (0 * start,)), top=K, at=[3, 9])
    kept = matrix[np.ix_(mask, mask)]
    values, vectors = np.linalg.eigh(kept)
    gradients = points[[3, 9]].numpy()[:, mask] @ kept
    close(found.in_hessian, ((gradients @ vectors[:, -K:]) ** 2).sum(1) / (gradients**2).sum(1), ARM)
    c = vectors.T @ start[mask].numpy()
    c[:-K] *= (1 - RATE * values[:-K]) ** STEPS
    assert found.curves[2, 0, -1] == pytest.approx(float(values @ c**2) / 2, rel=ARM)
    assert found.dim == int(mask.sum()) and np.isfinite(found.in_tangent).all()


# -- arms -------------------------------------------------------------------------------------------------------------


def decayed(made: Recipe, moved: np.ndarray, velocity: np.ndarray | None = None) -> np.ndarray:
    """Losses (S,) of heavy-ball descent whose steps move only the modes that `moved` (D,) marks: v = beta v + lambda c, c = c - rate v, each mode by itself."""
    c = draw(D, seed=5).numpy() @ rotation(D)
    v = np.zeros(D) if velocity is None else velocity
    found = [losses(c)]
    for _ in range(made.steps):
        v = made.momentum * v + SPECTRUM * c
        c = c - made.lr * moved * v
        found.append(losses(c))
    return np.array(found)


@pytest.mark.parametrize(("momentum", "refresh"), [(0.0, 1), (0.0, 5), (0.7, 4)])
def test_the_modes_of_each_arm_decay_by_themselves(exact, tmp_path, momentum, refresh):
    made = recipe(momentum=momentum, lr=RATE * (1 - momentum))
    found = asked(tmp_path, made, refresh=refresh)
    top = np.arange(D) < K
    if not momentum:  # in closed form
        c = draw(D, seed=5).numpy() @ rotation(D)
        times = np.arange(STEPS + 1)[:, None]
        close(decayed(made, top), losses(np.where(top, c * (1 - RATE * SPECTRUM) ** times, c)))
    for arm, moved in (("whole", np.ones(D)), ("dominant", top), ("rest", ~top)):
        got, truth = found.curves[ARMS.index(arm)], decayed(made, moved)
        close(got[0], truth, 1e-10 if arm == "whole" else ARM)
        close(got[1:], got[:1].repeat(2, axis=0), 1e-12)  # without noise replicates are one
    # a step is the sum of its two parts, and with modes by themselves so is what they bring
    close(found.drops[1] + found.drops[2], found.drops[0], ARM)
    assert found.times.tolist() == list(range(STEPS + 1))
    close(found.kept, np.ones(2), ARM)
    assert [found.lowers(arm) for arm in ARMS] == ["yes"] * 5
    share = decayed(made, top)
    assert found.share("dominant")[0] == pytest.approx((share[0] - share[-1]) / (decayed(made, np.ones(D))[0] - decayed(made, np.ones(D))[-1]), abs=ARM)  # fmt: skip


def test_moments_of_the_state_go_on_in_every_arm(exact, tmp_path):
    f, *_ = bowl()
    velocity = draw(D, seed=8)
    made = recipe(steps=20, momentum=0.7, lr=0.3 * RATE)
    start = Start(draw(D, seed=5), 8, (velocity,))
    found = tiny(f, f, stored(tmp_path, draw(30, D).numpy()), made, start, top=K, at=[1])
    truth = decayed(dataclasses.replace(made, steps=12), np.arange(D) >= K, velocity.numpy() @ rotation(D))
    close(found.curves[2, 0], truth, ARM)
    assert found.start == 8 and found.moments == "kept" and asked(tmp_path / "b", recipe()).moments == "kept"


def test_random_spaces_take_what_is_in_them(tmp_path):
    # where all curvatures are one, the part of the start in a space decays and the rest stays: onto and out of one space bring together what the whole step brings
    f = Objective.from_function(lambda w: w @ w / 2, D)
    start = draw(D, seed=5)
    found = tiny(
        f,
        f,
        stored(tmp_path, draw(30, D).numpy()),
        recipe(lr=0.1),
        Start(start),
        top=K,
        at=[1],
        replicates=200,
        refresh=STEPS,
    )
    onto, out = found.drops[3], found.drops[4]
    close(found.drops[0], np.full(200, float(start @ start) / 2 * (1 - 0.9 ** (2 * STEPS))))
    close(onto + out, found.drops[0])
    # the share of a fixed vector in a random space is Beta(k/2, (D-k)/2)
    shares, a, b = onto / found.drops[0], K / 2, (D - K) / 2
    spread = math.sqrt(a * b / ((a + b) ** 2 * (a + b + 1)))
    assert shares.mean() == pytest.approx(K / D, abs=4 * spread / math.sqrt(200))
    assert shares.std() == pytest.approx(spread, rel=4 * math.sqrt(1.5 / 200))  # of a sample; kurtosis about 4


def test_adam_projects_its_step_and_not_its_gradient(exact, tmp_path):
    made = recipe(optimizer="adam", lr=0.05, steps=10)
    found = asked(tmp_path, made, refresh=10)
    _, matrix, modes = bowl()
    (b1, b2), top = made.betas, modes[:K]
    for arm, onto in (("whole", np.eye(D)), ("dominant", top.T @ top), ("rest", np.eye(D) - top.T @ top)):
        w, m, v = draw(D, seed=5).numpy(), np.zeros(D), np.zeros(D)
        curve = [w @ matrix @ w / 2]
        for t in range(1, 11):
            g = matrix @ w
            m, v = b1 * m + (1 - b1) * g, b2 * v + (1 - b2) * g**2
            w = w - made.lr * onto @ (m / (1 - b1**t) / (np.sqrt(v / (1 - b2**t)) + made.eps))
            curve.append(w @ matrix @ w / 2)
        close(found.curves[ARMS.index(arm), 0], np.array(curve), 1e-10 if arm == "whole" else ARM)
    assert found.names[1:3] == ("Dom-Adam", "Bulk-Adam")


def test_the_top_space_is_followed_as_it_turns(exact, tmp_path):
    # f = sum w_i^4 / 4: the Hessian is diag(3 w_i^2), and its top axis is that of the largest |w_i|, which a projected step makes smaller until it is another
    f = Objective.from_function(lambda w: (w**4).sum() / 4, 6)
    begin = np.array([2.0, 1.9, -1.7, 0.3, 0.2, 0.1])
    made = recipe(lr=0.02, steps=12)
    for refresh in (1, 4):
        path = stored(tmp_path / str(refresh), draw(20, 6).numpy())
        found = tiny(f, f, path, made, Start(torch.from_numpy(begin)), top=1, refresh=refresh, at=[1])
        for arm in (1, 2):
            w, curve = begin.copy(), [(begin**4).sum() / 4]
            for step in range(12):
                if step % refresh == 0:
                    top = np.arange(6) == np.abs(w).argmax()
                w = w - 0.02 * (top if arm == 1 else ~top) * w**3
                curve.append((w**4).sum() / 4)
            close(found.curves[arm, 0], np.array(curve), ARM)
    assert found.kept[0] < 0.9  # it turned


def test_all_arms_of_a_replicate_see_the_same_mini_batches(exact, tmp_path):
    # of linear regression with three outputs the eigenvalues come in threes: the top three are a space
    problem = regression("linear", 40)
    f, start = problem.f, problem.point
    made = recipe(steps=8, lr=0.05, batch_size=10)
    found = tiny(f, f, stored(tmp_path, draw(20, f.dim).numpy()), made, Start(start), top=3, at=[1], seed=2)
    top = np.linalg.eigh(problem.hessian(start.numpy()))[1][:, -3:]
    for replicate in range(3):
        seed = child_seed(2, "tiny", 0, replicate)
        for arm, onto in ((1, top @ top.T), (2, np.eye(f.dim) - top @ top.T)):
            w = start.numpy()
            for step in range(8):
                order = torch.randperm(40, generator=generator(seed, "order", step // 4))
                rows = order[10 * (step % 4) : 10 * (step % 4) + 10]
                g = f.on(rows).gradient(torch.from_numpy(w)).numpy()
                w = w - 0.05 * onto @ g
            assert found.curves[arm, replicate, -1] == pytest.approx(problem.value(w), rel=ARM)


# -- words ------------------------------------------------------------------------------------------------------------


def curved(ends: np.ndarray) -> TinySpace:
    """An answer whose arms go from 1 to these losses (A, R)."""
    made = {field.name: np.full(2, 0.5) for field in dataclasses.fields(TinySpace) if field.type == "np.ndarray"}
    given = {"question": {}, "provenance": {}, "dim": 100, "rows": 9, "recorded": 30, "cloud": False, "top": 10, "neighbours": 30, "batch_size": 4, "optimizer": "sgd"}  # fmt: skip
    given |= {"start": 5, "moments": "kept", "rate": 0.1, "refresh": 5, "by_chance": chance(10, 100), "times": np.array([0, 50]), "at": np.array([0, 9])}  # fmt: skip
    given |= {"overlaps": np.eye(2), "batch_in_hessian": np.full((2, 2), 0.4), "batch_in_tangent": np.full((2, 2), 0.4)}
    return TinySpace(**{**made, **given, "curves": np.stack([np.ones_like(ends), ends], axis=-1)})


def test_the_verdict_says_what_the_arms_do():
    spread = np.array([-0.01, 0.0, 0.01])
    ends = np.array([0.2, 0.97, 0.22, 1.3, 0.2])[:, None] + spread
    ends[1] = 1 + 5 * spread
    found = curved(ends)
    assert [found.lowers(arm) for arm in ARMS] == ["yes", "undecided", "yes", "no", "yes"]
    # Student's t at 97.5% with 2 degrees of freedom is 4.303
    assert found.share("rest") == pytest.approx((0.78 / 0.8, 4.3027 * 0.01 / math.sqrt(3) / 0.8), rel=1e-4)
    told = found.summary()
    assert (
        "Dom-SGD alone neither lowers nor raises the loss for certain" in told
        and "Bulk-SGD alone lowers the loss, by 97.5 ± 3.1% of what SGD does" in told
    )
    assert found.table()[4][-1] == "no" and "-37.5" in found.table()[4][-2] and "no evidence of a tiny subspace" in told
    turned = curved(np.array([0.2, 0.22, 0.97, 0.9, 0.9])[:, None] + spread)
    assert "Training happens in the top space" in turned.verdict()
    # shares of 0.45 and 0.55 with margins of 0.4 say nothing, whatever side of a half they are on
    unsure = np.array([0.2, 0.64, 0.56, 0.9, 0.9])[:, None] + 10 * spread
    unsure[0] = 0.2
    assert "not certain: no reading" in curved(unsure).verdict()
    assert "does not lower the loss for certain" in curved(np.ones((5, 3)) + spread).verdict()
    ends[2, 1] = np.nan
    assert curved(ends).lowers("rest") == "diverged" and "Bulk-SGD alone diverges" in curved(ends).verdict()


def test_it_is_read_back_equal_and_drawn_from_itself(tmp_path):
    found = asked(tmp_path, recipe())
    again = Result.from_json(found.to_json())
    assert isinstance(again, TinySpace) and again.to_json() == found.to_json()
    for one in (again, curved(np.array([0.2, 0.97, 0.22, 1.3, 0.2])[:, None] + [0, 0.1, np.nan])):
        assert rendered(one, "svg").startswith(b"<?xml")
        assert len(one.figure().data) == 5 and len(one.table()) == 6
        assert one.names[2] in one.caption()
    with pytest.raises(UsageError, match="fractions"):
        again.plot(None, "fraction")  # type: ignore[arg-type]


# -- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({"optimizer": "lbfgs"}, {}, "sgd or adam; this run has lbfgs"),
        ({"steps": 0}, {}, "1 step or more.*got 0, 5 and 3"),
        ({}, {"refresh": 0}, "got 12, 0 and 3"),
        ({}, {"replicates": 1}, "2 replicates or more"),
        ({}, {"top": D}, f"1 to {D - 1} of the {D} dimensions; got {D}"),
        ({}, {"at": []}, "at least one"),
        ({}, {"at": [99]}, "step 99 was not recorded"),
    ],
)
def test_refused(tmp_path, changes, options, says):
    f, *_ = bowl()
    with pytest.raises(UsageError, match=says):
        tiny(f, f, stored(tmp_path, draw(30, D).numpy()), recipe(**changes), Start(draw(D)), **{"top": K, **options})


def test_the_whole_arm_is_the_training_itself_with_mini_batches_momentum_and_running_statistics(exact, tmp_path):
    f, point = objective("batchnorm", 40)
    made = Recipe(steps=9, lr=0.1, momentum=0.9, batch_size=8, weight_decay=1e-2)
    points = np.stack([(point + 0.01 * draw(f.dim, seed=i)).numpy() for i in range(20)])
    writer = TrajectoryWriter(tmp_path, f.model.layout)
    recorded = {name: 2 * value for name, value in f.buffers.items()}  # others than the objective's
    for step, one in enumerate(points):
        writer.append(Row(step, one, flat_buffers(f.model.layout, recorded), math.nan, 0.1))
    writer.commit()
    start = Start(point, 3, (draw(f.dim, seed=9),), {name: value + 1 for name, value in f.buffers.items()})
    found = tiny(f, f, Trajectory.open(tmp_path), made, start, at=[2, 6], seed=4, refresh=2)
    for replicate in range(3):
        *_, last = descend(f, start, made, child_seed(4, "tiny", 3, replicate))
        assert found.curves[0, replicate, -1] == pytest.approx(float(f.with_buffers(last.buffers)(last.point)), rel=1e-10)  # fmt: skip
    assert found.top == 3 and len(set(found.curves[0, :, -1])) == 3
    # the mean of eight mini-batches of 8 of the 40 rows, from the same draws
    here = f.with_buffers(recorded)
    w = torch.from_numpy(points[6])
    values, vectors = np.linalg.eigh(here.hessian(w).dense().numpy())
    top, shares = vectors[:, values.argsort()[-3:]].T, []
    for batch in range(8):
        rows = torch.randperm(40, generator=generator(4, "mini-batches", 6, batch))[:8]
        g = np.mean([here.on(rows[i : i + 1]).gradient(w).numpy() for i in range(8)], axis=0)
        shares.append(((top @ g) ** 2).sum() / (g @ g))
    g = here.gradient(w).numpy()
    assert found.in_hessian[1] == pytest.approx(((top @ g) ** 2).sum() / (g @ g), rel=ARM)
    assert found.batch_in_hessian[1, 0] == pytest.approx(np.mean(shares), rel=ARM)
    assert found.batch_in_hessian[1, 1] == pytest.approx(np.std(shares, ddof=1) / math.sqrt(8), rel=ARM)


# -- the command ------------------------------------------------------------------------------------------------------

PROBLEM = """
import torch
from torch import nn

def make():
    x = torch.randn(60, 4, generator=torch.Generator().manual_seed(0))
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2)), "cross-entropy", (x, (x[:, 0] > 0).long())
"""


@pytest.fixture(scope="module")
def shell(tmp_path_factory):
    """Runs `cloud` and `tiny`, and on one run of 20 steps, `train`."""
    folder = tmp_path_factory.mktemp("shell")
    (folder / "problem.py").write_text(PROBLEM)
    spec = f"{folder / 'problem.py'}:make"
    assert main(["train", spec, "--steps", "20", "--batch-size", "10", "--record-every", "1", "--out", str(folder / "run")]) == 0  # fmt: skip
    own = cyclopts.App()
    own.command(clouding.cloud)
    own.command(clouding.tiny)

    def call(*argv):
        words = [str(word) for word in argv]
        own([*words, "--task", spec], exit_on_error=False, print_error=False, result_action="return_value")

    return call, folder / "run"


def test_the_commands_draw_a_cloud_and_look_for_tiny_spaces_in_runs_and_clouds(shell, tmp_path, capsys):
    call, run = shell
    call("cloud", f"{run}@step=10", "--size", 12, "--steps", 4, "--seed", 3, "--out", tmp_path / "cloud")
    assert "12 recorded points" in capsys.readouterr().out
    call("cloud", f"{run}@step=10", "--size", 12, "--steps", 4, "--seed", 3, "--out", tmp_path / "cloud")
    assert "already finished" in capsys.readouterr().err
    record = Run(tmp_path / "cloud").record()
    assert record["kind"] == "cloud" and record["options"]["cloud"] == "restarts" and record["state"] == "finished"
    assert record["options"]["source"] == {"run": str(run.resolve()), "step": 10, "checksum": Place(Run(run), 10).checksum}  # fmt: skip
    for subject, unit in ((run, "step"), (tmp_path / "cloud", "point")):
        call("tiny", subject, "--at", "2,5,9", "--steps", 6, "--refresh", 3, "--json")
        first = json.loads(capsys.readouterr().out)
        assert first["top"] == 2 and first["start"] == 5 and f"from {unit} 5, 6 steps" in first["summary"]
        assert first["moments"] == "begin at zero" and first["cloud"] == (unit == "point")
        call("tiny", subject, "--at", "2,5,9", "--steps", 6, "--refresh", 3)
        told = capsys.readouterr()
        assert "answered before" in told.err and "Dom-SGD" in told.out and "Bulk-SGD" in told.out
    call("tiny", run, "--points", 3, "--start", 0, "--steps", 2, "--rate", 0.01, "--rows", 20, "--replicates", 2, "--json")  # fmt: skip
    other = json.loads(capsys.readouterr().out)
    assert other["rate"] == 0.01 and other["rows"] == 20 and other["moments"] == "kept" and len(other["at"]["array"]) == 3  # fmt: skip


def test_the_commands_refuse_what_they_cannot_do(shell, tmp_path):
    call, run = shell
    for words, says in (
        (("cloud", f"{run}@step=99", "--out", tmp_path / "x"), "step 99 was not recorded"),
        (("cloud", run, "--dtype", "float64", "--out", tmp_path / "x"), "trained in float32"),
        (("cloud", run, "--burn-in", 5, "--out", tmp_path / "x"), "a burn-in is of a stationary cloud"),
        (("cloud", run, "--out", run), "holds another run"),
        (("tiny", f"{run}@step=5"), "name the run alone"),
        (("tiny", run, "--at", "2", "--points", 3), "both choose the steps"),
        (("tiny", run, "--start", 99), "step 99 was not recorded"),
    ):
        with pytest.raises(UsageError, match=says):
            call(*words)
    assert not (tmp_path / "x").exists()
