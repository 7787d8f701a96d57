"""The same numbers on a CUDA device as on the CPU, and what only a device does."""

import dataclasses

import pytest
import torch
from problems import F64, MODULES, close, draw, module, objective

from landscape import descent
from landscape.analysis.spectra import spectrum
from landscape.descent import Recipe, Start, descend
from landscape.objectives import CURVATURES, Rows
from landscape.operators import SymmetricOperator, eigenpairs, lanczos
from landscape.seeds import generator
from landscape.subspaces import BASES, coordinates
from landscape.subspaces import random as random_subspace

pytestmark = pytest.mark.gpu

DEVICE = "cuda"
# sums of some hundred float32 terms of size 1 in another order, a product of a few layers: 1e3 eps = 1e-4; TF32 is off by default for matrix products,
# and is switched off for convolutions below
FLOAT32 = 1e-4
ROUNDING = 1e-12

every_module = pytest.mark.parametrize("name", MODULES)
kinds = pytest.mark.parametrize(
    ("dtype", "tolerance"), [(torch.float32, FLOAT32), (F64, ROUNDING * 100)], ids=["float32", "float64"]
)


@pytest.fixture(autouse=True)
def exact_products():
    with torch.backends.cudnn.flags(enabled=True, deterministic=True, allow_tf32=False):
        yield


def pair(name, dtype=torch.float32, n=32):
    """The objective on the CPU in float64, and on the device; and the point."""
    (f, z), (g, _) = objective(name, n), objective(name, n, dtype=dtype, device=DEVICE)
    return f, g, z


@kinds
@every_module
def test_values_gradients_and_products_are_those_of_the_cpu(name, dtype, tolerance):
    f, g, z = pair(name, dtype)
    there, v = z.to(DEVICE, dtype), draw(f.dim, seed=1)
    value, gradient = g.value_and_gradient(there)
    assert gradient.device.type == value.device.type == DEVICE
    close(g(there), f(z), tolerance)
    close(value, f(z), tolerance)
    close(gradient, f.gradient(z), tolerance)
    for keep in (True, False, None):
        close(g.hessian(there, keep=keep) @ v.to(there), f.hessian(z) @ v, tolerance)
        close(g.gauss_newton(there, keep=keep) @ v.to(there), f.gauss_newton(z) @ v, tolerance)
    many = z + 0.1 * draw(3, f.dim, seed=2)
    close(g.gradient(many.to(there)), f.gradient(many), tolerance)


@kinds
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
@pytest.mark.parametrize("name", ["mlp", "batchnorm", "conv-batchnorm", "conv-groupnorm"])
def test_descent_is_that_of_the_cpu(name, optimizer, dtype, tolerance):
    f, g, z = pair(name, dtype)
    # eps of 1e-3 keeps Adam from magnifying the rounding of small gradients
    recipe = Recipe(steps=10, lr=0.01, optimizer=optimizer, eps=1e-3, batch_size=8)
    for here, there in zip(descend(f, z, recipe, 0), descend(g, z, recipe, 0), strict=True):
        close(there.point, here.point, 10 * tolerance)
        close(there.loss, here.loss, 10 * tolerance)
    members = list(descend(g, torch.stack([z, z]), recipe, [0, 1]))
    close(members[-1].point[0], here.point, 10 * tolerance)


def test_augmentation_draws_are_those_of_the_cpu():
    f, g, z = pair("conv-groupnorm", F64)
    recipe = Recipe(steps=3, lr=0.1, batch_size=8, augment="shift,flip")
    for here, there in zip(descend(f, z, recipe, 0), descend(g, z, recipe, 0), strict=True):
        close(there.loss, here.loss, 1e-10)


@pytest.mark.parametrize("name", ["mlp", "dropout", "batchnorm"])
def test_going_on_is_the_uninterrupted_run_on_the_device(name):
    _, g, z = pair(name)
    recipe = Recipe(steps=6, lr=0.05, batch_size=8)
    before = torch.cuda.get_rng_state()
    whole = list(descend(g, z, recipe, 0))
    for one, other in zip(descend(g, Start.of(whole[3]), recipe, 0), whole[3:], strict=True):
        assert torch.equal(one.point, other.point)
        assert torch.equal(one.loss, other.loss)
    assert torch.equal(torch.cuda.get_rng_state(), before)


