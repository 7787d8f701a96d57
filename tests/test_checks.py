"""The doctor finds planted faults, and only these; it names what is special about a model."""

import dataclasses

import pytest
import torch
from problems import F64, MODULES, filled, module, objective, rows
from torch import nn
from torch.nn import functional

from landscape.analysis.checks import FAIL, NOTE, OK, Checkup, check
from landscape.objectives import Objective
from landscape.results import Result


def examine(f, z, net, **keywords):
    found = check(f, z, net, subject="it", **keywords)
    return found, {finding["check"]: finding for finding in found.findings}


def failed(found):
    return {finding["check"] for finding in found.findings if finding["status"] == FAIL}


# -- the healthy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("name", MODULES)
def test_sound_models_are_healthy(name, dtype, seed):
    f, z = objective(name, dtype=dtype)
    found, by_name = examine(f, z, module(name), seed=seed)
    assert found.healthy, found.summary()
    assert not found.warnings
    assert {"weights", "data", "two passes agree", "gradient", "Hessian symmetry"} <= by_name.keys()
    assert by_name["weights"]["words"] == f"{f.dim:,} finite parameters"


def test_the_recorded_loss_is_compared():
    f, z = objective("mlp")
    loss = float(f(z))
    assert examine(f, z, module("mlp"), recorded=loss * (1 + 1e-6))[0].healthy
    found, by_name = examine(f, z, module("mlp"), recorded=loss * 1.001)
    assert failed(found) == {"recorded loss"}
    assert by_name["recorded loss"]["value"] == pytest.approx(1e-3, rel=1e-2)
    assert failed(examine(f, z, module("mlp"), recorded=float("nan"))[0]) == {"recorded loss"}
    assert examine(f, z, module("mlp"))[1]["recorded loss"]["status"] == NOTE


# -- planted faults ---------------------------------------------------------------------------------------------------


class WrongBackward(torch.autograd.Function):
    """tanh with a gradient a third too large."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - torch.tanh(x) ** 2) * 4 / 3


class OnceOnly(torch.autograd.Function):
    """tanh whose gradient is right and has no derivative."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        return g * (1 - torch.tanh(x) ** 2)


