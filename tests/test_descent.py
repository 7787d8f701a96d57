"""Descent against torch.optim and closed forms; an ensemble is its members; a resumed run is the run; states are values."""

import dataclasses
import itertools
import math

import numpy as np
import pytest
import torch
from problems import F64, MODULES, close, draw, module, objective, quadratic, rows

from landscape import subspaces
from landscape.descent import Recipe, Start, _augment, descend, recorded, redrawn
from landscape.errors import UsageError
from landscape.objectives import Objective, Rows
from landscape.seeds import generator
from landscape.subspaces import random as random_subspace
from landscape.subspaces import span

# tens of steps of float64 sums in another order, on problems whose errors do not grow
ROUNDING = 1e-12

SGD = Recipe(steps=12, lr=0.05, momentum=0.9, weight_decay=0.01, batch_size=4)
ADAM = Recipe(steps=12, optimizer="adam", lr=0.02, weight_decay=0.01, batch_size=4)
BOTH = pytest.mark.parametrize("recipe", [SGD, ADAM], ids=["sgd", "adam"])
SMOOTH = [name for name in MODULES if name not in ("dropout", "attention", "transformer")]  # those draw in train mode


def run(f, start, recipe, seed=0):
    return list(descend(f, start, recipe, seed))


def same(one, other):
    """Bitwise equality of states."""
    assert (one.step, one.rate) == (other.step, other.rate)
    for a, b in zip(
        (one.point, one.loss, one.gradient, *one.moments),
        (other.point, other.loss, other.gradient, *other.moments),
        strict=True,
    ):
        assert torch.equal(a, b)
    assert set(one.buffers) == set(other.buffers)
    assert all(torch.equal(value, other.buffers[name]) for name, value in one.buffers.items())


class Batches:
    """Rows that say who they are: row i has input i, so the loss sees which rows a step used."""

    def __init__(self, n):
        self.seen = []
        data = Rows(torch.arange(n, dtype=F64).unsqueeze(1), torch.arange(n))
        self.f, self.start = Objective.of(torch.nn.Linear(1, 1), self.loss, data, dtype=F64)

    def loss(self, outputs, targets):
        self.seen.append(targets.tolist())
        return outputs[:, 0] ** 2

    def of(self, recipe, seed=0):
        self.seen.clear()
        run(self.f, self.start, recipe, seed)
        return list(self.seen)


# -- the updates ------------------------------------------------------------------------------------------------------


def torch_optimizer(recipe, parameters):
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay)
    return torch.optim.Adam(
        parameters, lr=recipe.lr, betas=recipe.betas, eps=recipe.eps, weight_decay=recipe.weight_decay
    )


RECIPES = {
    "sgd": SGD,
    "sgd plain": dataclasses.replace(SGD, momentum=0.0, weight_decay=0.0),
    "sgd cosine": dataclasses.replace(SGD, schedule="cosine", warmup=3),
    "adam": ADAM,
    "adam step": dataclasses.replace(ADAM, schedule="step"),
    "adam betas": dataclasses.replace(ADAM, betas=(0.5, 0.9), eps=1e-3),
    "clipped": dataclasses.replace(SGD, clip=0.3),
    "full batch": dataclasses.replace(SGD, batch_size=0),
}


