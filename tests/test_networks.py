"""The networks' sizes are the papers'; a seed fixes the weights; what cannot work is refused with the reason."""

import math

import pytest
import torch

from landscape.errors import UsageError
from landscape.networks import ACTIVATIONS, NETWORKS, build, check
from landscape.seeds import global_stream

DIGITS, MNIST, CIFAR = (64,), (1, 28, 28), (3, 32, 32)


def size(module):
    return sum(p.numel() for p in module.parameters())


@pytest.mark.parametrize(
    ("name", "inputs", "norm", "expected"),
    [
        ("mlp", DIGITS, None, 64 * 64 + 64 + 64 * 32 + 32 + 32 * 10 + 10),
        ("mlp", DIGITS, "batch", 6570 + 2 * (64 + 32)),
        ("mlp", DIGITS, "layer", 6570 + 2 * (64 + 32)),
        ("lenet-300-100", MNIST, None, 266_610),
        ("conv2", MNIST, None, 20_490),
        ("conv2", CIFAR, None, 25_578),
        ("conv3", MNIST, None, 61_514),
        ("conv3", CIFAR, None, 66_570),
        ("resnet20", CIFAR, None, 272_474),
        ("resnet20", CIFAR, "group", 272_474),
        ("resnet20", CIFAR, "layer", 272_474),
        # a bias in place of a scale and a shift: one number a channel less, over 7 + 7 + 7 convolutions and shortcuts
        ("resnet20", CIFAR, "none", 272_474 - (7 * 16 + 7 * 32 + 7 * 64)),
    ],
)
def test_parameter_counts(name, inputs, norm, expected):
    assert size(build(name, inputs=inputs, outputs=10, norm=norm)) == expected


def test_digits_mlp_is_6570():
    assert size(build("mlp", inputs=DIGITS, outputs=10)) == 6570


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("width", [0.25, 1, 1.5])
@pytest.mark.parametrize("inputs", [MNIST, (3, 17, 19)])
def test_outputs_have_shape_n_k(name, width, inputs):
    assert build(name, inputs=inputs, outputs=7, width=width)(torch.zeros(2, *inputs)).shape == (2, 7)


def test_width_multiplies_the_hidden_sizes():
    layers = dict(build("mlp", inputs=DIGITS, outputs=10, width=2.0).named_modules())
    assert (layers["linear1"].out_features, layers["linear2"].out_features) == (128, 64)
    assert dict(build("mlp", inputs=DIGITS, outputs=10, width=1e-6).named_modules())["linear2"].out_features == 1
    convs = [m for m in build("resnet20", inputs=CIFAR, outputs=10, width=0.5).modules() if hasattr(m, "kernel_size")]
    assert {m.out_channels for m in convs if isinstance(m, torch.nn.Conv2d)} == {8, 16, 32}


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations_are_used_and_none_is_in_place(activation):
    module = build("mlp", inputs=DIGITS, outputs=10, activation=activation)
    used = [m for name, m in module.named_modules() if name.startswith("activation")]
    assert len(used) == 2
    assert all(type(m) is ACTIVATIONS[activation] for m in used)
    assert not any(getattr(m, "inplace", False) for m in used)


@pytest.mark.parametrize("name", NETWORKS)
def test_a_seed_fixes_the_weights_and_the_global_generator_is_untouched(name):
    before = torch.random.get_rng_state()
    weights = []
    for seed in (3, 3, 4):
        with global_stream(seed, "initialisation"):
            module = build(name, inputs=MNIST, outputs=10)
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(("norm", "groups"), [("group", {8}), ("layer", {1})])
def test_group_counts(norm, groups):
    module = build("resnet20", inputs=CIFAR, outputs=10, norm=norm)
    assert {m.num_groups for m in module.modules() if isinstance(m, torch.nn.GroupNorm)} == groups
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in module.modules())