class Lopsided(torch.autograd.Function):
    """tanh whose gradient is right and whose second derivative is not that of any function."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        mixed = x.roll(1, dims=1)
        return g * (1 - torch.tanh(x) ** 2) + 0.3 * (mixed - mixed.detach())


class Through(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


class Noisy(nn.Module):
    def forward(self, x):
        return x + 1e-3 * torch.randn_like(x)


class Counting(nn.Module):
    """Keeps state between calls."""

    def __init__(self):
        super().__init__()
        self.calls = 0

    def forward(self, x):
        self.calls += 1
        return x * (1 + 1e-3 * self.calls)


FAULTS = {
    "gradient": lambda: Through(WrongBackward),
    "no second derivative": lambda: Through(OnceOnly),
    "lopsided": lambda: Through(Lopsided),
    "noise": Noisy,
    "state": Counting,
}
EXPECTED = {
    "gradient": "gradient",
    "no second derivative": "Hessian symmetry",
    "lopsided": "Hessian symmetry",
    "noise": "two passes agree",
    "state": "two passes agree",
}


@pytest.mark.parametrize("dtype", [torch.float32, F64])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_faulty_layer_is_found_under_its_name(fault, dtype):
    net = filled(nn.Sequential(nn.Linear(4, 5), FAULTS[fault](), nn.Linear(5, 3)))
    f, z = Objective.of(net, "cross-entropy", rows("mlp"), dtype=dtype)
    found, _ = examine(f, z, net)
    assert EXPECTED[fault] in failed(found)
    assert not found.healthy
    assert any(EXPECTED[fault] in warning for warning in found.warnings)
    assert EXPECTED[fault] in found.summary()
    if fault in ("gradient", "no second derivative", "lopsided"):
        assert "two passes agree" not in failed(found)


def test_a_loss_that_draws_numbers_is_found():
    net = module("mlp")
    f, z = Objective.of(
        net,
        lambda o, t: functional.cross_entropy(o + 1e-3 * torch.randn_like(o), t, reduction="none"),
        rows("mlp"),
        dtype=F64,
    )
    assert "two passes agree" in failed(examine(f, z, net)[0])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_and_data_that_are_not_finite_are_counted_and_stop_the_rest(value):
    f, z = objective("mlp")
    sick = z.clone()
    sick[[1, 5]] = value
    found, by_name = examine(f, sick, module("mlp"))
    assert failed(found) == {"weights"}
    assert "2 of 43 parameters" in by_name["weights"]["words"]
    assert by_name["derivatives"]["status"] == NOTE
    data = dataclasses.replace(f.rows, inputs=f.rows.inputs.clone())
    data.inputs[3, 1:] = value
    found, by_name = examine(f.on(data), z, module("mlp"))
    assert failed(found) == {"data"}
    assert by_name["data"]["words"].startswith("3 input entries")


def test_targets_that_are_not_finite_are_data_too():
    f, z = objective("mlp-mse")
    data = dataclasses.replace(f.rows, targets=f.rows.targets.clone())
    data.targets[0, 0] = float("nan")
    assert failed(examine(f.on(data), z, module("mlp-mse"))[0]) == {"data"}


# -- what is special --------------------------------------------------------------------------------------------------

SPECIAL = {
    "batchnorm": ("BatchNorm", "1 layers (1, ...)"),
    "conv-batchnorm": ("BatchNorm", "running statistics"),
    "dropout": ("dropout", "1 layers (2, ...)"),
    "attention": ("attention", "MATH kernel"),
    "transformer": ("dropout", "layers (0.dropout, ...)"),
    "tied": ("tied parameters", "second.weight is first.weight"),
    "frozen": ("frozen parameters", "1 (first.weight, ...; 20 numbers)"),
}


@pytest.mark.parametrize("name", SPECIAL)
def test_special_parts_are_named(name):
    part, words = SPECIAL[name]
    _, by_name = examine(*objective(name), module(name))
    assert by_name[part]["status"] == NOTE
    assert words in by_name[part]["words"]


def test_non_float_and_low_precision_parameters_are_named():
    _, by_name = examine(*objective("frozen"), module("frozen"))
    assert "order: int64" in by_name["non-float parameters"]["words"]
    net = module("mlp").to(torch.bfloat16)
    f, z = Objective.of(net, "cross-entropy", rows("mlp"), dtype=F64)
    assert "bfloat16 are measured in float64" in examine(f, z, net)[1]["low precision"]["words"]


def test_a_plain_model_has_none_of_these():
    _, by_name = examine(*objective("mlp"), module("mlp"))
    assert (
        not {
            "BatchNorm",
            "dropout",
            "attention",
            "tied parameters",
            "frozen parameters",
            "non-float parameters",
            "low precision",
        }
        & by_name.keys()
    )
    assert "2 Linear" in by_name["layers"]["words"]


# -- the answer -------------------------------------------------------------------------------------------------------


def test_read_back_equal_as_a_table():
    f, z = objective("tied")
    found, _ = examine(f, z, module("tied"), recorded=1e9)
    back = Result.from_json(found.to_json())
    assert isinstance(back, Checkup)
    assert back == dataclasses.replace(found)
    head, *lines = back.table()
    assert head == ("check", "status", "finding")
    assert lines == [(finding["check"], finding["status"], finding["words"]) for finding in found.findings]
    states = [status for _, status, _ in lines]
    assert states.count(FAIL) == 1
    assert (
        back.summary() == f"it: {states.count(OK)} checks passed, {states.count(NOTE)} notes, 1 failed: recorded loss."
    )


def test_the_patient_is_not_touched():
    net = module("batchnorm")
    f, z = objective("batchnorm")
    before = z.clone(), torch.get_rng_state(), f(z)
    examine(f, z, net)
    assert torch.equal(z, before[0])
    assert torch.equal(torch.get_rng_state(), before[1])
    assert torch.equal(f(z), before[2])
    assert net.training
