"""Layers inserted and taken away against dense algebra; linearity against numpy's correlations."""

import math

import numpy as np
import pytest
import torch
from problems import EPS, F64, draw, filled
from torch import Tensor, nn

from landscape import depth, units
from landscape.errors import UsageError
from landscape.objectives import Objective, Rows


def problem(*, rows: int = 9, seed: int = 0) -> tuple[Objective, Tensor, nn.Sequential]:
    module = filled(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Linear(6, 2)), seed)
    assert isinstance(module, nn.Sequential)
    f, z = Objective.of(module, "mse", Rows(draw(rows, 3), draw(rows, 2, seed=4)), dtype=F64)
    return f, z, module


def layer(found: depth.Deepened, name: str) -> units.Layer:
    module = found.f.module(found.point)
    return units.find(units.layers(module, found.f.rows.inputs[:2]), name)


@pytest.mark.parametrize("activation", ["relu", "leaky-relu", "elu", "gelu", "silu", "softplus", "identity"])
@pytest.mark.parametrize(("reader", "width"), [("0", None), ("2", None), ("2", 2), ("2", 9)])
def test_a_lift_keeps_the_outputs_on_the_rows(activation, reader, width):
    f, z, _ = problem()
    deep = depth.lift(f, z, reader, activation=activation, width=width)
    assert deep.error == 0
    before, after = f.outputs(z), deep.f.outputs(deep.point)
    # pre-activations of size up to 50 (silu) pass through orthonormal frames: rounding of sums of 10 such terms, times output weights below 10
    assert (before - after).abs().max() < 50 * 10 * 10 * EPS
    assert deep.f.dim > f.dim
    if activation == "relu":  # elsewhere it is another function
        far = 100 * f.rows.inputs
        assert (f.module(z)(far) - deep.f.module(deep.point)(far)).abs().max() > 0.1 or reader == "2"
        if reader == "0":
            assert (f.module(z)(far) - deep.f.module(deep.point)(far)).abs().max() > 0.1


def planted(f: Objective, z: Tensor) -> Objective:
    """The same network with targets that make z a critical point: residuals in the null space of the outputs' Jacobian (by numpy's SVD)."""
    outputs = f.outputs(z)
    columns = []
    for i in range(
        len(z)
    ):  # central differences of tanh networks would leave 1e-10: exact slopes of every output by one backward each
        columns.append(i)
    w = z.clone().requires_grad_(True)
    parts = f.model.split(w)
    out = f.model.forward(parts, f.buffers, f.rows.inputs)[0].flatten()
    jacobian = torch.stack([torch.autograd.grad(value, w, retain_graph=True)[0] for value in out]).numpy()
    null = np.linalg.svd(jacobian)[0][:, np.linalg.matrix_rank(jacobian) :]
    residual = torch.from_numpy(null @ np.ones(null.shape[1])).reshape(outputs.shape)
    return f.on(Rows(f.rows.inputs, outputs - residual))


def test_a_critical_point_is_lifted_to_one():
    # 60 outputs of 40 parameters leave residuals that no parameter moves
    f, z, _ = problem(rows=30)
    g = planted(f, z)
    assert g(z) > 0.1
    assert g.gradient(z).norm() < 1e-13
    deep = depth.lift(g, z, "2")
    assert float(deep.f(deep.point)) == pytest.approx(float(g(z)), abs=1e-12)
    # every slope is one of the shallow network's times the frame: as small, but for output weights of that size
    assert deep.f.gradient(deep.point).norm() < 1e-12
    # one row more, far away, and it is no critical point of both any longer
    far = torch.full((1, 3), 300.0, dtype=F64)
    more = Rows(torch.cat([g.rows.inputs, far]), torch.cat([g.rows.targets, f.module(z)(far).detach()]))
    assert g.on(more).gradient(z).norm() < 1e-13
    lifted = depth.lift(g, z, "0")
    assert lifted.f.on(g.rows).gradient(lifted.point).norm() < 1e-12
    assert lifted.f.on(more).gradient(lifted.point).norm() > 1e-3


@pytest.mark.parametrize("activation", ["tanh", "sigmoid"])
def test_a_nearly_affine_lift_states_its_error(activation):
    f, z, _ = problem()
    deep = depth.lift(f, z, "2", activation=activation)
    moved = float((f.outputs(z) - deep.f.outputs(deep.point)).abs().max())
    assert 1e-9 < moved <= deep.error < 1e-5


