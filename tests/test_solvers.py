"""Solvers against the textbook's formulas written out in dense numpy, scipy's minima, and closed forms; their laws under NaN, failure, lockstep and resumption."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import scipy.optimize
import torch
from problems import DIFFERENCES, F64, close, draw, module, objective, planted, quadratic, regression, ring, slopes

from landscape import solvers
from landscape.descent import Recipe, Start, _Order, _Passes, descend
from landscape.errors import UsageError
from landscape.objectives import Objective, Rows
from landscape.seeds import generator
from landscape.subspaces import random as random_subspace

# a few steps of float64 sums in another order; products with H, whose entries grow to a hundred here, magnify their rounding
ROUNDING = 1e-10

EVERY = pytest.mark.parametrize("solver", solvers.SOLVERS)
QUASI = pytest.mark.parametrize("solver", ["bfgs", "lbfgs"])
SEARCHES = pytest.mark.parametrize("search", solvers.SEARCHES)


def recipe_of(solver="bfgs", **options):
    return Recipe(**{"steps": 8, "optimizer": solver, "lr": 1.0 if solver != "lbfgs" else 0.1, **options})


def run(f, start, recipe, seed=0):
    return list(descend(f, start, recipe, seed))


def spent(state, recipe):
    return {name: value.tolist() for name, value in solvers.counts(state, recipe).items()}


def rosenbrock(d=4):
    return Objective.from_function(lambda w: (100 * (w[1:] - w[:-1] ** 2) ** 2 + (1 - w[:-1]) ** 2).sum(), d)


class Watched:
    """A function of a vector that counts how often it is asked."""

    def __init__(self, function, d):
        self.calls = 0
        self.function = function
        self.f = Objective.from_function(self, d)

    def __call__(self, w):
        self.calls += 1
        return self.function(w)


# -- quasi-Newton against the formulas written out ----------------------------------------------------------------------


class Textbook:
    """P-BFGS and L-BFGS in numpy, as formulas stand in Nocedal and Wright: B is inverted, V multiplied out, the last h pairs applied one after another to gamma I."""

    def __init__(self, recipe, d):
        self.recipe, self.eye, self.h = recipe, np.eye(d), recipe.lr * np.eye(d)
        self.pairs, self.damped = [], 0

    def learn(self, s, y):
        recipe = self.recipe
        bs = np.linalg.solve(self.h, s)
        if recipe.damping and s @ y < recipe.damping * (s @ bs):
            theta = (1 - recipe.damping) * (s @ bs) / (s @ bs - s @ y)
            y = theta * y + (1 - theta) * bs
            self.damped += 1
        if s @ y <= 1e-20:
            return
        self.pairs.append((s, y))
        if recipe.optimizer == "bfgs":
            self.h = self._update(self.h, s, y)
        else:
            self.h = (s @ y) / (y @ y) * self.eye
            for pair in self.pairs[-recipe.history :]:
                self.h = self._update(self.h, *pair)

    def _update(self, h, s, y):
        rho = 1 / (s @ y)
        v = self.eye - rho * np.outer(y, s)
        return v.T @ h @ v + rho * np.outer(s, s)

    def armijo(self, value, z, loss, gradient):
        p, length = -self.h @ gradient, 1.0
        for trial in range(20):
            if trial:
                length *= 0.4
            if value(z + length * p) <= loss + 0.4 * length * (gradient @ p):
                return length * p
        return np.zeros_like(z)


def on_rows(name, rows, decay):
    """Value and gradient of the user's own network in train mode on some rows."""
    f, _ = objective(name)
    net = module(name)
    criterion = torch.nn.CrossEntropyLoss()

    def both(z):
        place = 0
        for p in net.parameters():
            p.data = torch.from_numpy(z[place : place + p.numel()]).reshape(p.shape)
            place += p.numel()
        net.zero_grad()
        loss = criterion(net(f.rows.inputs[rows]), f.rows.targets[rows])
        loss.backward()
        gradient = np.concatenate([p.grad.numpy().ravel() for p in net.parameters()])
        return loss.item() + decay / 2 * (z @ z), gradient + decay * z

    return both


