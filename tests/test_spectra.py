"""Spectra against dense eigenvalues; the density by its mass, moments and sign; the stored answer is the answer."""

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from problems import F64, close, draw, objective, quadratic, regression

from landscape.analysis.spectra import Spectrum, spectrum
from landscape.errors import LandscapeError, UsageError
from landscape.objectives import Objective
from landscape.results import Result
from landscape.subspaces import span

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


# -- density ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_mass_moments_and_negative_share_are_those_of_the_spectrum(seed):
    p = wide()
    values = np.linalg.eigvalsh(p.hessian(None))
    found = spectrum(p.f, p.point, density=True, probes=10, steps=60, seed=seed)
    close(found.weights.sum(1), np.ones(10), 1e-10)
    close(
        found.mass, 1.0, 1e-3
    )  # five widths beyond the outermost nodes leave less than 1e-6; the grid has ten points a width
    assert abs(found.trace - values.sum()) < 4 * found.trace_error
    assert abs(found.negative - 0.25) < 4 * found.negative_error
    second = np.nansum(found.weights * found.nodes**2, axis=1)
    assert abs(second.mean() - (values**2).mean()) < 4 * second.std(ddof=1) / np.sqrt(10)
    assert (found.density_error >= 0).all()


def test_the_trace_error_is_that_of_gaussian_probes():
    """A Gaussian probe's quotient v^T A v / v^T v has variance 2 (|A|_F^2 / d - mean^2) / (d + 2); its estimate from 40 probes is good to 5 / sqrt(80)."""
    p = wide()
    values = np.linalg.eigvalsh(p.hessian(None))
    found = spectrum(p.f, p.point, density=True, probes=40, steps=2, top=1)
    truth = 200 * np.sqrt(2 * values.var() / 202 / 40)
    assert abs(found.trace_error / truth - 1) < 5 / np.sqrt(80)


def test_the_curve_is_the_smoothed_spectrum_within_its_errors():
    p = wide()
    values = np.linalg.eigvalsh(p.hessian(None))
    found = spectrum(p.f, p.point, density=True, probes=20, steps=120, top=1)
    truth = np.exp(-0.5 * ((found.grid[:, None] - values) / found.width) ** 2).mean(1) / (
        found.width * np.sqrt(2 * np.pi)
    )
    seen = truth > 1e-3
    far = np.abs(found.density - truth)[seen] > 4 * found.density_error[seen]
    assert far.mean() < 0.02  # t with 19 degrees of freedom passes 4 once in 1,300; neighbours on the grid go together


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
    assert one.provenance == {"seed": 4, "dtype": "float64", "device": "cpu", "norm": "eval"}


# -- the answer -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("density", [False, True])
def test_read_back_equal_and_drawn_from_the_file_alone(density):
    f, z = objective("mlp")
    found = spectrum(f, z, density=density, probes=3, steps=60)  # more steps than dimensions: padded by NaN or cut
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
        ({"density": True, "probes": 1}, "at least 2 probes and 2 steps; got 1 and 80"),
        ({"density": True, "steps": 1}, "got 10 and 1"),
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
