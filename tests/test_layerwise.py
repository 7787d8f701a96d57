"""Curvature layer by layer against the diagonal blocks of the dense matrix; the stored answer is the answer."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from problems import F64, close, draw, filled, objective, regression, rows
from threadpoolctl import threadpool_limits
from torch import nn

from landscape.analysis.layerwise import Layers, layers
from landscape.errors import LandscapeError, UsageError
from landscape.objectives import CURVATURES, Objective
from landscape.results import Result
from landscape.subspaces import span


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Two threads on matrices this small cost ten times what they save, and more where another process has the second core."""
    with threadpool_limits(1):
        yield


def blocks(f, matrix):
    """The diagonal blocks by the module that owns the parameters, in order."""
    places = {}
    for entry in f.model.layout.of("parameter"):
        owner = entry.name.rpartition(".")[0] or entry.name
        places.setdefault(owner, []).extend(range(entry.offset, entry.offset + entry.size))
    return {name: matrix[np.ix_(place, place)] for name, place in places.items()}


@pytest.mark.parametrize("operator", ["hessian", "gauss-newton"])
@pytest.mark.parametrize("name", ["mlp", "conv-batchnorm", "tied", "frozen", "transformer"])
def test_layers_are_the_diagonal_blocks_of_the_dense_matrix(name, operator):
    f, w = objective(name, chunk=5)
    matrix = f.curvature(w, operator).dense().numpy()
    truth = blocks(f, matrix)
    found = layers(f, w, operator=operator, top=3, tolerance=1e-9)
    assert found.names == tuple(truth)
    assert found.sizes.tolist() == [len(block) for block in truth.values()]
    whole = np.linalg.eigvalsh(matrix)
    for place, block in enumerate(truth.values()):
        values = np.linalg.eigvalsh(block)[::-1]
        close(found.values[place, : len(values)], values[:3], 1e-8)
        # Cauchy: the i-th largest of a block lies between those of the whole
        kept = min(3, len(values))
        assert (found.values[place, :kept] <= whole[::-1][:kept] + 1e-8).all()
        assert (found.values[place, :kept] >= np.sort(whole)[: len(values)][::-1][:kept] - 1e-8).all()
        assert abs(found.traces[place] - np.trace(block)) <= 5 * found.trace_errors[place] + 1e-10
    assert found.converged.all()
    assert not found.warnings
    if operator == "gauss-newton":  # a Hessian's trace may be so near 0 that its products do not suffice
        assert (found.trace_errors <= 0.05 * found.traces).all()
    assert abs(found.traces.sum() - np.trace(matrix)) <= 5 * np.linalg.norm(found.trace_errors) + 1e-10
    assert (found.rows, found.operator) == (13, operator)
    close(found.loss, float(f(w)), 1e-12)


def test_small_blocks_are_exact_and_short_ones_padded_by_nan():
    """The bias of a softmax regression has 4 parameters: its block is the mean of diag(p) - p p^T, from the closed form."""
    p = regression("softmax")
    only = layers(p.f, p.point, top=6, params="bias", tolerance=1e-11)
    matrix = p.hessian(p.point.numpy())[-4:, -4:]
    assert (only.names, only.sizes.tolist()) == (("bias",), [4])
    close(only.values[0, :4], np.linalg.eigvalsh(matrix)[::-1])
    assert np.isnan(only.values[0, 4:]).all()
    assert np.isnan(only.residuals[0, 4:]).all()
    close(only.traces, [np.trace(matrix)])
    assert only.trace_errors[0] == 0
    assert ", nan" not in only.table()[1][2]


@pytest.mark.parametrize("operator", CURVATURES)
def test_every_operator_by_layer(operator):
    f, w = objective("mlp")
    found = layers(f, w, operator=operator, seed=2)
    truth = blocks(f, f.curvature(w, operator, seed=2).dense().numpy())
    close(found.values[:, 0], [np.linalg.eigvalsh(block)[-1] for block in truth.values()], 1e-6)
    assert found.operator == operator


