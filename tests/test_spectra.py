"""Spectra against dense eigenvalues; the density by its mass, moments and sign; the stored answer is the answer."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from problems import F64, REGRESSIONS, close, draw, module, objective, quadratic, regression, rows
from threadpoolctl import threadpool_limits
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from landscape.analysis.spectra import NAMES, Spectrum, spectrum
from landscape.errors import LandscapeError, UsageError
from landscape.functionals import diagonal
from landscape.objectives import CURVATURES, Objective
from landscape.results import Result
from landscape.seeds import generator
from landscape.subspaces import span


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Two threads on matrices this small cost ten times what they save, and more where another process has the second core."""
    with threadpool_limits(1):
        yield


TIGHT = 1e-8  # an eigenvalue is within its residual, at most this times |A|


def dense(f, z, operator):
    return np.linalg.eigvalsh((f.hessian(z) if operator == "hessian" else f.gauss_newton(z)).dense().numpy())


def wide(d=200, negative=50, zero=30):
    """A quadratic with `negative` eigenvalues in [-1, -0.5], `zero` of 0 and the rest in [0.5, 2]: none is near the border of the negative ones."""
    return quadratic(
        np.concatenate([np.linspace(-1, -0.5, negative), np.zeros(zero), np.linspace(0.5, 2, d - negative - zero)])
    )


# -- eigenvalues ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["largest", "smallest", "both", "magnitude"])
@pytest.mark.parametrize("operator", ["hessian", "gauss-newton"])
@pytest.mark.parametrize("name", ["mlp", "conv-batchnorm", "tied", "attention"])
def test_the_top_values_are_those_of_the_dense_matrix(name, operator, which):
    f, z = objective(name, chunk=5)
    truth = np.sort(dense(f, z, operator))[::-1]
    truth = {
        "largest": truth[:5],
        "smallest": truth[::-1][:5],
        "both": truth[[0, 1, 2, -1, -2]],
        "magnitude": truth[np.argsort(-np.abs(truth))][:5],
    }[which]
    found = spectrum(f, z, top=5, operator=operator, which=which, tolerance=1e-9)
    close(found.values, truth, TIGHT)
    assert found.converged.all()
    assert not found.warnings
    assert (found.operator, found.which, found.dim, found.rows) == (operator, which, f.dim, 13)
    close([found.loss, found.gradient_norm], [float(f(z)), float(f.gradient(z).norm())], 1e-12)


@pytest.mark.parametrize("kind", ["linear", "softmax"])
def test_regressions_have_the_spectrum_of_their_closed_form(kind):
    p = regression(kind)
    truth = np.linalg.eigvalsh(p.hessian(p.point.numpy()))[::-1]
    close(spectrum(p.f, p.point, top=p.f.dim, tolerance=1e-10).values, truth, TIGHT)


def test_a_restriction_has_the_spectrum_of_BHB():
    p = wide()
    b = draw(7, 200, seed=4)
    found = spectrum(p.f.restrict(span(p.point, b)), torch.zeros(7, dtype=F64), top=7)
    close(found.values, np.linalg.eigvalsh(b.numpy() @ p.hessian(None) @ b.numpy().T)[::-1], TIGHT)


def test_a_count_above_d_and_an_unreached_tolerance_are_said():
    p = wide()
    short = spectrum(p.f, p.point, top=5, max_products=10)
    assert not short.converged.any()
    assert "5 of 5 eigenvalues did not reach the tolerance" in short.warnings[0]
    small = quadratic(np.arange(1.0, 4.0))
    cut = spectrum(small.f, small.point, top=9)
    assert len(cut.values) == 3
    assert "all 3 are given" in cut.warnings[0]


class WrongSecond(torch.autograd.Function):
    """w -> w^2 / 2 by entries with a gradient that is right and a second derivative that mixes entries without symmetry."""

    @staticmethod
    def forward(ctx, w):
        ctx.save_for_backward(w)
        return w**2 / 2

    @staticmethod
    def backward(ctx, g):
        (w,) = ctx.saved_tensors
        return g * (w + (w.roll(1) - w.roll(1).detach()))


