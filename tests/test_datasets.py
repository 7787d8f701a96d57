"""Files made by hand, byte by byte or pixel by pixel, are read back; damaged, missing or unfit ones are refused."""

import gzip
import math
import os

import numpy as np
import pytest
import torch
from PIL import Image

from landscape import datasets
from landscape.datasets import DATASETS, ROW_SHAPES, LabelNoise, assemble, limited, load, mislabelled, read_idx
from landscape.errors import UnsafeInputError, UsageError
from landscape.objectives import Rows


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "landscape"


def write(image, path):
    """Pixels (3, H, W) to a file, by Pillow; its suffix says the format."""
    Image.fromarray(image.permute(1, 2, 0).numpy()).save(path, quality=95)


def idx(sizes, body, magic=None):
    head = bytes(magic if magic is not None else [0, 0, 8, len(sizes)])
    return head + b"".join(size.to_bytes(4, "big") for size in sizes) + bytes(body)


def mnist(folder, inner="MNIST", pack=False, labels=(3, 7)):
    """Two rows for train, one for test; the first image's pixels are 0, 1, 2, ... modulo 256."""
    raw = folder / inner / "raw"
    raw.mkdir(parents=True)
    pixels = [i % 256 for i in range(784)]
    for part, images, targets in (("train", pixels + [255] * 784, labels), ("t10k", [0] * 784, [9])):
        files = {
            f"{part}-images-idx3-ubyte": idx([len(images) // 784, 28, 28], images),
            f"{part}-labels-idx1-ubyte": idx([len(targets)], targets),
        }
        for name, content in files.items():
            if pack:
                (raw / f"{name}.gz").write_bytes(gzip.compress(content))
            else:
                (raw / name).write_bytes(content)
    return raw


# -- what needs no files ----------------------------------------------------------------------------------------------


def test_digits_are_split_1437_and_360_with_every_class_in_its_share():
    data = load("digits")
    assert data.train.inputs.shape == (1437, 64)
    assert data.train.inputs.dtype == torch.float32
    assert data.test.inputs.shape == (360, 64)
    whole = data.train.targets.bincount() + data.test.targets.bincount()
    # a share rounded by largest remainders lies within one of the exact one
    assert (data.test.targets.bincount() - whole * 360 / 1797).abs().max() < 1
    # float32 rounding of a mean of 91,968 numbers of size one: far below 1e-5
    assert abs(float(data.train.inputs.double().mean())) < 1e-6
    assert float(data.train.inputs.double().std(correction=0)) == pytest.approx(1, abs=1e-6)
    together = torch.cat([data.train.inputs, data.test.inputs])
    assert len(together.unique(dim=0)) == 1797  # no row in both parts: all rows of the set differ


@pytest.mark.parametrize("name", ["digits", "regression", "two-moons"])
def test_loading_twice_gives_the_same_bytes_and_leaves_the_global_generator(name):
    before = torch.random.get_rng_state()
    one, other = load(name), load(name)
    assert one.fingerprint == other.fingerprint
    assert torch.equal(torch.random.get_rng_state(), before)
    assert tuple(one.train.inputs.shape[1:]) == ROW_SHAPES[name]


def test_regression_noise_has_deviation_a_tenth():
    data = load("regression")
    assert data.classes is None
    assert data.train.targets.shape == (256, 1)
    residual = (data.train.targets - torch.sin(2 * data.train.inputs)).double()
    # the standard error of a deviation from n normal draws is sigma / sqrt(2n); four of them
    assert float(residual.std()) == pytest.approx(0.1, abs=4 * 0.1 / math.sqrt(2 * 256))


def test_a_fingerprint_sees_one_changed_value():
    data = load("regression")
    targets = data.test.targets.clone()
    targets[5] += 1e-6
    changed = assemble(data.train, Rows(data.test.inputs, targets), None, "")
    assert changed.fingerprint != data.fingerprint


def test_limit_keeps_proportions_order_and_test_rows():
    whole, few = load("digits"), load("digits", limit=100)
    assert len(few.train) == 100
    assert len(few.test) == 360
    counts = few.train.targets.bincount(minlength=10)
    assert (counts - whole.train.targets.bincount() * 100 / 1437).abs().max() < 1
    where = (few.train.inputs[:, None] == whole.train.inputs[None]).all(2).int().argmax(1)
    assert (where.diff() > 0).all()
    assert few.fingerprint == load("digits", limit=100).fingerprint != whole.fingerprint
    assert len(load("digits", limit=3).train) == 3
    assert len(load("digits", limit=9999).train) == 1437
    assert len(load("regression", limit=10).train) == 10
    assert "100 of 1437" in few.description
    with pytest.raises(UsageError, match="limit of 0"):
        load("digits", limit=0)
    assert limited(whole, 1437) is whole


# -- label noise ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["uniform", "pairwise", "authors"])
def test_label_noise_touches_its_share_of_the_train_labels_and_nothing_else(kind):
    clean = load("digits")
    noisy = mislabelled(clean, LabelNoise.read(f"{kind}:0.4"))
    assert noisy.fingerprint != clean.fingerprint
    assert torch.equal(noisy.train.inputs, clean.train.inputs)
    assert torch.equal(noisy.test.targets, clean.test.targets)
    assert torch.equal(noisy.test.inputs, clean.test.inputs)
    assert torch.equal(clean.train.targets, load("digits").train.targets)  # the data given were only read
    assert noisy.train.targets.dtype == clean.train.targets.dtype
    assert f"{kind}:0.4" in noisy.description
    again, other = (mislabelled(clean, LabelNoise.read(f"{kind}:0.4{seed}")) for seed in ("@0", "@1"))
    assert torch.equal(noisy.train.targets, again.train.targets)
    assert not torch.equal(noisy.train.targets, other.train.targets)
    changed = noisy.train.targets != clean.train.targets
    count = 575  # 0.4 of 1,437 is 574.8
    if kind == "authors":
        assert not changed[count:].any()
        # one in ten stays right by chance: 57.5 of 575, standard deviation sqrt(575 x 0.1 x 0.9) = 7.2, and five of them
        assert abs(int(changed[:count].sum()) - 0.9 * count) < 36
        return
    assert int(changed.sum()) == count
    # drawn among all rows: the first 575 hold 575 x 0.4 = 230 of them, hypergeometric deviation sqrt(230 x 0.6 x 0.6) = 9.1
    assert abs(int(changed[:count].sum()) - 230) < 46
    shift = (noisy.train.targets - clean.train.targets)[changed] % 10
    if kind == "pairwise":
        assert (shift == 1).all()
    else:
        # nine other classes, 63.9 each, deviation sqrt(575 x 1/9 x 8/9) = 7.5
        counts = shift.bincount(minlength=10)
        assert counts[0] == 0
        assert (counts[1:] - 575 / 9).abs().max() < 38


def test_pairwise_noise_over_all_rows_is_the_cyclic_permutation():
    targets = torch.tensor([0, 1, 2, 2])
    clean = assemble(rows(torch.zeros(4, 1), targets), rows(torch.zeros(1, 1), targets[:1]), ("a", "b", "c"), "")
    assert mislabelled(clean, LabelNoise("pairwise", 1.0)).train.targets.tolist() == [1, 2, 0, 0]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("unifrom:0.4", "Did you mean 'uniform'"),
        ("uniform", "cannot be read. Write it as uniform:0.4"),
        ("uniform:0", r"share of the rows in \(0, 1\]; got 0"),
        ("uniform:1.5", "got 1.5"),
        ("uniform:nan", "got nan"),
        ("uniform:0.4@", "cannot be read"),
        ("uniform:0.4@x", "uniform:0.4@3"),
    ],
)
def test_label_noise_that_cannot_be_read_is_refused(text, says):
    with pytest.raises(UsageError, match=says):
        LabelNoise.read(text)