@QUASI
@pytest.mark.parametrize("secants", solvers.SECANTS)
@pytest.mark.parametrize(("name", "batch", "decay", "damping"), [("mlp", 6, 0.0, 0.2), ("batchnorm", 6, 0.01, 0.2), ("mlp", 0, 0.01, 0.2), ("mlp", 6, 0.0, 0.0)])  # fmt: skip
def test_every_step_is_the_textbooks(solver, secants, name, batch, decay, damping):
    f, start = objective(name)
    recipe = recipe_of(solver, steps=12, batch_size=batch, secants=secants, weight_decay=decay, damping=damping, history=3, lr=1.0)  # fmt: skip
    order = _Order(13, 6, 0, f.device)
    book, z, before = Textbook(recipe, f.dim), start.numpy(), None
    for state in descend(f, start, recipe, 0):
        close(state.point, z, ROUNDING)
        assert spent(state, recipe)["damped_updates"] == book.damped
        both = on_rows(name, order.batch(state.step) if batch else slice(None), decay)
        loss, gradient = both(z)
        if secants == "cross" and before is not None:
            book.learn(before[0], gradient - before[1])
        s = book.armijo(lambda w, both=both: both(w)[0], z, loss, gradient)
        if secants == "same":
            book.learn(s, both(z + s)[1] - gradient)
        z, before = z + s, (s, gradient)
    assert len(book.pairs) > 8
    if name == "mlp" and batch and damping and secants == "cross":
        assert book.damped > 0  # noise of the rows makes some y of negative curvature


@QUASI
@pytest.mark.parametrize("secants", solvers.SECANTS)
def test_damped_secants_of_shortened_steps_are_the_textbooks(solver, secants):
    """From inside the ring a first step of 10 is cut to 0.64, and crosses negative curvature."""
    p = ring(4)
    z = (0.05 * p.point / p.point.norm()).numpy()
    recipe = recipe_of(solver, steps=6, secants=secants, lr=200.0)
    book, before = Textbook(recipe, 4), None
    for state in descend(p.f, torch.from_numpy(z), recipe, 0):
        close(state.point, z, ROUNDING)
        if book.pairs and solver == "bfgs":
            close(state.moments[0], book.h, ROUNDING)
        elif book.pairs:
            for held, truth in zip(state.moments, book.pairs[-1], strict=False):
                close(held[-1], truth, ROUNDING)
        gradient = p.gradient(z)
        if secants == "cross" and before is not None:
            book.learn(before[0], gradient - before[1])
        s = book.armijo(p.value, z, p.value(z), gradient)
        if secants == "same":
            book.learn(s, p.gradient(z + s) - gradient)
        if state.step == 0:
            assert abs(np.linalg.norm(s) - 10 * 0.4**3 * (1 - 0.05**2)) < 1e-9
        z, before = z + s, (s, gradient)
    assert book.damped > 0


@QUASI
def test_a_quadratic_ends_in_d_steps_of_exact_search_and_bfgs_knows_its_inverse(solver):
    """T19. The search's parabola is exact on a quadratic: slope left 1e-8 of the first. Conditioned at 100, that is 1e-6 of the inverse."""
    p = quadratic(np.linspace(0.1, 10, 20))
    recipe = recipe_of(solver, steps=20, search="wolfe", sufficient=1e-9, curvature=1e-8, trials=40, damping=0.0, history=20)  # fmt: skip
    states = run(p.f, p.point, recipe)
    # |z - c| is at most |g| / 0.1, and 20 steps of conjugate directions lose the condition's share of the digits
    assert float(states[-1].gradient.norm()) < 1e-6 * float(states[0].gradient.norm())
    assert float(states[-2].gradient.norm()) > 1e-6 * float(states[0].gradient.norm())  # all twenty are needed
    if solver == "bfgs":
        truth = np.linalg.inv(p.hessian(None))
        assert np.abs(states[-1].moments[0].numpy() - truth).max() < 1e-4 * np.abs(truth).max()


