"""The built-in networks, from one row's shape to an initialised module.

    mlp             flatten, hidden 64 and 32 (digits: 64-64-32-10, D = 6,570)
    mlp-256-128-64  likewise with hidden sizes of your own, as many as you like
    lenet-300-100   flatten, hidden 300 and 100 (LeCun et al. 1998; 784-300-100-10, D = 266,610)
    conv2, conv3    3x3 convolutions (16, 32) or (32, 64, 64), each with 2x2 average pooling, one dense layer
                    (Larsen, Fort, Becker, Ganguli 2022; on 1x28x28 D = 20,490 and 61,514; LeCun normal weights, zero biases)
    conv4           3x3 convolutions (16, 32, 32, 64) with batch normalisation, 2x2 maxima after the second and the fourth, global
                    average pooling, one dense layer; on 1x28x28 D = 33,338
    resnet20, resnet56    He, Zhang, Ren, Sun 2016, section 4.2, with 1x1 convolutions as shortcuts (option B);
                    on 3x32x32 D = 272,474 and 855,770
    resnet18, resnet50    the same, section 4.1: basic blocks of 64 to 512 channels, bottlenecks of 64 to 512 times 4. Images of up to 64 pixels
                    enter by one 3x3 convolution, larger ones by ImageNet's 7x7 and pooling. 10 classes, 3x32x32: D = 11,173,962 and 23,520,842
    vgg16           Simonyan and Zisserman 2015, 13 convolutions of 64 to 512 channels with batch normalisation, one dense layer, as in the released
                    code of Frankle et al. 2020 (open_lth); on 3x32x32 D = 14,728,266

Letters: N rows; C channels, H height and W width of one row; K outputs; D parameters, all of them trainable.
Every layer has a name (`conv1`, `norm1`, `output`), so that an analysis per layer reads as the network does. No
activation works in place: second derivatives and vmap need what it would overwrite.

Modules are initialised from torch's global generator, as torch's own layers are: call `build` under
`landscape.seeds.global_stream`.
"""

from __future__ import annotations

import math
import re
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from landscape.errors import UsageError, unknown

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
    "gelu": nn.GELU,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "elu": nn.ELU,
    "softplus": nn.Softplus,
    "leaky-relu": nn.LeakyReLU,
    "identity": nn.Identity,
}

# 8 groups of 2, 4 and 8 channels in resnet20. A group of one channel would make an instance norm, which erases each
# channel's mean over the image, and that mean is what the global pooling at the end reads.
GROUPS = 8

# pixels up to which resnet18 and resnet50 keep their images whole at first: CIFAR's 32, Tiny ImageNet's 64
SMALL = 64


@dataclass(frozen=True)
class _Plan:
    inputs: tuple[int, ...]
    outputs: int
    width: float
    activation: Callable[[], nn.Module]
    norm: str

    def sizes(self, *widths: int) -> list[int]:
        return [max(1, round(width * self.width)) for width in widths]


@dataclass(frozen=True)
class _Network:
    description: str
    norms: tuple[str, ...]  # what `norm` may be; the first is the network's own
    make: Callable[[_Plan], nn.Module]
    image: bool = False  # needs rows of shape (C, H, W)
    halvings: int = 0  # poolings that drop an odd last pixel, so that H and W must be 2 ** halvings or more


_SIZES = re.compile(r"mlp((?:-[1-9][0-9]{0,5})+)")


def known(name: str) -> bool:
    """Whether this names a network: one of NETWORKS, or mlp with hidden sizes, such as mlp-256-128-64."""
    return name in _NETWORKS or _SIZES.fullmatch(name) is not None


def describe(name: str) -> str:
    """A few words about it. Raises UsageError for an unknown name."""
    return _entry(name).description


def _entry(name: str) -> _Network:
    if name in _NETWORKS:
        return _NETWORKS[name]
    sizes = _SIZES.fullmatch(name)
    if sizes is None and name.startswith("mlp-"):
        raise UsageError(
            f"cannot read the hidden sizes of the network {name!r}. Write whole numbers with hyphens, such as mlp-256-128-64."
        )
    if sizes is None:
        raise unknown("network", name, _NETWORKS)
    hidden = [int(size) for size in sizes[1][1:].split("-")]
    return _Network(f"hidden layers of {', '.join(map(str, hidden))} units", _NETWORKS["mlp"].norms, _dense(*hidden))


