"""Training in the few dimensions of a trajectory (DLDR), against what else could have been done with the same and with more training.

Letters: D parameters, d subspace dimension, T sampled points w_0 ... w_T, S seeds, M rows of the table, N rows of data.

One training a seed in the whole space is the baseline and the source: its first epochs are sampled, its later ones are the long training. Then the loss is minimised in

    centred @w0      w_0 + principal directions of the points about their mean: DLDR (Li et al. 2022)
    uncentred @w0    w_0 + principal directions of w_t - w_0
    increments @w0   w_0 + principal directions of w_t - w_(t-1): the lottery subspace of Larsen et al. 2022
    centred @mean    the mean of the points + principal directions about it: the affine subspace nearest to the trajectory
    random @w0       w_0 + random directions
    random @wT       w_T + random directions: what a few more dimensions bring where sampling ended

each with several d, all seeds, subspaces and dimensions in lockstep. With d = T the first four are one and the same affine hull.

Two baselines keep the comparison honest: the long training at its end, and at the epoch where it was best on the test rows. The second is an oracle, for it has seen
the test labels; it stands for early stopping, which needs a validation set of its own to come near it.

Sources: Li, Tan, Huang, Tao, Liu, Huang 2022, "Low dimensional trajectory hypothesis is true: DNNs can be trained in tiny subspaces" (sections on DLDR, P-BFGS and label noise);
Larsen, Fort, Becker, Ganguli 2022 (lottery and random subspaces).
"""

from __future__ import annotations

import dataclasses
import math
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landscape import solvers, subspaces
from landscape.analysis.barriers import recomputed
from landscape.descent import Recipe, Start, State, descend
from landscape.errors import LandscapeError, UsageError
from landscape.families import Family
from landscape.objectives import Buffers, Objective, dtype_name
from landscape.recordings import row_of
from landscape.results import Result
from landscape.seeds import generator
from landscape.tasks import Task
from landscape.trajectories import Centring, Trajectory, TrajectoryWriter

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from plotly.graph_objects import Figure

# P-BFGS with all rows: with them its minimum is one of the loss that the table shows, and the search stops by itself
SOLVER = Recipe(optimizer="bfgs", lr=1.0, steps=60)
CENTRINGS: tuple[Centring, ...] = ("centred", "uncentred", "increments")
# where each subspace of the table takes its directions from, and the point that it goes through
PLACES = (
    ("centred", "w0"), ("uncentred", "w0"), ("increments", "w0"), ("centred", "mean"), ("random", "w0"), ("random", "wT"),
)  # fmt: skip
WHOLE_SPACE = ("end of sampling", "long", "best test epoch")
DLDR = "centred @w0"
# a solver that still gains more than this share of the loss in the last tenth of its steps has not settled
SETTLED = 0.01
# rows times members of one pass: about 1 GiB of activations of a network with a thousand units
TOGETHER = 2**18

