"""Hessian spectra side by side with PyHessian, hessian-eigenthings and curvlinops in one run. Prints medians and ratios; asserts nothing.

    pip install PyHessian hessian-eigenthings==1.0.0a5 curvlinops-for-pytorch
    python benchmarks/spectra.py [a] [b] [c] [d] [e] [f] [g] [--data FOLDER] [--rounds 5] [--slow-rounds 1] [--rivals NAME,NAME] [--threads 1]

(a) top 10 of an MLP 784-256-128-10 (D = 235,146) on 1,000 rows of MNIST, after 30 and after 100 steps of training;
(b) top 10 of a ResNet-20 (D = 272,474, BatchNorm by running statistics) on 512 images of CIFAR-10, after 200 steps;
(c) one Hessian product in units of a gradient on both, and the memory that the kept graph takes, beside that of torch.func.linearize;
(d) density of an MLP 64-16-10 on digits (D = 1,210) against the dense spectrum: error at equal products, CPU time to equal error;
(e) the trace to 2%: products that each method needs, on both networks;
(f) peak memory of the top 10 at D = 10,000,000, in vectors of D;
(g) the spectra of 100 recorded steps of a digits-mlp run, each started from the one before, against cold starts.

FOLDER holds MNIST/raw and cifar-10 as `landscape train --data` takes them; without it the rows are class means and noise, of the same shapes: the spectra
are then others, the comparison is the same. Times are CPU seconds of all threads, set-up of the operator included. Each tool runs at its cheapest setting on a
ladder whose top 10 all lie within 1e-3 of a reference (float64, residuals 1e-6); the ladder is climbed before the rounds. Rounds are interleaved, each with its own
seed; a ratio is the median of the rounds' ratios, so that a drifting machine cancels out.
"""

from __future__ import annotations

import argparse
import copy
import ctypes
import dataclasses
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
from scipy.stats import wasserstein_distance
from torch import Tensor, nn
from torch.nn import functional

from landscape import datasets, functionals, networks, tasks
from landscape.descent import Recipe, descend
from landscape.objectives import Objective, Rows
from landscape.operators import SearchSpace, SymmetricOperator, eigenpairs, quadrature
from landscape.seeds import generator, global_stream

TOP = 10
ACCURACY = 1e-3  # of all of the top 10

# -- problems ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Problem:
    """A trained network on rows, for us and for the others."""

    name: str
    f: Objective
    point: Tensor
    module: nn.Module  # holds the point, in eval mode
    rows: Rows

    @property
    def batches(self) -> list[tuple[Tensor, Tensor]]:
        """The rows in the chunks that ours takes: the faster size for convolutions on a CPU, and equal, so that means of batch means are right."""
        return [(chunk.inputs, chunk.targets) for chunk in self.rows.chunks(self.f.chunk)]  # type: ignore[misc]

    @property
    def batch(self) -> tuple[Tensor, Tensor]:
        """All rows at once."""
        return self.rows.inputs, self.rows.targets  # type: ignore[return-value]

    def fresh(self) -> nn.Module:
        """A module that a tool may write to."""
        return copy.deepcopy(self.module)

    def exact(self) -> Objective:
        """The objective in float64."""
        f, _ = Objective.of(self.module, "cross-entropy", self.rows, dtype=torch.float64)
        return f


def rows_of(name: str, folder: Path | None, count: int) -> Rows:
    """`count` training rows of a data set, or of its stand-in where no folder was given."""
    if name == "digits" or folder is not None:
        return datasets.load(name, folder=folder if name != "digits" else None, limit=count).train
    draw = generator(0, "stand-in", count)
    shape = datasets.ROW_SHAPES[name]
    targets = torch.randint(0, 10, (count,), generator=draw)
    means = torch.randn(10, *shape, generator=draw)
    return Rows(0.3 * means[targets] + torch.randn(count, *shape, generator=draw), targets)


def trained(name: str, module: nn.Module, rows: Rows, recipe: Recipe, measured: int) -> Problem:
    """Train on all rows, measure on the first."""
    f, point = Objective.of(module, "cross-entropy", rows)
    (state,) = deque(descend(f, point, recipe, 0), maxlen=1)
    with torch.no_grad():
        for parameter, part in zip(module.parameters(), f.model.split(state.point), strict=True):
            parameter.copy_(part)
        for key, buffer in module.named_buffers():
            buffer.copy_(state.buffers[key])
    module.eval()
    taken = rows.take(slice(0, measured))
    f, point = Objective.of(module, "cross-entropy", taken)
    value = f.value(point)
    print(
        f"{name}: D = {f.dim:,}, {len(taken):,} rows, after {recipe.steps} steps of SGD (lr {recipe.lr}, momentum {recipe.momentum}, batch {recipe.batch_size}): "
        f"loss {float(value.loss):.4g}, accuracy {float(value.accuracy):.3f}",
        flush=True,
    )
    return Problem(name, f, point, module, taken)


