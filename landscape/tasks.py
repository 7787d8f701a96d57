"""Named problems: a model factory, data, a loss, and a recipe that trains well out of the box.

    digits-mlp, mnist-mlp-256-128-64, cifar10-resnet20, ...    <data set>-<network>
    package.module:function, path/to/file.py:function  the user's own, a function that returns (model, loss, data)

Letters: N rows, K outputs.

A user's function runs in this process, with this process's rights: name only code that you trust. It is called with no
arguments, or with `seed=` where it has such a parameter, and always on the stream (seed, "initialisation") of torch's
global generator; numpy's and python's own generators are left to it.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import hashlib
import importlib
import importlib.util
import inspect
import math
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import default_collate

from landscape import datasets, networks
from landscape.datasets import Data, LabelNoise
from landscape.errors import LandscapeError, UsageError, unknown
from landscape.objectives import Inputs, Loss, Rows
from landscape.seeds import global_stream


@dataclass(frozen=True, eq=False)
class Task:
    """A problem to train and to measure. `make(seed)` gives a fresh module, the same for the same seed."""

    name: str
    description: str
    make: Callable[[int], nn.Module]
    data: Data
    loss: str | Callable[..., Tensor]  # "cross-entropy", "mse", or the user's own; what objectives.Loss.of takes
    defaults: Mapping[str, object]  # options of `train` by name: steps, lr, momentum, weight_decay, batch_size, ...
    options: Mapping[str, object]  # as resolved, for the record: data set, network, width, ..., or the user's code


# -- recipes ----------------------------------------------------------------------------------------------------------

# What every recipe starts from: stochastic gradient descent with momentum 0.9, as in He et al. 2016, section 3.4. The
# rate is constant, so that a trajectory's later points do not stand still because a schedule says so; digits-mlp comes
# to 0.97 test accuracy with it in 1,000 steps, and with rates from 0.02 to 0.2.
_BASE: dict[str, object] = {
    "steps": 2000,
    "batch_size": 128,
    "optimizer": "sgd",
    "lr": 0.05,
    "momentum": 0.9,
    "weight_decay": 0.0,
    "schedule": "constant",
    "warmup": 0,
    "augment": "",
}

# Where 2,000 steps are only 4 epochs, a constant rate ends in its own noise: mnist-lenet-300-100 has 0.961 with it and
# 0.974 with a cosine, on the first 5,000 test rows.
_IMAGES: dict[str, object] = {"schedule": "cosine"}

# Of the residual networks and vgg16. 15,640 steps are 40 epochs of CIFAR-10, a quarter of He et al.'s 64,000, at their rate 0.1 and with the weight decay
# of Zagoruyko & Komodakis 2016. Warmup (Goyal et al. 2017) over the first epoch, for the variants without BatchNorm.
# Taken from these papers; not tuned here.
_DEEP: dict[str, object] = _IMAGES | {"steps": 15_640, "lr": 0.1, "weight_decay": 5e-4, "warmup": 400}


def _recipe(dataset: str, network: str, rows: int) -> Mapping[str, object]:
    changes: dict[str, object] = {}
    if dataset in datasets.NEEDS_FOLDER:
        deep = network.startswith(("resnet", "vgg"))
        changes = _DEEP | {"augment": _AUGMENTED.get(dataset, "")} if deep else _IMAGES
    return _for_rows(_BASE | changes, rows)


def _for_rows(recipe: dict[str, object], rows: int) -> Mapping[str, object]:
    """The recipe for so many train rows: a default batch is no larger than they are. One that is asked for is refused there."""
    return MappingProxyType(recipe | {"batch_size": min(int(str(recipe["batch_size"])), rows)})


# He et al. 2016, section 4.2: shifts by up to 4 pixels and mirror images. A mirrored digit is another sign: no flip.
_AUGMENTED = {"cifar10": "shift,flip", "cifar100": "shift,flip", "svhn": "shift"}

# A smooth target wants a smooth network, and second derivatives that exist everywhere.
_ACTIVATION = {"regression": "tanh"}


# -- names ------------------------------------------------------------------------------------------------------------


def is_code(spec: str) -> bool:
    """Whether a spec names the user's code (`module:function`, `file.py:function`) and not a built-in task."""
    return ":" in spec


