"""The benchmark of the products' kernels; no test depends on how long anything takes."""

from __future__ import annotations

import shutil

import pytest

from benchmarks.product_kernels import BLOCKS, SIZES, build, compare


@pytest.mark.slow
@pytest.mark.machine
def test_every_product_is_timed_beside_the_others() -> None:
    if shutil.which("cmake") is None:
        pytest.skip("cmake is not installed")
    head, *rows = compare(build(), "scalar", [2], 1)
    assert len(rows) == len(SIZES) * len(BLOCKS)
    for row in rows:
        assert len(row) == len(head)
        assert row[0] == "scalar"
        assert all(float(number) > 0 for number in row[5:])
