"""The data sets: rows of inputs and targets, already normalised, held whole in memory; and the readers that they need.

    digits                  scikit-learn's 8x8 digits, flat rows; nothing to fetch
    mnist, fashion-mnist    IDX files as torchvision lays them, FOLDER/MNIST/raw/* and FOLDER/FashionMNIST/raw/*
    cifar10, cifar100, svhn torchvision's own files in FOLDER, or a tree of images FOLDER/<name>/train/<class>/*
    imagefolder             any tree of images FOLDER/train/<class>/*, FOLDER/test/<class>/*, all of one size
    regression, two-moons   toys drawn from a fixed seed

Letters: N rows; C channels, H height and W width of an image; K classes.

Images are normalised by one mean and one deviation a channel, (pixel / 255 - mean) / deviation: pixel by pixel, the
constant ones at the borders would have deviation zero. The named sets use the usual constants, from their train rows.

Nothing is unpickled here. The python pickles of CIFAR are read by torchvision's own class, and it opens them only after
the MD5 sum of each file has matched the one that torchvision ships; where a sum differs it raises, and we report that.
A tree of images is decoded once into a safetensors file (see `_tree_of_images`).
"""

from __future__ import annotations

import contextlib
import gzip
import hashlib
import io
import json
import math
import os
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from landscape.errors import LandscapeError, UnsafeInputError, UsageError, unknown
from landscape.files import write_atomic
from landscape.objectives import Inputs, Rows
from landscape.seeds import generator


@dataclass(frozen=True, eq=False)
class Data:
    """Train and test rows: inputs float32 (N, ...), targets int64 (N,) in 0..K-1 or float32 (N, outputs) to regress."""

    train: Rows
    test: Rows
    classes: tuple[str, ...] | None  # K names; None: regression
    description: str
    fingerprint: str  # 16 hex digits over every byte, shape and dtype: equal means the same rows in the same order


DATASETS: dict[str, str] = {
    "digits": "8x8 handwritten digits (scikit-learn), 1,437 train and 360 test rows; nothing to fetch",
    "mnist": "MNIST, 28x28 handwritten digits, 60,000 train and 10,000 test rows",
    "fashion-mnist": "Fashion-MNIST, 28x28 clothes, 60,000 train and 10,000 test rows",
    "cifar10": "CIFAR-10, 32x32 colour photographs of 10 classes, 50,000 train and 10,000 test rows",
    "cifar100": "CIFAR-100, 32x32 colour photographs of 100 classes, 50,000 train and 10,000 test rows",
    "svhn": "SVHN, 32x32 colour house numbers, 73,257 train and 26,032 test rows",
    "imagefolder": "your images: FOLDER/train/<class>/* and FOLDER/test/<class>/*, all of one size",
    "regression": "y = sin(2x) + noise of deviation 0.1, 256 train and 128 test rows; nothing to fetch",
    "two-moons": "two interleaved half circles with noise, 256 train and 128 test rows; nothing to fetch",
}

# One row's shape, where the name alone settles it: a network can then be refused before anything is read.
ROW_SHAPES: dict[str, tuple[int, ...]] = {
    "digits": (64,),
    "mnist": (1, 28, 28),
    "fashion-mnist": (1, 28, 28),
    "cifar10": (3, 32, 32),
    "cifar100": (3, 32, 32),
    "svhn": (3, 32, 32),
    "regression": (1,),
    "two-moons": (2,),
}

NEEDS_FOLDER = frozenset({"mnist", "fashion-mnist", "cifar10", "cifar100", "svhn", "imagefolder"})