@EVERY
@pytest.mark.parametrize("search", ["armijo", "wolfe"])
def test_the_minimum_is_scipys(solver, search):
    """Rosenbrock in 2 dimensions has one minimum, and a softmax regression with decay is strictly convex. f is known to its rounding at the minimum."""
    f, z = rosenbrock(2), torch.tensor([-1.2, 1.0], dtype=F64)
    steps = 25 if solver in solvers.MATRICES else 50
    if solver != "gauss-newton":  # of a plain function there is none
        states = run(f, z, recipe_of(solver, steps=steps, search=search))
        truth = scipy.optimize.minimize(lambda w: float(f(torch.from_numpy(w))), z.numpy(), method="BFGS", tol=1e-10)
        assert float(states[-1].loss) <= truth.fun + 1e-12
        close(states[-1].point, np.ones(2), 1e-5)
    p = regression("softmax")
    decay = 0.1
    truth = scipy.optimize.minimize(
        lambda w: p.value(w) + decay / 2 * (w @ w), p.point.numpy(), jac=lambda w: p.gradient(w) + decay * w, method="BFGS", tol=1e-12
    )  # fmt: skip
    last = run(p.f, p.point, recipe_of(solver, steps=steps, search=search, weight_decay=decay))[-1]
    # at 0.1 of curvature or more, a gradient below 1e-8 is a point within 1e-7
    close(last.point, truth.x, 1e-6)


@QUASI
def test_a_step_that_wolfe_accepts_meets_both_conditions(solver):
    f, z = rosenbrock(6), torch.linspace(-1.2, 1, 6, dtype=F64)
    for sufficient, curvature in ((1e-4, 0.9), (0.1, 0.3), (0.4, 0.9)):
        states = run(f, z, recipe_of(solver, steps=25, search="wolfe", sufficient=sufficient, curvature=curvature))
        for one, other in itertools.pairwise(states):
            s = other.point - one.point
            before, after = float(one.gradient @ s), float(other.gradient @ s)
            assert before < 0
            assert float(other.loss) <= float(one.loss) + sufficient * before * (1 - 1e-9) + 1e-14
            assert abs(after) <= curvature * abs(before) * (1 + 1e-9)


# -- Newton -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("search", ["armijo", "wolfe", "none"])
def test_one_newton_step_solves_a_convex_quadratic(search):
    p = quadratic(np.geomspace(0.01, 10, 12))
    first, second = run(p.f, p.point, recipe_of("newton", steps=1, ridge=0.0, search=search))
    close(second.gradient, np.zeros(12), 1e-12 * float(first.gradient.norm()) * 1e3)  # rounding times condition
    assert spent(second, recipe_of("newton"))["failed_searches"] == 0


def test_one_gauss_newton_step_solves_least_squares():
    p = regression("linear")
    last = run(p.f, p.point, recipe_of("gauss-newton", steps=1, ridge=0.0))[-1]
    close(p.gradient(last.point.numpy()), np.zeros(p.f.dim), 1e-12)


@pytest.mark.parametrize("ridge", [0.0, 0.01, 1.0])
@pytest.mark.parametrize("inside", [0.1, 0.5])
def test_a_newton_step_is_by_the_absolute_eigenvalues_and_leaves_a_saddle_downhill(ridge, inside):
    """The ring has negative curvature inside: plain Newton goes to the maximum at 0."""
    p = ring(4)
    z = inside * p.point / p.point.norm()
    _, second = run(p.f, z, recipe_of("newton", steps=1, ridge=ridge, search="none"))
    values, vectors = np.linalg.eigh(p.hessian(z.numpy()))
    sizes = np.abs(values) + ridge * np.abs(values).max()
    close(second.point, z.numpy() - vectors @ (vectors.T @ p.gradient(z.numpy()) / sizes), 1e-12)
    assert float(second.point.norm()) > inside
    last = run(p.f, z, recipe_of("newton", steps=20, ridge=ridge))[-1]
    close(float(last.point.norm()), 1.0, 1e-7)