def test_products_that_are_not_symmetric_are_said():
    f = Objective.from_function(lambda w: WrongSecond.apply(w).sum(), 6)
    assert any("not symmetric" in warning for warning in spectrum(f, draw(6), top=1).warnings)


# -- exact answers ----------------------------------------------------------------------------------------------------


def by_forward_over_reverse(name, index):
    """The Hessian (D, D) of the user's own module over the rows `index`, in one pass by torch.func: another mode of differentiation, without chunks and without our kernels."""
    net, data = module(name).eval(), rows(name)
    layout = [(key, tensor.shape) for key, tensor in net.named_parameters()]
    w = torch.cat([tensor.detach().flatten() for tensor in net.parameters()])

    def loss(w):
        pieces = torch.split(w, [shape.numel() for _, shape in layout])
        state = {key: piece.view(shape) for (key, shape), piece in zip(layout, pieces, strict=True)}
        with sdpa_kernel(SDPBackend.MATH):
            return nn.functional.cross_entropy(
                torch.func.functional_call(net, state, (data.inputs[index],)), data.targets[index]
            )

    # column by column: under vmap, as in torch.func.hessian, torch 2.14 has second derivatives of LayerNorm that differ from finite differences by 10%
    slope = torch.func.grad(loss)
    return torch.stack([torch.func.jvp(slope, (w,), (axis,))[1] for axis in torch.eye(len(w), dtype=F64)]).numpy()


def check_all(found, matrix):
    """Everything of an exact spectrum against a dense matrix, at 1e-10 of its size."""
    values, d = np.linalg.eigvalsh(matrix)[::-1], len(matrix)
    close(found.values, values[: len(found.values)])
    close(found.counted, values)
    close(found.trace, np.trace(matrix))
    close(found.square, (matrix**2).sum())
    assert (found.leak, found.accuracy, found.trace_error, found.square_error, found.nodes.size) == (0, 0, 0, 0, 0)
    mu, shift = found.measure(), 2 * abs(values).max()
    close(mu.log_determinant(shift).value, np.linalg.slogdet(matrix + shift * np.eye(d))[1])
    close(mu.effective_dimension(shift).value, np.trace(np.linalg.solve(matrix + shift * np.eye(d), matrix)))
    for power in range(1, 5):
        close(mu.moment(power).value, np.trace(np.linalg.matrix_power(matrix, power)) / d)
    sure = np.abs(values) > 10 * found.zero  # the others may have either sign
    for share, truth in ((found.positive, values > found.zero), (found.negative, values < -found.zero)):
        assert abs(share - truth.mean()) <= (~sure).mean()


@pytest.mark.parametrize("chunk", [1, 5, None])
@pytest.mark.parametrize("kind", REGRESSIONS)
def test_regressions_are_exact_whatever_the_chunks(kind, chunk):
    p = regression(kind, chunk=chunk)
    matrix = p.hessian(p.point.numpy())
    check_all(spectrum(p.f, p.point, density=True, tolerance=1e-11), matrix)
    close(diagonal(p.f.hessian(p.point)).values, np.diag(matrix))


@pytest.mark.parametrize("name", ["mlp", "batchnorm", "layernorm", "conv-batchnorm", "conv-groupnorm", "transformer"])
def test_networks_are_exact_whatever_the_chunks_and_the_order(name):
    order = torch.randperm(13, generator=generator(0, "order"))
    matrix = by_forward_over_reverse(name, torch.arange(13))
    small = len(matrix) <= 60  # a chunk of one row takes thirteen times as many products
    for chunk, index in ((5, order), (1, None), (None, order))[: 3 if small else 1]:
        f, z = objective(name, chunk=chunk)
        f = f if index is None else f.on(f.rows.take(index))
        # the adaptive plan forms a matrix of up to 122 dimensions at once
        options = {"density": True} if f.dim <= 122 else {"density": True, "counted": 150}
        check_all(spectrum(f, z, top=4, tolerance=1e-11, **options), matrix)
        close(diagonal(f.hessian(z), probes=f.dim).values, np.diag(matrix))


