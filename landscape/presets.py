"""Published protocols by name: a task and the options of `landscape imp` (and of `landscape train`, but for those of pruning) that go with it.

Steps are mini-batch updates; milestones are fractions of them. Each says in words where its values come from: what stands in released code, what was recalled and
not checked, and what is ours. This file needs no torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

from landscape.errors import unknown


@dataclass(frozen=True)
class Preset:
    """A protocol. `options` are named as the fields of the command's options, with underscores: steps, lr, rate, rewind, ..."""

    task: str
    options: Mapping[str, object]
    source: str  # where the values come from
    note: str = ""  # what differs here, and what to choose


def find(name: str) -> Preset:
    """The preset of that name. Raises UsageError for another, with the nearest."""
    if name not in PRESETS:
        raise unknown("preset", name, PRESETS)
    return PRESETS[name]


def _sgd(steps: int, batch_size: int, lr: float, **more: object) -> dict[str, object]:
    """Momentum 0.9 and no weight decay, unless `more` says otherwise."""
    base: dict[str, object] = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 0.0, "warmup": 0, "augment": ""}
    return base | {"steps": steps, "batch_size": batch_size, "lr": lr, "schedule": "constant"} | more


def _falling(gamma: float, *milestones: float) -> dict[str, object]:
    return {"schedule": "step", "gamma": gamma, "milestones": milestones}


_IMAGES = {"augment": "shift,flip"}
_NO_NESTEROV = "The code has Nesterov's momentum; here it is the classical one."
_FOLDER = (
    "Give the images as FOLDER/train/<class>/* and FOLDER/test/<class>/*, all of one size. They are held in memory."
)

# -- the protocol of Paul et al. 2023 on CIFAR-10, and its neighbours -------------------------------------------------

# 62,400 steps are 160 epochs of 390 whole batches; 0.5 and 0.75 of them are the epochs 80 and 120
_CIFAR10 = _sgd(62_400, 128, 0.1, weight_decay=1e-4, **_falling(0.1, 0.5, 0.75), **_IMAGES)
_LOTTERY_DIET = "the released code of Paul et al. 2023 (lth_diet)"
_OPEN_LTH = "the released code of Frankle et al. 2020 (open_lth)"
_RECALLED = "recalled from Frankle et al. 2020, not checked"

_LEVELS: dict[str, object] = {"rate": 0.2, "levels": 15}

# 78,000 steps, at 23,400, 46,800 and 62,400 of which the rate falls
_CIFAR100 = _sgd(78_000, 128, 0.1, weight_decay=5e-4, **_falling(0.2, 0.3, 0.6, 0.8), **_IMAGES)