def test_bf16_lowers_the_loss_and_leaves_the_point_in_float32():
    _, g, z = pair("conv-groupnorm", n=64)
    recipe = Recipe(steps=100, lr=0.1, batch_size=32, precision="bf16")
    *_, last = descend(g, z, recipe, 0)
    assert last.point.dtype == last.gradient.dtype == torch.float32
    assert float(g(last.point)) < 0.8 * float(g(z.to(DEVICE, torch.float32)))
    first = next(descend(g, z, recipe, 0))
    full = next(descend(g, z, dataclasses.replace(recipe, precision="full"), 0))
    # bf16 keeps 8 bits: 4e-3 a rounding, a few of them in a row
    close(first.loss, full.loss, 0.05)
    assert float(first.loss) != float(full.loss)


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_lanczos_runs_on_the_device(dtype):
    values = torch.cat([torch.tensor([5.0, 3.0, 3.0, -2.0]), torch.linspace(0, 1, 496)]).to(DEVICE, dtype)
    a = SymmetricOperator(500, lambda v: values * v, dtype, torch.device(DEVICE))
    *_, state = lanczos(a, draw(500).to(DEVICE, dtype), 100)
    assert state.basis.device.type == DEVICE
    eps = torch.finfo(dtype).eps
    close(state.basis @ state.basis.T, torch.eye(100), 1e3 * eps)
    pairs = eigenpairs(a, 4, generator=generator(0, "x"), which="magnitude", tolerance=1e-5)
    close(pairs.values, [5.0, 3.0, 3.0, -2.0], 5 * 1e-5)


def test_a_basis_on_the_host_gives_the_pairs_of_one_on_the_device():
    values = torch.cat([torch.tensor([5.0, 3.0, 3.0, -2.0]), torch.linspace(0, 1, 496)]).to(DEVICE, F64)
    a = SymmetricOperator(500, lambda v: values * v, F64, torch.device(DEVICE))
    here, there = (
        eigenpairs(a, 4, generator=generator(0, "x"), which="magnitude", basis=24, host=host) for host in (False, True)
    )
    assert there.vectors.device.type == DEVICE
    close(there.values, here.values, 1e-4 * 5)


@kinds
@pytest.mark.parametrize("matrix", CURVATURES)
@pytest.mark.parametrize("name", ["mlp", "conv-batchnorm", "attention"])
def test_every_matrix_of_curvature_is_that_of_the_cpu(name, matrix, dtype, tolerance):
    f, g, z = pair(name, dtype)
    v = draw(f.dim, seed=1)
    close(g.curvature(z.to(DEVICE, dtype), matrix) @ v.to(DEVICE, dtype), f.curvature(z, matrix) @ v, tolerance)


def test_a_density_is_that_of_the_cpu():
    f, g, z = pair("mlp", F64)
    here, there = (spectrum(h, z.to(h.device), top=3, density=True) for h in (f, g))
    close(there.values, here.values, 1e-4 * float(here.values[0]))
    close(there.trace, here.trace, 1e-8)


@pytest.mark.parametrize("basis", BASES)
def test_subspaces_are_those_of_the_cpu(basis):
    origin, z = draw(300), draw(7, seed=1)
    here, there = (random_subspace(origin.to(device), 7, generator(0, "s"), basis) for device in ("cpu", DEVICE))
    close(there.lift(z.to(DEVICE)), here.lift(z), ROUNDING)
    close(there.project(origin.to(DEVICE)), here.project(origin), ROUNDING)
    mask = torch.arange(300) % 7 == 0
    close(
        coordinates(origin.to(DEVICE), mask.to(DEVICE)).lift(draw(43).to(DEVICE)),
        coordinates(origin, mask).lift(draw(43)),
        0,
    )


def test_rows_are_moved_to_the_objectives_device():
    _, g, z = pair("mlp")
    moved = g.on(Rows(draw(5, 4), torch.arange(5) % 3))
    assert moved.rows.inputs.device.type == DEVICE
    assert g.on(torch.tensor([1, 2])).rows.inputs.device.type == DEVICE
    assert torch.isfinite(moved(z.to(DEVICE, torch.float32)))
    assert next(module("mlp").parameters()).device.type == "cpu"


@pytest.mark.parametrize("name", ["mlp", "batchnorm", "conv-batchnorm"])
def test_a_captured_pass_is_the_plain_one(name, monkeypatch):
    _, g, z = pair(name, F64)
    recipe = Recipe(steps=60, lr=0.05, batch_size=8)
    kept = []
    own = descent._Passes._capturing
    monkeypatch.setattr(descent._Passes, "_capturing", lambda *args: kept.append(own(*args)) or kept[-1])
    captured = list(descend(g, z.to(DEVICE), recipe, 0))
    assert [one.failed for one in kept] == [""]
    monkeypatch.setattr(descent, "CAPTURED", 10**9)
    for one, other in zip(captured, descend(g, z.to(DEVICE), recipe, 0), strict=True):
        close(one.point, other.point, 1e-8)
        assert one.buffers.keys() == other.buffers.keys()
        for key, value in one.buffers.items():
            close(value, other.buffers[key], 1e-8)
