"""What the tests of fused sessions need."""

from __future__ import annotations

import pytest

from pom_export.runtime.library import product_kernel


@pytest.fixture
def fusing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have sessions fuse on every machine: those without vector instructions do so only if the kernel is named."""
    kernel = product_kernel()
    if kernel is None:
        pytest.skip("the library was built before it had fused nodes: build it again")
    if kernel == "scalar":
        monkeypatch.setenv("POM_CPU_KERNEL", "scalar")
