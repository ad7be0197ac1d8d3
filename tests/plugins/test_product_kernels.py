"""The arithmetic of fused layers, for each instruction set that this machine can run, against float64."""

from __future__ import annotations

import math
import platform
from typing import Final

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from pom_export.graph.quantized.block_weights import QuantizedWeight, pack_blocks
from pom_export.graph.quantized.products import BLOCK_PRODUCT, MICROSOFT
from pom_export.graph.quantized.writing import INTEGER_ACTIVATIONS
from pom_export.parity.quantized.rounding import in_blocks
from tests.plugins.cpu_kernels import every_kernel
from tests.plugins.product_kernels import (
    ACTIVATIONS,
    Doubles,
    Finish,
    Floats,
    Kernel,
    chosen_kernel,
    pack,
    pack_groups,
    runnable_kernels,
)

KERNELS: Final = {kernel.name: kernel for kernel in runnable_kernels()}
_ROUNDING: Final = float(np.finfo(np.float32).eps)

_erf = np.vectorize(math.erf, otypes=[np.float64])


@pytest.fixture(params=list(KERNELS))
def kernel(request: pytest.FixtureRequest) -> Kernel:
    return KERNELS[request.param]


@pytest.fixture
def random() -> np.random.Generator:
    return np.random.default_rng(8)


def normal(random: np.random.Generator, *shape: int) -> Floats:
    return random.standard_normal(shape).astype(np.float32)


def block_product(x: Floats, values: npt.NDArray[np.uint8], scales: Floats, block: int) -> Floats:
    """Return what ONNX Runtime's MatMulNBits makes of x (M, K), and of weights as `pack` takes them."""
    outputs, inputs = values.shape
    weight = QuantizedWeight((values.astype(np.int8) - 8).T, np.ascontiguousarray(scales.T), 4, block)
    attributes = {"K": inputs, "N": outputs, "bits": 4, "block_size": block, "accuracy_level": INTEGER_ACTIVATIONS}
    node = helper.make_node(BLOCK_PRODUCT, ["x", "w", "s"], ["y"], domain=MICROSOFT, **attributes)
    tensors = [numpy_helper.from_array(pack_blocks(weight), "w"), numpy_helper.from_array(scales, "s")]
    given, made = (helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in ("x", "y"))
    graph = helper.make_graph([node], "product", [given], [made], tensors)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid(MICROSOFT, 1)], ir_version=9)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    (y,) = session.run(None, {"x": x})
    return np.asarray(y, np.float32)


def activated(x: Doubles, activation: str) -> Doubles:
    if activation == "gelu":
        return np.asarray(x * (1 + _erf(x / math.sqrt(2))) / 2)
    if activation == "relu":
        return np.maximum(x, 0)
    if activation == "silu":
        return np.asarray(x / (1 + np.exp(-x)))
    return x


def finished(product: Doubles, finish: Finish) -> Doubles:
    bias = 0 if finish.bias is None else finish.bias.astype(np.float64)
    added = 0 if finish.added is None else finish.added.astype(np.float64)
    return np.asarray(activated(product + bias, finish.activation) * float(np.float32(finish.factor)) + added)


def bound(products: Doubles, finish: Finish) -> Doubles:
    """Return the largest error to expect of sums of such products, given the sum of their magnitudes."""
    # An activation has a slope of at most 1.13 (GELU), and adds a few roundings of numbers that are no larger.
    bias = 0 if finish.bias is None else np.abs(finish.bias)
    added = 0 if finish.added is None else np.abs(finish.added)
    magnitude = (products + bias) * max(1.0, abs(finish.factor)) + added
    return np.asarray(8 * _ROUNDING * magnitude)