# rows of the networks that are listed with these alone: the list would else be twice as long
_HOMES: dict[str, tuple[int, ...]] = {
    **dict.fromkeys(("lenet-300-100", "conv4"), (1, 28, 28)),
    **dict.fromkeys(("resnet56", "resnet18", "resnet50", "vgg16"), (3, 32, 32)),
}


def catalogue() -> list[tuple[str, str]]:
    """Name and description of every built-in task. Loads no data and builds nothing."""
    found = []
    for dataset, what in datasets.DATASETS.items():
        for network, how in networks.NETWORKS.items():
            shape = datasets.ROW_SHAPES.get(dataset, (3, 32, 32))
            # each where it is at home: any task of two names that fit works
            if network in _HOMES and shape != _HOMES[network]:
                continue
            with contextlib.suppress(UsageError):
                networks.check(network, inputs=shape, outputs=1)
                found.append((f"{dataset}-{network}", f"{what}; {how}"))
    return found


def find(
    spec: str,
    *,
    width: float = 1,
    activation: str | None = None,
    norm: str | None = None,
    init: str | None = None,
    data: Path | None = None,
    download: bool = False,
    limit: int | None = None,
    label_noise: str | None = None,
) -> Task:
    """The task that `spec` names, with its data loaded.

    spec        <data set>-<network> (see `catalogue`), or the user's own `module:function` or `file.py:function`
    width       multiplies the network's hidden sizes
    activation  None: relu, and tanh for regression
    norm        None: the network's own
    init        how weights are drawn: he, glorot, lecun (see networks.INITS); None: the network's own
    data        the folder of the data files; None: the user's cache (see datasets.load). Refused, as is `download`, where the data set needs no files
    download    fetch missing data
    limit       keep this many train rows
    label_noise wrong labels among the train rows that are kept, such as `uniform:0.4` (see datasets.LabelNoise)

    Names are checked before anything is loaded. Raises UsageError for a name, a combination or an option that cannot
    work, and LandscapeError, with the user's own traceback, where the user's code fails.
    """
    noise = LabelNoise.read(label_noise) if label_noise is not None else None
    if is_code(spec):
        given = {
            "width": width != 1,
            "activation": activation,
            "norm": norm,
            "init": init,
            "data": data,
            "download": download,
        }
        idle = [f"--{name}" for name, value in given.items() if value]
        if idle:
            raise UsageError(
                f"{', '.join(idle)} would do nothing for {spec}: your function builds its model and loads its data "
                "itself. Leave it out, and choose inside the function."
            )
        return _from_code(spec, limit, noise)
    dataset, network = _parse(spec)
    if dataset not in datasets.NEEDS_FOLDER and (data is not None or download):
        flag = "--data" if data is not None else "--download"
        raise UsageError(
            f"{flag} would do nothing for {spec}: {dataset} needs no files. Leave it out, or name a task whose data lie in a folder."
        )
    activation = activation or _ACTIVATION.get(dataset, "relu")
    # the row's shape is settled by the name for all but imagefolder, so that a misfit is found before hours of fetching
    shape = datasets.ROW_SHAPES.get(dataset)
    networks.check(
        network, inputs=shape or (3, 32, 32), outputs=1, width=width, activation=activation, norm=norm, init=init
    )
    loaded = datasets.load(dataset, folder=data, download=download, limit=limit)
    if noise is not None:
        loaded = datasets.mislabelled(loaded, noise)
    inputs = loaded.train.inputs
    if not isinstance(inputs, Tensor):
        raise UsageError(f"{network} takes one tensor a row, and {dataset} has several.")
    row = tuple(inputs.shape[1:])
    outputs = len(loaded.classes) if loaded.classes is not None else math.prod(loaded.train.targets.shape[1:])
    build = functools.partial(
        networks.build, network, inputs=row, outputs=outputs, width=width, activation=activation, norm=norm, init=init
    )
    networks.check(network, inputs=row, outputs=outputs, width=width, activation=activation, norm=norm)

    def make(seed: int) -> nn.Module:
        with global_stream(seed, "initialisation"):
            return build()

    options = {
        "data set": dataset,
        "network": network,
        "width": width,
        "activation": activation,
        "norm": norm or networks.own_norm(network),
        "init": init,
        "data": str(data.resolve()) if data is not None else None,
        "limit": limit,
        "label_noise": str(noise) if noise else None,
    }
    loss = "mse" if loaded.classes is None else "cross-entropy"
    description = f"{loaded.description}; {networks.describe(network)}"
    return Task(
        spec, description, make, loaded, loss, _recipe(dataset, network, len(loaded.train)), MappingProxyType(options)
    )