def mlp(options: argparse.Namespace, steps: int = 100) -> Problem:
    """784-256-128-10, ReLU."""
    with global_stream(0, "initialisation"):
        module = dense_net(784, 256, 128, 10)
    recipe = Recipe(steps=steps, lr=0.05, momentum=0.9, batch_size=100)
    return trained("MLP", module, rows_of("mnist", options.data, 1000), recipe, options.rows or 1000)


def resnet(options: argparse.Namespace, count: int) -> Problem:
    """ResNet-20 with BatchNorm."""
    with global_stream(0, "initialisation"):
        module = networks.build("resnet20", inputs=(3, 32, 32), outputs=10)
    recipe = Recipe(steps=200, lr=0.1, momentum=0.9, batch_size=128, schedule="cosine")
    return trained("ResNet-20", module, rows_of("cifar10", options.data, 5120), recipe, options.rows or count)


def small(steps: int) -> Problem:
    """64-16-10 on digits: D = 64 x 16 + 16 + 16 x 10 + 10 = 1,210."""
    with global_stream(0, "initialisation"):
        module = dense_net(64, 16, 10)
    rows = rows_of("digits", None, 1437)
    return trained("digits 64-16-10", module, rows, Recipe(steps=steps, lr=0.1, batch_size=64), len(rows))


