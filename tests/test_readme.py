"""What the README shows works as it stands: its Python runs, its commands parse, its pictures are there."""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from landscape.cli.app import app

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "figures" / "README.md"]
TEXT = PAGES[0].read_text()
COMMANDS = sorted(
    {line.split("  #")[0].strip() for page in PAGES for line in re.findall(r"^(landscape .*)$", page.read_text(), re.M)}
    | {command for page in PAGES for command in re.findall(r"`(landscape [a-z][^`]*)`", page.read_text())}
)


def test_the_python_examples_run(tmp_path: Path) -> None:
    problem, use = re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)
    (tmp_path / "problem.py").write_text(problem)
    (tmp_path / "use.py").write_text(use)
    ran = subprocess.run([sys.executable, "use.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "top 5 eigenvalues" in ran.stdout and "torch.Size([32, 32])" in ran.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_parse(command: str) -> None:
    # parse_args binds names and types to the command's signature and raises on anything unknown; nothing runs
    app.parse_args(shlex.split(command)[1:], exit_on_error=False, print_error=False)


def test_the_pictures_and_pages_exist() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name} links to {link}"