class TestChoice:
    @every_kernel
    def test_follows_the_other_kernel(self, cpu_kernel: str) -> None:
        best = {
            "avx512": ["avx512vnni", "avxvnni", "avx2"],
            "avx2": ["avxvnni", "avx2"],
            "neon": ["neondot", "neon"],
            "scalar": ["scalar"],
        }
        assert chosen_kernel() == next(name for name in best[cpu_kernel] if name in KERNELS)

    def test_is_the_fastest(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("POM_CPU_KERNEL", raising=False)
        assert chosen_kernel() == next(iter(KERNELS))


class TestRounding:
    @pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
    @pytest.mark.parametrize("inputs", [1, 15, 48, 256, 777])
    def test_is_the_one_of_the_emulation(
        self, kernel: Kernel, random: np.random.Generator, block: int, inputs: int
    ) -> None:
        x = normal(random, 5, inputs) * np.exp(4 * normal(random, 5, 1))
        x[1, : inputs // 2] = 0
        x[2] = np.round(x[2] * 8)  # ties
        x[3] = -np.abs(x[3])
        rounded = kernel.round_rows(x, block)
        blocks = rounded.scales.shape[1]
        parts = np.zeros((5, blocks * block), np.float32)
        parts[:, :inputs] = x
        peaks = np.abs(parts.reshape(5, blocks, block)).max(-1)
        np.testing.assert_array_equal(rounded.scales, peaks / np.float32(127))
        values = rounded.values.astype(np.float64)
        np.testing.assert_array_equal(values[:, inputs:], 0)
        np.testing.assert_array_equal(
            values[:, :inputs] * np.repeat(rounded.scales.astype(np.float64), block, 1)[:, :inputs],
            in_blocks(x, block).values,
        )
        sums = rounded.values.reshape(5, blocks, block).astype(np.int32).sum(-1)
        np.testing.assert_array_equal(rounded.corrections, -8 * sums)

    @pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
    @pytest.mark.parametrize("place", [0, 17, 299])
    def test_a_number_that_is_not_finite_is_known_by_its_scale(self, kernel: Kernel, bad: float, place: int) -> None:
        x = np.ones((2, 300), np.float32)
        x[0, place] = bad
        rounded = kernel.round_rows(x, 64)
        assert np.isnan(rounded.scales[0]).sum() == 1
        assert np.isfinite(rounded.scales[1]).all()

    def test_numbers_whose_scale_has_no_inverse_are_zeros(self, kernel: Kernel) -> None:
        rounded = kernel.round_rows(np.full((1, 32), 1e-38, np.float32), 32)
        assert not rounded.values.any()
        assert not rounded.scales.any()


class TestProduct:
    @staticmethod
    def check(
        kernel: Kernel,
        random: np.random.Generator,
        sizes: tuple[int, ...],
        activation: str,
        *,
        full: bool,
        bits: int = 4,
    ) -> None:
        rows, inputs, outputs, block = sizes
        blocks = -(-inputs // block)
        x = normal(random, rows, inputs)
        values = random.integers(0, 1 << bits, (outputs, inputs), np.uint8)
        scales = normal(random, outputs, blocks)
        rounded = kernel.round_rows(x, block)
        exact = rounded.values.astype(np.float64) * np.repeat(rounded.scales.astype(np.float64), block, 1)
        half = 1 << (bits - 1)
        signed = (values.astype(np.float64) - half) * np.repeat(scales.astype(np.float64), block, 1)[:, :inputs]
        finish = Finish(activation=activation)
        if full:
            finish = Finish(normal(random, outputs), activation, 0.7, normal(random, rows, outputs))
        expected = finished(exact[:, :inputs] @ signed.T, finish)
        allowed = bound(np.abs(exact[:, :inputs]) @ np.abs(signed.T), finish)
        tiles = tuple(place for place in (1, 4) if place < -(-outputs // 16))
        y = kernel.multiply(rounded, pack(values, scales, block, bits), block, outputs, finish, tiles, bits)
        assert (np.abs(y - expected) <= allowed).all()

    @pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
    @pytest.mark.parametrize("rows", [1, 2, 3, 7, 100])
    @pytest.mark.parametrize("bits", [4, 8])
    def test_matches_float64(
        self, kernel: Kernel, random: np.random.Generator, bits: int, rows: int, block: int
    ) -> None:
        self.check(kernel, random, (rows, 1000, 100, block), "none", full=False, bits=bits)

    @pytest.mark.parametrize("rows", [1, 9])
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_what_follows_it(self, kernel: Kernel, random: np.random.Generator, activation: str, rows: int) -> None:
        self.check(kernel, random, (rows, 50, 37, 32), activation, full=True)

    @pytest.mark.parametrize("sizes", [(1, 1, 1, 16), (13, 16, 16, 16), (8, 2000, 33, 256), (12, 4096, 48, 128)])
    def test_sizes(self, kernel: Kernel, random: np.random.Generator, sizes: tuple[int, ...]) -> None:
        self.check(kernel, random, sizes, "gelu", full=True)

    @pytest.mark.skipif(platform.machine() != "x86_64", reason="ONNX Runtime rounds otherwise on other processors")
    @pytest.mark.parametrize("block", [16, 32, 64, 128, 256])
    @pytest.mark.parametrize("rows", [1, 3, 40])
    def test_is_the_one_of_onnx_runtime(
        self, kernel: Kernel, random: np.random.Generator, rows: int, block: int
    ) -> None:
        x, values = normal(random, rows, 500), random.integers(0, 16, (90, 500), np.uint8)
        scales = normal(random, 90, -(-500 // block))
        expected = block_product(x, values, scales, block)
        rounded = kernel.round_rows(x, block)
        y = kernel.multiply(rounded, pack(values, scales, block), block, 90, Finish())
        # Only sums are rounded otherwise: were a single activation, one of the smallest would make more than this.
        wide = np.repeat(scales.astype(np.float64), block, 1)[:, :500]
        magnitudes = np.abs(x.astype(np.float64)) @ np.abs(wide * 16).T
        assert (np.abs(y - expected) <= 4 * _ROUNDING * magnitudes).all()

    @pytest.mark.parametrize(("bits", "number"), [(4, 15), (4, 0), (8, 255), (8, 0)])
    def test_the_largest_integers_are_not_too_large(self, kernel: Kernel, bits: int, number: int) -> None:
        inputs, block = 512, 256
        values = np.full((16, inputs), number, np.uint8)
        weights = pack(values, np.ones((16, inputs // block), np.float32), block, bits)
        for sign in (-1, 1):
            for rows in (1, 2, 30):
                rounded = kernel.round_rows(np.full((rows, inputs), sign * 127, np.float32), block)
                y = kernel.multiply(rounded, weights, block, 16, Finish(), bits=bits)
                assert (y == sign * 127 * (number - (1 << (bits - 1))) * inputs).all()

    def test_is_the_same_for_every_number_of_rows(self, kernel: Kernel, random: np.random.Generator) -> None:
        values, scales = random.integers(0, 16, (80, 900), np.uint8), normal(random, 80, 8)
        weights, rounded = pack(values, scales, 128), kernel.round_rows(normal(random, 200, 900), 128)
        together = kernel.multiply(rounded, weights, 128, 80, Finish(activation="gelu"))
        for first, last in ((0, 1), (3, 5), (6, 9), (10, 16), (20, 33), (50, 170)):
            part = type(rounded)(*(array[first:last] for array in vars(rounded).values()))
            y = kernel.multiply(part, weights, 128, 80, Finish(activation="gelu"), (1, 2))
            np.testing.assert_array_equal(y, together[first:last])

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("rows", [2, 40])
    def test_a_row_with_nan_or_infinity_has_only_nan(
        self, kernel: Kernel, random: np.random.Generator, activation: str, rows: int
    ) -> None:
        x = normal(random, rows, 200)
        x[1, 150] = np.inf
        weights = pack(random.integers(0, 16, (40, 200), np.uint8), normal(random, 40, 2), 128)
        y = kernel.multiply(kernel.round_rows(x, 128), weights, 128, 40, Finish(activation=activation))
        assert np.isnan(y[1]).all()
        assert np.isfinite(np.delete(y, 1, 0)).all()


class TestGroupedProduct:
    @pytest.mark.parametrize("rows", [1, 2, 5, 12, 31])
    @pytest.mark.parametrize("sizes", [(3, 64, 100), (1, 7, 5), (2, 33, 160)])
    def test_matches_float64(
        self, kernel: Kernel, random: np.random.Generator, sizes: tuple[int, int, int], rows: int
    ) -> None:
        groups, inputs, outputs = sizes
        x, weights = normal(random, rows, groups * inputs + 3), normal(random, groups, outputs, inputs)
        finish = Finish(normal(random, groups * outputs), "gelu", -1.5, normal(random, rows, groups * outputs))
        y = kernel.multiply_groups(x, pack_groups(weights), outputs, finish)
        parts = x[:, : groups * inputs].reshape(rows, groups, inputs).astype(np.float64)
        wide = weights.astype(np.float64)
        expected = finished(np.einsum("rgi,goi->rgo", parts, wide).reshape(rows, -1), finish)
        magnitudes = np.einsum("rgi,goi->rgo", np.abs(parts), np.abs(wide)).reshape(rows, -1)
        assert (np.abs(y - expected) <= bound(magnitudes, finish)).all()

    def test_is_the_same_for_every_number_of_rows(self, kernel: Kernel, random: np.random.Generator) -> None:
        x, weights = normal(random, 30, 128), pack_groups(normal(random, 2, 150, 64))
        together = kernel.multiply_groups(x, weights, 150, Finish())
        for first, last in ((0, 1), (3, 5), (6, 9), (10, 29)):
            np.testing.assert_array_equal(
                kernel.multiply_groups(x[first:last], weights, 150, Finish()), together[first:last]
            )


class TestNorms:
    @pytest.mark.parametrize("width", [1, 3, 16, 100, 768, 5000])
    def test_rms_norm(self, kernel: Kernel, random: np.random.Generator, width: int) -> None:
        x, gain = normal(random, 3, width) * 50, normal(random, width)
        wide = x.astype(np.float64)
        expected = wide / np.sqrt((wide**2).mean(-1, keepdims=True) + 1e-5)
        np.testing.assert_allclose(kernel.rms_norm(x, 1e-5, None), expected, rtol=6 * _ROUNDING)
        np.testing.assert_allclose(kernel.rms_norm(x, 1e-5, gain), expected * gain, rtol=6 * _ROUNDING)

    @pytest.mark.parametrize("width", [1, 3, 16, 100, 768, 5000])
    def test_layer_norm(self, kernel: Kernel, random: np.random.Generator, width: int) -> None:
        x, gain, bias = normal(random, 3, width) + 10, normal(random, width), normal(random, width)
        wide = x.astype(np.float64)
        expected = (wide - wide.mean(-1, keepdims=True)) / np.sqrt(wide.var(-1, keepdims=True) + 1e-5)
        # The mean, about 10, is rounded to float32.
        allowed = {"rtol": 6 * _ROUNDING, "atol": 40 * _ROUNDING}
        if width == 1:
            allowed["atol"] = 0
        np.testing.assert_allclose(kernel.layer_norm(x, 1e-5, None, None), expected, **allowed)
        np.testing.assert_allclose(kernel.layer_norm(x, 1e-5, gain, bias), expected * gain + bias, **allowed)

    @pytest.mark.parametrize("bad", [np.nan, np.inf])
    def test_a_number_that_is_not_finite_leaves_only_nan(self, kernel: Kernel, bad: float) -> None:
        x = np.ones((2, 100), np.float32)
        x[0, 70] = bad
        for y in (kernel.rms_norm(x, 1e-5, None), kernel.layer_norm(x, 1e-5, None, None)):
            assert np.isnan(y[0]).all()
            assert np.isfinite(y[1]).all()


class TestElementwise:
    @pytest.mark.parametrize("activation", ACTIVATIONS)
    @pytest.mark.parametrize("count", [1, 15, 64, 1001])
    def test_matches_float64(self, kernel: Kernel, random: np.random.Generator, activation: str, count: int) -> None:
        x, added, multiplied = (normal(random, count) * scale for scale in (4, 1, 2))
        expected = activated(x.astype(np.float64), activation)
        y = kernel.elementwise(x, None, None, activation, 1.0)
        np.testing.assert_allclose(y, expected, rtol=4 * _ROUNDING, atol=2 * _ROUNDING)
        y = kernel.elementwise(x, added, multiplied, activation, -0.3)
        expected = expected * multiplied * np.float64(np.float32(-0.3)) + added
        np.testing.assert_allclose(y, expected, rtol=4 * _ROUNDING, atol=8 * _ROUNDING)

    @pytest.mark.parametrize("activation", ACTIVATIONS)
    def test_nan_is_kept(self, kernel: Kernel, activation: str) -> None:
        assert np.isnan(kernel.elementwise(np.full(19, np.nan, np.float32), None, None, activation, 1.0)).all()
