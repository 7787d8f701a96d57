"""What ships, under which names, and what the sources never do."""

from __future__ import annotations

import ast
import importlib
import importlib.metadata
import os
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import landscape

ROOT = Path(__file__).resolve().parents[1]
SOURCES = sorted(path for folder in ("landscape", "analysis", "cli") for path in (ROOT / folder).glob("*.py"))
EVERYTHING = sorted(
    {*SOURCES, *(ROOT / "tests").glob("*.py"), *(ROOT / "benchmarks").rglob("*.py"), *(ROOT / "figures").rglob("*.py")}
)
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())


def imports(tree: ast.AST) -> Iterator[str]:
    """Every module that a file imports, by its full name."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import"
            yield str(node.module)


def calls(tree: ast.AST) -> Iterator[tuple[str, ast.Call]]:
    """Every call by its dotted name, an imported alias written out: (`torch.load`, the call)."""
    aliases: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            aliases |= {
                alias.asname or alias.name.split(".")[0]: alias.name if alias.asname else alias.name.split(".")[0]
                for alias in node.names
            }
        elif isinstance(node, ast.ImportFrom):
            aliases |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            first, dot, rest = name.partition(".")
            yield f"{aliases.get(first, first)}{dot}{rest}", node


def keyword(call: ast.Call, name: str) -> str:
    return next((ast.unparse(given.value) for given in call.keywords if given.arg == name), "")


def faults(text: str) -> list[str]:
    """What a source must not do: run what a file says, or import the package by a second path."""
    tree = ast.parse(text)
    found = [
        f"imports {name}"
        for name in imports(tree)
        if name.split(".")[0] in ("analysis", "cli", "pickle", "dill", "cloudpickle", "joblib", "marshal", "shelve")
    ]
    for name, call in calls(tree):
        last = name.rpartition(".")[2]
        if name in ("eval", "exec", "compile", "__import__", "builtins.eval", "builtins.exec", "os.system", "os.popen"):
            found.append(f"calls {name}")
        if name in ("torch.load", "torch.serialization.load") and keyword(call, "weights_only") != "True":
            found.append("loads with torch beyond weights")
        if name == "yaml.load" and keyword(call, "Loader") not in ("_Strict", "yaml.SafeLoader"):
            found.append("loads YAML with objects")
        if last in ("unsafe_load", "full_load", "load_all") or name in (
            "torch.jit.load",
            "torch.hub.load",
            "torch.distributed.checkpoint.load",
        ):
            found.append(f"calls {name}")
        if keyword(call, "allow_pickle") not in ("", "False") or (
            name == "numpy.load" and keyword(call, "allow_pickle") != "False"
        ):
            found.append(f"{name} with pickles")
        if keyword(call, "shell") not in ("", "False"):
            found.append(f"{name} with a shell")
    return found


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_source_runs_nothing_that_a_file_says(path: Path) -> None:
    assert faults(path.read_text()) == []


@pytest.mark.parametrize(
    "text",
    [
        "import analysis",
        "import cli.app",
        "from analysis.spectra import spectrum",
        "from cli import main",
        "import pickle",
        "from pickle import load",
        "eval('1')",
        "exec(text)",
        "import torch\ntorch.load(path)",
        "import torch\ntorch.load(path, weights_only=False)",
        "import torch as t\nt.load(path)",
        "from torch import load as read\nread(path)",
        "import yaml\nyaml.load(text, Loader=yaml.Loader)",
        "import yaml\nyaml.load(text, yaml.SafeLoader)\nyaml.unsafe_load(text)",
        "from yaml import full_load\nfull_load(text)",
        "import numpy as np\nnp.load(path)",
        "import numpy as np\nnp.load(path, allow_pickle=True)",
        "import subprocess\nsubprocess.run(text, shell=True)",
        "import os\nos.system(text)",
    ],
)
def test_the_test_above_sees(text: str) -> None:
    assert faults(text)


def test_the_only_loader_of_yaml_is_a_safe_one() -> None:
    import yaml

    from landscape.cli import app

    assert issubclass(app._Strict, yaml.SafeLoader)
    assert app._Strict.yaml_constructors is yaml.SafeLoader.yaml_constructors


@pytest.mark.parametrize("path", EVERYTHING, ids=lambda path: str(path.relative_to(ROOT)))
def test_the_package_is_imported_by_one_path(path: Path) -> None:
    """`import analysis` would make a second set of classes."""
    assert not {"analysis", "cli"} & {name.split(".")[0] for name in imports(ast.parse(path.read_text()))}


def test_no_file_is_called_utils() -> None:
    words = {"utils", "util", "helpers", "misc", "common", "tools"}
    assert [path for path in EVERYTHING if path.stem in words] == []


def test_the_sources_were_found() -> None:
    names = {str(path.relative_to(ROOT)) for path in SOURCES}
    assert {"landscape/files.py", "analysis/spectra.py", "cli/app.py"} <= names
    assert len(names) > 25


# -- what ships -------------------------------------------------------------------------------------------------------


def test_the_links_are_relative() -> None:
    for name in ("analysis", "cli"):
        link = ROOT / "landscape" / name
        assert link.is_symlink()
        assert os.readlink(link) == f"../{name}"
        assert link.resolve() == ROOT / name


def test_one_import_package_ships() -> None:
    tools = PROJECT["tool"]["setuptools"]
    assert tools["packages"] == ["landscape", "landscape.analysis", "landscape.cli"]
    assert tools["package-dir"] == {"landscape": "landscape", "landscape.analysis": "analysis", "landscape.cli": "cli"}
    for name, folder in tools["package-dir"].items():
        assert (ROOT / folder / "__init__.py").is_file(), name
        # a package in a subfolder would be left out of the wheel
        assert not [path for path in (ROOT / folder).glob("*/__init__.py") if not path.parent.is_symlink()]
    assert tools["package-data"] == {"landscape": ["py.typed"]}
    assert (ROOT / "landscape" / "py.typed").is_file()
    assert PROJECT["project"]["scripts"] == {"landscape": "landscape.cli.app:entry"}


def test_the_version_stands_once() -> None:
    declared = PROJECT["project"]["version"]
    assert importlib.metadata.version("landscape-geometry") == declared
    asked = subprocess.run(
        [sys.executable, "-c", "from landscape.cli.app import entry; entry()", "--version"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert asked.stdout.strip() == declared


def test_every_import_is_declared() -> None:
    """A package that is only there because another one brought it may be gone tomorrow."""
    declared = {name.lower() for name in importlib.metadata.packages_distributions()["landscape"]}
    declared |= {
        "".join(letter for letter in line.split(">")[0].lower() if letter.isalnum() or letter in "-_")
        for line in PROJECT["project"]["dependencies"]
    }
    optional = {"dask", "distributed", "cycler"}  # extras, and a part of matplotlib's own interface
    homes = importlib.metadata.packages_distributions()
    for path in SOURCES:
        for name in imports(ast.parse(path.read_text())):
            top = name.split(".")[0]
            if top in sys.stdlib_module_names or top in optional:
                continue
            assert {home.lower() for home in homes[top]} & declared, f"{path.name} imports {top}"


@pytest.mark.parametrize("name", landscape.__all__)
def test_every_public_name_imports(name: str) -> None:
    value = getattr(landscape, name)
    assert value.__name__ == name
    assert value.__module__.startswith("landscape.")
    assert value.__doc__


def test_public_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse((ROOT / "landscape" / "__init__.py").read_text())
    typed = {
        alias.asname: (node.module, alias.name)
        for node in ast.walk(tree)
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
        if alias.asname
    }
    assert sorted(typed) == landscape.__all__
    for name, (module, original) in typed.items():
        assert getattr(importlib.import_module(str(module)), original) is getattr(landscape, name)


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'spectra_of'"):
        landscape.spectra_of  # noqa: B018 (the access is the test)


def test_importing_the_package_costs_nothing() -> None:
    code = "import sys, landscape; print([name for name in ('torch', 'numpy', 'matplotlib', 'yaml') if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
