"""Runs a test with each of the CPU kernels."""

from __future__ import annotations

import platform
from collections.abc import Callable
from typing import Any

import pytest

VECTOR_KERNELS = ("neon",) if platform.machine() in {"aarch64", "arm64"} else ("avx512", "avx2")
KERNELS = ["scalar", *(pytest.param(name, marks=pytest.mark.machine) for name in VECTOR_KERNELS)]


def every_kernel(test: Callable[..., Any]) -> Any:
    """Run a test with each kernel that this machine can run; a case's runs on all kernels follow each other."""
    used = pytest.mark.usefixtures("cpu_kernel")(test)
    return pytest.mark.parametrize("cpu_kernel", KERNELS, indirect=True)(used)