def dense_net(*sizes: int) -> nn.Module:
    """Flatten, then dense layers with ReLU between."""
    layers: list[nn.Module] = [nn.Flatten()]
    for wide, narrow in itertools.pairwise(sizes):
        layers += [nn.Linear(wide, narrow), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


# -- the others -------------------------------------------------------------------------------------------------------


class Counted:
    """A product that counts how often it was taken."""

    def __init__(self, product: Callable[..., Any]) -> None:
        self.product = product
        self.times = 0

    def __call__(self, *arguments: Any) -> Any:
        self.times += 1
        return self.product(*arguments)


def counted(operator: SymmetricOperator) -> tuple[SymmetricOperator, Counted]:
    """Ours, counted; block products are left out, so that nothing goes uncounted."""
    product = Counted(operator.product)
    return dataclasses.replace(operator, product=product, block=None), product


def py_hessian(problem: Problem) -> tuple[Any, Counted]:
    """PyHessian on one batch, where it keeps the gradient's graph: its fastest form."""
    import pyhessian

    inside = sys.modules["pyhessian.hessian"]  # the package hides the module behind a class of its name
    product = Counted(getattr(inside.hessian_vector_product, "product", inside.hessian_vector_product))
    inside.hessian_vector_product = product  # type: ignore[attr-defined]
    return pyhessian.hessian(problem.fresh(), functional.cross_entropy, data=problem.batch, cuda=False), product


def release(theirs: Any) -> None:
    """PyHessian's gradients hold their graph and the graph holds them: memory comes back only when that ring is cut."""
    for parameter in theirs.model.parameters():
        parameter.grad = None
    theirs.gradsH = []


def eigenthings(problem: Problem) -> tuple[Any, Counted]:
    """The operator of hessian-eigenthings."""
    import hessian_eigenthings as he

    whole = he.HessianOperator(problem.fresh(), problem.batches, he.supervised_loss(functional.cross_entropy))
    product = Counted(whole.matvec)
    return he.LambdaOperator(product, whole.size), product


def curvlinops_(problem: Problem) -> tuple[Any, Counted]:
    """The operator of curvlinops, without its check of determinism, which costs products."""
    import curvlinops

    module = problem.fresh()
    operator = curvlinops.HessianLinearOperator(
        module, nn.CrossEntropyLoss(), list(module.parameters()), problem.batches, check_deterministic=False
    )
    product = Counted(operator._matmat)
    operator._matmat = product
    return operator, product


Found = tuple[np.ndarray, int]  # eigenvalues, products
Setting = dict[str, Any]


def top_ours(problem: Problem, setting: Setting, seed: int) -> Found:
    operator, product = counted(problem.f.hessian(problem.point))
    pairs = eigenpairs(operator, TOP, generator=generator(seed, "top"), **setting)
    return pairs.values, product.times


def top_py_hessian(problem: Problem, setting: Setting, seed: int) -> Found:
    torch.manual_seed(seed)
    theirs, product = py_hessian(problem)
    values, _ = theirs.eigenvalues(top_n=TOP, **setting)
    release(theirs)
    return np.array(values), product.times


def top_eigenthings(problem: Problem, setting: Setting, seed: int) -> Found:
    import hessian_eigenthings as he

    operator, product = eigenthings(problem)
    return he.lanczos(operator, k=TOP, seed=seed, which="LA", **setting).eigenvalues.numpy(), product.times


def top_curvlinops(problem: Problem, setting: Setting, seed: int) -> Found:
    from scipy.sparse.linalg import eigsh

    operator, product = curvlinops_(problem)
    start = np.random.default_rng(seed).standard_normal(problem.f.dim).astype(np.float32)
    values = eigsh(operator.to_scipy(), k=TOP, which="LA", v0=start, return_eigenvectors=True, **setting)[0]
    return values, product.times


@dataclass(frozen=True)
class Tool:
    """A way to the top 10, and its settings from cheap to dear."""

    name: str
    top: Callable[[Problem, Setting, int], Found]
    ladder: tuple[Setting, ...]
    slow: bool = False


OURS = "landscape"
FIXED = (20, 22, 24, 26, 28, 30, 33, 36, 40, 45, 50)  # products
TOOLS = (
    # like with like: the search for values that the start vector hid, which none of the others makes, is left out while that does; the default makes it
    Tool(
        OURS,
        top_ours,
        (
            *({"tolerance": tolerance, "missed": 1.0} for tolerance in (1e-2, 3e-3, 1e-3, 3e-4)),
            *({"tolerance": tolerance, "missed": 0.5} for tolerance in (1e-3, 1e-4)),
        ),
    ),
    Tool("landscape, default", top_ours, ({},)),
    Tool(
        "hessian-eigenthings",
        top_eigenthings,
        tuple({"max_iter": n} for n in FIXED),
    ),
    Tool("curvlinops + eigsh", top_curvlinops, tuple({"tol": t} for t in (1e-1, 1e-2, 1e-3, 1e-4, 1e-6))),
    Tool(
        "PyHessian",
        top_py_hessian,
        tuple({"maxIter": n, "tol": t} for n, t in ((100, 1e-3), (100, 1e-4), (300, 1e-5), (1000, 1e-6), (1000, 1e-7))),
        slow=True,
    ),
    Tool("PyHessian, default", top_py_hessian, ({"maxIter": 100, "tol": 1e-3},), slow=True),
)


def chosen(options: argparse.Namespace) -> list[Tool]:
    """Ours, and the rivals asked for that are installed."""
    modules = {"hessian-eigenthings": "hessian_eigenthings", "curvlinops": "curvlinops", "PyHessian": "pyhessian"}
    kept = []
    for tool in TOOLS:
        module = next((value for key, value in modules.items() if tool.name.startswith(key)), None)
        if module is None:
            kept.append(tool)
            continue
        if options.rivals is not None and not any(name in tool.name.lower() for name in options.rivals):
            continue
        try:
            __import__(module)
        except ImportError as error:
            print(f"{tool.name} is left out: {error}")
            continue
        kept.append(tool)
    return kept


# -- (a), (b): the top ten --------------------------------------------------------------------------------------------


def cpu(work: Callable[[], Any]) -> tuple[Any, float]:
    """What the call gives, and its CPU seconds, of all threads."""
    started = time.process_time()
    result = work()
    return result, time.process_time() - started


def error(values: np.ndarray, reference: np.ndarray) -> float:
    """The largest relative error; values in any order."""
    return float(np.max(np.abs(np.sort(values)[::-1] - reference) / np.abs(reference)))


def climb(tool: Tool, problem: Problem, reference: np.ndarray, seeds: int) -> Setting:
    """The cheapest setting right for every seed, or the dearest."""
    if len(tool.ladder) == 1:
        return tool.ladder[0]
    for setting in tool.ladder:
        if all(
            error(tool.top(problem, setting, seed)[0], reference) <= ACCURACY for seed in range(100, 100 + seeds)
        ):  # other seeds than those of the rounds
            return setting
    print(f"    {tool.name}: no setting of its ladder reaches {ACCURACY:g}; the last is shown")
    return tool.ladder[-1]


def top_ten(problem: Problem, options: argparse.Namespace, *, slow_ladder: Setting | None = None) -> None:
    """All tools on one problem. slow_ladder: the only setting of the slow ones, where a ladder would take hours."""
    exact = problem.exact()
    started = time.perf_counter()
    pairs = eigenpairs(
        exact.hessian(problem.point.double()),
        TOP + 1,
        generator=generator(0, "reference"),
        tolerance=1e-6,
        max_products=1000,
    )
    reference = pairs.values[:TOP]
    print(
        f"  reference (float64, {time.perf_counter() - started:.0f} s, {pairs.products} products, error bounds below {max(pairs.bounds / pairs.values):.0e} relative): "
        + ", ".join(f"{value:.5g}" for value in reference)
        + f"; the eleventh is {pairs.values[TOP]:.5g}"
    )
    tools = [
        dataclasses.replace(tool, ladder=(slow_ladder,)) if tool.slow and slow_ladder and len(tool.ladder) > 1 else tool
        for tool in chosen(options)
    ]
    settings = {tool.name: climb(tool, problem, reference, options.ladder_seeds) for tool in tools}
    print("  settings: " + "; ".join(f"{name} {setting}" for name, setting in settings.items()), flush=True)
    seconds: dict[str, list[float]] = {tool.name: [] for tool in tools}
    products: dict[str, list[int]] = {tool.name: [] for tool in tools}
    errors: dict[str, list[float]] = {tool.name: [] for tool in tools}
    for seed in range(options.rounds):
        for tool in tools:
            if tool.slow and seed >= options.slow_rounds:
                continue
            (values, count), spent = cpu(lambda: tool.top(problem, settings[tool.name], seed))
            seconds[tool.name].append(spent)
            products[tool.name].append(count)
            errors[tool.name].append(error(values, reference))
    print(f"  {'tool':<24} {'rounds':>6} {'CPU s':>9} {'ratio':>7} {'products':>16} {'largest error':>14}")
    for tool in tools:
        spent, count = seconds[tool.name], products[tool.name]
        if not spent:
            continue
        ratio = statistics.median(a / b for a, b in zip(spent, seconds[OURS], strict=False))
        spread = f"{statistics.median(count):g} ({min(count)}-{max(count)})"
        print(
            f"  {tool.name:<24} {len(spent):6d} {statistics.median(spent):9.3f} {ratio:7.2f} {spread:>16} {max(errors[tool.name]):14.1e}",
            flush=True,
        )


def a(options: argparse.Namespace) -> None:
    """Top ten of the MLP."""
    print(
        "(a) top 10; targets: 10 times less CPU than PyHessian, 5 than curvlinops, 1.7 than hessian-eigenthings, at most 26 products"
    )
    for steps in (30, 100):  # how many products a spectrum takes is its own affair: early it has gaps, and late fewer
        top_ten(mlp(options, steps), options)


def b(options: argparse.Namespace) -> None:
    """Top ten of the ResNet."""
    print("(b) top 10; target: 1.3 times less CPU than the best of the others")
    top_ten(resnet(options, 512), options, slow_ladder={"maxIter": 1000, "tol": 1e-6})


# -- (c): one product -------------------------------------------------------------------------------------------------


def c(options: argparse.Namespace) -> None:
    """Products in gradients, and memory."""
    print("(c) a Hessian product in gradients; target: at most 2.4, without the memory of linearize")
    for name in ("mlp", "resnet"):
        problem = mlp(options) if name == "mlp" else resnet(options, 128)
        f, point = problem.f, problem.point
        vector = torch.randn(f.dim, generator=generator(0, "vector"))
        matrix = f.hessian(point, keep=True)
        repeats = 10 if name == "mlp" else 1

        def several(work: Callable[[], object]) -> float:
            return cpu(lambda: [work() for _ in range(repeats)])[1] / repeats

        pairs = []
        for turn in range(options.rounds + 1):  # the first is a warm-up
            pair = several(lambda: matrix @ vector), several(lambda: f.gradient(point))
            pairs += [pair] if turn else []
        product, gradient = (statistics.median(pair[i] for pair in pairs) * 1e3 for i in range(2))
        print(
            f"  {problem.name}, {len(f.rows)} rows: product {product:.2f} ms, gradient {gradient:.2f} ms CPU, ratio {statistics.median(p / g for p, g in pairs):.2f}; "
            f"kept graph {f.graph_bytes(point) / 2**20:,.0f} MiB by its tensors",
            flush=True,
        )
        for way in ("kept", "linearize"):
            held, peak = child("graph", options, name=name, way=way, rows=len(f.rows))
            print(f"    process of its own, {way:<9}: holds {held:8,.0f} MiB, peak {peak:8,.0f} MiB", flush=True)


def status(field: str) -> float:
    """A field of this process's status in bytes: VmRSS what it holds, VmHWM the most it ever held."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return float(line.split()[1]) * 1024


def settle() -> None:
    """Give freed memory back to the system, so that what is held can be read."""
    if sys.platform == "linux":
        ctypes.CDLL(None).malloc_trim(0)


def child_graph(options: argparse.Namespace, *, name: str, way: str, rows: int) -> list[float]:
    """Memory of one way to products, in MiB: held between products, and the peak of building and one product."""
    module = (
        dense_net(784, 256, 128, 10)
        if name == "mlp"
        else networks.build("resnet20", inputs=(3, 32, 32), outputs=10).eval()
    )
    data = rows_of("mnist" if name == "mlp" else "cifar10", None, rows)
    f, point = Objective.of(module, "cross-entropy", data)
    vector = torch.randn(f.dim)
    few = f.on(slice(0, 2))  # both have run once, on next to nothing: no library is loaded within the measurement
    for g in (few, f):
        settle()
        before = status("VmRSS")
        if way == "kept":
            operator = g.hessian(point, keep=True)
            operator @ vector
        else:
            kept = []
            for chunk in g.rows.chunks(g.chunk):

                def loss(w: Tensor, chunk: Rows = chunk) -> Tensor:
                    outputs, _ = f.model.forward(f.model.split(w), f.buffers, chunk.inputs)
                    return functional.cross_entropy(outputs, chunk.targets, reduction="sum") / len(g.rows)

                kept.append(torch.func.linearize(torch.func.grad(loss), point)[1])
            sum(push(vector) for push in kept)
    settle()
    return [(status("VmRSS") - before) / 2**20, (status("VmHWM") - before) / 2**20]


def child(task: str, options: argparse.Namespace, **arguments: Any) -> Any:
    """Run `child_<task>` of this file in a process of its own."""
    words = [sys.executable, __file__, "--threads", str(options.threads), "--child", json.dumps([task, arguments])]
    return json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


# -- (d): density -----------------------------------------------------------------------------------------------------

Density = tuple[np.ndarray, np.ndarray, int]  # nodes, weights (sum 1), products


def eig(matrix: Tensor, eigenvectors: bool = True) -> tuple[Tensor, Tensor]:
    """torch.eig of torch 1, as far as PyHessian's density reads it: values in column 0, vectors in columns."""
    values, vectors = torch.linalg.eigh(matrix)
    return torch.stack([values, torch.zeros_like(values)], 1), vectors


def density_py_hessian(problem: Problem, probes: int, steps: int, seed: int) -> Density:
    torch.manual_seed(seed)
    theirs, product = py_hessian(problem)
    with mock.patch.object(torch, "eig", eig, create=True):  # gone since torch 2; its main branch replaced it too
        nodes, weights = (np.array(part) for part in theirs.density(iter=steps, n_v=probes))
    release(theirs)
    return nodes, weights / probes, product.times


def density_eigenthings(problem: Problem, probes: int, steps: int, seed: int) -> Density:
    import hessian_eigenthings as he

    operator, product = eigenthings(problem)
    # its probes are numbered from the seed on: seeds a run apart share none
    found = he.spectral_density(operator, num_runs=probes, lanczos_steps=steps, num_grid_points=10, seed=1000 * seed)
    return found.raw_eigenvalues.numpy(), found.raw_weights.numpy() / probes, product.times


def density_curvlinops(problem: Problem, probes: int, steps: int, seed: int) -> Density:
    from curvlinops.papyan2020traces.spectrum import fast_lanczos

    torch.manual_seed(seed)
    operator, product = curvlinops_(problem)
    runs = [fast_lanczos(operator, steps) for _ in range(probes)]
    return (
        np.array([values.numpy() for values, _ in runs]),
        np.array([vectors[0].numpy() ** 2 / probes for _, vectors in runs]),
        product.times,
    )


def density_plain(problem: Problem, probes: int, steps: int, seed: int) -> Density:
    operator, product = counted(problem.f.hessian(problem.point))
    found = quadrature(
        operator, probes=probes, steps=steps, generators=[generator(seed, "probe", p) for p in range(probes)]
    )
    return np.nan_to_num(found.nodes), found.weights / probes, product.times


def density_ours(problem: Problem, seed: int, **setting: Any) -> Density:
    operator, product = counted(problem.f.hessian(problem.point))
    space = SearchSpace(operator, TOP, generator=generator(seed, "space"))
    points, masses = functionals.measure(operator, space=space, seed=seed, **setting).all()
    return points, masses, product.times


# vectors of the search space, whose Ritz values are all counted; probes; steps: from 35 products to 400. Or the accuracy asked for
OUR_DENSITIES: tuple[Setting, ...] = (
    *(
        {"counted": counted, "probes": probes, "steps": steps}
        for counted, probes, steps in (
            (15, 2, 10),
            (20, 2, 20),
            (30, 2, 30),
            (40, 2, 40),
            (60, 3, 40),
            (100, 3, 60),
            (150, 3, 80),
            (150, 6, 40),
            (200, 4, 50),
        )
    ),
    *({"accuracy": accuracy} for accuracy in (0.2, 0.1, 0.05, 0.02)),
)


def d(options: argparse.Namespace) -> None:
    """Density."""
    print(
        "(d) density: Wasserstein-1 error in units of mean |eigenvalue|; targets: half of the best of the others at no more products, a third of its time at equal error"
    )
    names = {
        "PyHessian": density_py_hessian,
        "hessian-eigenthings": density_eigenthings,
        "curvlinops fast_lanczos": density_curvlinops,
        "landscape, plain": density_plain,
    }
    here = {tool.name.split(" ")[0].rstrip(",") for tool in chosen(options)}
    names = {name: run for name, run in names.items() if name.split(" ")[0].rstrip(",") in here}
    defaults = {"PyHessian": (1, 100), "hessian-eigenthings": (10, 80)}  # curvlinops asks for the number of steps
    for steps in (1000, 30):
        problem = small(steps)
        matrix = problem.exact().hessian(problem.point.double()).dense()
        truth = torch.linalg.eigvalsh((matrix + matrix.T) / 2).numpy()
        mean = np.abs(truth).mean()

        def measure(run: Callable[[int], Density]) -> tuple[list[float], float, int]:
            errors, spent = [], []
            for seed in range(options.seeds):
                (nodes, weights, products), seconds = cpu(lambda: run(seed))
                errors.append(wasserstein_distance(truth, nodes.ravel(), None, weights.ravel()) / mean)
                spent.append(seconds)
            return errors, statistics.median(spent), products

        def show(label: str, errors: list[float], spent: float, products: int) -> None:
            print(
                f"    {label:<52} {products:4d} products {spent:7.3f} CPU s  error {statistics.mean(errors):.4f} +- {statistics.pstdev(errors):.4f}, worst {max(errors):.4f}",
                flush=True,
            )

        print(f"  {len(truth):,} eigenvalues, mean |eigenvalue| {mean:.3g}; {options.seeds} seeds")
        others: dict[str, tuple[float, float]] = {}
        for name, run in names.items():
            for probes, count in dict.fromkeys(((5, 80), (10, 40), (20, 20), defaults.get(name, (5, 80)))):
                found = measure(lambda seed: run(problem, probes, count, seed))
                at = " (its default)" if defaults.get(name) == (probes, count) else ""
                show(f"{name}, {probes} probes x {count} steps{at}", *found)
                if not name.startswith("landscape"):
                    others[f"{name} {probes} x {count}{at}"] = statistics.mean(found[0]), found[1]
        ours = {}
        for setting in OUR_DENSITIES:
            found = measure(lambda seed: density_ours(problem, seed, **setting))
            show("landscape, " + ", ".join(f"{key} {value}" for key, value in setting.items()), *found)
            ours[str(setting)] = (statistics.mean(found[0]), found[1], found[2])
        show("landscape, default", *measure(lambda seed: density_ours(problem, seed)))
        if not others:
            continue
        best = min(mean for mean, _ in others.values())
        equal = min((mean for mean, _, products in ours.values() if products <= 400), default=float("nan"))
        print(f"  at no more than 400 products: {equal / best:.3f} of the best error of the others")
        for name, (mean_error, spent) in others.items():
            reached = min((seconds for mine, seconds, _ in ours.values() if mine <= mean_error), default=None)
            times = "not reached by the settings above" if reached is None else f"{spent / reached:.1f} times less"
            print(f"  CPU time to the error of {name}: {times}", flush=True)


# -- (e): trace -------------------------------------------------------------------------------------------------------


def e(options: argparse.Namespace) -> None:
    """Trace."""
    print("(e) trace to 2%; targets: Hutchinson over ours at least 2 on the MLP, 10 on ResNet-20")
    plans = (lambda: mlp(options), options.seeds, 400), (lambda: resnet(options, 128), max(options.seeds // 4, 3), 100)
    for make, seeds, pool in plans:
        problem = make()
        operator = problem.f.hessian(problem.point)
        draw = generator(0, "pool")
        samples = []
        for _ in range(pool):
            z = torch.randint(0, 2, (problem.f.dim,), generator=draw).float() * 2 - 1
            samples.append(float(z @ (operator @ z)))
        # the truth: the most exact thing at hand, with another seed than any measured below
        best = functionals.trace(operator, accuracy=0.004, max_products=2000, seed=12345)
        truth = best.value
        deviation = statistics.stdev(samples) / abs(truth)
        hutchinson = {0.02: (deviation / 0.02) ** 2, 0.6745 * 0.02: (0.6745 * deviation / 0.02) ** 2}
        print(f"  {problem.name}: trace {truth:.5g} +- {best.error:.2g} ({best.products} products)")
        print(
            f"    Hutchinson: one Rademacher probe has a relative deviation of {deviation:.3f}: {hutchinson[0.02]:.0f} products for a standard error of 2%, "
            f"{hutchinson[0.6745 * 0.02]:.0f} for a median error of 2%"
        )
        for method in ("default", "xtrace", "hutch++"):
            found = [
                functionals.trace(
                    operator,
                    **({} if method == "default" else {"method": method}),
                    accuracy=0.02,
                    max_products=500,
                    seed=seed,
                )
                for seed in range(seeds)
            ]
            errors = [abs(one.value / truth - 1) for one in found]
            products = statistics.median(one.products for one in found)
            print(
                f"    {method:<8} asked for 2%: {products:g} products, median error {statistics.median(errors):.4f}, root mean square {np.sqrt(np.mean(np.square(errors))):.4f}, "
                f"its own {statistics.median(one.error / abs(truth) for one in found):.4f}; {hutchinson[0.02] / products:.1f} times fewer than Hutchinson ({seeds} seeds)",
                flush=True,
            )
        for name, run in trace_others(problem, options):
            values, counts = zip(*(run(seed) for seed in range(min(seeds, 5))), strict=True)
            errors = [abs(value / truth - 1) for value in values]
            print(
                f"    {name}: {statistics.median(counts):g} products ({min(counts)}-{max(counts)}), median error {statistics.median(errors):.4f}, largest {max(errors):.4f}",
                flush=True,
            )


def trace_others(
    problem: Problem, options: argparse.Namespace
) -> Iterator[tuple[str, Callable[[int], tuple[float, int]]]]:
    """The others at their defaults."""
    here = {tool.name for tool in chosen(options)}

    def by_py_hessian(seed: int) -> tuple[float, int]:
        torch.manual_seed(seed)
        theirs, product = py_hessian(problem)
        value = float(np.mean(theirs.trace()))
        release(theirs)
        return value, product.times

    def by_eigenthings(seed: int) -> tuple[float, int]:
        import hessian_eigenthings as he

        operator, product = eigenthings(problem)
        return he.trace(operator, seed=seed).estimate, product.times

    if "PyHessian" in here:
        yield "PyHessian, default", by_py_hessian
    if "hessian-eigenthings" in here:
        yield "hessian-eigenthings, default (Hutch++)", by_eigenthings


# -- (f): memory ------------------------------------------------------------------------------------------------------


def f(options: argparse.Namespace) -> None:
    """Peak memory."""
    print(
        "(f) peak memory of the top 10 at D = 10,000,000; target: at most 40 vectors of D in float32, the matrix itself apart"
    )
    found = child("memory", options, dim=10_000_000)
    print(
        f"  {found['vectors']:.1f} vectors of D, {found['products']} products, {found['seconds']:.0f} s wall, all converged: {found['converged']}, "
        f"largest relative error {found['error']:.1e}"
    )


def child_memory(options: argparse.Namespace, *, dim: int) -> dict[str, Any]:
    """The top 10 of a diagonal like a network's: outliers, a bulk that decays from a fiftieth of the largest, a tenth of it negative."""
    draw = generator(0, "diagonal")
    bulk = torch.rand(dim, generator=draw).pow_(8).mul_(1.0)
    bulk[::10] *= -0.2
    outliers = torch.tensor([50.0, 40, 31, 25, 20, 16, 12, 9, 7, 5, 4, 3])
    bulk[1 : len(outliers) * 100 : 100] = outliers
    small = SymmetricOperator(1000, lambda v: v * bulk[:1000], torch.float32, torch.device("cpu"))
    eigenpairs(small, TOP, generator=generator(0, "warm"))  # libraries are loaded before the measurement
    operator = SymmetricOperator(dim, lambda v: v * bulk, torch.float32, torch.device("cpu"))
    settle()
    before = status("VmRSS")
    # drawing the diagonal has pushed the high-water mark up: 5 puts it back to what is held now
    Path("/proc/self/clear_refs").write_text("5")
    started = time.perf_counter()
    pairs = eigenpairs(operator, TOP, generator=generator(0, "memory"))
    return {
        "vectors": (status("VmHWM") - before) / (4 * dim),
        "products": pairs.products,
        "seconds": time.perf_counter() - started,
        "converged": bool(pairs.converged.all()),
        "error": float(np.max(np.abs(pairs.values - outliers[:TOP].numpy()) / outliers[:TOP].numpy())),
    }


# -- (g): along a run -------------------------------------------------------------------------------------------------


def g(options: argparse.Namespace) -> None:
    """Warm starts."""
    from landscape import recordings
    from landscape.analysis.stability import sharpness, stations
    from landscape.runs import Run, place

    print("(g) top eigenvalues at 100 recorded steps of digits-mlp; target: a third of the cost of cold starts")
    task = tasks.find("digits-mlp")
    fields = {field.name for field in dataclasses.fields(Recipe)}
    recipe = Recipe(**{key: value for key, value in task.defaults.items() if key in fields})  # type: ignore[arg-type]
    with tempfile.TemporaryDirectory() as folder:
        run = Run(Path(folder) / "run")
        run.begin("train", {"task": task.name, "seed": 0}, {"fingerprint": task.data.fingerprint})
        for _ in recordings.record(
            run, task, recipe, seed=0, every=recipe.steps // 99, device=torch.device("cpu"), dtype=torch.float32
        ):
            pass
        run.update(state="finished")
        site = recordings.site(place(str(run.folder)), task, device=torch.device("cpu"), dtype=torch.float32)
        for top in (1, 5, 10):
            found = {}
            for warm in (True, False):
                answer, spent = cpu(lambda: sharpness(site.train, stations(site), top=top, warm=warm))
                found[warm] = answer, spent
            (warm_answer, warm_spent), (cold_answer, cold_spent) = found[True], found[False]
            warm_products, cold_products = warm_answer.products.sum(), cold_answer.products.sum()
            apart = np.nanmax(np.abs(warm_answer.values - cold_answer.values) / np.abs(cold_answer.values[:, :1]))
            print(
                f"  top {top}, {len(warm_answer.steps)} steps: products {warm_products} warm, {cold_products} cold, ratio {warm_products / cold_products:.2f}; "
                f"CPU {warm_spent:.1f} s, {cold_spent:.1f} s, ratio {warm_spent / cold_spent:.2f}; values apart by at most {apart:.1e} of the largest",
                flush=True,
            )


# -- the command ------------------------------------------------------------------------------------------------------


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the chosen parts."""
    parts = {"a": a, "b": b, "c": c, "d": d, "e": e, "f": f, "g": g}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"of {', '.join(parts)}; all by default")
    parser.add_argument(
        "--data", type=Path, help="folder of MNIST and CIFAR-10; without it, made-up rows of their shapes"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--slow-rounds", type=int, default=1, help="rounds of PyHessian, which takes minutes on (b)")
    parser.add_argument("--seeds", type=int, default=20, help="of (d) and (e)")
    parser.add_argument(
        "--ladder-seeds", type=int, default=5, help="seeds for which a setting must be right; 1 saves time on (b)"
    )
    parser.add_argument(
        "--rows", type=int, help="rows to measure on; by default 1,000 of the MLP, 512 (b) or 128 (c, e) of the ResNet"
    )
    parser.add_argument(
        "--rivals",
        type=lambda text: [name.strip().lower() for name in text.split(",") if name.strip()],
        help="of pyhessian, hessian-eigenthings, curvlinops, with commas; by default all",
    )
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--child", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    if options.child:
        task, given = json.loads(options.child)
        print(json.dumps({"graph": child_graph, "memory": child_memory}[task](options, **given)))
        return
    if odd := set(options.parts) - set(parts):
        parser.error(f"no part {', '.join(sorted(odd))}; there are {', '.join(parts)}")
    print(
        f"torch {torch.__version__}, {options.threads} threads, {options.rounds} interleaved rounds, CPU seconds of all threads"
    )
    for name in options.parts or parts:
        parts[name](options)


if __name__ == "__main__":
    main()
