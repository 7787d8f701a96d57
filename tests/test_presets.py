"""Every preset is a protocol that the tool can run: its task exists, its options are options, and its steps are those of its source."""

import dataclasses
import subprocess
import sys

import pytest

from landscape import datasets, networks
from landscape.cli.app import main
from landscape.cli.making import Descending
from landscape.cli.options import Problem
from landscape.cli.pruning import Pruning
from landscape.descent import Recipe
from landscape.errors import UsageError
from landscape.presets import PRESETS, find
from landscape.runs import Run
from landscape.tickets import Plan


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_names_a_task_and_options_that_there_are(name):
    preset = find(name)
    dataset = next(known for known in datasets.DATASETS if preset.task.startswith(f"{known}-"))
    networks.check(
        preset.task.removeprefix(f"{dataset}-"), inputs=datasets.ROW_SHAPES.get(dataset, (3, 32, 32)), outputs=10
    )
    of_steps = {field.name for field in dataclasses.fields(Descending)}
    of_plan = {field.name for field in dataclasses.fields(Pruning)} | {"levels"}
    assert set(preset.options) <= of_steps | of_plan | {field.name for field in dataclasses.fields(Problem)}
    recipe = Recipe(**{key: value for key, value in preset.options.items() if key in of_steps})
    plan = Plan(**{key: value for key, value in preset.options.items() if key in of_plan})
    assert 0 <= plan.rewind <= recipe.steps
    assert preset.source


@pytest.mark.parametrize(
    ("name", "falls"),
    [
        ("resnet20-cifar10", {31_200: 0.01, 46_800: 0.001}),
        ("vgg16-cifar10", {31_200: 0.01, 46_800: 0.001}),
        ("resnet20-cifar10-40-epochs", {7_820: 0.01, 11_730: 0.001}),
        ("resnet18-cifar10", {23_400: 0.02, 46_800: 0.004, 62_400: 0.0008}),
        ("resnet50-cifar100", {23_400: 0.02, 46_800: 0.004, 62_400: 0.0008}),
        ("resnet56-cinic10", {15_625: 0.01, 23_440: 0.001}),
        ("resnet50-imagenet", {37_534: 0.04, 75_068: 0.004, 100_091: 0.0004}),  # epochs 30, 60, 80 of 1,251.13 steps
        ("lmc-low", {31_200: 0.001, 46_800: 0.0001}),
    ],
)
def test_the_rate_falls_at_the_steps_of_the_source(name, falls):
    options = find(name).options
    recipe = Recipe(
        **{key: value for key, value in options.items() if key in {f.name for f in dataclasses.fields(Recipe)}}
    )
    before = recipe.lr
    for step, after in falls.items():
        assert recipe.rate(step - 1) == pytest.approx(before)
        assert recipe.rate(step) == pytest.approx(after)
        before = after
    assert recipe.rate(recipe.steps - 1) == pytest.approx(before)


def test_what_was_recalled_is_said_to_be():
    assert {name for name, preset in PRESETS.items() if "not checked" in preset.source} == {"lmc-low", "lmc-warmup"}


def test_an_unknown_preset_is_refused_with_the_nearest():
    with pytest.raises(UsageError, match=r"unknown preset 'resnet20-cifar'\. Did you mean 'resnet20-cifar10'"):
        find("resnet20-cifar")
    with pytest.raises(TypeError):
        PRESETS["mine"] = find("mnist-mlp")


def test_presets_need_no_torch():
    code = "import sys, landscape.presets; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_list_of_presets_names_their_sources(capsys):
    assert main(["tasks", "--presets"]) == 0
    said = capsys.readouterr().out
    assert all(name in said and preset.source in said for name, preset in PRESETS.items())


def test_a_preset_stands_below_the_flags_of_every_command_that_trains(tmp_path):
    argv = ["digits-mlp", "--preset", "mnist-mlp", "--augment", "", "--steps", "4", "--warmup", "2", "--limit", "128"]
    assert main(["train", *argv, "--out", str(tmp_path / "a")]) == 0
    assert main(["imp", *argv, "--levels", "1", "--replicates", "0", "--out", str(tmp_path / "b")]) == 0
    assert main(["spawn", *argv, "--replicates", "1", "--points", "3", "--out", str(tmp_path / "c")]) == 0
    for name in "abc":
        options = Run(tmp_path / name).options
        assert (options["lr"], options["batch_size"], options["init"], options["steps"]) == (0.1, 64, "he", 4)
    assert Run(tmp_path / "b").options["rate"] == 0.36
    with pytest.raises(UsageError, match="mnist-mlp"):
        find("mnist-mpl")


def test_imp_takes_its_task_from_the_preset_and_needs_one_of_them(tmp_path, capsys):
    assert main(["imp", "--out", str(tmp_path / "a")]) == 2
    assert "name a task" in capsys.readouterr().err
    assert main(["imp", "--preset", "mnist-mlp", "--data", str(tmp_path / "none"), "--out", str(tmp_path / "a")]) != 0
    assert "mnist" in capsys.readouterr().err