def check(
    name: str,
    *,
    inputs: tuple[int, ...],
    outputs: int,
    width: float = 1,
    activation: str = "relu",
    norm: str | None = None,
    init: str | None = None,
) -> None:
    """Raise UsageError where `build` with the same arguments cannot work. Builds nothing."""
    network = _entry(name)
    if init is not None and init not in INITS:
        raise unknown("initialisation", init, INITS)
    if activation not in ACTIVATIONS:
        raise unknown("activation", activation, ACTIVATIONS)
    if norm is not None and norm not in network.norms:
        if len(network.norms) == 1:
            able = ", ".join(other for other, entry in _NETWORKS.items() if len(entry.norms) > 1)
            raise UsageError(
                f"{name} has no normalisation layers, but norm {norm!r} was asked for. Leave it out, or use {able}."
            )
        raise unknown(f"norm for {name}", norm, network.norms)
    if not (math.isfinite(width) and width > 0):
        raise UsageError(
            f"width {width} is not a positive number. It multiplies the hidden sizes: 1 leaves them, 0.5 halves them."
        )
    if outputs < 1:
        raise UsageError(f"{name} with {outputs} outputs: at least 1 is needed.")
    if min(inputs, default=0) < 1:
        raise UsageError(f"{name} on rows of shape {inputs}: at least one axis is needed, each at least 1 long.")
    if network.image and len(inputs) != 3:
        flat = " or ".join(other for other, entry in _NETWORKS.items() if not entry.image)
        raise UsageError(
            f"{name} is convolutional and needs rows of shape (channels, height, width), but these rows have shape "
            f"{inputs}. Use {flat}, or a data set of images."
        )
    least = 2**network.halvings
    if network.image and min(inputs[1:]) < least:
        raise UsageError(
            f"{name} halves its images {network.halvings} times and needs {least}x{least} pixels or more, but these "
            f"rows have shape {inputs}. Use larger images or another network."
        )


def build(
    name: str,
    *,
    inputs: tuple[int, ...],
    outputs: int,
    width: float = 1,
    activation: str = "relu",
    norm: str | None = None,
    init: str | None = None,
) -> nn.Module:
    """A freshly initialised network from rows (N, *inputs) to (N, K), in float32 on the CPU.

    name        one of NETWORKS, or mlp with hidden sizes, such as mlp-256-128-64
    inputs      one row's shape: (features,) or (C, H, W)
    outputs     K
    width       multiplies every hidden size or channel count (rounded, at least 1); 1 is the network of the paper
    activation  one of ACTIVATIONS; relu, as He et al. and Larsen et al. have it
    norm        mlp: none (its own), batch, layer; conv4, vgg16 and residual networks: batch (their own), group, layer, none; None: its own

    init        one of INITS, for the weights of all dense layers and convolutions, with zero biases; None: the network's own

    Draws from torch's global generator. The network's own initialisation is torch's default but for conv2 and conv3 (see `_convolutional`) and for conv4, vgg16 and
    residual networks (see `_kaiming`).
    Raises UsageError for a name, an activation or a norm that is not on its list, and for rows that do not fit.
    """
    check(name, inputs=inputs, outputs=outputs, width=width, activation=activation, norm=norm, init=init)
    network = _entry(name)
    module = network.make(_Plan(inputs, outputs, width, ACTIVATIONS[activation], norm or own_norm(name)))
    if init is not None:
        for part in module.modules():
            if isinstance(part, (nn.Linear, nn.Conv2d)):
                INITS[init](part.weight)
                if part.bias is not None:
                    nn.init.zeros_(part.bias)
    return module


def _lecun(weight: Tensor) -> Tensor:
    return nn.init.normal_(weight, std=1 / math.sqrt(weight[0].numel()))


# how weights are drawn, by name: variance 2 / fan-in (He et al. 2015, for ReLU), 2 / (fan-in + fan-out) (Glorot, Bengio 2010), 1 / fan-in (LeCun et al. 1998)
INITS: dict[str, Callable[[Tensor], Tensor]] = {
    "he": lambda weight: nn.init.kaiming_normal_(weight, nonlinearity="relu"),
    "glorot": lambda weight: nn.init.xavier_normal_(weight),
    "lecun": _lecun,
}


def own_norm(name: str) -> str:
    """The norm that a network has where none is asked for; for the record of a run."""
    return _entry(name).norms[0]


def _dense(*hidden: int) -> Callable[[_Plan], nn.Module]:
    def make(plan: _Plan) -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict(flatten=nn.Flatten())
        size = math.prod(plan.inputs)
        for number, wide in enumerate(plan.sizes(*hidden), 1):
            layers[f"linear{number}"] = nn.Linear(size, wide)
            if plan.norm != "none":
                layers[f"norm{number}"] = nn.BatchNorm1d(wide) if plan.norm == "batch" else nn.LayerNorm(wide)
            layers[f"activation{number}"] = plan.activation()
            size = wide
        layers["output"] = nn.Linear(size, plan.outputs)
        return nn.Sequential(layers)

    return make


