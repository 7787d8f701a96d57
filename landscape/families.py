"""Where a subspace comes from: drawn at random at the start or after a burn-in, along a recorded trajectory (lottery, DLDR), along the top of the Hessian.

    random:64            d = 64 random directions through the run's own initialisation
    burn-in:64@100       the same through the point after 100 steps in the whole space
    lottery:40           the 40 principal directions of a trajectory's increments, uncentred, through its first point
    dldr:40              the 40 principal directions of a trajectory's points, centred, through its first point
    hessian:20           the eigenvectors of the Hessian's 20 largest eigenvalues at the point that it goes through, by default the source's last

Letters: D parameters, d subspace dimension, T recorded points.

Sources: Larsen et al. 2022, section 3 (random, burn-in and lottery subspaces); Li et al. 2022, section 3 (DLDR); Gur-Ari et al. 2018 (top Hessian subspace); Gressmann et al. 2020 (one
basis a layer).
"""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from landscape import subspaces
from landscape.descent import Recipe, descend
from landscape.errors import LandscapeError, UsageError, unknown
from landscape.objectives import Buffers, Objective, named_buffers
from landscape.operators import eigenpairs
from landscape.seeds import generator
from landscape.solvers import MATRICES
from landscape.subspaces import Basis, Subspace
from landscape.trajectories import Centring, Layout, Trajectory

Base = Literal["init", "last", "mean", "own"]

NAMES = ("random", "burn-in", "lottery", "dldr", "hessian")
# what each takes from a recorded run, where the choice does not say otherwise: the papers' conventions
CENTRING: dict[str, Centring] = {"lottery": "increments", "dldr": "centred"}
_BASE: dict[str, Base] = {"random": "last", "burn-in": "last", "lottery": "init", "dldr": "init", "hessian": "last"}


@dataclass(frozen=True)
class Family:
    """A way to choose directions; `dim` is None where a sweep tries several."""

    name: str
    dim: int | None = None
    at: int = 0  # steps of burn-in

    def __str__(self) -> str:
        return self.name + (f":{self.dim}" if self.dim is not None else "") + (f"@{self.at}" if self.at else "")

    @property
    def along(self) -> bool:
        """Whether the directions are principal ones of a trajectory."""
        return self.name in CENTRING

    @property
    def blind(self) -> bool:
        """Whether the directions are drawn and know nothing of the loss."""
        return self.name in ("random", "burn-in")

    def scale(self, optimizer: str, ambient: int, dim: int | None = None, basis: Basis = "gaussian") -> float:
        """The factor on the learning rate with which the first step is as long as in the whole space of D = `ambient` parameters, in root mean square and whatever d is.

        A random subspace holds d/D of a gradient's squared norm, so a step of SGD is sqrt(d/D) of its length; Adam's step has length rate sqrt(d) in any orthonormal
        basis. Directions taken from training or from the Hessian hold most of the gradient: SGD and the quasi-Newton methods step there as they are. Newton's step has a length of its own.

        Where B^T B is not the identity, E |B B^T g|^2 = (d/D) (1 + x) |g|^2: x = (d - 1)/D for gaussian rows of unit norm, and d/D - d/L for d of the L rows of an SRHT
        whose D columns are kept. Signs in place of B^T g, as Adam's first step has them, correlate by 2/pi as much.
        """
        d = self.dim if dim is None else dim
        assert d is not None
        if optimizer in MATRICES or (optimizer != "adam" and not self.blind):
            return 1.0
        excess = 0.0
        if self.blind and basis == "gaussian":
            excess = (d - 1) / ambient
        elif self.blind and basis == "srht":
            excess = d / ambient - d / (1 << (ambient - 1).bit_length())
        return math.sqrt(ambient / d / (1 + excess * (2 / math.pi if optimizer == "adam" else 1.0)))