def test_linearity_is_that_of_numpy():
    f, z, module = problem()
    found = depth.linearisation(f, z, units.layers(module, f.rows.inputs[:2])[0])
    assert found is not None
    with torch.no_grad():
        into = module[0](f.rows.inputs).numpy()
    out = np.tanh(into)
    truth = [np.corrcoef(into[:, j], out[:, j])[0, 1] for j in range(6)]
    assert found.correlation == pytest.approx(min(truth), abs=1e-12)
    fits = [np.polyfit(into[:, j], out[:, j], 1) for j in range(6)]
    assert np.allclose(found.slopes, [fit[0] for fit in fits], rtol=0, atol=1e-12)
    assert np.allclose(found.offsets, [fit[1] for fit in fits], rtol=0, atol=1e-12)
    worst = max(np.abs(out[:, j] - np.polyval(fits[j], into[:, j])).max() for j in range(6))
    assert float(found.residuals.max()) == pytest.approx(worst, abs=1e-12)
    assert found.residual == pytest.approx(worst / math.sqrt(((out - out.mean(0)) ** 2).mean()), abs=1e-12)
    assert found.constant == 0


def test_an_inserted_layer_is_detected_and_taken_away():
    f, z, module = problem()
    deep = depth.lift(f, z, "2")
    inserted = layer(deep, "2.inserted")
    found = depth.linearisation(deep.f, deep.point, inserted)
    assert found is not None
    assert found.correlation == pytest.approx(1, abs=1e-12)
    assert found.residual < 1e-12
    # the layer before it is not affine
    other = depth.linearisation(deep.f, deep.point, layer(deep, "0"))
    assert other is not None
    assert other.correlation < 0.999
    shallow = depth.merge(deep.f, deep.point, inserted)
    assert shallow.error < 1e-12
    merged = shallow.f.module(shallow.point)
    weights = {name: value for name, value in merged.named_parameters() if name.startswith("2.")}
    assert len(weights) == 2
    for value, truth in zip(weights.values(), (module[2].weight, module[2].bias), strict=True):
        assert torch.allclose(value, truth, rtol=0, atol=1e-12)
    # a row that leaves the piece is seen
    far = deep.f.on(Rows(torch.cat([f.rows.inputs, -50 * f.rows.inputs]), torch.zeros(18, 2)))
    first = depth.lift(f, z, "0")
    assert depth.linearisation(first.f.on(far.rows), first.point, layer(first, "0.inserted")).correlation < 0.99  # type: ignore[union-attr]


def test_dead_and_constant_units_are_affine():
    module = filled(nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2)))
    with torch.no_grad():
        module[0].bias.copy_(torch.tensor([100.0, -100.0, 100.0, 3.0]))
        module[0].weight[3] = 0
    f, z = Objective.of(module, "mse", Rows(draw(9, 3), draw(9, 2, seed=1)), dtype=F64)
    own = units.layers(module, f.rows.inputs[:2])[0]
    found = depth.linearisation(f, z, own)
    assert found is not None
    assert found.constant == 2
    assert found.correlation == pytest.approx(1, abs=1e-12)
    shallow = depth.merge(f, z, own)
    # numbers of size 100 in sums of 4
    assert (shallow.f.outputs(shallow.point) - f.outputs(z)).abs().max() < 1000 * EPS * 10
    assert shallow.f.dim == 2 * 3 + 2


def test_a_merge_that_is_not_exact_states_its_error():
    f, z, module = problem()
    own = units.layers(module, f.rows.inputs[:2])[0]
    shallow = depth.merge(f, z, own)
    moved = (shallow.f.outputs(shallow.point) - f.outputs(z)).abs().max()
    assert 0.01 < moved <= shallow.error


class Within(nn.Module):
    """Its activation is a function."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.second(torch.relu(self.first(x)))
        return out


def test_what_cannot_be_done_is_refused():
    f, z, _ = problem()
    with pytest.raises(UsageError, match="at least 2"):
        depth.lift(f, z, "2", width=1)
    with pytest.raises(UsageError, match="dense layer"):
        depth.lift(f, z, "1")
    with pytest.raises(UsageError, match="activation"):
        depth.lift(f, z, "2", activation="cubic")
    module = filled(Within())
    g, y = Objective.of(module, "mse", Rows(draw(9, 3), draw(9, 2, seed=1)), dtype=F64)
    own = units.layers(module, g.rows.inputs[:2])[0]
    assert depth.linearisation(g, y, own) is not None
    with pytest.raises(UsageError, match="a module of its own"):
        depth.merge(g, y, own)
