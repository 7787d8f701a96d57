"""Cost of the threshold dimension of quadratic wells. Prints medians; asserts nothing.

    python benchmarks/widths.py [a] [b] [c] [--rounds 5] [--threads 2]

(a) the projection on the cone of an ellipsoid at D = 1,000,000: seconds a sample and peak memory in vectors of D float64, on one thread, in a process of its own;
(b) the sharp form, the polar estimate (25 draws) and exact simulation (25 draws) at D = 400 and 2,000: seconds, and d* with its error;
(c) digits-mlp (D = 6,570) from the initialisation and after 16 steps of burn-in: `landscape width` against the scan `landscape threshold` over 8 dimensions and 10 seeds with the task's own number of steps,
    commands and all, one after the other in this process (rounds do not matter): seconds, their ratio, and the dimensions that both find. The same grid as a plain loop of single trainings (`phases.py`) is
    timed on one seed, and its time is multiplied by the number of seeds.
"""

from __future__ import annotations

import contextlib
import io
import math
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import phases
import torch
from foundation import run, seconds

from landscape import tasks
from landscape.analysis.answers import load
from landscape.analysis.widths import Width
from landscape.cli.app import main
from landscape.functionals import standard_error
from landscape.quadratics import Quadratic, spectrum

SPECTRA = ("flat", "power:1", "power:2", "outliers:10")
SHARES = (0.3, 0.003)  # of the start's mean loss
DRAWS = 25
LEVELS, DIMS, SEEDS = "1,0.5,0.2", (16, 24, 32, 48, 64, 96, 128, 192), 10  # of (c)

PROJECTION = """
import statistics, sys, time
import numpy as np
from landscape.quadratics import Quadratic, spectrum
name, share, rounds, D = sys.argv[1], float(sys.argv[2]), int(sys.argv[3]), 1_000_000
random = np.random.default_rng(0)
well = Quadratic(spectrum(name, D), random.standard_normal(D) / 1000)
g = random.standard_normal((1, D))
def peak():
    # the process's own high-water mark; ru_maxrss would also hold that of the process that started it
    return int(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1]) * 1024
before, times = peak(), []
for _ in range(rounds):
    started = time.perf_counter()
    x = well.project(g, share * well.initial)
    times.append(time.perf_counter() - started)
print(f"(a) projection, D = 1,000,000, {name}, level {share:g}: {statistics.median(times):6.3f} s a sample (under 3 s), at most {(peak() - before) / 8 / D:5.1f} vectors of D beside the well and g; |g - x|^2 = {((g - x) ** 2).sum():.6g}")
"""


def a(rounds: int) -> None:
    """Large projections."""
    alone = {**os.environ, "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    for name in SPECTRA:
        for share in SHARES:
            words = [sys.executable, "-c", PROJECTION, name, str(share), str(rounds)]
            subprocess.run(words, check=True, env=alone)


def b(rounds: int) -> None:
    """Three ways to d*."""
    for dim in (400, 2000):
        for name in SPECTRA:
            well = Quadratic.of_spectrum(spectrum(name, dim), np.full(dim, 1 / math.sqrt(dim)))
            levels = [share * well.initial for share in SHARES]
            # all levels are read off the same subspaces
            simulated = well.thresholds(levels, DRAWS)
            exact = seconds(lambda: well.thresholds(levels, DRAWS)) / len(levels)
            for column, share, level in zip(simulated.T, SHARES, levels, strict=True):
                form = statistics.median(seconds(lambda: well.threshold(level)) for _ in range(rounds))
                cone = statistics.median(seconds(lambda: well.polar(level, draws=DRAWS)) for _ in range(rounds))
                value, error, _ = well.polar(level, draws=DRAWS)
                print(
                    f"(b) D = {dim:5,}, {name:<11} level {share:<5g}: sharp {well.threshold(level):7.1f} in {form * 1e3:6.2f} ms; "
                    f"polar {value:7.1f} ± {error:4.1f} in {cone * 1e3:6.1f} ms; simulated {column.mean():7.1f} ± {standard_error(column):4.1f} in {exact * 1e3:8.1f} ms",
                    flush=True,
                )


def c(rounds: int) -> None:
    """Search against scan."""
    task = tasks.find("digits-mlp")
    phases.STEPS = int(str(task.defaults["steps"]))
    plain, (_, within) = phases.Plain(task), phases.recipes(task)
    origin = torch.cat([p.detach().flatten() for p in task.make(0).parameters()])
    with tempfile.TemporaryDirectory() as folder:
        run_folder, sweep = Path(folder) / "run", Path(folder) / "sweep"

        def timed(*words: object) -> float:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                return seconds(lambda: main([str(word) for word in words]))

        timed("train", "digits-mlp", "--steps", 600, "--record-every", 8, "--out", run_folder)
        for family, place in (("random", "init"), ("burn-in@16", "16")):
            scan = timed(
                "threshold", "digits-mlp", "--family", family, "--dims", ",".join(map(str, DIMS)), "--seeds", SEEDS, "--loss", LEVELS, "--out", sweep
            )  # fmt: skip
            search = timed("width", run_folder, "--loss", LEVELS, "--from", place, "--measured", sweep)
            found = load(max((run_folder / "results").glob("width*.json"), key=lambda path: path.stat().st_mtime))
            assert isinstance(found, Width) and found.phase is not None
            loop = SEEDS * seconds(lambda: [plain.cell(origin, dim, 0, within) for dim in DIMS])
            print(
                f"(c) digits-mlp from {place}: width {search:6.1f} s; scan as one ensemble {scan:6.1f} s, {scan / search:5.1f} times as long; as a loop {loop:6.1f} s, {loop / search:5.1f} times"
            )
            for row, level in enumerate(found.levels):
                words = [
                    f"{name} {found.dims[name][0, row]:6.1f} ± {found.dims[name][1, row]:4.1f} ({found.dims[name][0, row] / found.phase.quantiles[1, 0, row]:4.2f} of it)"
                    for name in ("plane", "polar")
                ]
                low, middle, high = (
                    found.phase.lows[1, 0, row],
                    found.phase.quantiles[1, 0, row],
                    found.phase.highs[1, 0, row],
                )
                print(
                    f"    train loss {level:g}: measured d50 {middle:6.1f} [{low:.0f}, {high:.0f}], {', '.join(words)}",
                    flush=True,
                )


if __name__ == "__main__":
    run({"a": a, "b": b, "c": c}, __doc__, rounds=5)