def _parse(spec: str) -> tuple[str, str]:
    for dataset in datasets.DATASETS:
        if spec.startswith(f"{dataset}-"):
            network = spec.removeprefix(f"{dataset}-")
            if not networks.known(network) and not network.startswith("mlp-"):
                raise unknown(f"network in the task {spec!r}:", network, networks.NETWORKS)
            networks.describe(network)  # refuses hidden sizes that cannot be read
            return dataset, network
    for place in (place for place, letter in enumerate(spec) if letter == "-"):
        if networks.known(spec[place + 1 :]):
            raise unknown(f"data set in the task {spec!r}:", spec[:place], datasets.DATASETS)
    near = unknown("task", spec, [name for name, _ in catalogue()])
    raise UsageError(f"{near} Or name a function of your own, package.module:function or path/to/file.py:function.")


# -- the user's own problem -------------------------------------------------------------------------------------------

_FORMS = (
    "Return (model, loss, data), or a dict with these three keys: model an nn.Module; loss 'cross-entropy', 'mse', a "
    "torch loss module or a function (outputs, targets) -> one loss a row; data (X, y), ((X, y), (X_test, y_test)), "
    "{'train': ..., 'test': ...} or torch data sets."
)


@dataclass(frozen=True, eq=False)
class _Problem:
    model: nn.Module
    loss: str | Callable[..., Tensor]
    data: Any


def _from_code(spec: str, limit: int | None, noise: LabelNoise | None) -> Task:
    where, name = spec.rsplit(":", 1)
    with _importable(where), _theirs(spec):
        module = _module(where)
    function = getattr(module, name, None)
    if function is None:
        own = [key for key, value in vars(module).items() if inspect.isroutine(value) and not key.startswith("_")]
        raise unknown(f"function in {where}:", name, own or ["(it defines no function)"])
    if not callable(function):
        raise UsageError(f"{spec} is {_what(function)}, not a function. {_FORMS}")
    seeded = _takes_seed(spec, function)

    def call(seed: int) -> _Problem:
        with _importable(where), global_stream(seed, "initialisation"), _theirs(spec):
            returned = function(seed=seed) if seeded else function()
        return _problem(spec, returned)

    first = call(0)
    # the data of seed 0: they are part of the problem, and a seed only chooses where training starts
    with _importable(where), global_stream(0, "data"), _theirs(spec):
        data = _data(spec, first)
    if limit is not None:
        if limit < 1:
            raise UsageError(f"a limit of {limit} train rows: give 1 or more, or leave it out for all of them.")
        data = datasets.limited(data, limit)
    if noise is not None:
        data = datasets.mislabelled(data, noise)

    def make(seed: int) -> nn.Module:
        model = call(seed).model
        # a function that hands out one object again and again (a pretrained model at module level) gets it copied:
        # training one copy must not move another
        return copy.deepcopy(model) if model is first.model else model

    options = {"code": spec, "seeded": seeded, "limit": limit, "label_noise": str(noise) if noise else None}
    description = f"{inspect.getdoc(function) or spec}".partition("\n")[0]
    return Task(
        spec,
        f"{description}; {data.description}",
        make,
        data,
        first.loss,
        _for_rows(_BASE, len(data.train)),
        MappingProxyType(options),
    )


def _takes_seed(spec: str, function: Callable[..., Any]) -> bool:
    try:
        parameters = inspect.signature(function).parameters
    except (TypeError, ValueError):  # written in C: it has no signature to read
        return False
    plain = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    needed = [
        name
        for name, parameter in parameters.items()
        if parameter.default is parameter.empty
        and parameter.kind in (*plain, inspect.Parameter.POSITIONAL_ONLY)
        and not (name == "seed" and parameter.kind in plain)
    ]
    if needed:
        raise UsageError(
            f"{spec} needs the arguments {', '.join(needed)}, but is called with none, or with seed alone. Give them "
            "defaults, or write a function without them that calls it."
        )
    return "seed" in parameters and parameters["seed"].kind in plain


@contextlib.contextmanager
def _importable(where: str) -> Iterator[None]:
    """The user's folder first on the import path, as python has it for a script; afterwards the path as it was."""
    folder = str(Path(where).resolve().parent) if where.endswith(".py") else os.getcwd()
    before = list(sys.path)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        sys.path[:] = before


