"""Shared by all tests: waiting threads sleep (the suite shares its two cores), and GPU tests are skipped where there is none."""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # before torch is imported

import pytest
import torch
from hypothesis import HealthCheck, settings

# times are never asserted: how fast examples are made says something of the machine's other work
settings.register_profile("untimed", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("untimed")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        skip = pytest.mark.skip(reason="no CUDA device here; the last results on one stand in benchmarks/gpu.md")
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(skip)