def test_globs_take_some_layers_only_and_parts_of_them():
    f, w = objective("conv-batchnorm")
    whole, one, weights = layers(f, w), layers(f, w, params="5.*"), layers(f, w, params="*.weight")
    assert (whole.names, one.names) == (("0", "1", "5"), ("5",))
    close(one.values[0], whole.values[2], 1e-6)  # each within 1e-8: residual^2 / gap at a tolerance of 1e-4
    assert weights.names == whole.names
    assert weights.sizes.tolist() == [72, 4, 48]
    assert (weights.values[:, 0] <= whole.values[:, 0] + 1e-6).all()


def test_a_layer_that_the_loss_does_not_use_is_flat():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 3), nn.Linear(5, 5)

        def forward(self, x):
            return self.used(x)

    f, w = Objective.of(filled(Idle()), "cross-entropy", rows("mlp"), dtype=F64)
    found = layers(f, w, top=2)
    assert found.names == ("used", "idle")
    assert not found.values[1].any()
    assert (found.traces[1], found.trace_errors[1]) == (0, 0)


def test_products_too_few_are_said():
    f, w = objective("conv-batchnorm")
    found = layers(f, w, top=3, max_products=4, tolerance=1e-10)
    assert not found.converged[0]
    assert "layers did not reach the tolerance 1e-10 in 4 products (0" in found.warnings[0]
    assert found.products <= 3 * (4 + 64)  # a block of 64 parameters or fewer is known whole for its trace


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"operator": "hesian"}, "Did you mean 'hessian'"),
        ({"top": 0}, "asked for 0 eigenvalues a layer"),
        ({"accuracy": 0.0}, "must be positive and finite"),
        ({"max_products": 2, "top": 3}, "2 products cannot give 3"),
        ({"params": "nothing*"}, "nothing"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    f, w = objective("mlp")
    with pytest.raises(UsageError, match=message):
        layers(f, w, **options)


def test_restrictions_and_points_that_are_not_finite_are_refused():
    f, w = objective("mlp")
    with pytest.raises(UsageError, match="before it is restricted"):
        layers(f.restrict(span(w, draw(3, len(w)))), torch.zeros(3, dtype=F64))
    with pytest.raises(LandscapeError, match="the point has"):
        layers(f, w * torch.nan)


def test_long_names_leave_room_for_the_bars():
    f, w = objective("mlp")
    long = ("backbone.stages.0.blocks.1.convolution.parametrized", "a")
    ax = Figure().subplots()
    replace(layers(f, w), names=long).plot(ax)
    assert [tick.get_text() for tick in ax.get_yticklabels()] == ["backbone.stages.0.….parametrized", "a"]


def deep(count):
    """A tanh MLP of `count` narrow layers."""
    parts = [nn.Linear(4, 6), nn.Tanh()]
    for _ in range(count - 2):
        parts += [nn.Linear(6, 6), nn.Tanh()]
    return Objective.of(filled(nn.Sequential(*parts, nn.Linear(6, 3))), "cross-entropy", rows("mlp"), dtype=F64)


@pytest.mark.parametrize("count", [3, 30])
def test_read_back_equal_and_drawn_from_the_file_alone(count):
    found = layers(*deep(count), top=2, max_products=60)
    back = Result.from_json(found.to_json())
    assert isinstance(back, Layers)
    for field in found.__dataclass_fields__:
        got, put = getattr(back, field), getattr(found, field)
        np.testing.assert_equal(list(got) if field == "names" else got, list(put) if field == "names" else put, field)
    assert back.to_json() == found.to_json()
    first = found.names[int(np.argmax(found.values[:, 0]))]
    assert f"{count} layers: the sharpest is {first} with" in back.summary()
    assert "Diagonal blocks of the Hessian" in back.caption()
    assert len(back.table()) == count + 1
    for panel, values in (("top", found.values[:, 0]), ("trace", found.traces), ("", found.values[:, 0])):
        ax = Figure().subplots()
        back.plot(ax, panel)
        bars = {bar.get_y() + bar.get_height() / 2: bar.get_width() for bar in ax.patches}
        close(np.array([bars[place] for place in sorted(bars, reverse=True)]), values)  # the first layer on top
        assert [tick.get_text() for tick in ax.get_yticklabels()] == list(found.names)
        assert ax.get_xlabel()
        ax.figure.canvas.draw()
    assert [trace.name for trace in back.figure().data] == ["largest eigenvalue", "trace"]
    assert back.figure().to_json()
