"""The comparison in subspaces of a trajectory against the same table by numpy, on a problem where every minimum is a least-squares solution; the stored answer is the answer."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from landscape import datasets, subspaces, tasks
from landscape.analysis import reductions
from landscape.analysis.reductions import DLDR, PLACES, Reduction, reduction
from landscape.cli.app import main
from landscape.descent import Recipe
from landscape.errors import LandscapeError, UsageError
from landscape.objectives import Rows
from landscape.results import Result
from landscape.seeds import generator
from landscape.tasks import Task

F64 = torch.float64
D, N, RATE = 7, 30, 0.2
EPOCHS, LONG = 4, 18
DIMS = (1, 2, 4)


def lines() -> Task:
    """Linear regression of 7 weights without a bias, f(w) = |Xw - y|^2 / N over 30 rows, from initialisations that depend on the seed."""
    stream = generator(0, "test")
    x, test_x = (
        torch.randn(n, D, generator=stream, dtype=F64) * torch.linspace(0.3, 1.5, D, dtype=F64) for n in (N, 11)
    )
    y, test_y = (torch.randn(n, 1, generator=stream, dtype=F64) for n in (N, 11))
    data = datasets.assemble(Rows(x, y), Rows(test_x, test_y), None, "lines")

    def make(seed: int) -> nn.Module:
        model = nn.Linear(D, 1, bias=False).double()
        with torch.no_grad():
            model.weight.copy_(torch.randn(1, D, generator=generator(seed, "test start"), dtype=F64))
        return model

    defaults = {"optimizer": "sgd", "momentum": 0.0, "lr": RATE}  # all rows at once: an epoch is a step
    return Task("lines", "", make, data, "mse", defaults, {})


def arrays(task: Task) -> tuple[np.ndarray, ...]:
    train, test = task.data.train, task.data.test
    return tuple(t.numpy() for t in (train.inputs, train.targets[:, 0], test.inputs, test.targets[:, 0]))


def descent(task: Task, seed: int, steps: int) -> np.ndarray:
    """Points (steps + 1, D) of gradient descent, by numpy."""
    x, y, _, _ = arrays(task)
    points = [task.make(seed).weight.detach().numpy()[0].copy()]
    for _ in range(steps):
        points.append(points[-1] - RATE * 2 / N * x.T @ (x @ points[-1] - y))
    return np.array(points)


def mean_square(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> float:
    return float(np.mean((x @ w - y) ** 2))


def least(base: np.ndarray, directions: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The minimiser (D,) of |Xw - y|^2 in base + span of directions (d, D)."""
    z = np.linalg.lstsq(x @ directions.T, y - x @ base, rcond=None)[0]
    return base + z @ directions


@pytest.fixture(scope="module")
def found() -> Reduction:
    # strict search: near the minimum of a quadratic the default asks for more than rounding lets it see
    solver = Recipe(optimizer="bfgs", lr=1.0, steps=60, search="wolfe", sufficient=1e-4)
    return reduction(lines(), dims=DIMS, epochs=EPOCHS, long=LONG, seeds=(0, 5), solver=solver, dtype=F64)