@pytest.mark.parametrize("operator", CURVATURES)
def test_every_operator_has_its_dense_spectrum_and_name(operator):
    f, z = objective("mlp", chunk=5)
    found = spectrum(f, z, operator=operator, density=True, top=4, tolerance=1e-11, seed=3)
    values = np.linalg.eigvalsh(f.curvature(z, operator, seed=3).dense().numpy())[::-1]
    close(found.values, values[:4])
    close(found.trace, values.sum())
    assert found.operator == operator
    assert found.summary().startswith(NAMES[operator])
    assert f"of the {NAMES[operator]}" in found.caption()
    if operator != "hessian":
        assert found.negative == 0


def test_passes_that_differ_are_said():
    class Noisy(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(4, 3)

        def forward(self, x):
            return self.out(x + 0.1 * torch.randn_like(x))

    f, z = Objective.of(Noisy(), "cross-entropy", rows("mlp"), dtype=F64)
    assert any("two passes over the data give the losses" in warning for warning in spectrum(f, z, top=1).warnings)


# -- the peer ---------------------------------------------------------------------------------------------------------


def test_pyhessian_has_the_same_values():
    """It stops where a value changes by less than the tolerance from one power iteration to the next, and divides by norm + 1e-6: 1e-3 where values are apart."""
    f, z = objective("mlp")
    options = {"top": 3, "which": "magnitude", "tolerance": 1e-7, "max_products": 6000}
    own, peer = spectrum(f, z, **options), spectrum(f, z, engine="pyhessian", **options)
    truth = dense(f, z, "hessian")
    close(peer.values, truth[np.argsort(-np.abs(truth))][:3], 1e-3)
    close(peer.values, own.values, 1e-3)
    distance = np.abs(truth[:, None] - peer.values).min(0)
    assert (distance <= peer.residuals + 1e-12).all()
    assert peer.provenance["engine"] == "pyhessian"
    assert peer.products > own.products
    assert np.isnan(peer.missed)
    assert Result.from_json(peer.to_json()).to_json() == peer.to_json()


def test_the_peer_too_says_where_it_did_not_converge():
    f, z = objective("mlp")
    short = spectrum(f, z, top=3, which="magnitude", engine="pyhessian", max_products=6)
    assert not short.converged.all()
    assert "did not reach the tolerance" in short.warnings[0]


def test_the_peer_takes_whole_models_of_one_tensor_in_evaluation_mode():
    f, z = objective("mlp")
    part = f.restrict(span(z, draw(3, len(z))))
    with pytest.raises(UsageError, match="leave the restriction"):
        spectrum(part, torch.zeros(3, dtype=F64), which="magnitude", engine="pyhessian", top=1)
    f, z = objective("batchnorm")
    with pytest.raises(UsageError, match="evaluation mode"):
        spectrum(f.with_buffers(f.buffers, "batch"), z, which="magnitude", engine="pyhessian", top=1)


# -- density ----------------------------------------------------------------------------------------------------------


def straight(values):
    """w^T diag(values) w / 2 and a point: what Gaussian probes see of a matrix does not depend on its frame."""
    diag = torch.as_tensor(values, dtype=F64)
    return Objective.from_function(lambda w: (diag * w) @ w / 2, len(diag)), draw(len(diag))


BROAD = np.concatenate(
    [np.linspace(-1, -0.5, 375), np.zeros(225), np.linspace(0.5, 2, 895), [3.0, 4.0, 6.0, 9.0, 12.0]]
)


@pytest.fixture(scope="module")
def broad():
    """1,500 dimensions: a quarter negative, 15% zero, five outliers."""
    return straight(BROAD)


@pytest.mark.parametrize("seed", range(3))
def test_mass_moments_and_negative_share_are_those_of_the_spectrum(broad, seed):
    found = spectrum(*broad, top=5, density=True, counted=20, probes=10, steps=40, seed=seed)
    assert found.nodes.shape == (10, 40)
    assert len(found.counted) >= 20
    close(found.weights.sum(1), np.ones(10), 1e-10)
    close(found.mass, 1.0, 1e-3)  # five widths beyond the outermost points leave less than 1e-6
    assert abs(found.trace - BROAD.sum()) < 4 * found.trace_error
    assert abs(found.square - (BROAD**2).sum()) < 4 * found.square_error + found.leak**2
    # the 15% at 0 are one node, on either side of it, and the error its weight; the deviation over probes is a fiftieth of that
    assert abs(found.negative - 0.25) < 1.1 * found.negative_error < 0.2
    assert abs(found.positive - 0.6) < 1.1 * found.positive_error < 0.2
    assert abs(found.trace - found.trace_check) < 5 * np.hypot(found.trace_error, found.trace_check_error)
    assert 0 < found.trace_check_error < np.inf
    assert (found.density_error >= 0).all()
    assert not found.warnings


def test_the_trace_error_is_that_of_gaussian_probes(broad):
    """A Gaussian probe's quotient v^T A v / v^T v has variance 2 (|A|_F^2 / d - mean^2) / (d + 2); its estimate from 40 probes is good to 5 / sqrt(80)."""
    found = spectrum(*broad, density=True, counted=0, probes=40, steps=2, top=1)
    truth = 1500 * np.sqrt(2 * BROAD.var() / 1502 / 40)
    assert abs(found.trace_error / truth - 1) < 5 / np.sqrt(80)


def test_the_curve_has_the_mass_of_every_part_and_the_height_of_the_flat_one(broad):
    found = spectrum(*broad, density=True, counted=60, probes=20, steps=60, top=5)
    # the five outliers are counted, and none of the rest reaches there
    for low, high, share in ((-9, 2.5, 1495), (2.5, 20, 5)):
        inside = (found.grid > low) & (found.grid < high)
        assert abs(np.trapezoid(found.density[inside], found.grid[inside]) - share / 1500) < 1e-4
    flat = (found.grid > 0.8) & (found.grid < 1.7)
    truth = 895 / 1500 / 1.5
    assert np.abs(found.density[flat] / truth - 1).mean() < 0.1
    far = np.abs(found.density - truth)[flat] > 4 * found.density_error[flat] + 0.1 * truth  # ripples of the nodes
    assert far.mean() < 0.05
    # an outlier that is counted is one Gaussian of the least width and of mass 1/d
    peak = found.density[np.abs(found.grid - 9.0).argmin()]
    assert peak == pytest.approx(1 / 1500 / (found.width * np.sqrt(2 * np.pi)), rel=0.02)


def test_the_band_of_the_curve_is_its_deviation_over_seeds(broad):
    """Over 16 seeds and the flat part, where a curve of 4 probes has some ten independent places: the root of the mean squares is known to a fifth and better."""
    found = [spectrum(*broad, top=1, density=True, counted=0, probes=4, steps=20, seed=seed) for seed in range(16)]
    places = np.linspace(0.7, 1.8, 100)
    curves, errors = (
        np.array([np.interp(places, one.grid, getattr(one, name)) for one in found])
        for name in ("density", "density_error")
    )
    assert 0.6 < np.sqrt((errors**2).mean() / curves.var(axis=0, ddof=1).mean()) < 1.7


@pytest.mark.parametrize("exact", [True, False])
def test_curves_over_decades_hold_the_shares_of_either_sign(exact):
    values = np.concatenate([-np.geomspace(1e-2, 1, 30), np.geomspace(1e-3, 10, 90)]).repeat(1 if exact else 10)
    options = {} if exact else {"counted": 100, "probes": 6, "steps": 60}
    found = spectrum(*straight(values), density=True, **options)
    assert bool(found.nodes.size) != exact
    for curve, share, error in (
        (found.positive_density, found.positive, found.positive_error),
        (found.negative_density, found.negative, found.negative_error),
    ):
        mass = np.trapezoid(curve, found.decades)
        close(mass, share, 1e-6 if exact else 1e-2)
        assert abs(mass - (0.75 if curve is found.positive_density else 0.25)) <= 4 * error + 1e-6
    if exact:  # flat by decades: 89 steps over four, 29 over two
        for curve, place, height in ((found.positive_density, -1, 89 / 4), (found.negative_density, -0.5, 29 / 2)):
            assert curve[np.abs(found.decades - place).argmin()] == pytest.approx(height / 120, rel=0.02)


def test_the_estimated_accuracy_is_reached_or_said(broad):
    reached = spectrum(*broad, density=True)
    truth = reached.measure().distance(BROAD) / np.abs(BROAD).mean()
    assert truth / 2 <= reached.accuracy <= 0.05
    assert not reached.warnings
    short = spectrum(*broad, density=True, accuracy=1e-5, max_products=60)
    assert any("the density reached an accuracy of" in warning for warning in short.warnings)
    assert short.accuracy > 1e-5


def test_a_stored_spectrum_answers_for_any_function(broad):
    found = spectrum(*broad, density=True, counted=30, probes=4, steps=30)
    mu = Result.from_json(found.to_json()).measure()
    assert mu.trace().value == found.trace
    assert mu.error() == found.accuracy
    got, truth = mu.effective_dimension(2.0), (BROAD / (BROAD + 2)).sum()
    assert abs(got.value - truth) < 5 * got.error + found.leak


@pytest.mark.parametrize("d", [20, 300])
def test_a_zero_matrix_has_no_signs(d):
    found = spectrum(*straight(np.zeros(d)), density=True, top=3)
    close(found.values, np.zeros(3))
    assert (found.negative, found.positive, found.trace, found.accuracy) == (0, 0, 0, 0)
    close(found.mass, 1.0, 1e-3)
    for panel in found.panels():
        found.plot(Figure().subplots(), panel)
    assert found.figure().to_json()
    assert Result.from_json(found.to_json()).to_json() == found.to_json()


def test_scaling_the_loss_scales_the_curve():
    scale = 2.0**-30  # a power of two rounds nothing
    one, small = (spectrum(*straight(c * BROAD), density=True, counted=20, probes=3, steps=20) for c in (1.0, scale))
    close(small.values / scale, one.values, 1e-9)
    close(small.width / scale, one.width, 1e-9)
    close(small.density * scale, one.density, 1e-6)
    close([small.negative, small.positive, small.accuracy], [one.negative, one.positive, one.accuracy], 1e-9)


def test_a_point_spectrum_has_one_bump_of_mass_one():
    f = Objective.from_function(lambda w: 3 * w @ w / 2, 50)
    found = spectrum(f, draw(50), density=True, top=2)
    close(found.values, [3.0, 3.0], 1e-10)
    close(found.mass, 1.0, 1e-3)
    close(found.trace, 150.0, 1e-9)
    assert found.negative == 0


def test_more_probes_leave_the_earlier_ones_and_the_values():
    p = wide(60, 20, 5)
    few, more = (spectrum(p.f, p.point, density=True, probes=k, steps=10) for k in (3, 6))
    assert np.array_equal(few.nodes, more.nodes[:3])
    assert np.array_equal(few.values, more.values)


def test_the_seed_decides_and_is_stated():
    f, z = objective("mlp")
    one, same, other = (spectrum(f, z, density=True, seed=seed) for seed in (4, 4, 5))
    assert one.to_json() == same.to_json()
    assert one.to_json() != other.to_json()
    assert one.provenance == {"seed": 4, "dtype": "float64", "device": "cpu", "norm": "eval", "engine": "native"}


def test_other_libraries_have_the_same_top_values():
    """hessian-eigenthings by its own Lanczos, curvlinops by scipy's: on equal batches, where both are right."""
    import hessian_eigenthings
    from curvlinops import HessianLinearOperator
    from scipy.sparse.linalg import eigsh

    f, z = objective("mlp")
    ours = spectrum(f, z, top=4, tolerance=1e-10)
    module, data = f.module(z), [(f.rows.inputs, f.rows.targets)]
    theirs = hessian_eigenthings.HessianOperator(
        module, data, hessian_eigenthings.supervised_loss(torch.nn.functional.cross_entropy)
    )
    close(hessian_eigenthings.lanczos(theirs, k=4, max_iter=f.dim, which="LA").eigenvalues, ours.values, 1e-8)
    linear = HessianLinearOperator(module, torch.nn.CrossEntropyLoss(), list(module.parameters()), data)
    close(np.sort(eigsh(linear.to_scipy(), k=4, which="LA")[0])[::-1], ours.values, 1e-8)


# -- the answer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("density", "options"), [(False, {}), (True, {}), (True, {"counted": 3, "probes": 3, "steps": 8})]
)
def test_read_back_equal_and_drawn_from_the_file_alone(density, options):
    f, z = objective("mlp")  # 43 dimensions: by default all are counted
    found = spectrum(f, z, density=density, **options)
    assert bool(found.nodes.size) == bool(options)
    back = Result.from_json(found.to_json())
    assert isinstance(back, Spectrum)
    for field in found.__dataclass_fields__:
        np.testing.assert_equal(getattr(back, field), getattr(found, field), field)
    assert back.to_json() == found.to_json()
    assert back.has_density == density
    assert back.summary().startswith(f"Hessian, {f.dim} dimensions: top 10 eigenvalues {found.values[0]:.4g}")
    assert ("Mass of the curve" in back.caption()) == density
    for panel in ("", *back.panels()):
        ax = Figure().subplots()
        back.plot(ax, panel)
        assert ax.get_xlabel()
        assert ax.get_title(loc="left")
        ax.figure.canvas.draw()
    assert back.figure().to_json()
    drawn = {trace.name for trace in back.figure().data}
    assert ({"density", "eigenvalues one by one"} <= drawn) == density