@contextlib.contextmanager
def _theirs(spec: str) -> Iterator[None]:
    """Turn an exception of the user's code into a LandscapeError that shows the user's lines and none of ours."""
    try:
        yield
    except LandscapeError:
        raise
    except (Exception, SystemExit) as error:
        ours = {__file__, contextlib.__file__, importlib.__file__}
        frames = [
            frame
            for frame in traceback.extract_tb(error.__traceback__)
            if frame.filename not in ours and not frame.filename.startswith("<frozen importlib")
        ]
        lines = "".join([*traceback.format_list(frames), *traceback.format_exception_only(error)]).rstrip()
        raise LandscapeError(f"your code {spec} failed:\n{lines}") from error


def _module(where: str) -> ModuleType:
    if not where.endswith(".py"):
        try:
            return importlib.import_module(where)
        except ModuleNotFoundError as error:
            # a missing module of their own is their error; only a name that leads nowhere is ours to explain
            if error.name is None or not f"{where}.".startswith(f"{error.name}."):
                raise
            raise UsageError(
                f"there is no module {error.name!r} in {os.getcwd()} or among the installed packages. Check the "
                "spelling, run from the folder that holds it, or give path/to/file.py:function."
            ) from None
        except (TypeError, ValueError):
            raise UsageError(f"{where!r} is not a module's name. Give package.module:function.") from None
    path = Path(where).resolve()
    if not path.is_file():
        raise UsageError(f"there is no file {path}. Give path/to/file.py:function.")
    name = f"landscape_user_{path.stem}_{hashlib.blake2b(str(path).encode(), digest_size=4).hexdigest()}"
    specification = importlib.util.spec_from_file_location(name, path)
    if specification is None or specification.loader is None:
        raise UsageError(f"{path} cannot be imported as python. Give path/to/file.py:function.")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module  # dataclasses and pickled workers look their module up by name
    try:
        specification.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _what(value: object) -> str:
    if isinstance(value, Tensor | np.ndarray):
        return f"{type(value).__name__} of shape {tuple(value.shape)} and {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, tuple | list) and len(value) <= 4:
        return f"a {type(value).__name__} of ({', '.join(map(_what, value))})"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} items"
    if isinstance(value, dict):
        return f"a dict with the keys {', '.join(map(repr, value))}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"{value!r}" if value is None or isinstance(value, str | int | float) else f"a {type(value).__name__}"


def _problem(spec: str, returned: object) -> _Problem:
    if isinstance(returned, dict):
        for key in returned:
            if key not in ("model", "loss", "data"):
                raise unknown(f"key in what {spec} returned:", str(key), ("model", "loss", "data"))
        missing = [key for key in ("model", "loss", "data") if key not in returned]
        if missing:
            raise UsageError(f"{spec} returned a dict without {', '.join(missing)}. {_FORMS}")
        model, loss, data = returned["model"], returned["loss"], returned["data"]
    elif isinstance(returned, tuple | list) and len(returned) == 3:
        model, loss, data = returned
    else:
        raise UsageError(f"{spec} returned {_what(returned)}. {_FORMS}")
    if not isinstance(model, nn.Module):
        raise UsageError(f"{spec} returned as its model {_what(model)}, not an nn.Module instance. {_FORMS}")
    if loss is functional.cross_entropy:  # these two give a mean over a batch; by name they are taken row by row
        loss = "cross-entropy"
    elif loss is functional.mse_loss:
        loss = "mse"
    Loss.of(loss)  # refuses what is not a loss, before anything is trained
    return _Problem(model, loss, data)


def _data(spec: str, problem: _Problem) -> Data:
    train, test = _parts(spec, problem.data)
    note = "" if test is not None else " (no test rows were given: the train rows stand in)"
    first = _rows(spec, "train", train)
    second = first if test is None else _rows(spec, "test", test)
    classes = None
    if _classifies(problem.loss) and not first.targets.is_floating_point() and first.targets.ndim == 1:
        # labels below 0 are a loss's own sign for "ignore this row": left to it, and the task then names no classes
        lowest = min(int(rows.targets.min()) for rows in (first, second))
        highest = max(int(rows.targets.max()) for rows in (first, second))
        if lowest >= 0:
            classes = tuple(str(label) for label in range(highest + 1))
    return datasets.assemble(first, second, classes, f"{len(first):,} train and {len(second):,} test rows{note}")