@pytest.mark.parametrize("seed", [0, 5])
def test_every_row_of_the_table_is_that_of_numpy(found, seed):
    task, member = lines(), [0, 5].index(seed)
    x, y, test_x, test_y = arrays(task)
    path = descent(task, seed, LONG)
    points = path[: EPOCHS + 1]
    # rounding: some 20 steps of contractions in float64
    for method, w in (("end of sampling", points[-1]), ("long", path[-1])):
        m = found.place(method)
        assert found.train_losses[m, member] == pytest.approx(mean_square(w, x, y), rel=1e-12)
        assert found.test_losses[m, member] == pytest.approx(mean_square(w, test_x, test_y), rel=1e-12)
    tests = [mean_square(w, test_x, test_y) for w in path]
    np.testing.assert_allclose(found.course["test_loss"][:, member], tests, rtol=1e-12)
    best = int(np.argmin(tests))
    m = found.place("best test epoch")
    assert found.passes[m, member] == best
    assert found.train_losses[m, member] == pytest.approx(mean_square(path[best], x, y), rel=1e-12)
    assert found.test_losses[m, member] == pytest.approx(min(tests), rel=1e-12)
    sources = {
        "centred": points - points.mean(0),
        "uncentred": points - points[0],
        "increments": np.diff(points, axis=0),
    }
    axes = torch.eye(max(DIMS), dtype=F64)
    drawn = subspaces.random(torch.zeros(D, dtype=F64), max(DIMS), generator(seed, "subspace")).push(axes).numpy()
    bases = {"w0": points[0], "mean": points.mean(0), "wT": points[-1]}
    for source, base in PLACES:
        for d in DIMS:
            directions = drawn[:d] if source == "random" else np.linalg.svd(sources[source])[2][:d]
            w = least(bases[base], directions, x, y)
            m = found.place(f"{source} @{base}", d)
            # at a point of gradient g in the subspace the loss is |g|^2 / (2 * curvature) above its minimum; the search ends
            # where no gain beyond the loss's rounding is left: 1e-9 allows for gradients of 1e-5 beside the loss's own size
            assert found.train_losses[m, member] == pytest.approx(mean_square(w, x, y), rel=1e-9)
            # the minimiser is within sqrt(1e-9 of the loss / curvature), and the test loss changes in the first order of it
            assert found.test_losses[m, member] == pytest.approx(mean_square(w, test_x, test_y), rel=1e-3)


def test_the_laws_of_the_table(found):
    x, y, _, _ = arrays(lines())
    least_of_all = mean_square(least(np.zeros(D), np.eye(D), x, y), x, y)
    for source, base in PLACES:
        losses = np.array([found.train_losses[found.place(f"{source} @{base}", d)] for d in DIMS])
        # nested subspaces: more dimensions are never worse; and none is below the minimum over all weights
        assert (np.diff(losses, axis=0) <= 1e-9).all(), (source, base)
        assert (losses >= least_of_all - 1e-12).all()
    # d = T: every convention has the same affine hull
    full = [
        found.train_losses[found.place(f"{source} @{base}", EPOCHS)] for source, base in PLACES if source != "random"
    ]
    np.testing.assert_allclose(full, np.broadcast_to(full[0], (4, 2)), rtol=1e-9)
    assert found.passes[found.place("long")].tolist() == [LONG, LONG]