def _convolutional(*channels: int) -> Callable[[_Plan], nn.Module]:
    """Initialised as the framework of the paper's code does by default (Flax): weights truncated normal of variance 1 / fan-in, zero biases.

    It matters for what is measured from the start: after 64 steps of SGD on MNIST the test accuracy is 0.94, and 0.84 from torch's default, whose weights have a
    third of the variance.
    """

    def make(plan: _Plan) -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        depth, high, broad = plan.inputs
        for number, wide in enumerate(plan.sizes(*channels), 1):
            layers[f"conv{number}"] = nn.Conv2d(depth, wide, 3, padding=1)
            layers[f"activation{number}"] = plan.activation()
            # the average and not the maximum: the authors' choice, and it adds no kinks of its own to the loss
            layers[f"pool{number}"] = nn.AvgPool2d(2)
            depth, high, broad = wide, high // 2, broad // 2
        layers["flatten"] = nn.Flatten()
        layers["output"] = nn.Linear(depth * high * broad, plan.outputs)
        for layer in layers.values():
            if isinstance(layer, (nn.Conv2d, nn.Linear)):
                deviation = _CUT_NORMAL / math.sqrt(layer.weight[0].numel())
                nn.init.trunc_normal_(layer.weight, std=deviation, a=-2 * deviation, b=2 * deviation)
                assert layer.bias is not None
                nn.init.zeros_(layer.bias)
        return nn.Sequential(layers)

    return make


# what a standard normal cut at two deviations has to be widened by to have variance 1
_CUT_NORMAL = 1 / 0.87962566


class Residual(nn.Module):
    """activation(branch(x) + shortcut(x)): (N, C, H, W) -> (N, C', H', W')."""

    def __init__(self, branch: nn.Module, shortcut: nn.Module, activation: nn.Module) -> None:
        super().__init__()
        self.branch = branch
        self.shortcut = shortcut
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """The block's output."""
        out: Tensor = self.activation(self.branch(x) + self.shortcut(x))
        return out