@pytest.mark.parametrize("name", ["mlp", "mlp-mse", "batchnorm", "conv-batchnorm", "tied", "frozen"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_every_step_is_that_of_torch_optim_in_the_users_own_loop(name, recipe):
    f, start = objective(name)
    net = module(name)  # in train mode
    optimizer = torch_optimizer(recipe, net.parameters())
    tags = Batches(13)
    batches = tags.of(recipe)
    criterion = torch.nn.MSELoss() if name == "mlp-mse" else torch.nn.CrossEntropyLoss()
    for state, batch in zip(descend(f, start, recipe, 0), batches, strict=True):
        close(state.point, torch.cat([p.detach().flatten() for p in net.parameters() if p.requires_grad]), ROUNDING)
        for key, value in state.buffers.items():
            close(value, dict(net.named_buffers())[key], ROUNDING)
        optimizer.zero_grad()
        loss = criterion(net(f.rows.inputs[batch]), f.rows.targets[batch])
        loss.backward()
        close(state.loss, loss, ROUNDING)
        close(state.gradient, torch.cat([p.grad.flatten() for p in net.parameters() if p.requires_grad]), ROUNDING)
        if recipe.clip:
            for p in net.parameters():  # torch's own divides by the norm + 1e-6, which makes the bound 1e-6 smaller
                if p.grad is not None:
                    p.grad.mul_(min(1.0, recipe.clip / float(state.gradient.norm())))
        for group in optimizer.param_groups:
            group["lr"] = recipe.rate(state.step)
        optimizer.step()


def test_clip_bounds_the_step_and_leaves_small_gradients():
    p = quadratic(np.array([1.0, 2.0, 3.0]))
    for size, expected in ((0.01, 0.01), (1e9, None)):
        recipe = Recipe(steps=1, lr=1.0, momentum=0.0, clip=size)
        first, second = run(p.f, p.point, recipe)
        step = float((second.point - first.point).norm())
        close(step, expected or float(first.gradient.norm()), ROUNDING)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_on_a_quadratic_sgd_is_its_linear_recursion(momentum):
    spectrum = np.linspace(0.1, 2, 5)
    p = quadratic(spectrum)
    x, v = p.point.numpy(), np.zeros(5)
    for state in descend(p.f, p.point, Recipe(steps=30, lr=0.1, momentum=momentum), 0):
        close(state.point, x)
        close(state.loss, p.value(x))
        close(state.gradient, p.gradient(x))
        v = momentum * v + p.gradient(x)
        x = x - 0.1 * v


def test_weight_decay_pulls_without_a_gradient():
    f = Objective.from_function(lambda w: 0 * w.sum(), 2)
    states = run(f, torch.ones(2, dtype=F64), Recipe(steps=3, lr=0.5, momentum=0.0, weight_decay=0.2))
    close(torch.stack([s.point for s in states]), 0.9 ** np.arange(4)[:, None] * np.ones(2), ROUNDING)


# -- schedules --------------------------------------------------------------------------------------------------------


def test_rates_have_their_closed_forms():
    constant = Recipe(steps=100, lr=0.4, warmup=4)
    assert [constant.rate(t) for t in (0, 1, 3, 4, 99)] == pytest.approx([0.1, 0.2, 0.4, 0.4, 0.4], rel=1e-15)
    step = Recipe(steps=100, lr=0.4, schedule="step", milestones=(0.5, 0.75), gamma=0.1)
    assert [step.rate(t) for t in (0, 49, 50, 74, 75, 100)] == pytest.approx(
        [0.4, 0.4, 0.04, 0.04, 0.004, 0.004], rel=1e-14
    )
    cosine = Recipe(steps=100, lr=0.4, schedule="cosine", warmup=20)
    truth = [0.4 * (t + 1) / 20 if t < 20 else 0.2 * (1 + math.cos(math.pi * (t - 20) / 80)) for t in range(101)]
    assert [cosine.rate(t) for t in range(101)] == pytest.approx(truth, rel=1e-14, abs=1e-16)
    assert [state.rate for state in run(quadratic(np.ones(2)).f, torch.zeros(2), cosine)] == [
        cosine.rate(t) for t in range(101)
    ]


# -- the order of the rows --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 3, 4, 12])
def test_every_row_is_used_once_an_epoch(size):
    batches = Batches(12).of(Recipe(steps=36 // size * 2 - 1, lr=1e-6, batch_size=size))
    epoch = 12 // size
    for first in range(0, len(batches), epoch):
        assert sorted(itertools.chain(*batches[first : first + epoch])) == list(range(12))
    assert batches[:epoch] != batches[epoch : 2 * epoch]


def test_the_rest_of_an_epoch_is_left_out_and_is_another_rest_each_time():
    batches = Batches(13).of(Recipe(steps=59, lr=1e-6, batch_size=4))
    epochs = [sorted(itertools.chain(*batches[first : first + 3])) for first in range(0, 60, 3)]
    assert all(len(set(epoch)) == 12 for epoch in epochs)
    assert len({frozenset(epoch) for epoch in epochs}) > 1


def test_the_order_depends_on_the_seed_only():
    batches = Batches(12)
    recipe = Recipe(steps=8, lr=1e-6, batch_size=3)
    one = batches.of(recipe, 5)
    torch.manual_seed(99)
    assert batches.of(recipe, 5) == one
    assert batches.of(dataclasses.replace(recipe, lr=1e-3, optimizer="adam", steps=20), 5)[:9] == one
    assert batches.of(recipe, 6) != one


def test_full_batch_uses_all_rows_every_step_and_is_the_gradient_of_f():
    f, start = objective("mlp", chunk=5)
    for state in descend(f, start, Recipe(steps=5, lr=0.1), 0):
        close(state.loss, f(state.point), ROUNDING)
        close(state.gradient, f.gradient(state.point), ROUNDING)


@pytest.mark.parametrize("every", [1, 3, 7, 100])
def test_a_recorder_of_every_k_keeps_multiples_and_both_ends(every):
    assert [t for t in range(51) if recorded(t, 50, every)] == sorted({*range(0, 51, every), 0, 50})


def test_a_log_recorder_keeps_about_twenty_an_octave_and_both_ends():
    last = 5000
    kept = [t for t in range(last + 1) if recorded(t, last, "log")]
    assert kept[:20] == list(range(20))
    assert kept[-1] == last
    assert recorded(4097, 4097, "log")
    for octave in range(5, 12):
        # 20 floors grow between 2^k (not counted) and 2^(k + 1): each at its own step once steps are denser than floors
        assert sum(2**octave < t <= 2 ** (octave + 1) for t in kept) == 20


# -- ensembles --------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("seeds", [3, [3, 1, 4]], ids=["one seed", "own seeds"])
@pytest.mark.parametrize("name", SMOOTH)
def test_a_member_of_an_ensemble_is_the_run_it_would_make_alone(name, seeds, recipe):
    """In lockstep (vmap) and, for convolutions and recurrent layers on a CPU, in a loop."""
    f, start = objective(name)
    starts = start + 0.1 * draw(3, f.dim, seed=8)
    together = run(f, starts, recipe, seeds)
    for e in range(3):
        alone = run(f, starts[e], recipe, seeds if isinstance(seeds, int) else seeds[e])
        for many, one in zip(together, alone, strict=True):
            # Adam divides by sqrt(second moment): where a gradient is near zero its rounding is magnified, here by up to a thousand
            close(many.point[e], one.point, ROUNDING if recipe is SGD else 1e3 * ROUNDING)
            close(many.loss[e], one.loss, 1e3 * ROUNDING)
            for key, value in one.buffers.items():
                close(many.buffers[key][e], value, 1e3 * ROUNDING)


@pytest.mark.parametrize("name", ["dropout", "attention", "transformer"])
def test_a_member_with_a_seed_of_its_own_has_the_dropout_of_its_run_alone(name):
    f, start = objective(name)
    many = run(f, torch.stack([start, start]), SGD, [3, 1])
    for e, seed in enumerate((3, 1)):
        close(many[-1].point[e], run(f, start, SGD, seed)[-1].point, ROUNDING)


@pytest.mark.parametrize("seeds", [3, [3, 1, 4]], ids=["one seed", "own seeds"])
def test_lockstep_and_loop_are_one_ensemble(seeds):
    f, start = objective("conv-batchnorm")
    starts = start + 0.1 * draw(3, f.dim, seed=8)
    assert not f.model.lockstep
    lockstep = dataclasses.replace(f, model=dataclasses.replace(f.model, lockstep=True))
    for one, other in zip(run(f, starts, SGD, seeds), run(lockstep, starts, SGD, seeds), strict=True):
        close(one.point, other.point, ROUNDING)
        for key, value in one.buffers.items():
            close(other.buffers[key], value, ROUNDING)


def test_full_batch_members_with_seeds_of_their_own_share_the_rows():
    f, start = objective("batchnorm")
    recipe = Recipe(steps=4, lr=0.1)
    many = run(f, torch.stack([start, start + 0.1]), recipe, [1, 2])
    close(many[-1].point[1], run(f, start + 0.1, recipe, 2)[-1].point, ROUNDING)


# -- restriction ------------------------------------------------------------------------------------------------------


@BOTH
def test_restricted_descent_is_descent_on_the_composed_function(recipe):
    p = quadratic(np.linspace(0.1, 1, 12))
    recipe = dataclasses.replace(recipe, batch_size=0)
    b = draw(4, 12, seed=3)
    g = p.f.restrict(span(p.point, b))
    z, matrix, slope = (
        torch.zeros(4, dtype=F64),
        b.numpy() @ p.hessian(None) @ b.numpy().T,
        b.numpy() @ p.gradient(p.point.numpy()),
    )
    composed = Objective.from_function(lambda z: z @ torch.from_numpy(matrix) @ z / 2 + torch.from_numpy(slope) @ z, 4)
    for one, other in zip(run(g, z, recipe), run(composed, z, recipe), strict=True):
        close(one.point, other.point)
        close(one.gradient, other.gradient)


@pytest.mark.parametrize("name", ["mlp", "batchnorm", "conv-batchnorm"])
def test_descent_in_a_subspace_moves_in_it_and_by_the_projected_gradient(name):
    f, w = objective(name)
    s = random_subspace(w, 6, generator(0, "s"), "haar")
    recipe = dataclasses.replace(SGD, momentum=0.0, weight_decay=0.0)
    inside, outside = run(f.restrict(s), torch.zeros(6, dtype=F64), recipe), run(f, w, recipe)
    close(inside[0].loss, outside[0].loss, ROUNDING)
    close(inside[0].gradient, s.project(outside[0].gradient), ROUNDING)
    close(inside[1].point, -recipe.lr * s.project(outside[0].gradient), ROUNDING)
    members = run(f.restrict(s), torch.zeros(2, 6, dtype=F64), recipe)
    close(members[-1].point, torch.stack([inside[-1].point] * 2), ROUNDING)


# -- the length of a step ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [3.0, torch.tensor([3.0, 0.5])], ids=["one", "by member"])
@BOTH
def test_a_scale_is_a_factor_on_the_rate(recipe, scale):
    f, start = objective("batchnorm")
    starts = torch.stack([start, start + 0.1])
    scaled = run(f, Start(starts, scale=scale), recipe)
    for e, factor in enumerate((3.0, 3.0) if isinstance(scale, float) else (3.0, 0.5)):
        other = dataclasses.replace(recipe, lr=recipe.lr * factor)
        for many, one in zip(scaled, run(f, starts[e], other), strict=True):
            # Adam divides by sqrt(second moment), as above
            close(many.point[e], one.point, 1e3 * ROUNDING)
    for one, other in zip(run(f, Start.of(scaled[5]), recipe), scaled[5:], strict=True):
        same(one, other)
        assert torch.equal(one.scale, other.scale)
    assert run(f, Start(start, scale=3.0), recipe)[0].scale.shape == ()


@pytest.mark.parametrize("basis", ["gaussian", "sparse"])
@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_the_first_step_is_as_long_in_a_random_subspace_of_any_dimension(optimizer, basis):
    """With scale sqrt(D / d) the mean square of |dw| over draws is lr^2 |g|^2 for sgd and lr^2 D for adam, up to (d - 1) / D for rows that are not orthogonal.

    sgd: dw = lr sqrt(D / d) B^T B g. Orthonormal rows: |B g|^2 has mean d / D |g|^2. Gaussian rows of unit norm: E |B^T B g|^2 = d / D (1 + (d - 1) / D) |g|^2.
    adam: dw = lr sqrt(D / d) B^T sign(B g), d unit rows; Gaussian ones are aligned by the signs: E |B^T sign|^2 = d (1 + (d - 1) c) with c the mean of
    sign(u.g) sign(v.g) u.v = (E |u.g| / |g|)^2 = 2 / (pi D) up to 1 / D^2 (u.v has mean (u.g)(v.g) / |g|^2 given both).
    """
    ambient, draws, lr = 1000, 100, 0.01
    g = draw(ambient)
    f = Objective.from_function(lambda w: g @ w, ambient)
    for d in (2, 16, 128):
        squares = []
        for seed in range(draws):
            s = random_subspace(torch.zeros(ambient, dtype=F64), d, generator(seed, "law", d), basis)
            start = Start(torch.zeros(d, dtype=F64), scale=math.sqrt(ambient / d))
            recipe = Recipe(steps=1, optimizer=optimizer, lr=lr, momentum=0.0)
            squares.append(float(s.lift(run(f.restrict(s), start, recipe)[1].point).square().sum()))
        squares = np.array(squares) / lr**2
        overlap = 0.0 if basis != "gaussian" else (d - 1) / ambient * (1 if optimizer == "sgd" else 2 / math.pi)
        truth = (1 + overlap) * (float(g @ g) if optimizer == "sgd" else ambient)
        # 4 standard errors; adam's steps on orthonormal rows are the same to its eps = 1e-8 beside |B g|, of about 1
        assert abs(squares.mean() - truth) <= 4 * squares.std() / math.sqrt(draws) + 1e-5 * truth


@pytest.mark.parametrize("scale", [torch.ones(3), torch.ones(1, 2)])
def test_a_scale_of_another_shape_is_refused(scale):
    f, z = objective("mlp")
    with pytest.raises(UsageError, match="one number, or one a member"):
        next(descend(f, Start(torch.stack([z, z]), scale=scale), Recipe(), 0))


# -- bases drawn anew -------------------------------------------------------------------------------------------------

SOLVED = Recipe(steps=12, optimizer="bfgs", lr=0.05, batch_size=4)
ALL = pytest.mark.parametrize("recipe", [SGD, ADAM, SOLVED], ids=["sgd", "adam", "bfgs"])


def haar(number, origin):
    """A basis of 3 rows; members of an ensemble share it."""
    rows = random_subspace(torch.zeros_like(origin).reshape(-1, origin.shape[-1])[0], 3, generator(5, "drawn", number), "haar")  # fmt: skip
    return rows.at(origin)


@ALL
@pytest.mark.parametrize("name", ["mlp", "batchnorm"])
def test_a_basis_drawn_once_is_descent_in_its_subspace(name, recipe):
    f, w = objective(name)
    s = haar(0, w)
    inside = run(f.restrict(s), Start(torch.zeros(3, dtype=F64), scale=2.0), recipe)
    for whole, one in zip(redrawn(f, Start(w, scale=2.0), recipe, 0, haar, 1000), inside, strict=True):
        close(whole.point, s.lift(one.point), 0)
        close(whole.gradient, s.push(one.gradient), 0)
        close(whole.loss, one.loss, 0)
        assert (whole.step, whole.rate) == (one.step, one.rate)
        assert all(torch.equal(value, one.buffers[key]) for key, value in whole.buffers.items())


def bases(steps):
    return [haar(k, torch.zeros(12, dtype=F64)).push(torch.eye(3, dtype=F64)).numpy() for k in range(steps)]


def test_a_basis_drawn_every_step_has_its_linear_recursion():
    """sgd: w - lr B_t^T B_t g. adam starts anew, so that its steps are lr B_t^T sign(B_t g)."""
    p = quadratic(np.linspace(0.1, 2, 12))
    for optimizer, size in (("sgd", lambda b, g: b @ g), ("adam", lambda b, g: np.sign(b @ g))):
        recipe = Recipe(steps=30, optimizer=optimizer, lr=0.1, schedule="cosine")
        w = p.point.numpy()
        for state, b in zip(redrawn(p.f, p.point, recipe, 0, haar, 1), bases(31), strict=True):
            # adam's eps = 1e-8 beside entries of B g down to 1e-3
            close(state.point, w, 1e-10 if optimizer == "sgd" else 1e-4)
            w = w - recipe.rate(state.step) * b.T @ size(b, p.gradient(w))


def test_drawn_anew_descent_reaches_what_one_subspace_cannot():
    p = quadratic(np.ones(12))
    recipe = Recipe(steps=200, lr=1.0, momentum=0.0)
    fixed = list(redrawn(p.f, p.point, recipe, 0, haar, 1000))[-1]
    anew = list(redrawn(p.f, p.point, recipe, 0, haar, 1))[-1]
    assert float(fixed.loss) > 0.1 * p.value(p.point.numpy())
    # every step leaves 1 - 3 / 12 of the loss on average: 200 of them 1e-25
    assert float(anew.loss) < 1e-15


@ALL
@pytest.mark.parametrize("ensemble", [False, True], ids=["one", "ensemble"])
@pytest.mark.parametrize("name", ["batchnorm", "dropout"])
def test_drawn_anew_descent_goes_on_bitwise(name, ensemble, recipe):
    f, w = objective(name)
    begin = torch.stack([w, w + 0.1]) if ensemble else w
    whole = list(redrawn(f, Start(begin, scale=2.0), recipe, 7, haar, 4))
    for at in (0, 3, 4, 6, 8):
        for one, other in zip(redrawn(f, Start.of(whole[at]), recipe, 7, haar, 4), whole[at:], strict=True):
            same(one, other)
    if ensemble and name != "dropout":  # whose members draw masks of their own
        close(whole[-1].point[0], list(redrawn(f, Start(w, scale=2.0), recipe, 7, haar, 4))[-1].point, 1e-9)


def test_bases_of_their_own_are_drawn_for_members():
    f, w = objective("mlp")
    starts = torch.stack([w, w + 0.1])

    def of(member):
        return lambda number, origin: random_subspace(origin, 3, generator(member, "own", number), "haar")

    def both(number, origin):
        rows = [of(e)(number, origin[e]).push(torch.eye(3, dtype=F64)) for e in range(2)]
        return subspaces.span(origin, torch.stack(rows))

    together = list(redrawn(f, starts, SGD, 0, both, 5))
    for e in range(2):
        for many, one in zip(together, redrawn(f, starts[e], SGD, 0, of(e), 5), strict=True):
            close(many.point[e], one.point, ROUNDING)


def test_a_basis_is_drawn_every_step_at_most():
    f, w = objective("mlp")
    with pytest.raises(UsageError, match="k at least 1; got 0"):
        next(redrawn(f, w, SGD, 0, haar, 0))


# -- resuming and values ----------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("ensemble", [False, True], ids=["one", "ensemble"])
@pytest.mark.parametrize("name", ["mlp", "batchnorm", "conv-batchnorm", "dropout", "attention", "transformer"])
def test_going_on_from_any_state_is_bitwise_the_uninterrupted_run(name, ensemble, recipe):
    f, start = objective(name)
    begin = torch.stack([start, start + 0.1]) if ensemble else start
    recipe = dataclasses.replace(recipe, steps=8)
    whole = run(f, begin, recipe, 7)
    for at in (0, 1, 4, 8):
        torch.manual_seed(at)  # nothing hangs on the global generator
        for one, other in zip(run(f, Start.of(whole[at]), recipe, 7), whole[at:], strict=True):
            same(one, other)


@BOTH
@pytest.mark.parametrize("name", ["mlp", "batchnorm", "conv-batchnorm"])
def test_states_are_values(name, recipe):
    f, start = objective(name)
    begin = start.clone()
    kept, copies = [], []
    for state in descend(f, start, recipe, 0):
        kept.append(state)
        copies.append(dataclasses.replace(state, point=state.point.clone(), loss=state.loss.clone(), gradient=state.gradient.clone(),
                                          moments=tuple(m.clone() for m in state.moments), buffers={k: v.clone() for k, v in state.buffers.items()}))  # fmt: skip
    for one, other in zip(kept, copies, strict=True):
        same(one, other)
    assert torch.equal(start, begin)
    same(kept[-1], run(f, start, recipe, 0)[-1])  # nor is the objective another one now
    assert not any(state.point.requires_grad or state.loss.requires_grad for state in kept)


@BOTH
@pytest.mark.parametrize("ensemble", [False, True])
@pytest.mark.parametrize("more", [{}, {"clip": 0.1}, {"weight_decay": 0.1}, {"momentum": 0.0}])
def test_lent_gradients_change_no_number(recipe, ensemble, more):
    """All but the gradient stays a value, and that is right until the next state is asked for."""
    f, start = objective("mlp")
    mask = torch.rand(f.dim, generator=generator(0, "mask")) < 0.5
    begin = torch.stack([start, 2 * start]) if ensemble else start
    recipe = dataclasses.replace(recipe, steps=6, **({} if recipe.optimizer == "adam" and "momentum" in more else more))
    for g in (f, f.restrict(subspaces.axes(mask, start.dtype))):
        z, lent = g.project(begin), []
        whole = run(g, z, recipe, 3)
        for state, kept in zip(descend(g, z, recipe, 3, lend=True), whole, strict=True):
            assert torch.equal(state.gradient, kept.gradient)
            lent.append(state)
        for state, kept in zip(lent, whole, strict=True):
            same(dataclasses.replace(state, gradient=kept.gradient), kept)


def test_gradients_are_kept_unless_they_are_lent():
    f, start = objective("mlp")
    recipe = Recipe(steps=2, lr=0.1)  # without decay, or the gradient that moves is another
    kept = run(f, start, recipe)
    for state in kept:
        close(state.gradient, f.gradient(state.point), ROUNDING)
    lent = list(descend(f, start, recipe, 0, lend=True))
    assert torch.equal(lent[1].gradient, kept[2].moments[0])  # its memory was taken


def test_batch_norm_statistics_move_by_torchs_momentum_and_the_objectives_stay():
    f, start = objective("batchnorm")
    before = {name: value.clone() for name, value in f.buffers.items()}
    first, second, *_ = run(f, start, dataclasses.replace(SGD, batch_size=0))
    x = f.rows.inputs.numpy()
    net = module("batchnorm")
    h = x @ net[0].weight.detach().numpy().T + net[0].bias.detach().numpy()
    close(first.buffers["1.running_mean"], before["1.running_mean"], 0)
    close(second.buffers["1.running_mean"], 0.9 * before["1.running_mean"].numpy() + 0.1 * h.mean(0))
    close(second.buffers["1.running_var"], 0.9 * before["1.running_var"].numpy() + 0.1 * h.var(0, ddof=1))
    assert int(second.buffers["1.num_batches_tracked"]) == 1
    assert all(torch.equal(f.buffers[name], value) for name, value in before.items())


@pytest.mark.parametrize("seeds", [0, [0, 1]], ids=["one seed", "own seeds"])
@pytest.mark.parametrize("name", MODULES)
def test_the_global_generator_is_neither_read_nor_moved(name, seeds):
    f, start = objective(name)
    begin = start if seeds == 0 else torch.stack([start, start])
    before = torch.get_rng_state()
    one = run(f, begin, SGD, seeds)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    same(one[-1], run(f, begin, SGD, seeds)[-1])


def test_dropout_is_on_and_follows_seed_and_step():
    f, start = objective("dropout")
    full = dataclasses.replace(SGD, batch_size=0)
    noisy, other = run(f, start, full, 0), run(f, start, full, 1)
    assert float(abs(noisy[0].loss - f(start))) > 1e-6  # the objective has none of it
    assert not torch.equal(noisy[0].loss, other[0].loss)
    still = run(f, start, dataclasses.replace(full, lr=1e-300), 0)  # the point stays, so only the masks change
    assert torch.equal(still[-1].point, start)
    assert len({float(state.loss) for state in still}) == len(still)
    net, masks = module("dropout").train(), set()
    for mask in itertools.product([0.0, 2.0], repeat=5):  # every loss of one row is that of one of the 32 masks
        h = torch.tanh(net[0](f.rows.inputs[:1])) * torch.tensor(mask, dtype=F64)
        masks.add(round(torch.nn.functional.cross_entropy(net[3](h), f.rows.targets[:1]).item(), 10))
    alone = {round(float(run(f.on(slice(0, 1)), start, Recipe(steps=0), seed)[0].loss), 10) for seed in range(30)}
    assert len(alone) > 5
    assert alone <= masks


# -- augmentation -----------------------------------------------------------------------------------------------------

IMAGES = draw(40, 2, 6, 5)


def crops(image):
    """The 81 windows of an image padded by 4 zeros."""
    padded = np.pad(image.numpy(), ((0, 0), (4, 4), (4, 4)))
    return np.stack([padded[:, y : y + 6, x : x + 5] for y in range(9) for x in range(9)])


def test_a_shift_is_one_of_the_81_crops_of_the_padded_image():
    shifted = _augment(IMAGES, {"shift": 4}, 0, 3).numpy()
    places = [np.flatnonzero((crops(image) == got).all((1, 2, 3))) for image, got in zip(IMAGES, shifted, strict=True)]
    assert all(len(place) == 1 for place in places)
    assert len({int(place[0]) for place in places}) > 20  # 40 draws of 81 leave about 32 distinct ones


def test_a_batch_shift_is_one_crop_of_all_images():
    shifted = _augment(IMAGES, {"batch-shift": 4}, 0, 3).numpy()
    places = {
        int(np.flatnonzero((crops(image) == got).all((1, 2, 3)))[0]) for image, got in zip(IMAGES, shifted, strict=True)
    }
    assert len(places) == 1
    steps = [_augment(IMAGES[:1], {"batch-shift": 2}, 0, step).numpy() for step in range(60)]
    # up to 2 pixels: 25 of the 81 crops, of which 60 draws leave all but about 2
    found = {int(np.flatnonzero((crops(IMAGES[0]) == got[0]).all((1, 2, 3)))[0]) for got in steps}
    assert 15 < len(found) <= 25
    assert all(abs(place // 9 - 4) <= 2 and abs(place % 9 - 4) <= 2 for place in found)


@pytest.mark.parametrize("text", ["flip:2", "shift:", "shift:0", "shift:-1", "shift:2.5", "shift:200", "shfit"])
def test_an_augmentation_that_cannot_be_read_is_refused(text):
    with pytest.raises(UsageError, match=r"Allowed|shift"):
        Recipe(augment=text)


def test_all_shifts_are_equally_likely():
    """81 places, 8,100 draws: a count has mean 100 and standard deviation 10; 81 of them stay within 5."""
    image = torch.arange(1.0, 31.0, dtype=F64).reshape(1, 6, 5)
    windows = crops(image).reshape(81, -1)
    drawn = (
        torch.cat([_augment(image.expand(810, 1, 6, 5), {"shift": 4}, 0, step) for step in range(10)])
        .reshape(-1, 30)
        .numpy()
    )
    counts = (drawn[:, None] == windows).all(2).sum(0)
    assert counts.sum() == 8100
    assert np.abs(counts - 100).max() < 50


def test_a_flip_is_the_mirror_image_or_the_image_each_half_the_time():
    flipped = _augment(IMAGES, {"flip": 4}, 0, 3)
    mirrored = (flipped == IMAGES.flip(-1)).all(3).all(2).all(1)
    plain = (flipped == IMAGES).all(3).all(2).all(1)
    assert (mirrored ^ plain).all()
    assert 20 - 5 * math.sqrt(10) < int(mirrored.sum()) < 20 + 5 * math.sqrt(10)


def test_both_augmentations_are_crops_of_images_or_mirrors():
    both = _augment(IMAGES, {"shift": 4, "flip": 4}, 0, 3).numpy()
    for image, got in zip(IMAGES, both, strict=True):
        assert any((crops(one) == got).all((1, 2, 3)).any() for one in (image, image.flip(-1)))


def test_augmentation_follows_seed_and_step():
    one = _augment(IMAGES, {"shift": 4, "flip": 4}, 0, 3)
    torch.manual_seed(5)
    assert torch.equal(_augment(IMAGES, {"shift": 4, "flip": 4}, 0, 3), one)
    assert not torch.equal(_augment(IMAGES, {"shift": 4, "flip": 4}, 0, 4), one)
    assert not torch.equal(_augment(IMAGES, {"shift": 4, "flip": 4}, 1, 3), one)


@pytest.mark.parametrize("augment", ["shift", "flip", "shift,flip"])
def test_members_with_seeds_of_their_own_see_their_own_noise(augment):
    f, start = objective("conv-groupnorm")
    recipe = dataclasses.replace(SGD, augment=augment)
    many = run(f, torch.stack([start, start]), recipe, [1, 2])
    for e, seed in enumerate((1, 2)):
        close(many[-1].point[e], run(f, start, recipe, seed)[-1].point, ROUNDING)
    plain = run(f, start, SGD, 1)
    assert float((plain[-1].point - many[-1].point[0]).norm()) > 1e-6


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optimizer": "sdg"}, "Did you mean 'sgd'"),
        ({"schedule": "cosin"}, "Did you mean 'cosine'"),
        ({"augment": "flip,shfit"}, "Did you mean 'shift'"),
        ({"steps": -1}, "steps must be at least 0"),
        ({"lr": 0.0}, "lr must be positive and finite"),
        ({"lr": float("nan")}, "lr must be positive and finite"),
        ({"lr": float("inf")}, "lr must be positive and finite"),
        ({"momentum": 1.0}, "momentum must lie in"),
        ({"weight_decay": -1e-4}, "weight_decay must be at least 0"),
        ({"betas": (0.9, 1.0)}, "betas must lie in"),
        ({"milestones": (0.5, 1.5)}, "milestones are fractions"),
        ({"warmup": 2000}, "warmup must lie in 0..1000; got 2000"),
        ({"batch_size": -1}, "batch_size must be at least 0"),
        ({"clip": -0.1}, "clip must be at least 0"),
    ],
)
def test_recipes_out_of_range_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Recipe(**options)


@pytest.mark.parametrize(
    ("start", "options", "seed", "message"),
    [
        (lambda z: z, {"batch_size": 14}, 0, "a batch of 14 rows from a set of 13. Allowed: 1 to 13"),
        (lambda z: z[:-1], {}, 0, r"descent starts at \(43,\) or \(E, 43\); got \(42,\)"),
        (lambda z: z[None, None], {}, 0, r"got \(1, 1, 43\)"),
        (lambda z: z, {}, [0, 1], "2 seeds for a single start"),
        (lambda z: z[None], {}, [0, 1], r"2 seeds for 1 start\(s\)"),
        (lambda z: z, {"augment": "flip"}, 0, "is for image rows"),
        (lambda z: z, {"precision": "bf16"}, 0, "bf16 autocast is for CUDA"),
    ],
)
def test_what_does_not_fit_the_objective_is_refused(start, options, seed, message):
    f, z = objective("mlp")
    with pytest.raises(UsageError, match=message):
        next(descend(f, start(z), Recipe(**options), seed))


def test_full_batch_augmentation_with_own_seeds_is_refused():
    f, z = objective("conv-groupnorm")
    with pytest.raises(UsageError, match="leave augmentation out, or set a batch size"):
        next(descend(f, z[None], Recipe(augment="flip"), [0]))


def test_rows_moved_to_another_dtype_are_what_descent_sees():
    f, z = objective("mlp", dtype=torch.float32)
    assert f.on(rows("mlp")).rows.inputs.dtype == torch.float32
    assert run(f, z.double(), Recipe(steps=1))[1].point.dtype == torch.float32


@BOTH
@pytest.mark.parametrize("members", [0, 3])
@pytest.mark.parametrize("outside", ["zeros", "points", "moments"])
def test_a_mask_moves_what_it_keeps_and_nothing_else(recipe, members, outside):
    """Against the same map written out as a subspace that is not known to be a mask. What starts at zero outside stays there, bit by bit; what does not, has no part in the loss."""
    f, start = objective("mlp")
    kept = torch.rand(members or 1, f.dim, generator=generator(0, "mask")).squeeze(0) < 0.6
    chart = subspaces.axes(kept, F64)
    start = start.expand(members, -1).contiguous() if members else start
    moments = [torch.zeros_like(start) for _ in range(2 if recipe.optimizer == "adam" else 1)]
    if outside == "moments":
        moments = [moment + 0.01 for moment in moments]
    begin = Start(start if outside == "points" else chart.project(start), 0, tuple(moments))
    plain = dataclasses.replace(chart, mask=None)
    ours, theirs = (list(descend(f.restrict(one), begin, recipe, 0)) for one in (chart, plain))
    for one, other in zip(ours, theirs, strict=True):
        assert torch.equal(one.loss, other.loss)
        assert torch.equal(one.gradient, other.gradient)
        assert torch.equal(one.point, other.point)
        assert (one.gradient.masked_select(~kept) == 0).all()
        if outside == "zeros":
            assert (one.point.masked_select(~kept) == 0).all()
    assert float((ours[-1].point - ours[0].point).abs().max()) > 0.01