def test_the_matrix_is_of_the_mini_batch_in_train_mode_through_the_subspace():
    """Central differences of the user's network's own gradient; with ridge 1 the matrix solved with is conditioned at 2 at most."""
    f, w = objective("batchnorm")
    s = random_subspace(w, 5, generator(0, "s"), "haar")
    basis = s.push(torch.eye(5, dtype=F64)).numpy()
    recipe = recipe_of("newton", steps=1, ridge=1.0, search="none", batch_size=6, weight_decay=0.1)
    second = run(f.restrict(s), torch.zeros(5, dtype=F64), recipe)[1]
    both = on_rows("batchnorm", _Order(13, 6, 0, f.device).batch(0), 0.0)

    def gradient(z):
        return torch.from_numpy(basis @ both((w + z @ torch.from_numpy(basis)).numpy())[1]) + 0.1 * z

    zero = torch.zeros(5, dtype=F64)
    matrix = slopes(gradient, zero).numpy()
    values, vectors = np.linalg.eigh((matrix + matrix.T) / 2)
    sizes = np.abs(values) + np.abs(values).max()
    close(second.point, -vectors @ (vectors.T @ gradient(zero).numpy() / sizes), DIFFERENCES)


def test_the_ridge_falls_where_the_model_is_right_and_rises_where_it_is_not():
    p = quadratic(np.ones(3))
    recipe = recipe_of("newton", steps=3, ridge=1e-3)
    # a ridge of 1e-3 still brings nearly all: 1 - 1/2 of the slope's promise, more than 0.4 of it
    close(torch.stack([s.moments[0] for s in run(p.f, p.point, recipe)]), [1e-3, 1e-4, 1e-5, 1e-6], 1e-15)
    uphill = Objective.from_function(lambda w: (2 * (w * w).detach() - w * w).sum(), 2)  # its gradient lies
    close(torch.stack([s.moments[0] for s in run(uphill, torch.ones(2), recipe)]), [1e-3, 1e-2, 1e-1, 1], 1e-15)
    assert float(run(uphill, torch.ones(2), recipe_of("newton", steps=20, ridge=1.0))[-1].moments[0]) == 1e3


# -- searches that fail -------------------------------------------------------------------------------------------------


class Turning(Watched):
    """A quadratic whose gradient has the wrong sign while `wrong`."""

    def __init__(self):
        self.wrong = False
        a = torch.from_numpy(planted(np.linspace(1, 3, 3)))
        super().__init__(lambda w: (lambda v: 2 * v.detach() - v if self.wrong else v)(w @ a @ w / 2), 3)


@EVERY
@pytest.mark.parametrize("search", ["armijo", "wolfe"])
@pytest.mark.parametrize("answer", solvers.FAILURES)
def test_a_search_that_fails_is_answered_as_asked_and_counted(solver, search, answer):
    problem = Turning()
    recipe = recipe_of(solver, steps=6, search=search, on_failure=answer, trials=9)
    states = []
    for state in descend(problem.f, draw(3), recipe, 0):
        states.append(state)
        problem.wrong = state.step in (2, 3)  # seen by the passes between the states after these
    # where the last pass of a move is known to be the next state's, that state's gradient is of before the turn
    failed = [spent(s, recipe)["failed_searches"] for s in states]
    assert failed[2] == 0
    assert failed[-1] >= 1
    steps = [i for i in range(len(states) - 1) if failed[i + 1] > failed[i]]
    for i in steps:
        one, other = states[i], states[i + 1]
        assert torch.equal(one.point, other.point) == (answer != "take")
        if answer == "reset" and solver == "bfgs":
            close(other.moments[0], np.eye(3), 0)
        if answer == "reset" and solver == "lbfgs":
            assert not any(bool(m.any()) for m in other.moments[:3])
        if answer == "skip" and solver == "bfgs":
            assert torch.equal(one.moments[0], other.moments[0])
    if answer != "take":
        assert float(states[-1].loss) <= float(states[0].loss)