def test_label_noise_is_refused_where_it_means_nothing():
    with pytest.raises(UsageError, match="targets that are two or more classes"):
        mislabelled(load("regression"), LabelNoise("uniform", 0.4))
    with pytest.raises(UsageError, match=r"of 1437 train rows is none\. Give a share of at least 0\.0007"):
        mislabelled(load("digits"), LabelNoise("uniform", 1e-4))


@pytest.mark.parametrize("text", ["uniform:0.4", "pairwise:0.125@7", "authors:1.0", "uniform:0.12345678901@2"])
def test_label_noise_is_written_as_it_is_read(text):
    assert str(LabelNoise.read(text)) == text


# -- IDX --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(
    ("name", "inner", "mean", "deviation"),
    [("mnist", "MNIST", 0.1307, 0.3081), ("fashion-mnist", "FashionMNIST", 0.2860, 0.3530)],
)
def test_hand_made_idx_files_are_read_and_normalised(tmp_path, pack, name, inner, mean, deviation):
    mnist(tmp_path, inner, pack)
    data = load(name, folder=tmp_path)
    assert data.train.inputs.shape == (2, 1, 28, 28)
    assert data.test.inputs.shape == (1, 1, 28, 28)
    assert data.train.targets.tolist() == [3, 7]
    assert data.train.targets.dtype == torch.int64
    assert len(data.classes) == 10
    expected = [((i % 256) / 255 - mean) / deviation for i in range(784)]
    # three roundings of float32 on values below 3
    assert data.train.inputs[0].flatten().tolist() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (idx([2, 2], range(4), [0, 0, 9, 2]), "begins with 00 00 09 02, not 00 00 08 02"),
        (idx([2, 2], range(4), [0, 0, 8, 3]), "begins with"),
        (b"\x00\x00", "begins with"),
        (b"", "begins with"),
        (idx([2, 2], range(3)), "promises 4 bytes of data and holds 3"),
        (idx([2, 2], range(5)), "promises 4 bytes of data and holds more"),
        (idx([2**31, 2**31], range(4)), "claims"),
        (idx([0, 2], []), "no rows"),
    ],
)
@pytest.mark.parametrize("pack", [False, True])
def test_damaged_idx_files_are_refused(tmp_path, content, says, pack):
    path = tmp_path / ("file.gz" if pack else "file")
    path.write_bytes(gzip.compress(content) if pack else content)
    with pytest.raises(UnsafeInputError, match=says):
        read_idx(path, 2)


