"""The door: argv -> run folder -> question -> saved answer -> one line printed. Nothing here computes."""

from __future__ import annotations

from landscape.cli.app import main

__all__ = ["main"]