def test_the_last_trial_taken_is_nineteen_shrinks_of_the_first():
    """Constant in value, of slope (1, 1): no trial of 20 brings 0.4 of what the slope promises."""
    f = Objective.from_function(lambda w: (w - w.detach()).sum() + 1, 2)
    recipe = recipe_of(steps=1, on_failure="take", damping=0.0)
    last = run(f, torch.zeros(2), recipe)[-1]
    close(last.point, -(0.4**19) * np.ones(2), 1e-16 * 0.4**19)
    assert spent(last, recipe) == {"evaluations": 1 + 20 + 1, "failed_searches": 1, "damped_updates": 0}


@QUASI
@pytest.mark.parametrize("search", ["armijo", "wolfe"])
def test_float32_searches_do_not_shrink_their_steps_at_the_minimum(search, solver):
    """Least squares whose least value is about 1: after ten steps the decrease sought is below its rounding. Without an allowance for that the 40 steps take 107 to 623 passes."""
    x, y = draw(500, 20, dtype=torch.float32), draw(500, 3, dtype=torch.float32)
    f, z = Objective.of(torch.nn.Linear(20, 3), "mse", Rows(x, y))
    recipe = recipe_of(solver, steps=40, lr=1.0, search=search)
    last = run(f, torch.zeros_like(z), recipe)[-1]
    assert spent(last, recipe)["failed_searches"] == 0
    # a trial and a gradient a step, or one that is both, and at most ten trials more on the way
    assert spent(last, recipe)["evaluations"] <= 1 + 40 * (2 if search == "armijo" else 1) + 10
    design = np.hstack([x.double().numpy(), np.ones((500, 1))])
    rest = y.double().numpy() - design @ np.linalg.lstsq(design, y.double().numpy(), rcond=None)[0]
    close(last.loss, (rest**2).mean(), 1e-6)


@pytest.mark.parametrize("secants", solvers.SECANTS)
@pytest.mark.parametrize("answer", solvers.FAILURES)
@pytest.mark.parametrize("search", ["armijo", "wolfe"])
def test_an_inverse_hessian_that_does_not_descend_is_forgotten_and_nothing_is_tried_along_it(search, answer, secants):
    p = quadratic(np.linspace(1, 2, 3))
    recipe = recipe_of(search=search, on_failure=answer, secants=secants, steps=2)
    moments = run(p.f, p.point, dataclasses.replace(recipe, steps=0))[0].moments
    first, second, third = run(p.f, Start(p.point, moments=(-moments[0], *moments[1:])), recipe)
    close(second.moments[0], np.eye(3), 0)
    counted = spent(second, recipe)
    assert counted["failed_searches"] == 1
    assert counted["evaluations"] == 2  # one a state
    close(second.point, first.point + (first.gradient if answer == "take" else 0), 1e-14)
    if secants == "cross":  # nothing is learnt of the step uphill
        close(third.moments[0], np.eye(3), 0)


def test_where_trials_run_out_wolfe_takes_the_best_step_that_decreases_enough():
    """w^2 / 2 from 1: the first trial leads to 0.1, whose slope is too steep for curvature 0.05; the second, 2.5 times as long, to -1.25."""
    f = Objective.from_function(lambda w: (w * w).sum() / 2, 1)
    recipe = recipe_of(steps=1, lr=0.9, search="wolfe", sufficient=0.01, curvature=0.05, trials=2)
    last = run(f, torch.ones(1), recipe)[-1]
    close(last.point, np.array([0.1]), 1e-15)
    close(last.moments[0], np.eye(1), 1e-14)  # the secant of that step
    # the gradient at 0.1 was not the last pass, so the next state takes it anew
    close(last.loss, 0.005, 1e-15)
    close(last.gradient, np.array([0.1]), 1e-15)
    assert spent(last, recipe) == {"evaluations": 4, "failed_searches": 0, "damped_updates": 0}