_TABLE: dict[str, Preset] = {
    "resnet20-cifar10": Preset(
        "cifar10-resnet20",
        _CIFAR10 | _LEVELS | {"rewind": 1000, "noise": "same"},
        _LOTTERY_DIET,
        "The code sweeps the rewind step over 0, 100, 250, 500, 1000, 2000. Of a folder of images: imagefolder-resnet20 with this preset.",
    ),
    "resnet20-cifar10-40-epochs": Preset(
        "cifar10-resnet20",
        # 391 batches an epoch, the last of 80 rows
        _CIFAR10 | _LEVELS | {"steps": 15_640, "rewind": 250, "noise": "same"},
        "ours: resnet20-cifar10 in a quarter of the steps",
        "Its rewind step is a quarter of 1000: 250 of 15,640 steps.",
    ),
    "resnet18-cifar10": Preset(
        "cifar10-resnet18",
        _CIFAR100 | _LEVELS | {"rewind": 1000},
        _LOTTERY_DIET,
        f"{_NO_NESTEROV} The rewind step is ours.",
    ),
    "resnet50-cifar100": Preset(
        "cifar100-resnet50",
        _CIFAR100 | _LEVELS | {"rewind": 1000},
        _LOTTERY_DIET,
        f"{_NO_NESTEROV} The rewind step is ours.",
    ),
    "resnet56-cinic10": Preset(
        "imagefolder-resnet56",
        # 15,625 and 23,440 of 31,250 steps
        _sgd(31_250, 256, 0.1, weight_decay=1e-4, **_falling(0.1, 0.5, 23_440 / 31_250), **_IMAGES)
        | _LEVELS
        | {"levels": 16, "rewind": 1600},
        _LOTTERY_DIET,
        f"The code sweeps the rewind step from 200 to 1600. {_FOLDER}",
    ),
    # -- other networks of the lottery tickets
    "lenet-300-100-mnist": Preset(
        "mnist-lenet-300-100",
        # 40 epochs of 468.75 batches
        _sgd(18_750, 128, 0.1, momentum=0.0) | _LEVELS | {"rewind": 0, "output": 0.0},
        _OPEN_LTH,
        "The output layer is not pruned. The code starts from Kaiming-normal weights, here from torch's own.",
    ),
    "lenet-300-100-mnist-adam": Preset(
        "mnist-lenet-300-100",
        _sgd(24_000, 60, 1.2e-3, optimizer="adam") | _LEVELS | {"rewind": 0, "output": 0.5, "scope": "layer"},
        "Frankle and Carbin 2019 and Frankle et al. 2020, as other papers quote them",
        "The output layer goes at half the rate; 24,000 steps in the one, 25 epochs (25,000) in the other. That each layer is pruned by itself is recalled, not checked.",
    ),
    "vgg16-cifar10": Preset(
        "cifar10-vgg16",
        _CIFAR10 | _LEVELS | {"rewind": 1000, "output": 0.0},
        _OPEN_LTH,
        "The output layer is not pruned. The rewind step is ours.",
    ),
    "resnet50-imagenet": Preset(
        "imagefolder-resnet50",
        # 90 epochs of 1,281,167 / 1,024 batches, 5 of them warm-up
        _sgd(112_602, 1024, 0.4, weight_decay=1e-4, warmup=6256, **_falling(0.1, 1 / 3, 2 / 3, 8 / 9), augment="flip")
        | _LEVELS
        | {"rewind": 6256},
        _OPEN_LTH,
        f"The rewind step, the end of the warm-up, is ours; random crops of changing size are not offered. {_FOLDER} ImageNet of 224 pixels takes 190 GB.",
    ),
    "lmc-low": Preset(
        "cifar10-resnet20",
        _CIFAR10 | _LEVELS | {"lr": 0.01, "rewind": 0},
        _RECALLED,
        "ResNet-20 at a low rate, where tickets need no rewinding.",
    ),
    "lmc-warmup": Preset(
        "cifar10-resnet20",
        _CIFAR10 | _LEVELS | {"lr": 0.03, "warmup": 30_000, "rewind": 0},
        _RECALLED,
        "ResNet-20 with a long warm-up.",
    ),
    # -- ours, for two cores
    "mnist-mlp": Preset(
        "mnist-mlp-256-128-64",
        # what makes the dense network unstable is this noise and these weights: with shifts of up to 2 pixels, or torch's own weights, the barrier is two thirds or less
        _sgd(700, 64, 0.1, warmup=60, augment="shift:3")
        | {"init": "he", "limit": 7000, "rate": 0.36, "levels": 11, "rewind": 0, "noise": "fresh"},
        "ours",
        "Two levels of 20 % in one, 7,000 rows. Minutes on two cores; also with --rewind 100.",
    ),
    "mnist-conv4": Preset(
        "mnist-conv4",
        _sgd(500, 64, 0.1, augment="shift:2")
        | {"limit": 7000, "rate": 0.36, "levels": 9, "rewind": 0, "noise": "fresh"},
        "ours",
        "With batch normalisation: look at barriers under both policies. Also with --rewind 100.",
    ),
}

PRESETS: Mapping[str, Preset] = MappingProxyType(_TABLE)