def parse(text: str, names: Sequence[str] = NAMES) -> Family:
    """Read `random:64`, `burn-in:64@100`, or without the dimension `burn-in@100`.

    Raises UsageError for another name or form.
    """
    match = re.fullmatch(r"([a-z-]+)(?::([0-9]{1,12}))?(?:@([0-9]{1,12}))?", text.strip())
    if not match:
        raise UsageError(
            f"cannot read the subspace {text!r}. Allowed: random:64, burn-in:64@100 (64 dimensions after 100 steps), lottery:40, dldr:40, hessian:20."
        )
    name, dim, at = match.group(1), match.group(2), match.group(3)
    if name not in names:
        raise unknown("subspace", name, names)
    if (at is not None) != (name == "burn-in"):
        what = f"{name} takes no @{at}" if at else "burn-in says after how many steps"
        raise UsageError(f"{what}; got {text!r}. Write {name}{':64' if dim else ''}{'' if at else '@100'}.")
    if at is not None and int(at) < 1:
        raise UsageError(
            f"a burn-in has at least 1 step; got {text!r}. Without one it is random{f':{dim}' if dim else ''}."
        )
    if dim is not None and int(dim) < 1:
        raise UsageError(f"a subspace has at least 1 dimension; got {text!r}.")
    return Family(name, int(dim) if dim else None, int(at or 0))


@dataclass(frozen=True)
class Choice:
    """The conventions of a subspace. None: the family's own."""

    basis: Basis = "gaussian"  # unit columns, not orthogonalised: the papers' choice
    layers: bool = False  # each direction within one layer
    centring: Centring | None = None
    base: Base | None = (
        None  # the point it goes through: the source's first, its last, the mean of its points, or the run's own initialisation
    )


@dataclass(frozen=True, eq=False)
class Source:
    """A recorded trajectory up to one of its steps."""

    trajectory: Trajectory
    step: int
    label: str  # how messages name it

    @property
    def rows(self) -> list[int]:
        """Indices of the recorded points up to the step."""
        found: list[int] = np.flatnonzero(self.trajectory.steps <= self.step).tolist()
        return found


@dataclass(frozen=True, eq=False)
class Chosen:
    """A subspace, and what to know of it."""

    subspace: Subspace
    directions: Tensor | None  # (d, D) where they come from data; None where seed and basis give them again
    buffers: Buffers  # BatchNorm statistics at the origin
    facts: dict[str, Any]  # for the run's record


def layers_of(layout: Layout) -> list[int]:
    """Sizes of the consecutive parameters of one module: the blocks of a basis by layers; they sum to D."""
    groups = itertools.groupby(layout.of("parameter"), lambda entry: entry.name.rpartition(".")[0])
    return [sum(entry.size for entry in group) for _, group in groups]


def draw(origin: Tensor, dim: int, seed: int, choice: Choice, layout: Layout, *index: int) -> Subspace:
    """The random subspace of a seed through `origin` (D,), from the stream (seed, "subspace", index)."""
    blocks = layers_of(layout) if choice.layers else None
    return subspaces.random(origin, dim, generator(seed, "subspace", *index), choice.basis, blocks)