def _classifies(loss: str | Callable[..., Tensor]) -> bool:
    return Loss.of(loss).classifies


def _parts(spec: str, data: Any) -> tuple[Any, Any]:
    """Train and test, in whatever form each came; test None where there is none."""
    if isinstance(data, dict):
        for key in data:
            if key not in ("train", "test"):
                raise unknown(f"key in the data of {spec}:", str(key), ("train", "test"))
        if "train" not in data:
            raise UsageError(f"the data of {spec} are a dict without 'train'. {_FORMS}")
        return data["train"], data.get("test")
    if isinstance(data, Data):
        return data.train, data.test
    if isinstance(data, Rows) or _is_dataset(data):
        return data, None
    if isinstance(data, tuple | list) and len(data) == 2:
        # (X, y) has an array of targets second; a pair of parts has a pair, rows or a data set there
        return (data, None) if isinstance(data[1], Tensor | np.ndarray) else (data[0], data[1])
    raise UsageError(f"the data of {spec} are {_what(data)}.{_hint(data)} {_FORMS}")


def _is_dataset(value: object) -> bool:
    built_in = (Tensor, np.ndarray, tuple, list, dict, str, bytes)
    return hasattr(value, "__getitem__") and hasattr(value, "__len__") and not isinstance(value, built_in)


def _hint(value: object) -> str:
    if hasattr(value, "dataset") and hasattr(value, "batch_size"):
        return " Of a DataLoader give its .dataset."
    if hasattr(value, "__iter__") and hasattr(value, "__next__"):
        return " An iterator has no length: collect its rows into arrays."
    return ""


def _rows(spec: str, part: str, value: Any) -> Rows:
    if isinstance(value, Rows):
        return value
    if _is_dataset(value):
        return _materialised(spec, part, value)
    if not (isinstance(value, tuple | list) and len(value) == 2):
        raise UsageError(
            f"the {part} data of {spec} are {_what(value)}.{_hint(value)} Give (X, y) or a torch data set."
        )
    x, y = value
    inputs: Inputs
    if isinstance(x, dict):
        inputs = {str(key): _tensor(spec, f"{part} input {key!r}", entry) for key, entry in x.items()}
    elif isinstance(x, tuple | list):
        inputs = tuple(_tensor(spec, f"{part} input {number}", entry) for number, entry in enumerate(x))
    else:
        inputs = _tensor(spec, f"{part} inputs", x)
    if not isinstance(inputs, Tensor) and len(inputs) == 0:
        raise UsageError(f"the {part} inputs of {spec} are an empty {type(x).__name__}. Give at least one array.")
    targets = _tensor(spec, f"{part} targets", y)
    if not targets.is_floating_point():
        targets = targets.long()  # what torch's losses take as labels
    return Rows(inputs, targets)


def _tensor(spec: str, what: str, value: object) -> Tensor:
    if isinstance(value, np.ndarray):
        try:
            value = torch.from_numpy(np.ascontiguousarray(value))
        except TypeError:
            raise UsageError(
                f"the {what} of {spec} are numpy {value.dtype}: give numbers that torch has a dtype for."
            ) from None
    if not isinstance(value, Tensor):
        raise UsageError(f"the {what} of {spec} are {_what(value)}: give a tensor or a numpy array, rows first.")
    if value.ndim == 0:
        raise UsageError(f"the {what} of {spec} are a single number: give a tensor or a numpy array, rows first.")
    return value.detach()


def _materialised(spec: str, part: str, dataset: Any) -> Rows:
    """All rows of an indexable data set, fetched by number and stacked as torch's own loader stacks a batch."""
    items = [dataset[number] for number in range(len(dataset))]
    if not items:
        raise UsageError(f"the {part} data set of {spec} is empty: give at least one row.")
    if not (isinstance(items[0], tuple | list) and len(items[0]) == 2):
        raise UsageError(f"an item of the {part} data set of {spec} is {_what(items[0])}. An item is (x, y).")
    try:
        return _rows(spec, part, default_collate(items))
    except (RuntimeError, TypeError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(
            f"the items of the {part} data set of {spec} cannot be stacked: {reason}. Give numbers or tensors of one "
            "shape in every item (images: add ToTensor and a resize)."
        ) from None