def test_a_torn_or_false_gzip_is_refused(tmp_path):
    path = tmp_path / "file.gz"
    path.write_bytes(gzip.compress(idx([50, 20], os.urandom(1000)))[:-100])
    with pytest.raises(UnsafeInputError, match="cannot be unpacked"):
        read_idx(path, 2)
    path.write_bytes(b"not gzip at all")
    with pytest.raises(UnsafeInputError, match="cannot be unpacked"):
        read_idx(path, 2)


def test_images_without_their_labels_and_labels_out_of_range(tmp_path):
    raw = mnist(tmp_path, labels=(3, 7, 7))
    with pytest.raises(UnsafeInputError, match="2 train images, but 3 labels"):
        load("mnist", folder=tmp_path)
    (raw / "train-labels-idx1-ubyte").write_bytes(idx([2], [3, 12]))
    with pytest.raises(UsageError, match="labels run from 3 to 12"):
        load("mnist", folder=tmp_path)


# -- what is missing --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(datasets.NEEDS_FOLDER))
def test_missing_data_names_the_folder_and_the_way_out(tmp_path, name):
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(UsageError, match="--data DIR") as caught:
            load(name, folder=folder)
        assert str(folder) in str(caught.value)
        assert ("--download" in str(caught.value)) == (name != "imagefolder")


def test_without_a_folder_the_users_cache_is_looked_at(cache):
    with pytest.raises(UsageError, match=str(cache / "data")):
        load("mnist")
    mnist(cache / "data")
    assert len(load("mnist").train) == 2


def test_an_unknown_name_has_a_suggestion():
    with pytest.raises(UsageError, match="Did you mean 'digits'"):
        load("digit")