def test_passes_are_counted_with_those_of_sampling():
    """Gradient descent of 5 steps on 15 of 30 rows looks at the loss 6 times, and a time is half a pass; all subspaces but the random one through w_0 need the sampling."""
    solver = Recipe(optimizer="sgd", lr=0.01, steps=5, batch_size=N // 2)
    counted = reduction(lines(), dims=(1, 2), epochs=EPOCHS, seeds=(0,), solver=solver, dtype=F64)
    for source, base in PLACES:
        expected = 3 + (0 if (source, base) == ("random", "w0") else EPOCHS)
        assert [counted.passes[counted.place(f"{source} @{base}", d), 0] for d in (1, 2)] == [expected, expected]
    assert counted.passes[counted.place("end of sampling"), 0] == EPOCHS
    assert counted.passes[counted.place("long"), 0] == 4 * EPOCHS


def test_a_seed_alone_and_sampling_between_epochs(found):
    """Lockstep changes no member, and points sampled each third of 9 steps are those of the path."""
    task = lines()
    solver = Recipe(optimizer="bfgs", lr=1.0, steps=60, search="wolfe", sufficient=1e-4)
    alone = reduction(task, dims=DIMS, epochs=EPOCHS, long=LONG, seeds=(5,), solver=solver, dtype=F64)
    np.testing.assert_allclose(alone.train_losses[:, 0], found.train_losses[:, 1], rtol=1e-9)
    spaced = reduction(task, dims=(2,), epochs=9, long=9, every=3, seeds=(0,), solver=solver, dtype=F64)
    assert spaced.points == 4
    x, y, _, _ = arrays(task)
    points = descent(task, 0, 9)[::3]
    w = least(points[0], np.linalg.svd(points - points.mean(0))[2][:2], x, y)
    assert spaced.train_losses[spaced.place(DLDR, 2), 0] == pytest.approx(mean_square(w, x, y), rel=1e-9)


def noisy_digits() -> Task:
    return tasks.find("digits-mlp", limit=200, label_noise="uniform:0.4", norm="batch")


@pytest.fixture(scope="module")
def digits() -> Reduction:
    task = noisy_digits()
    recipe = Recipe(**{**task.defaults, "batch_size": 50})
    return reduction(
        task,
        dims=(2, 4),
        epochs=4,
        long=8,
        seeds=(0, 1),
        recipe=recipe,
        solver=Recipe(optimizer="bfgs", lr=1.0, steps=15),
    )


def test_classes_and_wrong_labels(digits):
    assert digits.classifies
    assert digits.noise == "uniform:0.4"
    assert digits.panels() == ("loss", "error", "course")
    # each epoch is 4 steps of 50 rows
    assert digits.passes[digits.place("long")].tolist() == [8, 8]
    best = digits.place("best test epoch")
    np.testing.assert_array_equal(digits.test_accuracies[best], digits.course["test_accuracy"].max(axis=0))
    np.testing.assert_array_equal(digits.test_losses[digits.place("long")], digits.course["test_loss"][-1])
    # BatchNorm's statistics are those of the train rows at the point, as torch takes them in one pass of all rows that forgets what was before
    task = noisy_digits()
    module = task.make(1)
    for part in module.modules():
        if isinstance(part, nn.BatchNorm1d):
            part.momentum = 1.0
    with torch.no_grad():
        module.train()(task.data.train.inputs)
        truth = nn.functional.cross_entropy(module.eval()(task.data.test.inputs), task.data.test.targets)
    # float32 through three layers
    assert digits.course["test_loss"][0, 1] == pytest.approx(float(truth), rel=1e-5)
    dldr = digits.place(DLDR, 4)
    assert (digits.train_losses[dldr] < digits.train_losses[digits.place("random @w0", 4)]).all()
    # 4 of 10 labels are wrong: a network that has learnt no more than the digits cannot be right on more than about 60% of the rows
    assert (digits.test_accuracies[digits.place("end of sampling")] > 0.6).all()
    assert "with label noise uniform:0.4" in digits.summary()
    assert "wrong by uniform:0.4" in digits.caption()
    assert "oracle" in digits.summary()


def test_the_summary_speaks_of_the_fewest_dimensions_that_win(digits):
    places = {d: digits.place(DLDR, d) for d in (2, 4)}
    long = digits.place("long")
    for losses, d in (((0.5, 0.4), 2), ((1.5, 0.4), 4), ((1.5, 1.2), 4), ((1.2, 1.5), 2)):
        values = digits.train_losses.copy()
        values[long] = 1.0
        values[places[2]], values[places[4]] = losses
        made = replace(digits, train_losses=values)
        assert made.dims[made.headline] == d
        assert f": {d} dimensions of 4 epochs (5 points)" in made.summary()


def test_the_table_has_means_and_standard_errors(digits):
    values = digits.train_losses.copy()
    m = digits.place(DLDR, 2)
    values[m] = 0.1, 0.3  # mean 0.2, deviation 0.1 sqrt(2), standard error 0.1
    made = replace(digits, train_losses=values)
    head, *rows = made.table()
    assert len(rows) == 3 + 6 * 2
    assert all(len(row) == len(head) for row in rows)
    assert rows[m][:3] == ("DLDR: centred @w0", "2", "0.2 ± 0.1")
    assert rows[1][:2] == ("sgd, 8 epochs", "-")


@pytest.mark.parametrize("which", ["found", "digits"])
def test_the_stored_answer_is_the_answer_and_draws_itself(which, request):
    result = request.getfixturevalue(which)
    read = Result.from_json(result.to_json())
    assert read.to_json() == result.to_json()
    assert isinstance(read, Reduction)
    for panel in read.panels():
        ax = Figure().subplots()
        read.plot(ax, panel)
        drawn = {text.get_text() for text in ax.get_legend().get_texts()} if ax.get_legend() else set()
        if panel == "loss":
            assert {"DLDR: centred @w0", "random @wT", f"sgd, {read.long} epochs"} <= drawn
            (line,) = [c for c in ax.containers if c.get_label() == "DLDR: centred @w0"]
            expected = [read.train_losses[read.place(DLDR, int(d))].mean() for d in sorted({*read.dims} - {0})]
            np.testing.assert_allclose(line.lines[0].get_ydata(), expected)
    names = {trace.name for trace in read.figure().data}
    assert "DLDR: centred @w0" in names


def test_an_error_of_none_has_a_place_on_a_logarithmic_axis(digits):
    perfect = replace(digits, test_accuracies=np.ones_like(digits.test_accuracies))
    ax = Figure().subplots()
    perfect.plot(ax, "error")
    assert all(math.isclose(y, 100 * 0.5 / 360) for c in ax.containers for y in c.lines[0].get_ydata())
    assert "half a test row" in perfect.caption()


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (
            {"dims": (2, 5)},
            "5 dimensions were asked for, and 4 epochs .* give 5 points: they span 4. Ask for fewer",
        ),
        (
            {"dims": (3,), "every": 2},
            r"each 2 of 4 steps, give 3 points: they span 2. .* sample more often .--every 1",
        ),
        ({"dims": (0,)}, "at least 1 dimension"),
        ({"dims": ()}, "at least 1 dimension"),
        ({"long": 3}, "at least as many epochs as are sampled"),
        ({"every": 0}, "at least 1"),
        ({"seeds": (1, 1)}, "several different ones"),
        ({"seeds": ()}, "give one seed"),
    ],
)
def test_bad_options_are_refused_before_anything_is_trained(options, says, monkeypatch):
    task = lines()
    monkeypatch.setattr("landscape.analysis.reductions.descend", lambda *a, **k: pytest.fail("trained"))
    with pytest.raises(UsageError, match=says):
        reduction(task, **{"epochs": EPOCHS, "dims": (2,), **options})