@EVERY
@SEARCHES
def test_nan_in_a_member_is_nothing_to_the_others(solver, search):
    """A root of a negative number and all its derivatives are NaN: member 1 starts there."""
    f = Objective.from_function(lambda w: (w * w).sum() - torch.sqrt(w[0] + w[1] * w[1]), 3)
    starts = torch.tensor([[0.5, 1.0, -1], [-1.0, 0, 0], [0.1, 0, 1.0], [2, -1, 0.3]], dtype=F64)
    recipe = recipe_of(solver, steps=6, search=search)
    together = run(f, starts, recipe)
    assert math.isnan(float(together[0].loss[1]))
    for e in (0, 2, 3):
        for many, one in zip(together, run(f, starts[e], recipe), strict=True):
            np.testing.assert_allclose(many.point[e].numpy(), one.point.numpy(), rtol=1e-9, atol=1e-9)
    if search != "none":
        assert torch.equal(together[-1].point[1], starts[1])
        assert spent(together[-1], recipe)["failed_searches"][1] == 6
        assert bool(together[-1].loss[[0, 2, 3]].isfinite().all())


@pytest.mark.parametrize("secants", solvers.SECANTS)
@pytest.mark.parametrize("search", ["armijo", "none"])
@pytest.mark.parametrize("make", [lambda: ring(4), lambda: rosenbrock(4)], ids=["ring", "rosenbrock"])
def test_damping_keeps_the_inverse_hessian_positive_definite(make, search, secants):
    """And in inverse form it is Powell's: s.y' = 0.2 s.Bs where s.y is less, so H' y' = s with the y' of procedure 18.2."""
    problem = make()
    f = problem if isinstance(problem, Objective) else problem.f
    recipe = recipe_of(steps=25, search=search, secants=secants, lr=0.02)
    states = run(f, 0.3 * torch.tensor([0.3, -0.2, 0.5, 0.1], dtype=F64), recipe)
    assert spent(states[-1], recipe)["damped_updates"] > 0
    for one, other in itertools.pairwise(states):
        inverse = other.moments[0].numpy()
        assert np.linalg.eigvalsh(inverse).min() > 0
        assert np.array_equal(inverse, inverse.T)
        if secants == "same" and not torch.equal(one.moments[0], other.moments[0]):
            s, y = (other.point - one.point).numpy(), (other.gradient - one.gradient).numpy()
            bs = np.linalg.solve(one.moments[0].numpy(), s)
            if s @ y < 0.2 * (s @ bs):
                theta = 0.8 * (s @ bs) / (s @ bs - s @ y)
                y = theta * y + (1 - theta) * bs
            np.testing.assert_allclose(inverse @ y, s, rtol=1e-6, atol=1e-9)


# -- lockstep, resumption, accounts -------------------------------------------------------------------------------------


# exact matrices take their time, and what they share with the others is the search
MEMBERS = [
    *itertools.product(["mlp", "batchnorm", "conv-batchnorm"], ["bfgs", "lbfgs"], solvers.SEARCHES),
    *zip(["mlp", "batchnorm", "conv-batchnorm"] * 2, ["newton", "gauss-newton"] * 3, ["wolfe", "armijo", "none"] * 2, strict=True),
]  # fmt: skip


@pytest.mark.parametrize("seeds", [3, [3, 1, 4]], ids=["one seed", "own seeds"])
@pytest.mark.parametrize(("name", "solver", "search"), MEMBERS)
def test_a_member_of_an_ensemble_is_the_run_it_would_make_alone(name, solver, search, seeds):
    f, w = objective(name)
    f = f.restrict(random_subspace(w, 4, generator(0, "s"), "haar"))
    starts = 0.5 * draw(3, 4, seed=8)
    steps = 2 if solver in solvers.MATRICES else 5
    recipe = recipe_of(solver, steps=steps, search=search, batch_size=6, lr=0.5, weight_decay=0.01, ridge=0.3)  # fmt: skip
    together = run(f, starts, recipe, seeds)
    for e in range(3):
        alone = run(f, starts[e], recipe, seeds if isinstance(seeds, int) else seeds[e])
        for many, one in zip(together, alone, strict=True):
            close(many.point[e], one.point, ROUNDING)
            assert {k: v[e] for k, v in spent(many, recipe).items()} == spent(one, recipe)
            for key, value in one.buffers.items():
                close(many.buffers[key][e], value, ROUNDING)