def test_pickles_whose_sums_do_not_match_are_refused_unopened(tmp_path):
    packed = tmp_path / "cifar-10-batches-py"
    packed.mkdir()
    marker = tmp_path / "executed"
    bomb = f"cposix\nsystem\n(S'touch {marker}'\ntR.".encode()  # a pickle that runs a command
    for name in [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"]:
        (packed / name).write_bytes(bomb)
    with pytest.raises(UnsafeInputError, match="refused"):
        load("cifar10", folder=tmp_path)
    assert not marker.exists()


# -- trees of images --------------------------------------------------------------------------------------------------


def tree(root, classes=("ant", "bee"), grey=False, size=(4, 5), train=3, test=2):
    """Images (H, W) = size, each of one flat colour; returns the pixels as written, by path below root."""
    written = {}
    for part, count in (("train", train), ("test", test)):
        for number, name in enumerate(classes):
            (root / part / name).mkdir(parents=True)
            for row in range(count):
                colour = torch.tensor([10 * row % 250, 20 * number, 7 if part == "train" else 90], dtype=torch.uint8)
                colour = colour[:1].repeat(3) if grey else colour
                image = colour.view(3, 1, 1).expand(3, *size).contiguous()
                write(image, root / part / name / f"{row}.png")
                written[f"{part}/{name}/{row}.png"] = image
    return written


def restored(inputs, pixels):
    """Undo the normalisation by its definition: per channel, the mean and deviation of the train pixels."""
    train = pixels.double() / 255
    mean, deviation = train.mean((0, 2, 3), keepdim=True), train.std((0, 2, 3), keepdim=True, correction=0)
    return (inputs.double() * torch.where(deviation == 0, 1.0, deviation) + mean) * 255


def test_a_tree_of_images_is_read_pixel_by_pixel(tmp_path):
    written = tree(tmp_path)
    data = load("imagefolder", folder=tmp_path)
    assert data.classes == ("ant", "bee")
    assert data.train.inputs.shape == (6, 3, 4, 5)
    pixels = torch.stack([image for path, image in written.items() if path.startswith("train")])
    for part, rows in (("train", data.train), ("test", data.test)):
        got = restored(rows.inputs, pixels)
        assert (got - got.round()).abs().max() < 1e-2  # float32 keeps a pixel to far better than a hundredth
        read = {(int(y), *x.round().flatten().tolist()) for x, y in zip(got, rows.targets, strict=True)}
        true = {
            (data.classes.index(path.split("/")[1]), *image.flatten().tolist())
            for path, image in written.items()
            if path.startswith(part)
        }
        assert read == true
        assert len(read) == len(rows)


def test_a_prefix_of_a_tree_is_a_sample_of_all_classes(tmp_path):
    tree(tmp_path, train=100, size=(1, 1))
    labels = load("imagefolder", folder=tmp_path).train.targets[:50]
    # 50 of 200 rows drawn without replacement: mean 25, deviation sqrt(50/4 * 150/199) = 3.1; four of them
    assert abs(int(labels.sum()) - 25) < 12.4


def test_grey_images_have_one_channel(tmp_path):
    tree(tmp_path, grey=True)
    assert load("imagefolder", folder=tmp_path).train.inputs.shape == (6, 1, 4, 5)


@pytest.fixture
def decoded(monkeypatch):
    """The number of times that a tree was decoded, as a list that grows."""
    calls = []
    true = datasets._decoded
    monkeypatch.setattr(datasets, "_decoded", lambda *arguments: calls.append(1) or true(*arguments))
    return calls


def test_a_tree_is_decoded_once_and_again_when_it_changes(tmp_path, decoded):
    tree(tmp_path)
    first = load("imagefolder", folder=tmp_path)
    again = load("imagefolder", folder=tmp_path)
    assert len(decoded) == 1
    assert first.fingerprint == again.fingerprint

    image = tmp_path / "train" / "ant" / "0.png"
    write(torch.full((3, 4, 5), 200, dtype=torch.uint8), image)
    os.utime(image, ns=(1, 1))
    changed = load("imagefolder", folder=tmp_path)
    assert len(decoded) == 2
    assert changed.fingerprint != first.fingerprint

    (tmp_path / "test" / "bee" / "1.png").unlink()
    assert len(load("imagefolder", folder=tmp_path).test) == 3
    assert len(decoded) == 3
    load("imagefolder", folder=tmp_path)
    assert len(decoded) == 3


def test_a_read_only_tree_is_kept_in_the_users_cache(tmp_path, decoded, cache, monkeypatch):
    folder = tmp_path / "images"
    tree(folder)
    true = datasets.write_atomic

    def write_but_there(path, raw):
        if folder in path.parents:
            raise PermissionError("read-only")
        true(path, raw)

    monkeypatch.setattr(datasets, "write_atomic", write_but_there)
    one, other = load("imagefolder", folder=folder), load("imagefolder", folder=folder)
    assert len(decoded) == 1
    assert one.fingerprint == other.fingerprint
    assert len(list(cache.glob("images-*.safetensors"))) == 1
    assert not list(folder.glob(".landscape*"))


def test_a_torn_cache_is_made_again(tmp_path, decoded):
    tree(tmp_path)
    first = load("imagefolder", folder=tmp_path)
    kept = tmp_path / ".landscape-images.safetensors"
    kept.write_bytes(kept.read_bytes()[:-10])
    assert load("imagefolder", folder=tmp_path).fingerprint == first.fingerprint
    assert len(decoded) == 2


def test_cifar10_reads_a_tree_of_jpegs_and_says_so(tmp_path):
    for part in ("train", "test"):
        for number, name in enumerate(datasets._CIFAR10):
            (tmp_path / "cifar10" / part / name).mkdir(parents=True)
            image = torch.full((3, 32, 32), 20 * number, dtype=torch.uint8)
            image[0] = 255  # not grey
            write(image, tmp_path / "cifar10" / part / name / "0000.jpg")
    data = load("cifar10", folder=tmp_path)
    assert data.description.startswith("CIFAR-10 (JPEG)")
    assert data.classes == datasets._CIFAR10
    assert sorted(data.train.targets.tolist()) == list(range(10))
    assert data.train.inputs.shape == (10, 3, 32, 32)
    assert load("cifar10", folder=tmp_path / "cifar10").fingerprint == data.fingerprint


def test_a_tree_of_other_classes_is_not_taken_for_cifar10(tmp_path):
    tree(tmp_path)
    with pytest.raises(UsageError, match="does not hold cifar10: its classes are ant, bee"):
        load("cifar10", folder=tmp_path)


def test_unfit_trees_are_refused(tmp_path):
    tree(tmp_path)
    (tmp_path / "train" / "cow").mkdir()
    (tmp_path / "train" / "cow" / "notes.txt").write_text("none yet")
    with pytest.raises(UsageError, match="cow holds no images"):
        load("imagefolder", folder=tmp_path)
    image = tmp_path / "train" / "cow" / "0.png"
    image.write_bytes(b"\x89PNG\r\n\x1a\n and then nothing")
    with pytest.raises(UnsafeInputError, match=r"0\.png cannot be decoded"):
        load("imagefolder", folder=tmp_path)
    write(torch.zeros(3, 9, 8, dtype=torch.uint8), image)
    with pytest.raises(UsageError, match=r"8x9 pixels, but the images before it are 5x4"):
        load("imagefolder", folder=tmp_path)
    Image.fromarray(np.zeros((4, 5), dtype=np.uint16)).save(image)
    with pytest.raises(UsageError, match="more than 8 bits a channel"):
        load("imagefolder", folder=tmp_path)
    image.unlink()
    (tmp_path / "train" / "cow" / "notes.txt").unlink()
    (tmp_path / "train" / "cow").rmdir()
    (tmp_path / "test" / "dog").mkdir()
    write(torch.zeros(3, 4, 5, dtype=torch.uint8), tmp_path / "test" / "dog" / "0.png")
    with pytest.raises(UsageError, match=r"test has classes that .*train has not: dog"):
        load("imagefolder", folder=tmp_path)


def test_half_a_tree_is_refused(tmp_path):
    (tmp_path / "train").mkdir()
    with pytest.raises(UsageError, match="train holds no folders"):
        load("imagefolder", folder=tmp_path)
    tree(tmp_path / "whole")
    for path in sorted((tmp_path / "whole" / "test").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    (tmp_path / "whole" / "test").rmdir()
    with pytest.raises(UsageError, match=r"there is no folder .*test"):
        load("imagefolder", folder=tmp_path / "whole")
    with pytest.raises(UsageError, match="nothing to fetch"):
        load("imagefolder", folder=tmp_path / "whole", download=True)


def test_images_that_do_not_fit_in_memory_are_refused(tmp_path, monkeypatch):
    tree(tmp_path)
    monkeypatch.setattr(os, "sysconf", lambda name: 10)
    with pytest.raises(UsageError, match="fewer or smaller images"):
        load("imagefolder", folder=tmp_path)


# -- rows that cannot be used -----------------------------------------------------------------------------------------


def rows(inputs, targets):
    return Rows(torch.as_tensor(inputs), torch.as_tensor(targets))


GOOD = rows([[1.0], [2.0]], [0, 1])


@pytest.mark.parametrize(
    ("train", "test", "says"),
    [
        (rows([[1.0], [math.nan]], [0, 1]), GOOD, "1 of 2 train rows hold NaN or infinity, the first is row 1"),
        (GOOD, rows([[math.inf], [1.0]], [0, 1]), "1 of 2 test rows"),
        (rows([[1.0], [2.0]], [0, 2]), GOOD, "train labels run from 0 to 2, but 2 classes"),
        (GOOD, rows([[1.0], [2.0]], [-1, 1]), "test labels run from -1 to 1"),
        (rows([[1.0], [2.0]], [0.0, 1.0]), GOOD, "class labels are integers"),
        (rows([[1.0], [2.0]], [[0], [1]]), GOOD, "class labels are integers"),
        (GOOD, rows([[1.0, 2.0]], [0]), r"train row is float32 of shape \(1,\), but a test row .* \(2,\)"),
        (GOOD, rows([[1]], [0]), "but a test row is int64"),
        (GOOD, Rows({"x": torch.ones(1, 1)}, torch.zeros(1).long()), "but test inputs are a dict of 'x'"),
        (Rows((torch.ones(1, 1),), torch.zeros(1).long()), GOOD, "train inputs are a tuple"),
    ],
)
def test_rows_that_cannot_be_used_are_refused(train, test, says):
    with pytest.raises(UsageError, match=says):
        assemble(train, test, ("a", "b"), "")


def test_every_data_set_has_a_reader():
    assert set(datasets._READERS) == set(DATASETS)
    assert set(ROW_SHAPES) == set(DATASETS) - {"imagefolder"}