_DIGITS = tuple("0123456789")
_FASHION = ("t-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
_CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def load(name: str, *, folder: Path | None = None, download: bool = False, limit: int | None = None) -> Data:
    """The data set `name` (one of DATASETS).

    folder    where the files lie, and where `download` puts them; None: ~/.cache/landscape/data ($XDG_CACHE_HOME is
              heeded). Not looked at by the sets that need no files.
    download  fetch what is missing, through torchvision, which checks the sums; off, since nobody expects a long fetch
    limit     keep this many train rows, drawn from a fixed seed, classes in their proportions; the test rows stay

    Raises UsageError where the data are missing (which folder was looked at, how to get them) or of an unfit form,
    UnsafeInputError where a file is damaged, LandscapeError where fetching fails.
    """
    if name not in DATASETS:
        raise unknown("data set", name, DATASETS)
    if limit is not None and limit < 1:
        raise UsageError(f"a limit of {limit} train rows: give 1 or more, or leave it out for all of them.")
    place = _cache() / "data" if folder is None else folder
    if name in NEEDS_FOLDER and folder is not None and not folder.is_dir() and not download:
        raise UsageError(f"{name}: there is no folder {folder}. {_advice(name)}")
    data = _READERS[name](name, place, download)
    return data if limit is None else limited(data, limit)


def limited(data: Data, limit: int) -> Data:
    """The same data with at most `limit` train rows, in their old order, classes in the proportions they have."""
    if limit >= len(data.train):
        return data
    labels = data.train.targets if data.classes is not None else torch.zeros(len(data.train), dtype=torch.int64)
    train = data.train.take(_stratified(labels, limit, "limit"))
    return assemble(train, data.test, data.classes, f"{data.description}; {limit} of {len(data.train)} train rows")


NOISES = ("uniform", "pairwise", "authors")
_NOISE_FORM = "Write it as uniform:0.4 or, with another seed than 0, uniform:0.4@3"


@dataclass(frozen=True)
class LabelNoise:
    """Wrong labels put among the train labels on purpose; `read` it from text such as `uniform:0.4@3`.

    uniform   an exact share of the rows, drawn at random, each gets another class, all others being equally likely (symmetric noise)
    pairwise  an exact share of the rows, drawn at random, goes from class k to k + 1, the last to the first (Han et al. 2018, "pair flip")
    authors   the first rows, in their order, get classes drawn from all of them, so that one in K stays right by chance (the code of Li et al. 2022, DLDR)
    """

    kind: str
    share: float  # of the train rows, in (0, 1]
    seed: int = 0

    @staticmethod
    def read(text: str) -> LabelNoise:
        """From `KIND:SHARE` or `KIND:SHARE@SEED`. Raises UsageError on anything else."""
        kind, _, rest = text.strip().partition(":")
        if kind not in NOISES:
            raise unknown("label noise", kind, NOISES)
        share, at, seed = rest.partition("@")
        try:
            noise = LabelNoise(kind, float(share), int(seed) if at else 0)
        except ValueError:
            raise UsageError(f"label noise {text!r} cannot be read. {_NOISE_FORM}.") from None
        if not 0 < noise.share <= 1:
            raise UsageError(f"label noise has a share of the rows in (0, 1]; got {share}. {_NOISE_FORM}.")
        return noise

    def __str__(self) -> str:
        return f"{self.kind}:{self.share}" + (f"@{self.seed}" if self.seed else "")


def mislabelled(data: Data, noise: LabelNoise) -> Data:
    """The same data with wrong labels in `noise`'s share of the train rows, rounded to whole rows; the test rows stay, the fingerprint changes.

    The draws come from the stream (seed, "label-noise"): they depend on nothing else.
    Raises UsageError where the targets are no classes, or the share is less than half a row.
    """
    if data.classes is None or len(data.classes) < 2:
        raise UsageError(
            "label noise is for targets that are two or more classes, numbered from 0; these are not. Leave it out."
        )
    total, classes = len(data.train), len(data.classes)
    count = round(noise.share * total)
    if not count:
        raise UsageError(
            f"label noise {noise} of {total} train rows is none. Give a share of at least {1 / total:.2g}."
        )
    stream = generator(noise.seed, "label-noise")
    labels = data.train.targets.clone()
    if noise.kind == "authors":
        labels[:count] = torch.randint(classes, (count,), generator=stream).to(labels)
    else:
        places = torch.randperm(total, generator=stream)[:count].to(labels.device)
        # a shift by 1..K-1 never ends where it began, and reaches every other class with equal chances
        shift = torch.randint(1, classes, (count,), generator=stream).to(labels) if noise.kind == "uniform" else 1
        labels[places] = (labels[places] + shift) % classes
    what = f"{count} train labels drawn anew" if noise.kind == "authors" else f"{count} wrong train labels"
    description = f"{data.description}; {what} ({noise})"
    return assemble(Rows(data.train.inputs, labels), data.test, data.classes, description)


def assemble(train: Rows, test: Rows, classes: tuple[str, ...] | None, description: str) -> Data:
    """Check rows and bind them into Data.

    Raises UsageError where a value is NaN or infinite, a label outside 0..K-1, or train and test rows differ in form.
    """
    for part, rows in (("train", train), ("test", test)):
        for tensor in [*_leaves(rows.inputs), rows.targets]:
            if tensor.is_floating_point() and not torch.isfinite(tensor).all():
                bad = (~torch.isfinite(tensor)).reshape(len(tensor), -1).any(1)
                raise UsageError(
                    f"{int(bad.sum())} of {len(rows)} {part} rows hold NaN or infinity, the first is row "
                    f"{int(bad.nonzero()[0])}. Remove or repair them: a single one makes every mean over rows NaN."
                )
        if classes is not None:
            if rows.targets.is_floating_point() or rows.targets.ndim != 1:
                raise UsageError(
                    f"the {part} labels are {_shape(rows.targets)}; class labels are integers of shape ({len(rows)},)."
                )
            low, high = int(rows.targets.min()), int(rows.targets.max())
            if low < 0 or high >= len(classes):
                raise UsageError(
                    f"the {part} labels run from {low} to {high}, but {len(classes)} classes are 0 to "
                    f"{len(classes) - 1}. Number the classes from 0."
                )
    if _form(train.inputs) != _form(test.inputs):
        raise UsageError(
            f"train inputs are {_shape(train.inputs)}, but test inputs are {_shape(test.inputs)}. "
            "Give both in one form."
        )
    ones, others = ([*_leaves(rows.inputs), rows.targets] for rows in (train, test))
    for one, other in zip(ones, others, strict=True):
        if one.shape[1:] != other.shape[1:] or one.dtype != other.dtype:
            raise UsageError(
                f"a train row is {_kind(one)} of shape {tuple(one.shape[1:])}, but a test row is {_kind(other)} of "
                f"shape {tuple(other.shape[1:])}. Give both one shape and one dtype."
            )
    return Data(train, test, classes, description, _fingerprint([train, test]))


def _leaves(inputs: Inputs) -> list[Tensor]:
    if isinstance(inputs, Tensor):
        return [inputs]
    return [inputs[key] for key in sorted(inputs)] if isinstance(inputs, dict) else list(inputs)


def _form(inputs: Inputs) -> tuple[str, ...] | int:
    if isinstance(inputs, dict):
        return tuple(sorted(inputs))
    return 0 if isinstance(inputs, Tensor) else len(inputs)


def _kind(tensor: Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _shape(inputs: Inputs) -> str:
    if isinstance(inputs, Tensor):
        return f"{_kind(inputs)} of shape {tuple(inputs.shape)}"
    if isinstance(inputs, dict):
        return "a dict of " + ", ".join(f"{key!r}: {_shape(tensor)}" for key, tensor in inputs.items())
    return "a tuple of " + ", ".join(map(_shape, inputs))


def _fingerprint(parts: Sequence[Rows]) -> str:
    digest = hashlib.blake2b(digest_size=8)
    for rows in parts:
        names = sorted(rows.inputs) if isinstance(rows.inputs, dict) else []
        digest.update(json.dumps(names).encode())
        for tensor in [*_leaves(rows.inputs), rows.targets]:
            digest.update(f"{_kind(tensor)}{tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _stratified(labels: Tensor, count: int, name: str) -> Tensor:
    """Indices (count,) in rising order. Each class gets its share, rounded by largest remainders; ties are drawn."""
    stream = generator(0, name)
    shares = torch.bincount(labels).double() * count / len(labels)
    quota = shares.floor().long()
    order = torch.randperm(len(shares), generator=stream)
    rest = order[(shares - quota)[order].argsort(descending=True, stable=True)][: count - int(quota.sum())]
    quota[rest] += 1
    chosen = []
    for label, number in enumerate(quota.tolist()):
        rows = (labels == label).nonzero().flatten()
        chosen.append(rows[torch.randperm(len(rows), generator=stream)[:number]])
    return torch.cat(chosen).sort().values


def _cache() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "landscape"


def _advice(name: str) -> str:
    if name == "imagefolder":
        return "Point --data DIR at a folder with train/<class>/* and test/<class>/*."
    return "Point --data DIR at the folder that holds the files, or fetch them with --download."


# -- tables and toys --------------------------------------------------------------------------------------------------


def _digits(name: str, folder: Path, download: bool) -> Data:
    from sklearn.datasets import load_digits

    bundle = load_digits()
    pixels = torch.from_numpy(bundle.data).double() / 16
    labels = torch.from_numpy(bundle.target).long()
    # 360 of 1,797 rows (a fifth), stratified: 35 to 37 rows of each class
    held = torch.zeros(len(labels), dtype=torch.bool)
    held[_stratified(labels, 360, "digits")] = True
    # one mean and one deviation for all 64 pixels: some border pixels are constant, and others are inked in a handful
    # of rows, which a deviation for each pixel would blow up to tens
    mean, deviation = pixels[~held].mean(), pixels[~held].std(correction=0)
    inputs = ((pixels - mean) / deviation).float()
    return assemble(Rows(inputs[~held], labels[~held]), Rows(inputs[held], labels[held]), _DIGITS, DATASETS[name])


def _regression(name: str, folder: Path, download: bool) -> Data:
    def draw(rows: int, part: str) -> Rows:
        stream = generator(0, f"regression {part}")
        x = 4 * torch.rand(rows, 1, generator=stream) - 2
        # deviation 0.1: the best mean squared error is near 0.01, so that a fit and an overfit can be told apart
        return Rows(x, torch.sin(2 * x) + 0.1 * torch.randn(rows, 1, generator=stream))

    return assemble(draw(256, "train"), draw(128, "test"), None, DATASETS[name])


def _two_moons(name: str, folder: Path, download: bool) -> Data:
    from sklearn.datasets import make_moons

    # noise 0.2: the classes touch, so that a small network's loss does not at once run off to zero with growing weights
    points, labels = make_moons(n_samples=384, noise=0.2, random_state=0)
    inputs = torch.from_numpy(points)
    inputs = ((inputs - inputs[:256].mean(0)) / inputs[:256].std(0, correction=0)).float()
    targets = torch.from_numpy(labels).long()
    train, test = Rows(inputs[:256], targets[:256]), Rows(inputs[256:], targets[256:])
    return assemble(train, test, ("upper", "lower"), DATASETS[name])


# -- IDX files --------------------------------------------------------------------------------------------------------

# No IDX file of these sets is larger than 47 MB; a header that claims more than this is damaged, and would be believed.
_IDX_LIMIT = 2**31


def read_idx(path: Path, axes: int) -> Tensor:
    """The unsigned bytes of an IDX file, raw or .gz, as uint8 with `axes` axes.

    LeCun's format: the bytes 0, 0, 8 (unsigned bytes), axes; the size of each axis as 32 bits, big end first; the data.
    Raises UnsafeInputError where the magic number, the number of axes or the length is wrong.
    """
    again = "Fetch the file again: it is damaged or not an IDX file of unsigned bytes."
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
            head = file.read(4 + 4 * axes)
            if len(head) < 4 + 4 * axes or head[:4] != bytes([0, 0, 8, axes]):
                raise UnsafeInputError(f"{path} begins with {head[:4].hex(' ')}, not 00 00 08 {axes:02x}. {again}")
            sizes = [int.from_bytes(head[i : i + 4], "big") for i in range(4, len(head), 4)]
            claimed = math.prod(sizes)
            if claimed > _IDX_LIMIT:
                raise UnsafeInputError(f"{path} claims {claimed} bytes in its header. {again}")
            body = bytearray(file.read(claimed + 1))
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UnsafeInputError(f"{path} cannot be unpacked ({error}). {again}") from None
    if len(body) != claimed:
        found = "more" if len(body) > claimed else str(len(body))
        raise UnsafeInputError(f"{path} promises {claimed} bytes of data and holds {found}. {again}")
    if claimed == 0:
        raise UnsafeInputError(f"{path} holds no rows. {again}")
    return torch.frombuffer(body, dtype=torch.uint8).reshape(sizes)


def _mnist(name: str, folder: Path, download: bool) -> Data:
    inner, mean, deviation, classes = _IDX_SETS[name]
    raw = folder / inner / "raw"
    if download:
        _torchvision(name, inner, folder, download)

    def rows(part: str) -> Rows:
        images = read_idx(_idx(name, raw, f"{part}-images-idx3-ubyte"), 3)
        labels = read_idx(_idx(name, raw, f"{part}-labels-idx1-ubyte"), 1)
        if len(images) != len(labels):
            raise UnsafeInputError(
                f"{raw} holds {len(images)} {part} images, but {len(labels)} labels. Fetch the files again."
            )
        return Rows(_normalised(images.unsqueeze(1), (mean,), (deviation,)), labels.long())

    return assemble(rows("train"), rows("t10k"), classes, DATASETS[name])


def _idx(name: str, raw: Path, file: str) -> Path:
    for path in (raw / file, raw / f"{file}.gz"):
        if path.is_file():
            return path
    raise UsageError(f"{name}: there is no {file} and no {file}.gz in {raw}. {_advice(name)}")


_IDX_SETS: dict[str, tuple[str, float, float, tuple[str, ...]]] = {
    "mnist": ("MNIST", 0.1307, 0.3081, _DIGITS),
    "fashion-mnist": ("FashionMNIST", 0.2860, 0.3530, _FASHION),
}


def _normalised(images: Tensor, mean: Sequence[float], deviation: Sequence[float]) -> Tensor:
    """uint8 (N, C, H, W) to float32, in place after one copy: a second copy of CIFAR-10 would be 600 MB."""
    shape = (1, -1, 1, 1)
    return images.float().div_(255).sub_(torch.tensor(mean).view(shape)).div_(torch.tensor(deviation).view(shape))


# -- torchvision's sets -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Colour:
    title: str
    reader: str  # torchvision's class
    parts: tuple[dict[str, Any], dict[str, Any]]  # its arguments for train and for test
    packed: str  # what the reader reads
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    classes: tuple[str, ...] | None  # None: 100, named by the reader


_TRAIN_TEST = ({"train": True}, {"train": False})
_SPLITS = ({"split": "train"}, {"split": "test"})
_MEAN10, _DEVIATION10 = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
_MEAN100, _DEVIATION100 = (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)
_MEAN_SVHN, _DEVIATION_SVHN = (0.4377, 0.4438, 0.4728), (0.1980, 0.2010, 0.1970)
_COLOURS: dict[str, _Colour] = {
    "cifar10": _Colour("CIFAR-10", "CIFAR10", _TRAIN_TEST, "cifar-10-batches-py", _MEAN10, _DEVIATION10, _CIFAR10),
    "cifar100": _Colour("CIFAR-100", "CIFAR100", _TRAIN_TEST, "cifar-100-python", _MEAN100, _DEVIATION100, None),
    "svhn": _Colour("SVHN", "SVHN", _SPLITS, "train_32x32.mat", _MEAN_SVHN, _DEVIATION_SVHN, _DIGITS),
}


def _torchvision(name: str, reader: str, folder: Path, download: bool, **part: Any) -> Any:
    import torchvision.datasets

    try:
        with contextlib.redirect_stdout(io.StringIO()):  # torchvision prints there, and standard output is for results
            return getattr(torchvision.datasets, reader)(folder, download=download, **part)
    except (RuntimeError, OSError, ValueError) as error:
        if download:
            raise LandscapeError(
                f"{name} could not be fetched into {folder}: {error}. Try again, or point --data DIR at a copy."
            ) from error
        raise UnsafeInputError(
            f"{name} in {folder} was refused: {error}. Fetch it again with --download, or point --data DIR at a copy."
        ) from error


def _colour(name: str, folder: Path, download: bool) -> Data:
    colour = _COLOURS[name]
    if not (folder / colour.packed).exists() and not download:
        tree = _tree(folder, name)
        if tree is None:
            raise UsageError(
                f"{name}: there is no {colour.packed} in {folder}, and no tree of images "
                f"{folder / name}/train/<class>/*. {_advice(name)}"
            )
        found = _tree_of_images(tree)
        _same_classes(name, tree, found.classes, colour.classes)
        return _from_images(found, colour.mean, colour.deviation, f"{colour.title} (JPEG)", tree)

    def rows(part: Any) -> Rows:
        if name == "svhn":
            return Rows(_normalised(torch.from_numpy(part.data), colour.mean, colour.deviation), _labels(part.labels))
        images = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()  # from torchvision's (N, H, W, C)
        return Rows(_normalised(images, colour.mean, colour.deviation), _labels(part.targets))

    train, test = (_torchvision(name, colour.reader, folder, download, **part) for part in colour.parts)
    return assemble(rows(train), rows(test), colour.classes or tuple(train.classes), DATASETS[name])


def _labels(labels: Any) -> Tensor:
    return torch.as_tensor(labels).long()


def _same_classes(name: str, tree: Path, found: tuple[str, ...], expected: tuple[str, ...] | None) -> None:
    if len(found) != 100 if expected is None else found != tuple(sorted(expected)):
        wanted = "100 folders" if expected is None else ", ".join(expected)
        raise UsageError(
            f"{tree} does not hold {name}: its classes are {', '.join(found)}; expected {wanted}. "
            "Read it as the data set imagefolder instead."
        )


# -- a tree of images -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class _Images:
    train: Tensor  # (N, C, H, W) uint8
    train_labels: Tensor  # (N,)
    test: Tensor
    test_labels: Tensor
    classes: tuple[str, ...]


_KEPT = ("train", "train_labels", "test", "test_labels")
_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
_FORMATS = ("JPEG", "PNG", "WEBP", "BMP")  # no others are tried, whatever the bytes say: less to attack


def _tree(folder: Path, name: str) -> Path | None:
    return next((place for place in (folder / name, folder) if (place / "train").is_dir()), None)


def _imagefolder(name: str, folder: Path, download: bool) -> Data:
    if download:
        raise UsageError("imagefolder is a folder of yours, so --download has nothing to fetch. Leave it out.")
    tree = _tree(folder, name)
    if tree is None:
        raise UsageError(f"imagefolder: there is no train/<class>/* in {folder}. {_advice(name)}")
    images = _tree_of_images(tree)
    # by integers, exactly: a mean of many float32 pixels depends on the order of summing
    mean, deviation = [], []
    values = torch.arange(256, dtype=torch.float64) / 255
    for channel in images.train.unbind(1):
        counts = torch.bincount(channel.flatten(), minlength=256).double()
        mean.append(float(counts @ values / counts.sum()))
        # a channel without any variation is left at its own scale
        deviation.append(math.sqrt(float(counts @ (values - mean[-1]).square() / counts.sum())) or 1.0)
    return _from_images(images, mean, deviation, f"images of {tree}", tree)


def _from_images(images: _Images, mean: Sequence[float], deviation: Sequence[float], title: str, tree: Path) -> Data:
    if len(mean) == 3 and images.train.shape[1] == 1:
        raise UsageError(f"{tree} holds grey images, but {title} has colour. Use imagefolder for it.")
    return assemble(
        Rows(_normalised(images.train, mean, deviation), images.train_labels),
        Rows(_normalised(images.test, mean, deviation), images.test_labels),
        images.classes,
        f"{title}, {len(images.classes)} classes, {len(images.train):,} train and {len(images.test):,} test rows",
    )


def _tree_of_images(tree: Path) -> _Images:
    """The images of a tree, decoded once and kept in TREE/.landscape-images.safetensors, or in the user's cache.

    (The user's cache, ~/.cache/landscape, where TREE is read-only.) The file holds the pixels as uint8, the labels, and
    a key over every image's name, size and time of change: where one changes, comes or goes, the tree is decoded again.
    """
    listing = {part: _listing(tree / part) for part in ("train", "test")}
    classes = tuple(sorted(listing["train"]))
    strange = sorted(set(listing["test"]) - set(classes))
    if strange:
        raise UsageError(
            f"{tree / 'test'} has classes that {tree / 'train'} has not: {', '.join(strange)}. "
            "Give both the same folders."
        )
    digest = hashlib.blake2b(b"2", digest_size=16)  # counted up whenever what is kept changes its meaning
    for part, folders in listing.items():
        for name, files in folders.items():
            for path, size, changed in files:
                digest.update(json.dumps([part, name, path.name, size, changed]).encode())
    key = digest.hexdigest()
    place = hashlib.blake2b(str(tree.resolve()).encode(), digest_size=8).hexdigest()
    caches = [tree / ".landscape-images.safetensors", _cache() / f"images-{place}.safetensors"]
    for cache in caches:
        kept = _kept(cache, key, classes)
        if kept is not None:
            return kept
    images = _decoded(listing, classes)
    _keep(images, key, caches)
    return images


def _kept(cache: Path, key: str, classes: tuple[str, ...]) -> _Images | None:
    """What the cache file holds, or None where it is not there, is of another state of the tree, or is torn."""
    from safetensors import SafetensorError, safe_open

    if not cache.is_file():
        return None
    try:
        with safe_open(cache, framework="pt") as file:
            if (file.metadata() or {}).get("key") != key:
                return None
            train, train_labels, test, test_labels = (file.get_tensor(name) for name in _KEPT)
    except (SafetensorError, OSError):
        return None
    return _Images(train, train_labels, test, test_labels, classes)


def _keep(images: _Images, key: str, caches: Iterable[Path]) -> None:
    from safetensors.torch import save

    raw = save({name: getattr(images, name) for name in _KEPT}, metadata={"key": key})
    for cache in caches:
        with contextlib.suppress(
            OSError
        ):  # read-only or full: the next place, and at worst all is decoded again next time
            write_atomic(cache, raw)
            return


def _listing(part: Path) -> dict[str, list[tuple[Path, int, int]]]:
    """Class -> its images (path, bytes, time of change in ns) in the order of their names; hidden files left out."""
    if not part.is_dir():
        raise UsageError(f"there is no folder {part}. A tree of images has train/<class>/* and test/<class>/*.")
    found = {}
    for folder in sorted(part.iterdir()):
        if folder.is_dir() and not folder.name.startswith("."):
            with os.scandir(folder) as entries:
                images = [e for e in entries if e.name.lower().endswith(_SUFFIXES) and not e.name.startswith(".")]
                files = sorted((Path(e.path), e.stat().st_size, e.stat().st_mtime_ns) for e in images)
            if not files:
                raise UsageError(
                    f"{folder} holds no images ({', '.join(_SUFFIXES)}). Put some there, or remove the folder."
                )
            found[folder.name] = files
    if not found:
        raise UsageError(f"{part} holds no folders. It has one folder a class, and the images in it.")
    return found


def _decoded(listing: dict[str, dict[str, list[tuple[Path, int, int]]]], classes: tuple[str, ...]) -> _Images:
    shape: tuple[int, ...] | None = None
    parts: list[Tensor] = []
    for part in ("train", "test"):
        paths = [(path, classes.index(name)) for name, files in listing[part].items() for path, _, _ in files]
        # shuffled once and for all: by class, as the folders have it, the first n rows would be a sample of one class
        paths = [paths[i] for i in torch.randperm(len(paths), generator=generator(0, f"order of {part}")).tolist()]
        pixels = torch.empty(0)
        for number, (path, _) in enumerate(paths):
            image = _decode(path)
            if image.shape != (shape := shape or tuple(image.shape)):
                raise UsageError(
                    f"{path} is {image.shape[-1]}x{image.shape[-2]} pixels, but the images before it are "
                    f"{shape[-1]}x{shape[-2]}. Bring all images to one size."
                )
            if number == 0:
                _fits(len(paths) * image.numel(), path)
                pixels = torch.empty(len(paths), *image.shape, dtype=torch.uint8)
            pixels[number] = image
        parts += [pixels, torch.tensor([label for _, label in paths])]
    train, train_labels, test, test_labels = parts
    if all(bool((pixels == pixels[:, :1]).all()) for pixels in (train, test)):  # grey: one channel says it all
        train, test = train[:, :1].contiguous(), test[:, :1].contiguous()
    return _Images(train, train_labels, test, test_labels, classes)


def _decode(path: Path) -> Tensor:
    """One image as uint8 (3, H, W)."""
    from PIL import Image  # torchvision's own decoders are deprecated since 0.29

    try:
        with Image.open(path, formats=_FORMATS) as file:
            if file.mode.startswith(("I", "F")):
                raise UsageError(f"{path} has more than 8 bits a channel (mode {file.mode}). Convert it to 8 bits.")
            return torch.from_numpy(np.array(file.convert("RGB"))).permute(2, 0, 1)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # Pillow's ways to say "broken"
        raise UnsafeInputError(f"{path} cannot be decoded ({error}). Remove or replace it.") from None


def _fits(values: int, path: Path) -> None:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if 5 * values > memory:  # one byte a pixel as decoded and four as float32, both at once
        raise UsageError(
            f"the images beside {path} need {5 * values / 2**30:.0f} GiB, and this machine has {memory / 2**30:.0f}. "
            "Data are held in memory: give fewer or smaller images."
        )


_READERS: dict[str, Callable[[str, Path, bool], Data]] = {
    "digits": _digits,
    "mnist": _mnist,
    "fashion-mnist": _mnist,
    "cifar10": _colour,
    "cifar100": _colour,
    "svhn": _colour,
    "imagefolder": _imagefolder,
    "regression": _regression,
    "two-moons": _two_moons,
}
