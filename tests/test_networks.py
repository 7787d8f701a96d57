"""The networks' sizes are the papers'; a seed fixes the weights; what cannot work is refused with the reason."""

import math

import pytest
import torch
import torchvision

from landscape.errors import UsageError
from landscape.networks import ACTIVATIONS, NETWORKS, build, check, describe, known, own_norm
from landscape.seeds import global_stream

DIGITS, MNIST, CIFAR = (64,), (1, 28, 28), (3, 32, 32)
LARGE = (
    "resnet18",
    "resnet50",
    "vgg16",
)  # 11 to 24 million parameters: built at a tenth of their width where that will do


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
        ("mlp-256-128-64", MNIST, None, 784 * 256 + 256 + 256 * 128 + 128 + 128 * 64 + 64 + 64 * 10 + 10),
        ("mlp-16", DIGITS, "batch", 64 * 16 + 16 + 2 * 16 + 16 * 10 + 10),
        ("conv4", MNIST, None, 9 * (16 + 16 * 32 + 32 * 32 + 32 * 64) + 2 * (16 + 32 + 32 + 64) + 64 * 10 + 10),
        # with shortcuts without weights (option A) the network of the paper has 853,018; two 1x1 convolutions and their norms more
        ("resnet56", CIFAR, None, 853_018 + 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64),
        ("resnet18", CIFAR, None, 11_173_962),
        ("resnet50", CIFAR, None, 23_520_842),
        # a bias in place of a scale and a shift: one number a channel less, over 7 + 7 + 7 convolutions and shortcuts
        ("resnet20", CIFAR, "none", 272_474 - (7 * 16 + 7 * 32 + 7 * 64)),
    ],
)
def test_parameter_counts(name, inputs, norm, expected):
    assert size(build(name, inputs=inputs, outputs=10, norm=norm)) == expected


def test_digits_mlp_is_6570():
    assert size(build("mlp", inputs=DIGITS, outputs=10)) == 6570


def test_large_images_enter_as_imagenet_does():
    """Shapes of all weights, in order, are torchvision's; at 64 pixels only the first differs, and the blocks get the image whole."""
    for name in ("resnet18", "resnet50"):
        reference = torchvision.models.get_model(name, weights=None)
        theirs = sorted(tuple(p.shape) for p in reference.parameters())
        assert sorted(tuple(p.shape) for p in build(name, inputs=(3, 65, 65), outputs=1000).parameters()) == theirs
        assert build(name, inputs=(3, 64, 64), outputs=7, width=0.05).conv.kernel_size == (3, 3)
    module = build("resnet18", inputs=(3, 96, 70), outputs=7, width=0.1)
    with torch.no_grad():
        rows, sizes = torch.zeros(1, 3, 96, 70), []
        for layer in module[:-3]:
            rows = layer(rows)
            sizes.append(tuple(rows.shape[2:]))
    assert sizes == [(48, 35)] * 3 + [(24, 18)] * 2 + [(12, 9), (6, 5), (3, 3)]


def test_vgg16_is_torchvisions_without_its_dense_layers_and_its_last_pool():
    ours, theirs = (
        build("vgg16", inputs=CIFAR, outputs=10),
        torchvision.models.vgg.make_layers(torchvision.models.vgg.cfgs["D"], batch_norm=True),
    )
    assert [tuple(p.shape) for p in ours.parameters()][:-2] == [tuple(p.shape) for p in theirs.parameters()]
    assert size(ours) == 14_723_136 + 512 * 10 + 10
    kinds = [type(layer).__name__ for layer in ours][:-3]
    assert kinds == [type(layer).__name__ for layer in theirs][:-1]


def test_a_bottleneck_halves_the_image_in_its_3x3_convolution():
    """As torchvision's variant 1.5, in which a stride drops no pixel unseen."""
    block = build("resnet50", inputs=CIFAR, outputs=10, width=0.05).stage2[0]
    convs = [layer for layer in block.branch if isinstance(layer, torch.nn.Conv2d)]
    assert [(layer.kernel_size[0], layer.stride[0]) for layer in convs] == [(1, 1), (3, 2), (1, 1)]
    assert convs[2].out_channels == 4 * convs[1].out_channels


def test_hidden_sizes_in_a_name():
    module = build("mlp-7-5-3", inputs=DIGITS, outputs=10, width=2)
    linear = [layer for layer in module if isinstance(layer, torch.nn.Linear)]
    assert [layer.out_features for layer in linear] == [14, 10, 6, 10]
    assert describe("mlp-7-5-3") == "hidden layers of 7, 5, 3 units"
    assert (known("mlp-7"), own_norm("mlp-7")) == (True, "none")
    assert list(build("mlp-64-32", inputs=DIGITS, outputs=10).state_dict()) == list(build("mlp", inputs=DIGITS, outputs=10).state_dict())  # fmt: skip
    for name in ("mlp-", "mlp-0", "mlp-3-", "mlp-3--4", "mlp-03", "mlp-x", "mlp-9999999", "mlp3", "mlp-3\n", "conv2-3"):
        assert not known(name)
        with pytest.raises(UsageError, match=r"hidden sizes|unknown network"):
            build(name, inputs=DIGITS, outputs=10)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("width", [0.25, 1, 1.5])
@pytest.mark.parametrize("inputs", [MNIST, (3, 17, 19)])
def test_outputs_have_shape_n_k(name, width, inputs):
    width = width / 10 if name in LARGE else width
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
            module = build(name, inputs=MNIST, outputs=10, width=0.1 if name in LARGE else 1)
        weights.append(torch.cat([p.detach().flatten() for p in module.parameters()]))
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("name", ["resnet20", "conv4"])
@pytest.mark.parametrize(("norm", "groups"), [("group", {8}), ("layer", {1})])
def test_group_counts(name, norm, groups):
    module = build(name, inputs=CIFAR, outputs=10, norm=norm)
    assert {m.num_groups for m in module.modules() if isinstance(m, torch.nn.GroupNorm)} == groups
    assert not any(isinstance(m, torch.nn.BatchNorm2d) for m in module.modules())


def test_no_group_is_a_single_channel():
    module = build("resnet20", inputs=CIFAR, outputs=10, norm="group", width=0.25)  # 4, 8, 16 channels
    groups = {m.num_channels: m.num_groups for m in module.modules() if isinstance(m, torch.nn.GroupNorm)}
    assert groups == {4: 2, 8: 4, 16: 8}


@pytest.mark.parametrize(("name", "width"), [("resnet20", 1), ("resnet50", 0.25)])
def test_resnet_without_norm_keeps_the_scale_of_its_signal(name, width):
    """In mean square the 9 blocks grow the signal by about (1 + 1/9)^9 = 2.6; unscaled it would be 2^9 = 512. Of 16 blocks likewise, and 2^16.

    ReLU's asymmetry and the one draw of the weights move this by a small factor; 10 lies far from both.
    """
    with global_stream(0, "test"):
        module = build(name, inputs=CIFAR, outputs=10, norm="none", width=width)
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
        (
            {"name": "conv2", "inputs": MNIST, "norm": "batch"},
            "conv2 has no normalisation layers.*mlp, conv4, resnet20",
        ),
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