@pytest.mark.parametrize("solver", ["bfgs", "lbfgs", "newton"])
@pytest.mark.parametrize("ensemble", [False, True], ids=["one", "ensemble"])
@pytest.mark.parametrize(("batch", "secants", "search"), [(0, "same", "armijo"), (0, "same", "wolfe"), (6, "same", "armijo"), (6, "cross", "armijo"), (6, "cross", "wolfe")])  # fmt: skip
@pytest.mark.parametrize("name", ["batchnorm", "dropout"])
def test_going_on_from_any_state_is_bitwise_the_uninterrupted_run(name, batch, secants, search, ensemble, solver):
    f, w = objective(name)
    f = f.restrict(random_subspace(w, 3, generator(0, "s"), "haar"))
    start = 0.5 * draw(2, 3, seed=8) if ensemble else torch.zeros(3, dtype=F64)
    recipe = recipe_of(solver, steps=3, batch_size=batch, secants=secants, search=search, weight_decay=0.01)
    whole = run(f, Start(start, scale=2.0), recipe, 7)
    for at in (1, 2):
        for one, other in zip(run(f, Start.of(whole[at]), recipe, 7), whole[at:], strict=True):
            for a, b in zip((one.point, one.loss, one.gradient, *one.moments), (other.point, other.loss, other.gradient, *other.moments), strict=True):  # fmt: skip
                assert torch.equal(a, b)
            assert all(torch.equal(value, other.buffers[key]) for key, value in one.buffers.items())


@QUASI
@SEARCHES
@pytest.mark.parametrize("secants", solvers.SECANTS)
def test_evaluations_are_the_passes_made(secants, search, solver):
    """Full batch: the gradient at the new point is that of the next step, and is not taken twice."""
    watched = Watched(lambda w: ((w**2 - 1) ** 2).sum() + w[0] * w[1], 3)
    recipe = recipe_of(solver, steps=9, search=search, secants=secants, lr=0.1)
    for state in descend(watched.f, draw(3), recipe, 0):
        assert watched.calls == spent(state, recipe)["evaluations"]
    if search == "none":
        assert watched.calls == 10


def test_mini_batches_cost_two_gradients_a_step_and_their_trials():
    f, z = objective("mlp")
    recipe = recipe_of(steps=5, batch_size=6, search="none")
    assert [spent(s, recipe)["evaluations"] for s in descend(f, z, recipe, 0)] == [1, 3, 5, 7, 9, 11]
    cross = dataclasses.replace(recipe, secants="cross")
    assert [spent(s, cross)["evaluations"] for s in descend(f, z, cross, 0)] == [1, 2, 3, 4, 5, 6]
    assert solvers.counts(run(f, z, Recipe(steps=0))[0], Recipe(steps=0)) == {}


@EVERY
@pytest.mark.parametrize("batch", [0, 6])
def test_buffers_move_once_a_step_whatever_is_tried(batch, solver):
    f, start = objective("batchnorm")
    f = f.restrict(random_subspace(start, 6, generator(0, "s"), "haar"))
    net, order = module("batchnorm").train(), _Order(13, 6, 0, f.device)
    for state in descend(f, torch.zeros(6, dtype=F64), recipe_of(solver, steps=4, batch_size=batch), 0):
        for key, value in state.buffers.items():
            close(value, dict(net.named_buffers())[key], ROUNDING)
        torch.nn.utils.vector_to_parameters(f.lift(state.point), net.parameters())
        net(f.rows.inputs[order.batch(state.step)] if batch else f.rows.inputs)