def choose(
    family: Family,
    f: Objective,
    w: Tensor,
    *,
    seed: int,
    choice: Choice,
    burn_in: Recipe,
    source: Source | None = None,
) -> Chosen:
    """The family's subspace for an objective and its own initialisation w (D,).

    burn_in: how the whole space descends before a burn-in subspace that has no source. source: the trajectory that lottery, dldr and hessian are taken from; random
    and burn-in go through its point where one is given.
    Raises UsageError where a source is missing or does not fit, or spans too few dimensions.
    """
    dim = family.dim
    if dim is None:
        raise UsageError(f"say how many dimensions: {family.name}:64.")
    if not 1 <= dim <= f.dim:
        raise UsageError(f"a subspace of {f.dim:,} parameters has 1 to {f.dim:,} dimensions; got {family}.")
    if source is None:
        if family.name not in ("random", "burn-in"):
            raise UsageError(f"{family} is taken from a recorded run: name it with --from RUN.")
        facts: dict[str, Any] = {"family": str(family), "base": "own", "basis": choice.basis}
        buffers = f.buffers
        if family.at:
            w, buffers = _burned_in(family, f, w, burn_in, seed)
            named = ("optimizer", "lr", "momentum", "weight_decay", "batch_size", "schedule")
            facts |= {f"burn-in {name}": getattr(burn_in, name) for name in named}
        return Chosen(draw(w, dim, seed, choice, f.model.layout), None, buffers, facts)
    require_fit(source, f.model.layout)
    trajectory = source.trajectory
    rows = source.rows
    origin, base, row = _origin(family, choice, source, rows, w)
    buffers = f.buffers
    if row is not None:
        buffers = named_buffers(trajectory.layout, trajectory.row(row).buffers, f.buffers)
    facts = {"family": str(family), "from": f"{source.label}@step={source.step}", "base": base}
    directions: Tensor | None = None
    if family.along:
        if len(rows) < dim + 1:
            raise UsageError(
                f"{source.label} has {len(rows)} recorded points up to step {source.step}, and {family} takes at least {dim + 1}. "
                f"Ask for d up to {len(rows) - 1}, or train it again with a smaller --record-every."
            )
        centring = choice.centring or CENTRING[family.name]
        found, variances = trajectory.principal(dim, centring=centring, rows=rows)
        directions = torch.from_numpy(found).to(w)
        space = subspaces.span(origin, directions)
        facts |= {"centring": centring, "captured": float(variances[:dim].sum() / variances.sum())}
    elif family.name == "hessian":
        matrix = f.with_buffers(buffers).hessian(origin)
        pairs = eigenpairs(matrix, dim, generator=generator(seed, "lanczos"))
        if not pairs.converged.all():
            raise LandscapeError(
                f"{int(pairs.converged.sum())} of {dim} eigenvectors of the Hessian converged within {pairs.products} products. Ask for fewer dimensions."
            )
        directions = pairs.vectors.to(w)
        space = subspaces.span(origin, directions)
        facts |= {"eigenvalues": [float(value) for value in pairs.values]}
    else:
        space = draw(origin, dim, seed, choice, f.model.layout)
        facts |= {"basis": choice.basis}
    last = torch.from_numpy(trajectory.row(-1).point).to(w)
    facts |= {
        "distance of the source's last point to the subspace": float(space.residual(last)),
        "distance of the source's last point to the base": float((last - origin).norm()),
    }
    return Chosen(space, directions, buffers, facts)


def require_fit(source: Source, layout: Layout) -> None:
    """Raise UsageError, naming the first tensor that differs, where a trajectory is of another model."""
    theirs = [(entry.name, entry.shape) for entry in source.trajectory.layout.of("parameter")]
    ours = [(entry.name, entry.shape) for entry in layout.of("parameter")]
    for one, other in itertools.zip_longest(theirs, ours):
        if one != other:
            shown = ["nothing" if entry is None else f"{entry[0]} {entry[1]}" for entry in (one, other)]
            raise UsageError(
                f"{source.label} is of another model: it has {shown[0]} where this task's has {shown[1]}. Name a run of the same task, width and norm."
            )


def _origin(
    family: Family, choice: Choice, source: Source, rows: list[int], w: Tensor
) -> tuple[Tensor, Base, int | None]:
    """The base point (D,), its name, and the row whose buffers belong to it."""
    base = choice.base or _BASE[family.name]
    if base == "own":
        return w, base, None
    if base == "mean":
        mean = np.empty(source.trajectory.dim)
        for columns, block in source.trajectory.blocks():
            mean[columns] = block[rows].mean(axis=0)
        return torch.from_numpy(mean).to(w), base, rows[-1]
    row = rows[0] if base == "init" else rows[-1]
    return torch.from_numpy(source.trajectory.row(row).point).to(w), base, row


def _burned_in(family: Family, f: Objective, w: Tensor, recipe: Recipe, seed: int) -> tuple[Tensor, Buffers]:
    if family.at > recipe.steps:
        raise UsageError(f"{family} burns in for {family.at} steps, and the task's own training has {recipe.steps}.")
    state = next(state for state in descend(f, w, recipe, seed) if state.step == family.at)
    if not torch.isfinite(state.point).all():
        raise LandscapeError(
            f"the burn-in of {family} diverged: {recipe.optimizer} with the task's own rate {recipe.lr}. Train it yourself with a smaller --lr, and name its point: "
            f"--subspace random:{family.dim} --from RUN@step={family.at}."
        )
    return state.point, state.buffers
