"""The loss over a plane: a grid of values, the path of training projected onto it, and how far that can be trusted.

Letters: D parameters, T recorded steps, G nodes on a side of the grid, N rows.

    g(x, y)  = f(c + x u + y v)                        centre c, directions u, v (D,): `f.restrict(span(c, [u, v]))`
    a_t      = argmin_a |w_t - c - a_1 u - a_2 v|      the path (T, 2), by least squares: u and v need not be orthogonal
    r_t      = |w_t - c - a_t1 u - a_t2 v|             its distance from the plane
    held     = 1 - sum_t |e_t - mean e|^2 / sum_t |w_t - mean w|^2    the path's variance in the plane; e_t the remainder,
                                                                      of norm r_t

A plane is never the landscape. Contours show the loss of the projections, f(c + a_t1 u + a_t2 v), so the loss of the
recorded points themselves, f(w_t), stands beside it, with a warning where the two part.

Planes: the first two principal directions of the trajectory, orthonormal (Lorch 2016; Li et al. 2018, section 7), or
two Gaussian directions rescaled filter by filter to the norms of the point, d_ij <- d_ij |w_ij| / |d_ij| (Li, Xu,
Taylor, Studer, Goldstein 2018, "Visualizing the Loss Landscape of Neural Nets", section 4). Slices of the loss go back
to Goodfellow, Vinyals, Saxe 2015.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from landscape import subspaces
from landscape.analysis import styles
from landscape.errors import LandscapeError, UsageError, unknown
from landscape.objectives import Objective, dtype_name, named_buffers, require_finite
from landscape.results import Result
from landscape.seeds import generator
from landscape.trajectories import Trajectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.contour import QuadContourSet
    from plotly.graph_objects import Figure, Scatter3d

PLANES = ("trajectory", "random")
NORMALISATIONS = ("filter", "layer", "none")

CHECKED = 60  # recorded points whose true loss is taken: a smooth curve, for 2 x 60 evaluations beside the grid's 1,681
PARTED = 2.0  # true and projected loss further apart than this factor: the contours are not those of the path
HELD = 0.5  # a plane that holds less of the path's variance shows less than it hides
CLIPPED = 99.0  # percentile of the heights that caps the 3-D surface: single spikes would flatten all else
LEVELS = 20  # filled contours: more are not told apart by eye


# -- planes -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Plane:
    """The plane x, y -> centre + x u + y v. Raises UsageError where u and v do not span one."""

    centre: Tensor  # (D,)
    directions: Tensor  # (2, D): u, v
    name: str = "direction"  # of one direction, for the axes
    unit: str = "its lengths"  # in which x and y are measured

    def __post_init__(self) -> None:
        if self.directions.shape != (2, *self.centre.shape) or self.centre.ndim != 1:
            shapes = tuple(self.centre.shape), tuple(self.directions.shape)
            raise UsageError(f"a plane has a centre (D,) and directions (2, D); got {shapes[0]} and {shapes[1]}.")
        lengths = self.norms
        if not (np.isfinite(lengths).all() and (lengths > 0).all()):
            raise UsageError(
                f"the directions of a plane have positive finite norms; got {lengths[0]:g} and {lengths[1]:g}. Random ones "
                "are zero where the point is, or where all parameters have one axis: for the latter give vectors=True."
            )
        if math.sin(math.radians(self.angle)) < 1e-5:  # float32 does not tell less from parallel
            raise UsageError(
                f"the directions of a plane are parallel (angle {self.angle:g} degrees): give two that differ."
            )

    @property
    def norms(self) -> np.ndarray:
        """|u| and |v|, (2,) float64."""
        lengths: np.ndarray = np.linalg.norm(self.basis(), axis=1)
        return lengths

    @property
    def angle(self) -> float:
        """Between u and v, in degrees."""
        unit = self.basis() / self.norms[:, None]
        return math.degrees(math.acos(np.clip(unit[0] @ unit[1], -1.0, 1.0)))

    def basis(self) -> np.ndarray:
        """u and v as (2, D) float64."""
        return np.asarray(self.directions.detach().cpu().double())


def trajectory_plane(trajectory: Trajectory, point: Tensor) -> Plane:
    """The plane through `point` (D,), as a rule the last recorded, along a path's first two principal directions.

    They are orthonormal, so x and y are L2 distances. Streams over the store.
    Raises UsageError where the recorded points lie on a line (two always do), LandscapeError where they are not finite.
    """
    _same_dim(trajectory, len(point))
    try:
        if not len(trajectory):
            raise UsageError("no row is committed")
        directions, _ = trajectory.principal(2)
    except UsageError as error:
        raise UsageError(
            f"the {len(trajectory)} recorded points of {trajectory.folder} lie on a line or a point: they span no plane. "
            "Record more steps, or use a random plane."
        ) from error
    # again orthonormal: where the second holds hardly more than rounding, the Gram matrix leaves it skew
    q, r = np.linalg.qr(directions.T)
    directions = (q * np.sign(np.diag(r))).T
    return Plane(point, torch.from_numpy(directions).to(point), "principal direction", "L2 distance")


def random_plane(
    f: Objective, point: Tensor, stream: torch.Generator, *, normalise: str = "filter", vectors: bool = False
) -> Plane:
    """The plane through `point` (D,) along two Gaussian directions: at x = 1 a filter has moved by its own norm.

    normalise: `filter`, each slice of a weight tensor along its first axis (a neuron's row, a convolution's filter)
    gets the norm of the point's (Li et al.'s choice and so the default: the picture does not depend on how neighbouring
    ReLU layers share their scale); `layer`, each tensor as a whole; `none`, one factor for all D, to the point's norm.
    vectors: let parameters of one axis (biases, scales of norms) move, each tensor rescaled as a whole. By default they
    stay, as in Li et al.: a bias has no filter to be measured by.

    The two are not orthogonalised, which would undo their norms; the angle is reported.
    Raises UsageError for another normalisation, or an objective whose coordinates are not the network's parameters.
    """
    if normalise not in NORMALISATIONS:
        raise unknown("normalisation", normalise, NORMALISATIONS)
    layout = f.model.layout
    if f.charts or point.shape != (layout.dim,):
        raise UsageError(
            f"random planes are normalised by the network's filters, so a point has its {layout.dim} parameters; "
            f"got {tuple(point.shape)}{' on a restricted objective' if f.charts else ''}. Give the unrestricted objective."
        )
    weights = point.detach().cpu().double()
    # drawn in float64 on the CPU: one seed gives one plane in every dtype and on every device
    directions = torch.randn(2, layout.dim, generator=stream, dtype=torch.float64)
    for entry in layout.of("parameter"):
        part = slice(entry.offset, entry.offset + entry.size)
        flat = len(entry.shape) < 2
        if flat and not vectors:
            directions[:, part] = 0.0
        elif normalise != "none":
            filters = entry.shape[0] if normalise == "filter" and not flat else 1
            drawn = directions[:, part].view(2, filters, -1)
            norms = weights[part].view(filters, -1).norm(dim=1)
            drawn *= (norms / drawn.norm(dim=2))[..., None]
    if normalise == "none":
        directions *= weights.norm() / directions.norm(dim=1, keepdim=True)
    unit = {"filter": "filter norms", "layer": "layer norms", "none": "norms of the centre"}[normalise]
    return Plane(point, directions.to(point), "random direction", unit)


# -- the path ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Path:
    points: np.ndarray  # (T, 2)
    distance: np.ndarray  # (T,)
    explained: np.ndarray  # (2,)
    held: float | None  # None: the points do not differ


def _path(plane: Plane, trajectory: Trajectory) -> _Path:
    # two passes over column blocks: the distance is the norm of the remainder itself, for as a difference of squares it
    # would lose half of the digits
    _same_dim(trajectory, len(plane.centre))
    if not len(trajectory):
        raise UsageError(f"{trajectory.folder} has no committed row: there is no path to draw.")
    basis, centre = plane.basis(), plane.centre.detach().cpu().double().numpy()
    inner, squares, spread, missed = np.zeros((len(trajectory), 2)), np.zeros(len(trajectory)), 0.0, 0.0
    for columns, block in trajectory.blocks():
        block -= centre[columns]
        inner += block @ basis[:, columns].T
        spread += float(block.var(axis=0).sum())
    bad = int((~np.isfinite(inner).all(axis=1)).sum())
    if bad:
        raise LandscapeError(f"{bad} of the {len(trajectory)} points of {trajectory.folder} are not finite: no path.")
    points = np.linalg.solve(basis @ basis.T, inner.T).T
    for columns, block in trajectory.blocks():
        block -= centre[columns]
        block -= points @ basis[:, columns]
        squares += np.square(block).sum(axis=1)
        missed += float(block.var(axis=0).sum())
    if not spread:
        return _Path(points, np.sqrt(squares), np.full(2, np.nan), None)
    return _Path(points, np.sqrt(squares), (inner / plane.norms).var(axis=0) / spread, 1 - missed / spread)


def _same_dim(trajectory: Trajectory, dim: int) -> None:
    if trajectory.dim != dim:
        raise UsageError(f"a trajectory of {trajectory.dim} parameters does not fit a point of {dim}.")


def _box(path: np.ndarray, margin: float) -> tuple[float, float, float, float]:
    """Around the path and the centre, with one margin on all four sides: `margin` of the longer side."""
    around = np.vstack([path, np.zeros((1, 2))])
    low, high = around.min(axis=0), around.max(axis=0)
    pad = margin * (high - low).max() or 1.0
    return low[0] - pad, high[0] + pad, low[1] - pad, high[1] + pad


def _nodes(low: float, high: float, side: int) -> np.ndarray:
    """G equidistant nodes (G,), moved by at most half a cell so that 0, the centre, is one of them."""
    step = (high - low) / (side - 1)
    return step * (np.arange(side) + round(low / step))


# -- the surface ------------------------------------------------------------------------------------------------------


def surface(
    f: Objective,
    point: Tensor,
    *,
    plane: str = "trajectory",
    trajectory: Trajectory | None = None,
    span: float | None = None,
    side: int = 41,
    seed: int = 0,
) -> Surface:
    """The loss over a plane through `point` (D,): of the `trajectory` with its path, or a `random` filter-normalised one.

    span: the picture reaches from -span to span in the units of its axes; None and side: as for `surface_on`.
    seed: of the random directions, on the stream (seed, "surface").
    No path is drawn on a random plane: in many dimensions it holds next to nothing of it (Li et al. 2018, section 7).
    Raises UsageError for another plane or a trajectory that is missing, and as `surface_on` and the planes do.
    """
    if plane not in PLANES:
        raise unknown("plane", plane, PLANES)
    if plane == "random":
        return surface_on(f, random_plane(f, point, generator(seed, "surface")), extent=span, side=side)
    if trajectory is None:
        raise UsageError("the trajectory plane needs a trajectory: give one, or use plane='random'.")
    return surface_on(f, trajectory_plane(trajectory, point), trajectory=trajectory, extent=span, side=side)


def surface_on(
    f: Objective,
    plane: Plane,
    *,
    trajectory: Trajectory | None = None,
    extent: tuple[float, float, float, float] | float | None = None,
    margin: float = 0.25,
    side: int = 41,
) -> Surface:
    """Loss and accuracy of f on a G x G grid in a plane, over f's rows and with f's buffers; the path of a trajectory.

    extent: x0, x1, y0, y1, or r for -r, r, -r, r, in the plane's units; None: the box of the path and the centre,
    widened on all sides by `margin` of its longer side (0.25: the path fills the middle and the walls around it show),
    and without a path -1 to 1 (at 1 every filter is as much noise as itself). The grid is moved by at most half a cell,
    so that the centre is a node.
    side: G (41: contours look smooth, and 1,681 evaluations of a small network take seconds).

    At most 60 recorded points, evenly chosen with the first and the last, are evaluated where they are, with the
    buffers recorded there, and where the plane has them. What is not finite stays what it is: counted, never imputed.

    `question` is empty and `provenance` holds rows, dtype, device, D and norm: who asked replaces them.
    Raises UsageError for a plane, a trajectory, a grid or an extent that does not fit, LandscapeError where f(centre)
    or a recorded point is not finite.
    """
    if plane.centre.shape != (f.dim,):
        raise UsageError(f"a plane in {len(plane.centre)} dimensions does not fit an objective of {f.dim}.")
    if side < 3:
        raise UsageError(f"a grid has a side of 3 nodes or more; got {side}.")
    if not 0 <= margin < math.inf:
        raise UsageError(f"the margin is a share of the path's box, 0 or more; got {margin}.")
    path = _path(plane, trajectory) if trajectory is not None else None
    if extent is None:
        extent = _box(path.points, margin) if path is not None else 1.0
    x0, x1, y0, y1 = extent if isinstance(extent, tuple) else (-extent, extent, -extent, extent)
    if not (all(map(math.isfinite, (x0, x1, y0, y1))) and x0 < x1 and y0 < y1):
        raise UsageError(f"an extent is x0 < x1, y0 < y1, all finite, or one positive number; got {extent}.")
    x, y = _nodes(x0, x1, side), _nodes(y0, y1, side)

    centre = plane.centre.detach().to(f.device, f.dtype)
    at_centre = f(centre)
    require_finite(at_centre, "the loss at the centre")
    g = f.restrict(subspaces.span(centre, plane.directions.to(centre)))
    values = g.value(torch.from_numpy(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)).to(centre))
    loss, accuracy = (v.cpu().numpy().astype(np.float64).reshape(side, side) for v in (values.loss, values.accuracy))
    node = float(loss[np.abs(y).argmin(), np.abs(x).argmin()])

    checked, true, projected, moved = np.empty(0, int), np.empty(0), np.empty(0), False
    if trajectory is not None and path is not None:
        checked = np.unique(np.linspace(0, len(trajectory) - 1, min(CHECKED, len(trajectory))).round().astype(int))
        projected = g(torch.from_numpy(path.points[checked]).to(centre)).cpu().numpy().astype(np.float64)
        true = np.empty(len(checked))
        for place, index in enumerate(checked):
            row = trajectory.row(int(index))
            buffers = {**f.buffers, **named_buffers(trajectory.layout, row.buffers, f.buffers)}
            moved = moved or any(not torch.equal(value, f.buffers[name]) for name, value in buffers.items())
            true[place] = float(f.with_buffers(buffers)(torch.from_numpy(np.array(row.point)).to(centre)))

    found = Surface(
        question={},
        provenance={
            "rows": len(f.rows),
            "dtype": dtype_name(f.dtype),
            "device": str(f.device),
            "D": f.dim,
            "norm": f.norm,
        },
        name=plane.name,
        unit=plane.unit,
        norms=plane.norms,
        angle=plane.angle,
        centre_norm=float(centre.double().norm()),
        centre_loss=float(at_centre),
        node_loss=node,
        statistics=f.norm if f.buffers else "none",
        x=x,
        y=y,
        loss=loss,
        accuracy=accuracy,
        nonfinite=int((~np.isfinite(loss)).sum()),
        steps=trajectory.steps if trajectory is not None else np.empty(0, int),
        path=path.points if path is not None else np.empty((0, 2)),
        out_of_plane=path.distance if path is not None else np.empty(0),
        explained=path.explained if path is not None else np.full(2, np.nan),
        held=path.held if path is not None else None,
        checked=checked,
        true_loss=true,
        projected_loss=projected,
    )
    return dataclasses.replace(found, warnings=tuple(_warnings(found, moved)))


@dataclass(frozen=True, kw_only=True)
class Surface(Result):
    """Loss over a plane, and the path of training beside it. Without a path T = 0 and K = 0."""

    name: str  # of a direction: "principal direction", "random direction"
    unit: str  # of x and y
    norms: np.ndarray  # (2,): |u|, |v|, in parameters
    angle: float  # between u and v, degrees
    centre_norm: float  # |c|
    centre_loss: float  # f(c), evaluated apart from the grid
    node_loss: float  # the grid's value at the node nearest to c
    statistics: str  # BatchNorm: `eval` (f's running statistics at all nodes) or `batch`; `none`: no buffers
    x: np.ndarray  # (G,)
    y: np.ndarray  # (G,)
    loss: np.ndarray  # (G, G): [j, i] at x[i], y[j]
    accuracy: np.ndarray  # (G, G); NaN where the loss does not classify
    nonfinite: int  # entries of `loss` that are NaN or infinite
    steps: np.ndarray  # (T,)
    path: np.ndarray  # (T, 2): the recorded points projected onto the plane
    out_of_plane: np.ndarray  # (T,): their L2 distance from it
    explained: np.ndarray  # (2,): share of the path's variance along u and along v
    held: float | None  # share of the path's variance that lies in the plane
    checked: np.ndarray  # (K,): rows of `steps` whose loss was taken where they are
    true_loss: np.ndarray  # (K,): f(w_t), with the buffers recorded there
    projected_loss: np.ndarray  # (K,): f of its projection

    @property
    def parted(self) -> np.ndarray:
        """(K,): the factor, 1 or more, between true and projected loss; NaN where one is not positive and finite."""
        usable = np.isfinite(self.true_loss) & np.isfinite(self.projected_loss)
        usable &= (self.true_loss > 0) & (self.projected_loss > 0)
        factor = np.full(len(self.checked), np.nan)
        ratio = self.true_loss[usable] / self.projected_loss[usable]
        factor[usable] = np.maximum(ratio, 1 / ratio)
        return factor

    def summary(self) -> str:
        """The finding in one line."""
        values = self.loss[np.isfinite(self.loss)]
        over = f"{values.min():.3g} to {values.max():.3g}" if len(values) else "nowhere finite"
        nodes = f"{len(self.x)} x {len(self.y)} nodes of a plane of {self.name}s"
        text = f"loss {self.centre_loss:.3g} at the centre, {over} over {nodes}"
        if self.held is not None:
            text += f" that holds {self.held:.0%} of the path's variance"
        if np.isfinite(self.parted).any():
            text += f"; along the path true and projected loss differ by up to {np.nanmax(self.parted):.3g}x"
        return text + "."

    def caption(self) -> str:
        """What the picture shows, and how to read it."""
        text = (
            f"Loss over the plane through the centre (loss {self.centre_loss:.3g}) along two {self.name}s, mean over "
            f"{self.provenance.get('rows', 'all')} rows; axes in {self.unit}, directions of norm {self.norms[0]:.3g} and "
            f"{self.norms[1]:.3g} at {self.angle:.1f} degrees, centre of norm {self.centre_norm:.3g}. Dark is low; contour "
            "lines at the labelled losses."
        )
        if self.nonfinite:
            text += f" Hatched: {self.nonfinite} of {self.loss.size} nodes where the loss is not finite."
        if self.statistics != "none":
            everywhere = ", with one set of statistics everywhere" if self.statistics == "eval" else ""
            text += f" BatchNorm policy: {self.statistics}{everywhere}."
        if not len(self.steps):
            return text + " The cross marks the centre. A plane says nothing of the directions outside it."
        held = "" if self.held is None else f" The plane holds {self.held:.1%} of the path's variance."
        return text + (
            f" White: the {len(self.steps)} recorded points, projected from up to {self.out_of_plane.max():.3g} (L2) away; "
            f"disc: first, star: last.{held} Second panel: the loss at {len(self.checked)} recorded points themselves and at "
            "their projections; where the two part, the contours do not show the loss along the path."
        )

    def panels(self) -> tuple[str, ...]:
        """`surface`, and with a path `path`."""
        return ("surface", "path") if len(self.steps) else ("surface",)

    # -- pictures -----------------------------------------------------------------------------------------------------

    def plot(self, ax: Axes, panel: str = "") -> None:
        """`surface`: contours and the projected path; `path`: true and projected loss, distance from the plane."""
        drawings = {"surface": self._plot_surface, "path": self._plot_path}
        panel = panel or "surface"
        if panel not in self.panels():
            raise unknown("panel", panel, self.panels())
        drawings[panel](ax)

    def _plot_surface(self, ax: Axes) -> None:
        from matplotlib import colors, patheffects

        finite = self.loss[np.isfinite(self.loss)]
        if len(finite):
            low, high = _widened(float(finite.min()), float(finite.max()))
            log = low > 0
            levels = np.geomspace(low, high, LEVELS + 1) if log else np.linspace(low, high, LEVELS + 1)
            norm = colors.LogNorm(low, high) if log else colors.Normalize(low, high)
            marks = _marks(low, high)
            shown = np.ma.masked_invalid(self.loss)
            filled = ax.contourf(self.x, self.y, shown, levels, norm=norm, cmap=styles.SEQUENTIAL)
            bar = ax.figure.colorbar(filled, ax=ax, pad=0.02)
            bar.ax.set_title("loss")
            bar.set_ticks(marks.tolist(), labels=[f"{mark:g}" for mark in marks])
            bar.ax.minorticks_off()
            # white lines on the dark half of the colours, black ones on the light half
            ink = ["white" if float(norm(mark)) < 0.6 else "black" for mark in marks]
            lines = ax.contour(self.x, self.y, shown, marks, colors=ink, linewidths=0.6, alpha=0.7)
            for number in range(len(marks)):
                self._label(ax, lines, number, marks[number])
        styles.hatch_missing(ax, self.x, self.y, self.loss)
        edge = [patheffects.withStroke(linewidth=2.2, foreground="black")]
        if len(self.steps):
            ax.plot(*self.path.T, color="white", linewidth=1.3, path_effects=edge, zorder=3)
            for index, text in _stations(self.path, self.steps).items():
                ends = {0: ("o", 6, "white"), len(self.steps) - 1: ("*", 11, styles.VERMILION)}
                marker, size, colour = ends.get(index, ("|", 5, "white"))
                look: dict[str, Any] = {
                    "marker": marker,
                    "markersize": size,
                    "color": colour,
                    "markeredgecolor": "black",
                }
                ax.plot(*self.path[index], **look, markeredgewidth=0.7, zorder=4)
                written: dict[str, Any] = {
                    "textcoords": "offset points",
                    "fontsize": 7,
                    "color": "white",
                    "path_effects": edge,
                }
                ax.annotate(text, self.path[index], (5, 4), **written, zorder=5)
        else:
            ax.plot(0, 0, marker="+", markersize=9, color="white", markeredgewidth=1.5, path_effects=edge)
        ax.set(xlim=self.x[[0, -1]], ylim=self.y[[0, -1]], xlabel=self._axis(0, "\n"), ylabel=self._axis(1, "\n"))

    def _label(self, ax: Axes, lines: QuadContourSet, number: int, mark: float) -> None:
        """Write a contour's loss where the line is furthest from the path, the centre and the picture's edges."""
        corner, size = np.array([self.x[0], self.y[0]]), np.array([np.ptp(self.x), np.ptp(self.y)])
        busy = (np.vstack([self.path[:: max(1, len(self.path) // 200)], np.zeros((1, 2))]) - corner) / size
        vertices = np.vstack([np.empty((0, 2)), *lines.allsegs[number]])
        if not len(vertices):
            return
        places = (vertices - corner) / size
        apart = np.linalg.norm(places[:, None] - busy, axis=-1).min(axis=1)
        margin = np.minimum(places, 1 - places).min(axis=1)
        free = int(np.minimum(apart, 2 * margin).argmax())
        if margin[free] > 0.03:
            ax.clabel(lines, [mark], fmt="%g", fontsize=7, manual=[tuple(vertices[free])])

    def _plot_path(self, ax: Axes) -> None:
        steps = self.steps[self.checked]
        beside = ax.twinx()
        beside.fill_between(self.steps, self.out_of_plane, color=styles.GREY, alpha=0.25, linewidth=0)
        furthest = float(self.out_of_plane.max()) or 1.0
        beside.set(ylim=(0, 1.6 * furthest), ylabel="distance from the plane (L2), grey")
        beside.spines["right"].set_visible(True)
        ax.set_zorder(beside.get_zorder() + 1)
        ax.patch.set_visible(False)
        for loss, colour, style, label in (
            (self.true_loss, styles.BLUE, "-o", "at the recorded points"),
            (self.projected_loss, styles.VERMILION, "--s", "at their projections"),
        ):
            ax.plot(steps, loss, style, color=colour, markersize=3, label=label)
        values = np.concatenate([self.true_loss, self.projected_loss])
        values = values[np.isfinite(values)]
        if len(values) and values.min() > 0:
            marks = _marks(*_widened(float(values.min()), float(values.max())))
            ax.set_yscale("log")
            ax.set_yticks(marks, [f"{mark:g}" for mark in marks])
            ax.minorticks_off()
        if np.median(steps) < steps[-1] / 4:  # recorded at log-spaced steps
            ax.set_xscale("symlog", linthresh=1)
        ax.set(xlabel="step", ylabel="loss")
        ax.legend(loc="upper right")

    def _axis(self, index: int, newline: str) -> str:
        share = f"{newline}({self.explained[index]:.0%} of variance)" if np.isfinite(self.explained[index]) else ""
        return f"{self.name} {index + 1}, {self.unit}{share}"

    def figure(self) -> Figure:
        """The surface in three dimensions with the path on it and the true loss of the recorded points above or below.

        Heights are log10 loss, or the loss itself where some are not positive; they stop at the 99th percentile, as the
        picture says.
        """
        import plotly.graph_objects as go

        finite = self.loss[np.isfinite(self.loss)]
        low, cap = _widened(*np.percentile(finite, [0, CLIPPED]).tolist()) if len(finite) else (1.0, 10.0)

        def height(loss: np.ndarray) -> np.ndarray:
            drawn = np.where(np.isfinite(loss) & ((loss > 0) | (low <= 0)), np.minimum(loss, cap), np.nan)
            return np.log10(drawn) if low > 0 else drawn

        heights, marks = height(self.loss), _marks(low, cap)
        bottom, top = height(np.array([low, cap]))
        ticks = {"tickvals": height(marks), "ticktext": [f"{mark:g}" for mark in marks]}
        rings = {"show": True, "color": "rgba(255,255,255,0.5)", "start": bottom, "end": top}
        hill = go.Surface(
            x=self.x,
            y=self.y,
            z=heights,
            text=[[self._hover(j, i) for i in range(len(self.x))] for j in range(len(self.y))],
            hoverinfo="text",
            colorscale=styles.SEQUENTIAL,
            colorbar={"title": "loss", "len": 0.75, "thickness": 16, **ticks},
            contours={"z": {**rings, "size": (top - bottom) / LEVELS}},
            lighting={"ambient": 0.75, "diffuse": 0.5, "specular": 0.1, "roughness": 0.8},
        )
        figure = go.Figure([hill, *(self._lifted(heights, height) if len(self.steps) else ())])
        # seen from its lower sides, a valley opens towards the eye and its walls stand behind it
        filled, half = np.where(np.isfinite(heights), heights, top), len(self.x) // 2
        front_x = 1 if filled[:, half:].mean() < filled[:, :half].mean() else -1
        front_y = 1 if filled[half:].mean() < filled[:half].mean() else -1
        note = f"heights stop at loss {cap:.3g} ({CLIPPED:g}th percentile of the grid)"
        if self.nonfinite:
            note += f"; {self.nonfinite} of {self.loss.size} nodes are not finite: left out"
        below = {"showarrow": False, "xref": "paper", "yref": "paper", "x": 0, "y": -0.04}
        axis = {"title_font_size": 11, "tickfont_size": 11, "showgrid": True, "gridcolor": "#dddddd", "zeroline": False}
        eye = {"x": 1.55 * front_x, "y": 1.15 * front_y, "z": 1.05}
        return styles.interactive(figure, x="", y="").update_layout(
            height=540,
            margin={"l": 0, "r": 0, "t": 30, "b": 30},
            legend={"orientation": "h", "y": 1.0, "x": 0, "itemsizing": "constant"},
            annotations=[{"text": note, **below}],
            scene={
                "xaxis": {"title": self._axis(0, "<br>"), **axis},
                "yaxis": {"title": self._axis(1, "<br>"), **axis},
                "zaxis": {"title": "loss", **ticks, **axis},
                "aspectmode": "manual",
                "aspectratio": {"x": 1.2, "y": 1.2, "z": 0.75},
                "camera": {"eye": eye, "center": {"x": 0, "y": 0, "z": -0.22}},
            },
        )

    def _hover(self, j: int, i: int) -> str:
        text = f"x {self.x[i]:.3g}, y {self.y[j]:.3g}<br>loss {self.loss[j, i]:.4g}"
        return text + (f"<br>accuracy {self.accuracy[j, i]:.1%}" if np.isfinite(self.accuracy[j, i]) else "")

    def _lifted(self, heights: np.ndarray, height: Callable[[np.ndarray], np.ndarray]) -> list[Scatter3d]:
        """The path on the surface, the true loss of the recorded points, and stems from the one to the other."""
        from plotly.graph_objects import Scatter3d
        from scipy.interpolate import RegularGridInterpolator

        bottom, top = (np.nanmin(heights), np.nanmax(heights)) if np.isfinite(heights).any() else (0.0, 1.0)
        on = RegularGridInterpolator((self.y, self.x), heights, bounds_error=False)(self.path[:, ::-1])
        on += (top - bottom) / 100  # a line within the surface would be half hidden
        rows, stations = self.checked, _stations(self.path, self.steps)
        true = np.c_[self.path[rows], height(self.true_loss)]
        stems = np.full((3 * len(rows), 3), np.nan)
        stems[0::3], stems[1::3] = np.c_[self.path[rows], on[rows]], true
        marked = list(stations)
        return [
            Scatter3d(
                **_xyz(np.c_[self.path, on]),
                mode="lines",
                line={"color": styles.BLACK, "width": 6},
                name="path, projected onto the plane",
                customdata=self.steps,
                hovertemplate="step %{customdata}<extra></extra>",
            ),
            Scatter3d(
                **_xyz(np.c_[self.path, on + (top - bottom) / 15][marked]),  # clear of the surface
                mode="text",
                text=list(stations.values()),
                textfont={"color": ["white" if on[index] < 0.5 * (bottom + top) else "black" for index in marked]},
                hoverinfo="skip",
                showlegend=False,
            ),
            Scatter3d(
                **_xyz(stems),
                mode="lines",
                line={"color": styles.VERMILION, "width": 2},
                hoverinfo="skip",
                showlegend=False,
            ),
            Scatter3d(
                **_xyz(true),
                mode="markers",
                marker={"color": styles.VERMILION, "size": 3.5},
                name="true loss of the recorded points",
                customdata=np.c_[self.steps[rows], self.true_loss, self.projected_loss, self.out_of_plane[rows]],
                hovertemplate="step %{customdata[0]}<br>true loss %{customdata[1]:.4g}<br>projected "
                "%{customdata[2]:.4g}<br>%{customdata[3]:.3g} from the plane<extra></extra>",
            ),
        ]


def _xyz(points: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip("xyz", points.T, strict=True))


def _warnings(found: Surface, moved: bool) -> list[str]:
    said = []
    if found.nonfinite:
        said.append(
            f"the loss is not finite at {found.nonfinite} of {found.loss.size} nodes: hatched, and not made up."
        )
    centred = 0.0 in found.x and 0.0 in found.y
    if centred and not math.isclose(found.node_loss, found.centre_loss, rel_tol=1e-5):  # float32 means over chunks
        said.append(
            f"the loss at the centre is {found.centre_loss:g}, but {found.node_loss:g} on the grid: the objective is not "
            "deterministic."
        )
    if moved and found.statistics == "eval":
        said.append(
            "buffers (BatchNorm statistics) moved along the path: the surface has one set everywhere, the true loss the "
            "recorded ones."
        )
    if found.held is not None and found.held < HELD:
        said.append(
            f"the plane holds {found.held:.1%} of the path's variance, less than half: most of the path is not in this "
            "picture."
        )
    parted = found.parted
    apart = parted > PARTED
    if apart.any():
        worst = int(np.nanargmax(parted))
        said.append(
            f"contours in this plane do not show the loss along the real path: at {apart.sum()} of {len(parted)} recorded "
            f"points the true and the projected loss differ by more than {PARTED:g}x (at step "
            f"{found.steps[found.checked[worst]]}: {found.true_loss[worst]:.3g} and {found.projected_loss[worst]:.3g})."
        )
    lost = int((~np.isfinite(found.true_loss) | ~np.isfinite(found.projected_loss)).sum())
    if lost:
        said.append(f"true or projected loss is not finite at {lost} of {len(parted)} recorded points.")
    return said


def _widened(low: float, high: float) -> tuple[float, float]:
    """A flat surface still needs a scale."""
    return (
        (low, high)
        if high - low > 1e-9 * abs(high)
        else (low - 0.01 * abs(low) - 1e-12, high + 0.01 * abs(high) + 1e-12)
    )


def _marks(low: float, high: float) -> np.ndarray:
    """Four to nine round values from low to high: 1, 2, 5, 10, ... where all are positive and differ much, else evenly spaced."""
    if low > 0:
        decades = 10.0 ** np.arange(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        for mantissas in ((1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            marks = np.outer(decades, mantissas).ravel()
            marks = marks[(marks >= low) & (marks <= high)]
            if len(marks) <= 9:
                break
        if len(marks) >= 4:
            return marks[:: math.ceil(len(marks) / 9)]
    from matplotlib.ticker import MaxNLocator

    marks = np.array(MaxNLocator(7).tick_values(low, high))
    return marks[(marks >= low) & (marks <= high)]


def _stations(path: np.ndarray, steps: np.ndarray) -> dict[int, str]:
    """The recorded points that get a step's label: the first, the last, and where a quarter of the path's length has passed."""
    lengths = np.concatenate([[0.0], np.linalg.norm(np.diff(path, axis=0), axis=1).cumsum()])
    places = np.searchsorted(lengths, lengths[-1] * np.array([0.0, 0.25, 0.5, 0.75, 1.0]))
    places = {0, *places.clip(0, len(steps) - 1).tolist(), len(steps) - 1}
    return {int(place): f"{'step ' if place == 0 else ''}{steps[place]}" for place in sorted(places)}