# -- the answer -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Reduction(Result):
    """The table: M ways of training, S seeds. Losses and accuracies are over all rows; accuracies are NaN where the loss does not classify."""

    task: str
    noise: str  # wrong labels among the train rows; empty where there are none
    dim: int  # D
    rows: int  # N
    test_rows: int
    epochs: int  # sampled
    long: int  # epochs of the long training
    points: int  # sampled, w_0 among them
    optimizer: str  # in the whole space
    solver: str  # in the subspaces
    batch: int  # rows of the solver's mini-batch
    seeds: np.ndarray  # (S,)
    methods: list[
        str
    ]  # (M,) `end of sampling`, `long`, `best test epoch` of the whole space, then the subspaces: `centred @w0`, ...
    dims: np.ndarray  # (M,) d; 0 for the whole space
    train_losses: np.ndarray  # (M, S) with the wrong labels, where there are some; likewise below
    train_accuracies: np.ndarray  # (M, S)
    test_losses: np.ndarray  # (M, S)
    test_accuracies: np.ndarray  # (M, S)
    passes: np.ndarray  # (M, S) evaluations of the loss, with or without gradient, in passes over all rows; those of sampling included, where the subspace needs it
    failures: np.ndarray  # (M, S) line searches that found no step
    course: dict[str, np.ndarray]  # epoch (K,), test_loss and test_accuracy (K, S) of the long training

    @property
    def classifies(self) -> bool:
        """Whether there are accuracies."""
        return bool(np.isfinite(self.test_accuracies).any())

    def place(self, method: str, d: int = 0) -> int:
        """The row of the table of a method at a dimension."""
        return next(
            m for m, (name, dim) in enumerate(zip(self.methods, self.dims, strict=True)) if (name, dim) == (method, d)
        )

    @property
    def headline(self) -> int:
        """The row of DLDR that the summary is about: with the fewest dimensions that beat the long training in train loss; where none does, that of lowest train loss."""
        ours = [m for m, method in enumerate(self.methods) if method == DLDR]
        means = self.train_losses.mean(axis=1)
        beat = [m for m in ours if means[m] < means[self.place("long")]]
        return min(beat, key=lambda m: int(self.dims[m])) if beat else min(ours, key=lambda m: float(means[m]))

    def summary(self) -> str:
        """See Result."""
        ours = self.headline
        d = int(self.dims[ours])
        wrong = f" with label noise {self.noise}" if self.noise else ""
        parts = [
            f"{self.task}{wrong}: {d} dimension{'s' * (d > 1)} of {self.epochs} epochs ({self.points} points) reach {self._finding(ours)} in {self.passes[ours].mean():.0f} passes over the rows",
            f"the whole space after {self.epochs} epochs {self._finding(self.place('end of sampling'))}",
            f"after {self.long} epochs {self._finding(self.place('long'))}",
            f"at its best test epoch (an oracle) {self._finding(self.place('best test epoch'))}",
        ]
        return "; ".join(parts) + f" ({len(self.seeds)} seed{'s' * (len(self.seeds) > 1)})."

    def _finding(self, m: int) -> str:
        text = f"train loss {_spread(self.train_losses[m])}"
        if self.classifies:
            return f"{text} and test accuracy {_spread(100 * self.test_accuracies[m], digits=1)}%"
        return f"{text} and test loss {_spread(self.test_losses[m])}"

    def caption(self) -> str:
        """See Result."""
        measure = "test error" if self.classifies else "test loss"
        rows = "all" if self.batch == self.rows else f"{self.batch:,}"
        text = (
            f"Train loss and {measure} of {self.task} ({self.dim:,} parameters, {self.rows:,} train and {self.test_rows:,} test rows) after {self.solver} on {rows} rows in subspaces of d dimensions, "
            f"beside {self.optimizer} in the whole space (lines). Of a trajectory: principal directions of the {self.points} points sampled in the first {self.epochs} epochs, about their mean (DLDR), from the "
            "first point, or of their increments; @w0 goes through the initialisation, @mean through the mean of the points, @wT through the last. "
            f"Means over {len(self.seeds)} seeds, with their standard errors. The best test epoch is chosen by the test labels: an oracle of early stopping. "
            f"The table counts passes over the train rows, those of sampling included; an exact matrix counts as 2 d."
        )
        if self.noise:
            text += f" Train labels are wrong by {self.noise}, and the train loss and accuracy are by these labels, one draw for all seeds; the test labels are right."
        if self.classifies and (self.test_accuracies == 1).any():
            text += " An error of 0 is drawn at half a test row."
        return text

    def table(self) -> list[tuple[str, ...]]:
        """See Result."""
        noisy = ", wrong labels included" if self.noise else ""
        head = ("method", "d", f"train loss{noisy}", "train accuracy (%)", "test loss", "test accuracy (%)", "passes")
        found: list[tuple[str, ...]] = [head]
        for m, (method, d) in enumerate(zip(self.methods, self.dims, strict=True)):
            accuracies = [
                _spread(100 * values[m], digits=1) if self.classifies else "-"
                for values in (self.train_accuracies, self.test_accuracies)
            ]
            found.append(
                (
                    self.label(method),
                    str(d) if d else "-",
                    _spread(self.train_losses[m]),
                    accuracies[0],
                    _spread(self.test_losses[m]),
                    accuracies[1],
                    f"{self.passes[m].mean():.0f}",
                )
            )
        return found

    def label(self, method: str) -> str:
        """How a reader sees a method."""
        names = {
            "end of sampling": f"{self.optimizer}, {self.epochs} epochs",
            "long": f"{self.optimizer}, {self.long} epochs",
            "best test epoch": f"{self.optimizer}, best test epoch",
            DLDR: f"DLDR: {DLDR}",
        }
        return names.get(method, method)

    def panels(self) -> tuple[str, ...]:
        """See Result."""
        return ("loss", "error" if self.classifies else "test loss", "course")

    def _drawn(self, panel: str) -> np.ndarray:
        """What a panel draws of every method and seed (M, S)."""
        if panel == "loss":
            return self.train_losses
        return self._errors(self.test_accuracies) if self.classifies else self.test_losses

    def _errors(self, accuracies: np.ndarray) -> np.ndarray:
        # a logarithmic axis has no 0: half a row is what cannot be told from it
        shown: np.ndarray = 100 * np.maximum(1 - accuracies, 0.5 / self.test_rows)
        return shown

    def plot(self, ax: Axes, panel: str = "") -> None:
        """See Result."""
        from matplotlib.ticker import LogLocator

        panel = panel or "loss"
        if panel == "course":
            self._plot_course(ax)
            return
        values = self._drawn(panel)
        for method in WHOLE_SPACE:
            mean, error = _mean(values[self.place(method)])
            colour, dash = _LINES[method]
            ax.axhline(mean, color=colour, linestyle=dash, linewidth=1.1, label=self.label(method))
            if error > 0:
                ax.axhspan(mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
        dims = sorted({int(d) for d in self.dims} - {0})
        names = [f"{source} @{base}" for source, base in PLACES]
        for order, method in enumerate(names):
            colour, marker = _MARKS[method]
            found = [_mean(values[self.place(method, d)]) for d in dims]
            where = np.arange(len(dims)) + 0.12 * (order - (len(names) - 1) / 2)
            means, errors = np.array(found).T
            # what a bar would draw below 0 has no place on a logarithmic axis
            bars = np.stack([np.minimum(errors, 0.9 * means), errors])
            ax.errorbar(
                where, means, yerr=np.nan_to_num(bars), fmt=marker, color=colour, markersize=4.5, elinewidth=1, label=self.label(method),
                markerfacecolor="white" if method.startswith("random") else colour,
            )  # fmt: skip
        ax.set_yscale("log")
        ax.set_xticks(range(len(dims)), [str(d) for d in dims])
        ax.set_xlim(-0.5, len(dims) - 0.5)
        ax.set_xlabel("dimensions d of the subspace")
        ax.set_ylabel({"loss": "train loss", "error": "test error (%)", "test loss": "test loss"}[panel])
        wrong = f", wrong labels {self.noise}" if self.noise else ""
        ax.set_title({"loss": f"Train loss{wrong}", "error": "Test error", "test loss": "Test loss"}[panel], loc="left")
        low, high = ax.get_ylim()
        if high < 1e3 * low:  # else powers of ten say enough
            ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            ax.yaxis.set_major_formatter("{x:g}")
            ax.yaxis.set_minor_formatter("")
        # below the axes: the points of a table like this leave no free corner
        ax.legend(fontsize=6.5, ncols=3, loc="upper center", bbox_to_anchor=(0.45, -0.16), columnspacing=1.0)

    def _plot_course(self, ax: Axes) -> None:
        from landscape.analysis.styles import GREY

        epoch, curves = self._course()
        scale = 100 if self.classifies else 1
        means, errors = np.array([_mean(row) for row in scale * curves]).T
        colour, _ = _LINES["long"]
        ax.plot(epoch, means, color=colour, label=f"{self.optimizer}")
        ax.fill_between(
            epoch, means - np.nan_to_num(errors), means + np.nan_to_num(errors), color=colour, alpha=0.2, linewidth=0
        )
        d = int(self.dims[self.headline])
        finals = self.test_accuracies if self.classifies else self.test_losses
        for method in (DLDR, "random @wT"):
            mean, error = _mean(scale * finals[self.place(method, d)])
            colour, _ = _MARKS[method]
            ax.axhline(
                mean, color=colour, linestyle="--" if method == DLDR else ":", label=f"{self.label(method)}, d = {d}"
            )
            if error > 0:
                ax.axhspan(mean - error, mean + error, color=colour, alpha=0.15, linewidth=0)
        ax.axvline(self.epochs, color=GREY, linewidth=0.8)
        ax.annotate(
            "sampled ",
            (self.epochs, 0.02),
            xycoords=("data", "axes fraction"),
            ha="right",
            fontsize=7,
            color=GREY,
        )
        best = (np.argmax if self.classifies else np.argmin)(curves, axis=0)
        ax.plot(
            epoch[best], [scale * curves[k, s] for s, k in enumerate(best)], "*", color="#000000", markersize=7, label="best test epoch of each seed"
        )  # fmt: skip
        later = means[len(means) // 10 :]
        low, high = np.nanmin(later), np.nanmax(later)
        if self.classifies:  # the first epochs would press all else together
            ax.set_ylim(
                max(low - 0.1 * (high - low) - 1, 0), min(scale * curves.max() + 0.12 * (high - low) + 0.5, 103)
            )
        else:
            ax.set_yscale("log")
        ax.set_xlabel("epoch")
        ax.set_ylabel("test accuracy (%)" if self.classifies else "test loss")
        ax.set_title("The whole space, epoch by epoch", loc="left")
        ax.legend(fontsize=7)

    def _course(self) -> tuple[np.ndarray, np.ndarray]:
        return self.course["epoch"], self.course["test_accuracy" if self.classifies else "test_loss"]

    def figure(self) -> Figure:
        """See Result."""
        import plotly.graph_objects as go

        from landscape.analysis.styles import interactive

        figure = go.Figure()
        dims = sorted({int(d) for d in self.dims} - {0})
        text = [str(d) for d in dims]
        for method in [*WHOLE_SPACE, *(f"{source} @{base}" for source, base in PLACES)]:
            places = [self.place(method, 0 if method in WHOLE_SPACE else d) for d in dims]
            means, errors = np.array([_mean(self.train_losses[m]) for m in places]).T
            colour = _LINES[method][0] if method in _LINES else _MARKS[method][0]
            figure.add_scatter(
                x=text,
                y=means,
                error_y={"type": "data", "array": np.nan_to_num(errors)},
                mode="lines" if method in WHOLE_SPACE else "markers",
                line={"color": colour},
                marker={"color": colour, "size": 8},
                name=self.label(method),
                text=[self._finding(m) for m in places],
                hovertemplate="d = %{x}: %{text}",
            )
        interactive(figure, x="dimensions d of the subspace", y="train loss")
        figure.update_xaxes(type="category")
        figure.update_yaxes(type="log")
        return figure


_LINES = {"end of sampling": ("#5c5c5c", "-"), "long": ("#D55E00", "--"), "best test epoch": ("#000000", ":")}
_MARKS = {
    DLDR: ("#0072B2", "o"),
    "uncentred @w0": ("#009E73", "s"),
    "increments @w0": ("#CC79A7", "^"),
    "centred @mean": ("#E69F00", "D"),
    "random @w0": ("#8a8a8a", "v"),
    "random @wT": ("#56B4E9", "P"),
}


def _mean(values: np.ndarray) -> tuple[float, float]:
    """Mean over seeds (S,) and its standard error; NaN of a single seed."""
    return float(values.mean()), float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan


def _spread(values: np.ndarray, digits: int | None = None) -> str:
    mean, error = _mean(values)
    number = f"{mean:.3g}" if digits is None else f"{mean:.{digits}f}"
    if math.isnan(error):
        return number
    return f"{number} ± {error:.1g}" if digits is None else f"{number} ± {error:.{digits}f}"


# -- the comparison ---------------------------------------------------------------------------------------------------


def reduction(
    task: Task,
    *,
    dims: Sequence[int] = (2, 5, 10, 20),
    epochs: int = 20,
    long: int | None = None,
    every: int | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    recipe: Recipe | None = None,
    solver: Recipe = SOLVER,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    folder: Path | None = None,
) -> Reduction:
    """Train in subspaces of a sampled trajectory, and compare with the training that went on.

    dims: d of the subspaces. epochs: of the training, sampled once an epoch, or each `every`-th step. long: epochs of the whole training, of which the sampled ones are the
    beginning, under one schedule; by default 4 times `epochs`, as long as DLDR is claimed to save.
    recipe: of the whole space; by default the task's own (its steps are set by `long`). solver: in the subspaces. folder: where sampled points lie while this runs; by default
    that of the system for temporary files.
    BatchNorm's statistics are taken anew on the train rows wherever something is measured.

    Raises UsageError where the points are too few for the dimensions or an option is out of range, LandscapeError where the training diverges.
    """
    long = 4 * epochs if long is None else long
    recipe = Recipe(**task.defaults) if recipe is None else recipe  # type: ignore[arg-type]
    dims = sorted(set(dims))
    size = len(task.data.train) // (recipe.batch_size or len(task.data.train))  # steps an epoch
    every = size if every is None else every
    _check(task, dims, epochs, long, every, size, seeds, solver)
    modules = [task.make(seed) for seed in seeds]
    f, starts, buffers = Objective.of_many(modules, task.loss, task.data.train, device=device, dtype=dtype)
    test = f.on(task.data.test)
    recipe = dataclasses.replace(recipe, steps=long * size)
    for left in folder.glob("sampled-*") if folder is not None else ():
        shutil.rmtree(left, ignore_errors=True)  # by a killed one
    with tempfile.TemporaryDirectory(prefix="sampled-", dir=folder) as place:
        found = _train(f, test, Start(starts, buffers=buffers), recipe, seeds, Path(place), epochs, every, size)
        directions = _directions(found.trajectories, starts, seeds, max(dims))
        means = torch.stack([_centre(trajectory) for trajectory in found.trajectories]).to(starts)
    ends = {"w0": _Points(starts, buffers), "mean": _Points(means, found.sampled.buffers), "wT": found.sampled}
    best = found.course["epoch"][found.best_places]
    rows = [
        _measured(f, test, found.sampled) | {"passes": np.full(len(seeds), float(epochs))},
        _measured(f, test, found.last) | {"passes": np.full(len(seeds), float(long))},
        _measured(f, test, found.best) | {"passes": best},
    ]
    places = [(*place, d) for place in PLACES for d in dims]
    inside, notes = _minimise(f, test, ends, directions, places, seeds, solver)
    for (source, base, _), row in zip(places, inside, strict=True):
        row["passes"] += 0 if (source, base) == ("random", "w0") else epochs
    rows += inside
    return Reduction(
        question={},
        provenance={
            "task": task.name,
            "data": task.data.description,
            "fingerprint": task.data.fingerprint,
            "dtype": dtype_name(dtype),
            "device": f.device.type,
            "recipe": dataclasses.asdict(recipe),
            "solver": dataclasses.asdict(solver),
            "sampled every": every,
        },
        warnings=tuple(notes),
        task=task.name,
        noise=str(task.options.get("label_noise") or ""),
        dim=f.dim,
        rows=len(f.rows),
        test_rows=len(test.rows),
        epochs=epochs,
        long=long,
        points=epochs * size // every + 1,
        optimizer=recipe.optimizer,
        solver=solver.optimizer,
        batch=solver.batch_size or len(f.rows),
        seeds=np.array(seeds),
        methods=[*WHOLE_SPACE, *(f"{source} @{base}" for source, base, _ in places)],
        dims=np.array([0] * len(WHOLE_SPACE) + [d for _, _, d in places]),
        failures=np.array([row.pop("failures", np.zeros(len(seeds))) for row in rows]),
        course=found.course,
        **{name: np.array([row[name] for row in rows]) for name in rows[0]},
    )


def _check(
    task: Task, dims: Sequence[int], epochs: int, long: int, every: int, size: int, seeds: Sequence[int], solver: Recipe
) -> None:
    """Raise UsageError on options out of range, before anything is trained."""
    if not dims or min(dims) < 1:
        raise UsageError(f"a subspace has at least 1 dimension; got {list(dims)}.")
    if epochs < 1 or long < epochs:
        raise UsageError(
            f"the long training has at least as many epochs as are sampled, and these are at least 1; got {long} and {epochs}."
        )
    if every < 1:
        raise UsageError(f"points are sampled each so many steps, at least 1; got {every}.")
    if not seeds or len(set(seeds)) != len(seeds):
        raise UsageError(f"give one seed or several different ones; got {list(seeds)}.")
    points = epochs * size // every + 1
    if solver.steps < 1:
        raise UsageError("the solver in the subspaces takes at least 1 step; got 0.")
    if max(dims) > points - 1:
        enough = epochs * size // max(dims)
        oftener = f", or sample more often (--every {enough})" if enough else ""
        raise UsageError(
            f"{max(dims)} dimensions were asked for, and {epochs} epochs of {task.name}, sampled each {every} of {epochs * size} steps, give {points} point{'s' * (points > 1)}: they span {points - 1}. "
            f"Ask for fewer, sample more epochs{oftener}."
        )


@dataclass(frozen=True, eq=False)
class _Points:
    """Points of all seeds, with the buffers that belong to them."""

    points: Tensor  # (S, D)
    buffers: Buffers  # (S, ...) each


# -- in the whole space -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Training:
    trajectories: list[Trajectory]  # sampled, of each seed
    sampled: _Points  # where sampling ended
    last: _Points
    best: _Points  # by the test rows
    best_places: np.ndarray  # (S,) in the course
    course: dict[str, np.ndarray]


def _train(
    f: Objective,
    test: Objective,
    start: Start,
    recipe: Recipe,
    seeds: Sequence[int],
    folder: Path,
    epochs: int,
    every: int,
    size: int,
) -> _Training:
    """One training a seed, all in lockstep and each as it would go alone: sampled in its first epochs, looked at after every one."""
    writers = [TrajectoryWriter(folder / str(seed), f.model.layout) for seed in seeds]
    course: dict[str, list[Any]] = {"epoch": [], "test_loss": [], "test_accuracy": []}
    best, best_score, best_places = None, np.full(len(seeds), -np.inf), np.zeros(len(seeds), dtype=int)
    sampled = last = _Points(start.point, start.buffers or {})
    for state in descend(f, start, recipe, seeds):
        if state.step % every == 0 and state.step <= epochs * size:
            for member, writer in enumerate(writers):
                if writer.append(row_of(state, f, member)):
                    writer.commit()
        if state.step % size:
            continue
        epoch = state.step // size
        here = _normalised(f, _Points(state.point, state.buffers))
        sampled = here if epoch == epochs else sampled
        values = _values(test, here)
        course["epoch"].append(epoch)
        for name, value in zip(("test_loss", "test_accuracy"), values, strict=True):
            course[name].append(value)
        lost = ~(np.isfinite(values[0]) & torch.isfinite(here.points).all(-1).cpu().numpy())
        if lost.any():
            raise LandscapeError(
                f"{recipe.optimizer} in the whole space diverged by epoch {epoch} with seed {seeds[int(np.argmax(lost))]}: there is no trajectory to reduce. Use a smaller lr."
            )
        score = values[1] if f.loss.classifies else -values[0]
        better = score > best_score
        best = here if best is None else _chosen(torch.from_numpy(better), here, best)
        best_score, best_places = np.where(better, score, best_score), np.where(better, epoch, best_places)
        last = here
    for writer in writers:
        writer.commit()
    assert best is not None  # of epoch 0 at least
    arrays = {name: np.array(values) for name, values in course.items()}
    return _Training([Trajectory.open(writer.folder) for writer in writers], sampled, last, best, best_places, arrays)


def _chosen(which: Tensor, one: _Points, other: _Points) -> _Points:
    """Of each seed the one where `which` (S,) says so, else the other."""

    def pick(a: Tensor, b: Tensor) -> Tensor:
        return torch.where(which.to(a.device).reshape(-1, *[1] * (a.ndim - 1)), a, b)

    return _Points(
        pick(one.points, other.points), {name: pick(value, other.buffers[name]) for name, value in one.buffers.items()}
    )


# -- in the subspaces -------------------------------------------------------------------------------------------------


def _directions(
    trajectories: Sequence[Trajectory], starts: Tensor, seeds: Sequence[int], dim: int
) -> dict[str, Tensor]:
    """By source: the first `dim` directions (S, dim, D) of every seed."""
    found = {}
    for centring in CENTRINGS:
        each = [trajectory.principal(dim, centring=centring)[0] for trajectory in trajectories]
        found[centring] = torch.from_numpy(np.stack(each)).to(starts)
    axes = torch.eye(dim, dtype=starts.dtype, device=starts.device)
    drawn = [
        subspaces.random(start, dim, generator(seed, "subspace")) for start, seed in zip(starts, seeds, strict=True)
    ]
    return found | {"random": torch.stack([chart.push(axes) for chart in drawn])}


def _centre(trajectory: Trajectory) -> Tensor:
    return torch.from_numpy(np.concatenate([block.mean(axis=0) for _, block in trajectory.blocks()]))


def _minimise(
    f: Objective,
    test: Objective,
    bases: dict[str, _Points],
    directions: dict[str, Tensor],
    places: Sequence[tuple[str, str, int]],
    seeds: Sequence[int],
    solver: Recipe,
) -> tuple[list[dict[str, np.ndarray]], list[str]]:
    """The rows of the table at `places` (source of directions, base, d), and warnings."""
    members = [(source, base, d, s) for source, base, d in places for s in range(len(seeds))]
    # those of one basis beside each other, by falling dimension: so `prefixes` is fastest
    members.sort(key=lambda member: (member[0], member[3], -member[2]))
    together = max(1, TOGETHER // (solver.batch_size or len(f.rows)))
    found: dict[tuple[str, str, int, int], dict[str, float]] = {}
    open_ = 0
    for first in range(0, len(members), together):
        job = members[first : first + together]
        solved, unsettled = _solve(f, test, bases, directions, job, seeds, solver)
        found |= dict(zip(job, solved, strict=True))
        open_ += unsettled
    notes = []
    if open_:
        notes.append(
            f"{open_} of {len(members)} trainings in subspaces still gained more than {100 * SETTLED:g}% of their loss in the last tenth of {solver.steps} steps: give the solver more, unless the loss goes to 0 and has no minimum."
        )
    lost = sum(not math.isfinite(one["train_losses"]) for one in found.values())
    if lost:
        notes.append(f"{lost} of {len(members)} trainings in subspaces ended with a loss that is not finite.")
    rows = [[found[source, base, d, s] for s in range(len(seeds))] for source, base, d in places]
    return [{name: np.array([one[name] for one in row]) for name in row[0]} for row in rows], notes


def _solve(
    f: Objective,
    test: Objective,
    bases: dict[str, _Points],
    directions: dict[str, Tensor],
    job: Sequence[tuple[str, str, int, int]],
    seeds: Sequence[int],
    solver: Recipe,
) -> tuple[list[dict[str, float]], int]:
    """What each member of a job (source, base, d, seed's place) comes to, all in lockstep; and how many were still gaining."""
    groups = list(dict.fromkeys((source, s) for source, _, _, s in job))
    dims = [d for _, _, d, _ in job]
    origin = torch.stack([bases[base].points[s] for _, base, _, s in job])
    stacked = torch.stack([directions[source][s] for source, s in groups])[:, : max(dims)]
    chart = subspaces.prefixes(origin, stacked, [groups.index((source, s)) for source, _, _, s in job], dims)
    scale = [
        Family("random" if source == "random" else "dldr", d).scale(solver.optimizer, f.dim) for source, _, d, _ in job
    ]
    start = Start(
        origin.new_zeros(len(job), chart.dim),
        buffers={name: torch.stack([bases[base].buffers[name][s] for _, base, _, s in job]) for name in f.buffers},
        scale=origin.new_tensor(scale),
    )
    spent = failed = turns = torch.zeros(len(job), dtype=torch.int64)
    moving = torch.ones(len(job), dtype=torch.bool)
    late = math.ceil(0.9 * solver.steps)
    state: State | None = None
    before = torch.zeros(0)
    for after in descend(f.restrict(chart), start, solver, [seeds[s] for _, _, _, s in job]):
        counted = {name: count.cpu() for name, count in solvers.counts(after, solver).items()}
        # one that stands still has failed to find a step, and with the same rows it fails again: its first failure is counted and no other
        spent = torch.where(moving, counted.get("evaluations", torch.full_like(spent, after.step + 1)), spent)
        failed = torch.where(moving, counted.get("failed_searches", failed), failed)
        turns = turns + (moving if after.step < solver.steps else 0)
        if state is not None and not solver.batch_size:
            moving = (after.point != state.point).any(-1).cpu()
        if after.step <= late:
            before = after.loss
        state = after
        if not bool(moving.any()):
            break
    assert state is not None
    gaining = moving.to(before.device) & (before - state.loss > SETTLED * before)
    measured = _measured(f, test, _normalised(f, _Points(chart.lift(state.point), state.buffers)))
    share = (solver.batch_size or len(f.rows)) / len(f.rows)
    # an exact matrix is d products, each of about two passes
    products = turns * torch.tensor([2 * d for d in dims]) if solver.optimizer in solvers.MATRICES else 0
    measured |= {"passes": share * (spent + products).numpy(), "failures": failed.double().numpy()}
    rows = [{name: float(values[member]) for name, values in measured.items()} for member in range(len(job))]
    return rows, 0 if solver.batch_size else int(gaining.sum())


# -- numbers ----------------------------------------------------------------------------------------------------------


def _normalised(f: Objective, where: _Points) -> _Points:
    """The points (E, D) with the statistics of BatchNorm taken anew there, on the rows of f."""
    each = [{name: value[member] for name, value in where.buffers.items()} for member in range(len(where.points))]
    each = [dict(recomputed(f.with_buffers(own), point).buffers) for own, point in zip(each, where.points, strict=True)]
    return _Points(where.points, {name: torch.stack([own[name] for own in each]) for name in where.buffers})


def _values(f: Objective, where: _Points) -> tuple[np.ndarray, np.ndarray]:
    """Loss and accuracy (E,) at points (E, D)."""
    found = f.value(where.points, where.buffers)
    return found.loss.double().cpu().numpy(), found.accuracy.double().cpu().numpy()


def _measured(f: Objective, test: Objective, where: _Points) -> dict[str, np.ndarray]:
    """The columns of the table at points (E, D) with statistics of their own."""
    losses, accuracies = _values(f, where)
    test_losses, test_accuracies = _values(test, where)
    return {
        "train_losses": losses,
        "train_accuracies": accuracies,
        "test_losses": test_losses,
        "test_accuracies": test_accuracies,
    }