def test_no_group_is_a_single_channel():
    module = build("resnet20", inputs=CIFAR, outputs=10, norm="group", width=0.25)  # 4, 8, 16 channels
    groups = {m.num_channels: m.num_groups for m in module.modules() if isinstance(m, torch.nn.GroupNorm)}
    assert groups == {4: 2, 8: 4, 16: 8}


def test_resnet_without_norm_keeps_the_scale_of_its_signal():
    """In mean square the 9 blocks grow the signal by about (1 + 1/9)^9 = 2.6; unscaled it would be 2^9 = 512.

    ReLU's asymmetry and the one draw of the weights move this by a small factor; 10 lies far from both.
    """
    with global_stream(0, "test"):
        module = build("resnet20", inputs=CIFAR, outputs=10, norm="none")
        rows = torch.randn(64, *CIFAR)
    scales = []
    for name, layer in module.named_children():
        rows = layer(rows)
        if name == "activation" or name.startswith("stage"):
            scales.append(rows.square().mean().item())
    assert scales[-1] / scales[0] < 10
    loss = torch.nn.functional.cross_entropy(module(torch.randn(8, *CIFAR)), torch.arange(8))
    loss.backward()
    assert all(p.grad.norm() > 0 for p in module.parameters())


def test_resnet_weights_are_kaiming_normal():
    """A weight's variance is 2 / fan-in. This layer has n = 36,864 of them: five standard errors, 5 sqrt(2/n)."""
    with global_stream(0, "test"):
        module = build("resnet20", inputs=CIFAR, outputs=10)
    weight = dict(module.named_parameters())["stage3.2.branch.conv2.weight"]
    assert weight.var().item() == pytest.approx(2 / (9 * 64), rel=5 * math.sqrt(2 / weight.numel()))


def test_convolutions_of_the_paper_start_with_lecun_normal_weights():
    """Variance 1 / fan-in, which the cut at two deviations leaves: of n weights within five standard errors 5 sqrt(2/n). Nothing lies beyond the cut."""
    with global_stream(0, "test"):
        module = build("conv3", inputs=MNIST, outputs=10)
    weight, bias = module.conv3.weight, module.conv3.bias
    assert weight.var().item() == pytest.approx(1 / (9 * 64), rel=5 * math.sqrt(2 / weight.numel()))
    assert 2.2 < weight.abs().max().item() * math.sqrt(9 * 64) < 2 / 0.8796  # 36,864 draws come near the cut
    assert not bias.any()


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"name": "resnet2O", "inputs": CIFAR}, "Did you mean 'resnet20'"),
        ({"name": "mlp", "inputs": DIGITS, "activation": "rellu"}, "Did you mean 'relu'"),
        ({"name": "mlp", "inputs": DIGITS, "norm": "group"}, "Allowed: batch, layer, none"),
        ({"name": "conv2", "inputs": MNIST, "norm": "batch"}, "conv2 has no normalisation layers.*mlp, resnet20"),
        ({"name": "lenet-300-100", "inputs": MNIST, "norm": "layer"}, "no normalisation layers"),
        ({"name": "resnet20", "inputs": DIGITS}, r"needs rows of shape \(channels, height, width\).*\(64,\)"),
        ({"name": "conv3", "inputs": (1, 7, 28)}, "8x8 pixels or more"),
        ({"name": "mlp", "inputs": DIGITS, "width": 0}, "width 0 is not a positive number"),
        ({"name": "mlp", "inputs": DIGITS, "width": float("nan")}, "width nan"),
        ({"name": "mlp", "inputs": ()}, "at least one axis"),
        ({"name": "mlp", "inputs": DIGITS, "outputs": 0}, "0 outputs"),
    ],
)
def test_what_cannot_work_is_refused(arguments, says):
    with pytest.raises(UsageError, match=says):
        build(**({"outputs": 10} | arguments))
    with pytest.raises(UsageError, match=says):
        check(**({"outputs": 10} | arguments))