def _normalisation(norm: str, channels: int) -> nn.Module:
    if norm == "batch":
        return nn.BatchNorm2d(channels)
    if norm == "none":
        return nn.Identity()
    # the largest count up to GROUPS that divides the channels, whatever the width, and leaves two or more in a group
    able = [count for count in range(1, GROUPS + 1) if channels % count == 0 and channels // count > 1]
    return nn.GroupNorm(max(able, default=1) if norm == "group" else 1, channels)


def _kaiming(layer: nn.Conv2d | nn.Linear) -> None:
    """Weights normal of variance 2 / fan-in (He et al. 2015, which He et al. 2016, section 3.4, follow).

    Torch's default for convolutions has a sixth of the variance that keeps the signal's scale through ReLUs.
    """
    nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")


def _stacked(*channels: int, pools: tuple[int, ...], bias: bool | None = None) -> Callable[[_Plan], nn.Module]:
    """3x3 convolutions, each with norm and activation, 2x2 maxima after those numbered in `pools` (from 1), global average pooling, one dense layer.

    bias: whether the convolutions have biases; None: where no norm brings a shift.
    """

    def make(plan: _Plan) -> nn.Module:
        layers: OrderedDict[str, nn.Module] = OrderedDict()
        size = plan.inputs[0]
        for number, wide in enumerate(plan.sizes(*channels), 1):
            conv = nn.Conv2d(size, wide, 3, padding=1, bias=plan.norm == "none" if bias is None else bias)
            _kaiming(conv)
            layers[f"conv{number}"] = conv
            layers[f"norm{number}"] = _normalisation(plan.norm, wide)
            layers[f"activation{number}"] = plan.activation()
            if number in pools:
                layers[f"pool{number}"] = nn.MaxPool2d(2)
            size = wide
        return nn.Sequential(layers | _head(size, plan.outputs))

    return make


def _head(size: int, outputs: int) -> OrderedDict[str, nn.Module]:
    output = nn.Linear(size, outputs)
    _kaiming(output)
    return OrderedDict(pool=nn.AdaptiveAvgPool2d(1), flatten=nn.Flatten(), output=output)


def _residual(
    *channels: int, blocks: tuple[int, ...], bottleneck: bool = False, reduces: bool = False
) -> Callable[[_Plan], nn.Module]:
    """Stages of `blocks` residual blocks of so many channels, the first block of all stages but the first of stride 2; global average pooling, one dense layer.

    bottleneck   a block is 1x1, 3x3 (with the stride), 1x1 to 4 times the channels, and not 3x3 (with the stride), 3x3
    reduces      images above SMALL pixels enter by a 7x7 convolution of stride 2 and 3x3 maxima of stride 2

    `norm="none"`: the convolutions get biases (the norm's shift is gone), and the last convolution of each of the L
    branches is scaled by 1/sqrt(L). Without a norm each block adds its branch's variance to the shortcut's and so
    doubles it, 2^L in all; scaled, it grows by (1 + 1/L)^L < e (Hayou et al. 2021, "Stable ResNet"). Scaled and not
    zero (Fixup, Zhang, Dauphin, Ma 2019): a zero filter has no norm for filter-normalised directions to match, and
    lets no gradient through to the convolution before it.
    """

    def make(plan: _Plan) -> nn.Module:
        stages, expansion = plan.sizes(*channels), 4 if bottleneck else 1

        def conv(ins: int, outs: int, kernel: int, stride: int) -> nn.Conv2d:
            layer = nn.Conv2d(ins, outs, kernel, stride, padding=kernel // 2, bias=plan.norm == "none")
            _kaiming(layer)
            return layer

        def block(ins: int, inner: int, stride: int) -> nn.Module:
            outs = expansion * inner
            last = conv(inner, outs, 1 if bottleneck else 3, 1)
            if plan.norm == "none":
                with torch.no_grad():
                    last.weight.div_(math.sqrt(sum(blocks)))
            kernels = [(ins, inner, 1, 1), (inner, inner, 3, stride)] if bottleneck else [(ins, inner, 3, stride)]
            branch: OrderedDict[str, nn.Module] = OrderedDict()
            for number, sizes in enumerate(kernels, 1):
                branch[f"conv{number}"] = conv(*sizes)
                branch[f"norm{number}"] = _normalisation(plan.norm, inner)
                branch[f"activation{number}"] = plan.activation()
            branch[f"conv{len(kernels) + 1}"] = last
            branch[f"norm{len(kernels) + 1}"] = _normalisation(plan.norm, outs)
            shortcut: nn.Module = nn.Identity()
            if stride != 1 or ins != outs:
                shortcut = nn.Sequential(
                    OrderedDict(conv=conv(ins, outs, 1, stride), norm=_normalisation(plan.norm, outs))
                )
            return Residual(nn.Sequential(branch), shortcut, plan.activation())

        size, large = stages[0], reduces and min(plan.inputs[1:]) > SMALL
        layers: OrderedDict[str, nn.Module] = OrderedDict(
            conv=conv(plan.inputs[0], size, 7 if large else 3, 2 if large else 1),
            norm=_normalisation(plan.norm, size),
            activation=plan.activation(),
        )
        if large:
            layers["reduce"] = nn.MaxPool2d(3, 2, padding=1)
        for number, (wide, count) in enumerate(zip(stages, blocks, strict=True), 1):
            made = []
            for place in range(count):
                made.append(block(size, wide, 2 if number > 1 and place == 0 else 1))
                size = expansion * wide
            layers[f"stage{number}"] = nn.Sequential(*made)
        return nn.Sequential(layers | _head(size, plan.outputs))

    return make


_NORMS = ("batch", "group", "layer", "none")

_NETWORKS: dict[str, _Network] = {
    "mlp": _Network(
        "two hidden layers, 64 and 32 units (mlp-256-128-64: of these sizes)",
        ("none", "batch", "layer"),
        _dense(64, 32),
    ),
    "lenet-300-100": _Network("two hidden layers, 300 and 100 units", ("none",), _dense(300, 100)),
    "conv2": _Network(
        "two 3x3 convolutions (16, 32), average pooling", ("none",), _convolutional(16, 32), image=True, halvings=2
    ),
    "conv3": _Network(
        "three 3x3 convolutions (32, 64, 64), average pooling", ("none",), _convolutional(32, 64, 64), True, 3
    ),
    "conv4": _Network(
        "four 3x3 convolutions (16, 32, 32, 64), batch normalisation",
        _NORMS,
        _stacked(16, 32, 32, 64, pools=(2, 4)),
        image=True,
        halvings=2,
    ),
    "resnet20": _Network(
        "20-layer residual network (16, 32, 64)", _NORMS, _residual(16, 32, 64, blocks=(3, 3, 3)), image=True
    ),
    "resnet56": _Network(
        "56-layer residual network (16, 32, 64)", _NORMS, _residual(16, 32, 64, blocks=(9, 9, 9)), image=True
    ),
    "resnet18": _Network(
        "18-layer residual network (64 to 512)",
        _NORMS,
        _residual(64, 128, 256, 512, blocks=(2, 2, 2, 2), reduces=True),
        image=True,
    ),
    "resnet50": _Network(
        "50-layer residual network (bottlenecks, 256 to 2048)",
        _NORMS,
        _residual(64, 128, 256, 512, blocks=(3, 4, 6, 3), bottleneck=True, reduces=True),
        image=True,
    ),
    "vgg16": _Network(
        "13 convolutions (64 to 512), batch normalisation",
        _NORMS,
        # with biases, that the norms after them make idle, as the released code has them
        _stacked(64, 64, 128, 128, *[256] * 3, *[512] * 6, pools=(2, 4, 7, 10), bias=True),
        image=True,
        halvings=4,
    ),
}

NETWORKS: dict[str, str] = {name: network.description for name, network in _NETWORKS.items()}