def test_an_unconverged_value_is_marked_in_the_picture():
    p = wide()
    marks = []
    for products in (10, 400):
        ax = Figure().subplots()
        spectrum(p.f, p.point, top=3, max_products=products).plot(ax)
        marks.append(sum(line.get_marker() == "x" for line in ax.get_lines()))
    assert marks == [3, 0]


# -- refusals ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operator": "hesian"}, "Did you mean 'hessian'"),
        ({"top": 0}, "at least 1"),
        ({"density": True, "probes": 1}, "at least 2 probes and 2 steps; got 1 and 60"),
        ({"density": True, "steps": 1}, "got 4 and 1"),
        ({"density": True, "accuracy": 0.1, "steps": 9}, "either an accuracy, or"),
        ({"density": True, "accuracy": -1.0}, "positive and finite; got -1"),
        ({"engine": "pyhesian"}, "Did you mean 'pyhessian'"),
        ({"engine": "pyhessian"}, "which='magnitude'"),
        ({"engine": "pyhessian", "which": "magnitude", "density": True}, "without a density"),
        ({"engine": "pyhessian", "which": "magnitude", "operator": "fisher"}, "eigenvalues of the hessian"),
        ({"top": 5, "max_products": 4}, "4 products cannot give 5"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    f, z = objective("mlp")
    with pytest.raises(UsageError, match=message):
        spectrum(f, z, **options)


def test_points_and_products_that_are_not_finite_are_errors():
    f, z = objective("mlp")
    bad = z.clone()
    bad[3] = float("nan")
    with pytest.raises(LandscapeError, match="the point has 1 NaN or infinite"):
        spectrum(f, bad)
    data = f.rows.inputs.clone()
    data[2] = float("inf")
    with pytest.raises(LandscapeError, match="not finite"):
        spectrum(f.on(type(f.rows)(data, f.rows.targets)), z)


def test_some_parameters_are_named_in_the_answer():
    f, z = objective("mlp")
    found = spectrum(f, z, top=2, params="0.*", tolerance=1e-9)
    mask = f.model.layout.select("0.*")
    block = f.hessian(z).dense().numpy()[np.ix_(mask, mask)]
    close(found.values, np.linalg.eigvalsh(block)[::-1][:2], TIGHT)
    assert found.summary().startswith(f"Hessian in the parameters 0.*, {mask.sum()} dimensions")
    assert "in the parameters 0.*" in found.caption()
    with pytest.raises(UsageError, match="before the objective is restricted"):
        spectrum(f.restrict(span(z, draw(3, f.dim))), draw(3), params="0.*")
