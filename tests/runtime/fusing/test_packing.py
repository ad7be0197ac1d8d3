"""Weights as the kernels of fused nodes read them, unpacked number by number."""

from __future__ import annotations

import numpy as np
import pytest

from pom_export.graph.quantized.block_weights import pack_blocks
from pom_export.runtime.fusing.packing import pack_groups, pack_product
from tests.quantized_files import rounded
from tests.runtime.fusing.executor import unpack_product


@pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize(("inner", "width"), [(16, 16), (40, 17), (300, 33), (256, 1), (1, 5)])
def test_weights_are_the_same_once_unpacked(inner: int, width: int, bits: int, block: int) -> None:
    matrix = np.random.default_rng(0).standard_normal((inner, width), dtype=np.float32)
    weight = rounded(matrix, bits, block)
    packed = pack_product(pack_blocks(weight), weight.scales.T, width, block, bits)
    assert np.array_equal(unpack_product(packed, inner, width, block, bits).astype(np.float32), weight.dequantized())


@pytest.mark.parametrize("bits", [4, 8])
def test_many_outputs_are_packed_in_parts(bits: int) -> None:
    weight = rounded(np.random.default_rng(0).standard_normal((32, 2500), dtype=np.float32), bits, 32)
    packed = pack_product(pack_blocks(weight), np.ascontiguousarray(weight.scales.T).ravel(), 2500, 32, bits)
    assert np.array_equal(unpack_product(packed, 32, 2500, 32, bits).astype(np.float32), weight.dequantized())


@pytest.mark.parametrize(("groups", "inputs", "outputs"), [(1, 8, 16), (3, 5, 20), (4, 8, 32)])
def test_grouped_weights(groups: int, inputs: int, outputs: int) -> None:
    weight = np.random.default_rng(0).standard_normal((groups * outputs, inputs, 1), dtype=np.float32)
    packed = pack_groups(weight, groups)
    assert packed.shape == (groups, -(-outputs // 16), inputs, 16)
    for group in range(groups):
        for j in range(packed.shape[1] * 16):
            expected = weight[group * outputs + j, :, 0] if j < outputs else np.zeros(inputs)
            assert np.array_equal(packed[group, j // 16, :, j % 16], expected)
