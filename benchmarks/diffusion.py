"""Speed and memory of diffusion maps beside pydiffmap on the same kernel, and of the distances of a long trajectory. Prints a markdown table; asserts nothing.

    python benchmarks/diffusion.py [--which a b c d] [--rounds 3] [--threads 1]

(a) N = 5,000 points of a sphere in 3-D, 64 neighbours, alpha 1, 10 components: CPU seconds of a fit;
(b) the same turned into 1,000-D;
(c) N = 20,000 in 3-D, with the memory that the fit takes above what the process held before;
(d) distances of 1,000 iterates of D = 1,000,000, stored in float32 as a trajectory (4 GB in a temporary folder): CPU, wall, memory.

Same kernel: the eps is the one that pydiffmap's rule `bgh` chooses. Two lines each: "rule" lets pydiffmap choose it (ours, given it, computes the whole bandwidth curve that its own rule would), "fixed" gives it to both, and neither looks for one.
Each fit runs in a process of its own, all on the same number of BLAS threads; rounds are interleaved, and the ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np

SIZES = {"a": (5000, 3), "b": (5000, 1000), "c": (20000, 3)}
NEIGHBOURS, COMPONENTS = 64, 10
ITERATES, PARAMETERS = 1000, 1_000_000


def sphere(count: int, dim: int) -> np.ndarray:
    """Random points of the sphere, turned into `dim` dimensions with noise of 1e-4."""
    random = np.random.default_rng(0)
    x = random.standard_normal((count, 3))
    x /= np.linalg.norm(x, axis=1)[:, None]
    if dim == 3:
        return x
    turn = np.linalg.qr(random.standard_normal((dim, 3)))[0]
    return x @ turn.T + 1e-4 * random.standard_normal((count, dim))


def peak() -> float:
    """Peak memory of this process in MB. Of the program itself: getrusage would count what the parent held when it started this one."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise SystemExit("peak memory is read from /proc/self/status, which this system lacks")


def fit(tool: str, part: str, mode: str, epsilon: str) -> dict[str, Any]:
    """One fit, measured in this process."""
    warnings.simplefilter("ignore")
    x = sphere(*SIZES[part])
    # imports are no part of a fit
    if tool == "ours":
        import landscape.distances  # noqa: F401
        from landscape.diffusion import DiffusionMap

        def work() -> tuple[float, np.ndarray]:
            found = DiffusionMap(COMPONENTS, bandwidth=float(epsilon), neighbours=NEIGHBOURS).fit(x)
            if mode == "rule":
                found.bandwidth_.curve  # noqa: B018  (computed when it is first asked for)
            return found.bandwidth_.epsilon, found.rates_
    else:
        from pydiffmap.diffusion_map import DiffusionMap as Rival
        from pydiffmap.kernel import Kernel

        def work() -> tuple[float, np.ndarray]:
            chosen = "bgh" if mode == "rule" else float(epsilon)
            found = Rival(Kernel(epsilon=chosen, k=NEIGHBOURS), alpha=1.0, n_evecs=COMPONENTS).fit(x)
            return float(found.epsilon_fitted), np.sort(-found.evals)

    before, cpu, wall = peak(), time.process_time(), time.perf_counter()
    chosen, rates = work()
    return {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "memory": peak() - before,
        "epsilon": chosen,
        "rates": rates.tolist(),
    }


def distances(folder: str) -> dict[str, Any]:
    """Distances of the stored trajectory, measured in this process."""
    from landscape.distances import of
    from landscape.trajectories import Trajectory

    trajectory = Trajectory.open(Path(folder))
    before, cpu, wall = peak(), time.process_time(), time.perf_counter()
    found = of(trajectory)
    return {
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "memory": peak() - before,
        "check": found.check,
    }


def store(folder: Path) -> None:
    """A random walk of ITERATES points."""
    from landscape.trajectories import Entry, Layout, Row, TrajectoryWriter

    writer = TrajectoryWriter(folder, Layout((Entry("w", (PARAMETERS,), 0, "float32", "parameter"),)))
    random, point = np.random.default_rng(0), np.zeros(PARAMETERS, dtype=np.float32)
    for step in range(ITERATES):
        point = point + 1e-3 * random.standard_normal(PARAMETERS, dtype=np.float32)
        if writer.append(Row(step, point, np.empty(0), 0.0, 0.1)):
            writer.commit()
    writer.commit()


def measured(threads: int, *words: str) -> dict[str, Any]:
    """What a fresh process measures."""
    limits = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), str(threads))
    done = subprocess.run(
        [sys.executable, __file__, "--measure", *words],
        env={**os.environ, **limits},
        stdout=subprocess.PIPE,
        check=True,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def compare(part: str, rounds: int, threads: int) -> None:
    """One part, with the eps of pydiffmap's rule."""
    count, dim = SIZES[part]
    epsilon = str(measured(threads, "theirs", part, "rule", "0")["epsilon"])
    for mode in ("rule", "fixed"):
        pairs = [
            (measured(threads, "ours", part, mode, epsilon), measured(threads, "theirs", part, mode, epsilon))
            for _ in range(rounds)
        ]  # fmt: skip
        mine, other = ([pair[side] for pair in pairs] for side in range(2))
        ratio = statistics.median(b["cpu"] / a["cpu"] for a, b in pairs)
        apart = np.abs(np.array(mine[0]["rates"]) / np.array(other[0]["rates"]) - 1).max()
        middle = [[statistics.median(one[key] for one in side) for key in ("cpu", "wall", "memory")] for side in (mine, other)]  # fmt: skip
        cells = [f"{cpu:.2f} / {wall:.2f} s, {memory:.0f} MB" for cpu, wall, memory in middle]
        print(f"| ({part}) N = {count:,}, D = {dim:,}, eps {float(epsilon):.3g} {mode} | {cells[0]} | {cells[1]} | {ratio:.2f} | {apart:.0e} |", flush=True)  # fmt: skip


def main() -> None:
    """Parse, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--which", nargs="+", choices=[*SIZES, "d"], default=[*SIZES, "d"])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1, help="of BLAS; CPU time is fair with one")
    parser.add_argument("--measure", nargs="+", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.measure:
        found = distances(chosen.measure[1]) if chosen.measure[0] == "distances" else fit(*chosen.measure)
        print(json.dumps(found))
        return
    print(f"{chosen.threads} threads, median of {chosen.rounds} interleaved rounds\n")
    print("| part | ours: CPU / wall, memory | pydiffmap | times faster (CPU) | rates differ by |\n| --- | --- | --- | --- | --- |")  # fmt: skip
    for part in chosen.which:
        if part != "d":
            compare(part, chosen.rounds, chosen.threads)
            continue
        with tempfile.TemporaryDirectory() as folder:
            store(Path(folder))
            found = measured(chosen.threads, "distances", folder)
        print(f"| (d) distances of {ITERATES:,} x {PARAMETERS:,} | {found['cpu']:.1f} / {found['wall']:.1f} s, {found['memory']:.0f} MB; {found['check']} | | | |", flush=True)  # fmt: skip


if __name__ == "__main__":
    main()