@pytest.mark.parametrize("seeds", [3, [3, 1, 4]], ids=["one seed", "own seeds"])
@pytest.mark.parametrize("batch", [0, 6])
@pytest.mark.parametrize("name", ["dropout", "attention", "conv-batchnorm", "batchnorm"])
def test_a_trial_sees_the_dropout_of_its_gradient(name, batch, seeds):
    f, w = objective(name)
    passes = _Passes(f, Recipe(batch_size=batch), seeds)
    rows = f.rows.take(_Order(13, 6, seeds, f.device).batch(0)) if batch else f.rows
    points = w + 0.1 * draw(3, f.dim)
    buffers = {key: value.expand(3, *value.shape).clone() for key, value in f.buffers.items()}
    truth = passes.slopes(points, buffers, rows, 5)[0]
    everyone = torch.ones(3, dtype=torch.bool)
    close(passes.values(points, buffers, rows, 5, everyone), truth, 1e-12)
    some = torch.tensor([False, True, True])
    close(passes.values(points, buffers, rows, 5, some)[1:], truth[1:], 1e-12)
    if name == "dropout":
        assert float((passes.values(points, buffers, rows, 6, everyone) - truth).abs().min()) > 1e-6
    if seeds == 3:
        one = passes.slopes(w, f.buffers, rows, 5)[0]
        close(passes.values(w, f.buffers, rows, 5, torch.tensor(True)), one, 1e-12)


def test_the_schedule_multiplies_the_first_trial():
    p = quadratic(np.ones(3))
    recipe = recipe_of(steps=4, lr=0.5, search="none", warmup=4)
    first, second, *_ = run(p.f, p.point, recipe)
    close(second.point, first.point - 0.25 * 0.5 * first.gradient, 1e-14)
    newton = recipe_of("newton", steps=1, lr=0.5, search="none", warmup=1, ridge=0.0)
    first, second = run(p.f, p.point, newton)
    close(second.point, first.point - 0.5 * first.gradient, 1e-14)


@QUASI
def test_the_scale_is_that_of_the_first_inverse_hessian(solver):
    p = quadratic(np.ones(3))
    recipe = recipe_of(solver, steps=1, lr=0.5, search="none")
    starts = p.point.expand(2, 3)
    first, second = run(p.f, Start(starts, scale=torch.tensor([1.0, 3.0])), recipe)
    close(second.point, first.point - torch.tensor([[0.5], [1.5]]) * first.gradient, 1e-14)


def test_a_newton_step_does_not_hang_on_the_scale():
    p = quadratic(np.linspace(1, 2, 3))
    recipe = recipe_of("newton", steps=3)
    close(run(p.f, Start(p.point, scale=7.0), recipe)[-1].point, run(p.f, p.point, recipe)[-1].point, 0)


# -- refusals -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "lbgfs"}, "Did you mean 'lbfgs'"),
        ({"search": "wolf"}, "Did you mean 'wolfe'"),
        ({"secants": "crossed"}, "Did you mean 'cross'"),
        ({"on_failure": "skp"}, "Did you mean 'skip'"),
        ({"optimizer": "bfgs", "clip": 1.0}, "clip bounds the gradients of sgd and adam"),
        ({"sufficient": 1.0}, "sufficient must lie in"),
        ({"shrink": 1.0}, "shrink must lie in"),
        ({"curvature": 0.0}, "curvature must lie in"),
        ({"search": "wolfe", "curvature": 0.3}, "a Wolfe search needs sufficient < curvature"),
        ({"trials": 0}, "trials must be at least 1"),
        ({"damping": 1.0}, "damping must lie in"),
        ({"history": 0}, "history must be at least 1"),
        ({"ridge": -1.0}, "ridge must be at least 0"),
    ],
)
def test_recipes_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Recipe(**options)


@pytest.mark.parametrize(
    ("solver", "d", "members", "message"),
    [
        ("newton", 4097, 1, "newton takes 4097 products .* Allowed: up to 4096 dimensions. Use lbfgs"),
        ("gauss-newton", 4096, 65, r"65 member\(s\): 4.1 GiB \(allowed: 4\)"),
        ("bfgs", 40000, 1, r"holds a 40000 x 40000 matrix .* Use lbfgs, or descend in a subspace"),
    ],
)
def test_matrices_that_would_not_fit_are_refused(solver, d, members, message):
    f = Objective.from_function(lambda w: (w * w).sum(), d, dtype=torch.float64 if members == 1 else torch.float32)
    with pytest.raises(UsageError, match=message):
        next(descend(f, torch.zeros(members, d), recipe_of(solver), 0))
    assert len(run(f, torch.ones(d), recipe_of("lbfgs", steps=1))) == 2