def test_a_training_that_diverges_is_no_source():
    with pytest.raises(LandscapeError, match=r"diverged by epoch .* with seed 3"):
        reduction(lines(), dims=(2,), epochs=400, seeds=(3,), recipe=Recipe(lr=1e4, momentum=0.0), dtype=F64)


def test_seeds_share_what_does_not_move():
    task = lines()

    def make(seed: int) -> nn.Module:
        model = nn.Sequential(nn.Linear(D, D, bias=False).double(), nn.Linear(D, 1).double())
        model[0].requires_grad_(False).weight.fill_(float(seed))
        return model

    with pytest.raises(UsageError, match=r"'0\.weight' does not move and differs between the models 0 and 1"):
        reduction(replace(task, make=make), dims=(2,), epochs=EPOCHS, seeds=(0, 1), dtype=F64)


# -- through the command ------------------------------------------------------------------------------------------------


def test_the_command_prints_the_table_and_answers_a_second_time_without_training(tmp_path, capsys, monkeypatch):
    words = ["dldr", "digits-mlp", "--limit", "100", "--width", "0.25", "--epochs", "4", "--dims", "2,3", "--seeds", "2", "--solver-steps", "5",
             "--label-noise", "pairwise:0.2", "--device", "cpu", "--out", str(tmp_path / "a")]  # fmt: skip
    assert main(words) == 0
    first = capsys.readouterr().out
    assert "centred @w0" in first and "best test epoch" in first
    monkeypatch.setattr(reductions, "descend", None)
    assert main(words) == 0
    assert capsys.readouterr().out == first
    assert main([*words, "--seeds", "3"]) == 2  # another question belongs into another folder
    capsys.readouterr()
    words[words.index("2,3")] = "9"
    assert main([*words[:-1], str(tmp_path / "b")]) == 2
    assert "4 epochs" in capsys.readouterr().err or "5 points" in capsys.readouterr().err
    assert not (tmp_path / "b").exists()
