"""Measure the geometry of neural-network loss landscapes.

The names below are the public ones; each is imported when it is first used, so that `import landscape` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from landscape.analysis.barriers import barrier as barrier
    from landscape.analysis.chains import chain as chain
    from landscape.analysis.checks import check as check
    from landscape.analysis.condensations import condensation as condensation
    from landscape.analysis.condensations import merger as merger
    from landscape.analysis.diffusions import diffuse as diffuse
    from landscape.analysis.dimensions import dimension as dimension
    from landscape.analysis.explorations import exploration as exploration
    from landscape.analysis.instabilities import instability as instability
    from landscape.analysis.ladders import ladder as ladder
    from landscape.analysis.layerwise import layers as layers
    from landscape.analysis.limits import limit as limit
    from landscape.analysis.magnitudes import retraining as retraining
    from landscape.analysis.plateaus import plateau as plateau
    from landscape.analysis.reductions import reduction as reduction
    from landscape.analysis.robustnesses import robustness as robustness
    from landscape.analysis.spectra import spectrum as spectrum
    from landscape.analysis.splittings import splitting as splitting
    from landscape.analysis.stability import sharpness as sharpness
    from landscape.analysis.surfaces import surface as surface
    from landscape.analysis.thresholds import threshold as threshold
    from landscape.analysis.tinyspaces import tiny as tiny
    from landscape.analysis.wells import well as well
    from landscape.analysis.widths import width as width
    from landscape.branches import Branch as Branch
    from landscape.branches import grow as grow
    from landscape.descent import Recipe as Recipe
    from landscape.descent import Start as Start
    from landscape.descent import State as State
    from landscape.descent import descend as descend
    from landscape.diffusion import DiffusionMap as DiffusionMap
    from landscape.distances import Distances as Distances
    from landscape.families import Family as Family
    from landscape.masks import Mask as Mask
    from landscape.objectives import Loss as Loss
    from landscape.objectives import Objective as Objective
    from landscape.objectives import Rows as Rows
    from landscape.operators import SymmetricOperator as SymmetricOperator
    from landscape.operators import eigenpairs as eigenpairs
    from landscape.operators import lanczos as lanczos
    from landscape.pruning import prune as prune
    from landscape.quadratics import Quadratic as Quadratic
    from landscape.recordings import import_checkpoints as import_checkpoints
    from landscape.recordings import record as record
    from landscape.recordings import site as site
    from landscape.results import Result as Result
    from landscape.runs import Run as Run
    from landscape.sublevels import nearest as nearest
    from landscape.subspaces import Subspace as Subspace
    from landscape.sweeps import Plan as Plan
    from landscape.sweeps import sweep as sweep
    from landscape.tasks import Task as Task
    from landscape.tickets import climb as climb
    from landscape.trajectories import Trajectory as Trajectory

_HOMES = {
    "landscape.analysis.barriers": ("barrier",),
    "landscape.analysis.chains": ("chain",),
    "landscape.analysis.checks": ("check",),
    "landscape.analysis.instabilities": ("instability",),
    "landscape.analysis.ladders": ("ladder",),
    "landscape.analysis.limits": ("limit",),
    "landscape.analysis.magnitudes": ("retraining",),
    "landscape.analysis.robustnesses": ("robustness",),
    "landscape.analysis.condensations": ("condensation", "merger"),
    "landscape.analysis.diffusions": ("diffuse",),
    "landscape.analysis.dimensions": ("dimension",),
    "landscape.analysis.explorations": ("exploration",),
    "landscape.analysis.plateaus": ("plateau",),
    "landscape.analysis.splittings": ("splitting",),
    "landscape.analysis.reductions": ("reduction",),
    "landscape.analysis.thresholds": ("threshold",),
    "landscape.analysis.stability": ("sharpness",),
    "landscape.analysis.layerwise": ("layers",),
    "landscape.analysis.spectra": ("spectrum",),
    "landscape.analysis.surfaces": ("surface",),
    "landscape.analysis.wells": ("well",),
    "landscape.analysis.tinyspaces": ("tiny",),
    "landscape.analysis.widths": ("width",),
    "landscape.branches": ("Branch", "grow"),
    "landscape.masks": ("Mask",),
    "landscape.pruning": ("prune",),
    "landscape.tickets": ("climb",),
    "landscape.descent": ("Recipe", "Start", "State", "descend"),
    "landscape.diffusion": ("DiffusionMap",),
    "landscape.distances": ("Distances",),
    "landscape.families": ("Family",),
    "landscape.objectives": ("Loss", "Objective", "Rows"),
    "landscape.operators": ("SymmetricOperator", "eigenpairs", "lanczos"),
    "landscape.quadratics": ("Quadratic",),
    "landscape.recordings": ("import_checkpoints", "record", "site"),
    "landscape.results": ("Result",),
    "landscape.runs": ("Run",),
    "landscape.sublevels": ("nearest",),
    "landscape.subspaces": ("Subspace",),
    "landscape.sweeps": ("Plan", "sweep"),
    "landscape.tasks": ("Task",),
    "landscape.trajectories": ("Trajectory",),
}
_HOME = {name: home for home, names in _HOMES.items() for name in names}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'landscape' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOME[name]), name)
