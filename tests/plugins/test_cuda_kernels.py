"""The CUDA kernels, compiled with g++ and run on the CPU under sanitizers, against float64.

What only a GPU can show stays open: timing, memory ordering between blocks, what nvcc makes of the code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest

from pom_export import contract

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "plugins" / "cuda"
DOUBLE = Path(__file__).parent / "cuda_emulation"
# Numbers of pom::DataType.
TYPES = {"float32": 0, "float16": 1, "bfloat16": 2, "bool": 3}
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "bool": np.bool_}
# Half a unit in the last place: what rounding y may cost.
ROUNDING = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}
SMALLEST = {"float32": 2.0**-149, "float16": 2.0**-24, "bfloat16": 2.0**-133}
# Float32 sums of chunks, relative to the sum of magnitudes; a sequential sum of 20000 tokens errs by 1e-4.
SUM_TOLERANCE = 2e-6

Array = npt.NDArray[Any]


def cuda_headers() -> Path | None:
    """Return the folder of cuda_fp16.h, or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    return next((Path(h) / "include" for h in homes if h and (Path(h) / "include" / "cuda_fp16.h").is_file()), None)


@pytest.fixture(scope="module")
def executable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the kernels and their test double with g++, under the address and undefined-behaviour sanitizers."""
    headers = cuda_headers()
    if headers is None or shutil.which("g++") is None:
        pytest.skip("needs g++ and the CUDA toolkit's headers")
    program = tmp_path_factory.mktemp("cuda_emulation") / "run_aggregate"
    sources = [
        *sorted(CUDA.glob("*.cu")),
        *CUDA.glob("*.cpp"),
        ROOT / "plugins" / "aggregate.cpp",
        *DOUBLE.glob("*.cpp"),
    ]
    flags = ["-std=c++17", "-O1", "-g", "-Wall", "-Wextra", "-Werror", "-Wno-attributes", "-Wno-unknown-pragmas"]
    sanitizers = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    folders = [f"-I{CUDA}", f"-I{CUDA.parent / 'include'}", f"-I{DOUBLE}", "-isystem", str(headers)]
    command = ["g++", *flags, *sanitizers, *folders, "-x", "c++", *map(str, sources), "-o", str(program)]
    subprocess.run(command, check=True)
    return program


@dataclass(frozen=True)
class Case:
    """One call; `mask` is a type, "none" or "same" (as x), `shift` the bytes that x and y lie off alignment."""

    mode: str
    dtype: str = "float32"
    shape: tuple[int, int, int] = (2, 37, 5)
    degree: int = 3
    mask: str = "none"
    mask_rows: int = 0  # 0: one a row of the batch
    coefficients: str = "float32"
    epsilon: float = 0.0
    shift: int = 0

    def inputs(self) -> tuple[Array, Array, Array | None]:
        """Return x, coefficients and mask, the same ones every time."""
        rng = np.random.default_rng(7)
        batch, tokens, channels = self.shape
        x = rng.normal(0.5, 3.0, self.shape).astype(DTYPES[self.dtype])
        # Every power contributes about as much at the upper clamp.
        scale = contract.CLAMP_HIGH ** -np.arange(1.0, self.degree + 1)
        coefficients = (rng.normal(0.3, 1.0, (channels, self.degree)) * scale).astype(DTYPES[self.coefficients])
        if self.mask == "none":
            return x, coefficients, None
        shape = (self.mask_rows or batch, tokens)
        weights = rng.uniform(0.0, 2.0, shape) * (rng.uniform(size=shape) < 0.7)
        weights[0, : tokens // 4] = 0.0  # absent tokens in front, where a causal row starts with an empty sum
        return x, coefficients, weights.astype(DTYPES[self.mask_type()])

    def mask_type(self) -> str:
        return self.dtype if self.mask == "same" else "bool"


def run(executable: Path, case: Case, x: Array, coefficients: Array, mask: Array | None, order: int = 0) -> Array:
    """Run the kernels; `order` is that of threads and blocks."""
    batch, tokens, channels = x.shape
    mask_rows = -1 if mask is None else mask.shape[0]
    types = [TYPES[case.dtype], TYPES[case.coefficients], TYPES[case.mask_type()]]
    arguments = [case.mode, case.epsilon, *x.shape, case.degree, mask_rows, *types, case.shift, order]
    sent = x.tobytes() + coefficients.tobytes() + (b"" if mask is None else mask.tobytes())
    done = subprocess.run([executable, *map(str, arguments)], input=sent, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    shape = (batch, 1 if case.mode == "mean" else tokens, channels)
    return np.frombuffer(done.stdout, dtype=DTYPES[case.dtype]).reshape(shape)


def reference(case: Case, x: Array, coefficients: Array, mask: Array | None) -> tuple[Array, Array]:
    """Return y in float64, and the same of absolute values: what its rounding errors are measured by."""
    h = x.astype(np.float64)
    h = np.clip(np.where(h < 0, contract.LEAKY_SLOPE * h, h), contract.CLAMP_LOW, contract.CLAMP_HIGH)
    powers = h[..., None] ** np.arange(1, case.degree + 1)
    products = powers * coefficients.astype(np.float64)
    p, magnitude = products.sum(-1), np.abs(products).sum(-1)
    if case.mode == "features":
        return p, magnitude
    weights = np.ones((1, x.shape[1])) if mask is None else mask.astype(np.float64)
    weights = np.broadcast_to(weights, x.shape[:2])[..., None]
    epsilon = 0.0 if mask is None else case.epsilon

    def over(values: Array) -> Array:
        active = np.where(weights == 0, 0.0, weights * np.where(weights == 0, 0.0, values))
        if case.mode == "causal":
            sums, totals = np.cumsum(active, 1), np.cumsum(weights, 1)
        else:
            sums, totals = active.sum(1, keepdims=True), weights.sum(1, keepdims=True)
        return np.where(totals == 0, 0.0, sums / np.where(totals == 0, 1.0, totals + epsilon))

    return over(p), over(magnitude)


def assert_matches(executable: Path, case: Case) -> None:
    """Compare with float64, and both orders of threads and blocks bit by bit."""
    inputs = case.inputs()
    y = run(executable, case, *inputs)
    want, magnitude = reference(case, *inputs)
    allowed = ROUNDING[case.dtype] * np.abs(want) + SUM_TOLERANCE * magnitude + SMALLEST[case.dtype]
    assert np.isfinite(y.astype(np.float64)).all()
    worst = np.max(np.abs(y.astype(np.float64) - want) / allowed, initial=0.0)
    assert worst <= 1.0, f"{worst:.3g} times the tolerance"
    assert run(executable, case, *inputs, order=1).tobytes() == y.tobytes()


# Odd channels, one lane, whole packs, two channel tiles with a partial last, many chunks.
SHAPES = [(1, 1, 1), (2, 37, 5), (3, 130, 64), (2, 700, 264), (1, 2500, 24)]
MASKED_MODES = [("mean", "none"), ("mean", "bool"), ("mean", "same"), ("causal", "none"), ("causal", "bool")]
MASKED_MODES += [("causal", "same"), ("features", "none")]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize(("mode", "mask"), MASKED_MODES)
def test_kernels_match_float64(executable: Path, mode: str, mask: str, dtype: str, shape: tuple[int, int, int]) -> None:
    assert_matches(executable, Case(mode, dtype, shape, mask=mask, epsilon=0.5))


@pytest.mark.parametrize("degree", [1, 2, 7, contract.MAX_DEGREE])
@pytest.mark.parametrize("mode", contract.MODES)
def test_every_degree(executable: Path, mode: str, degree: int) -> None:
    assert_matches(executable, Case(mode, "float16", (2, 90, 24), degree=degree))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("mode", contract.MODES)
def test_coefficients_of_xs_type(executable: Path, mode: str, dtype: str) -> None:
    assert_matches(executable, Case(mode, dtype, (2, 90, 24), coefficients=dtype))


@pytest.mark.parametrize("mask", ["bool", "same"])
@pytest.mark.parametrize("mode", ["mean", "causal"])
def test_one_mask_for_the_whole_batch(executable: Path, mode: str, mask: str) -> None:
    assert_matches(executable, Case(mode, "float32", (3, 90, 8), mask=mask, mask_rows=1))


@pytest.mark.parametrize("dtype", list(ROUNDING))
@pytest.mark.parametrize("mode", contract.MODES)
def test_unaligned_pointers_take_the_scalar_path(executable: Path, mode: str, dtype: str) -> None:
    """A 16-byte access off alignment would stop the undefined-behaviour sanitizer."""
    aligned = Case(mode, dtype, (2, 50, 24))
    assert_matches(executable, replace(aligned, shift=np.dtype(DTYPES[dtype]).itemsize))


@pytest.mark.parametrize("mode", ["mean", "causal"])
def test_long_sums_do_not_drift(executable: Path, mode: str) -> None:
    assert_matches(executable, Case(mode, "float32", (1, 40000, 4)))


@pytest.mark.parametrize("mode", ["mean", "causal"])
@pytest.mark.parametrize("mask", ["bool", "same"])
def test_absent_tokens_may_hold_anything(executable: Path, mode: str, mask: str) -> None:
    case = Case(mode, "float16", (2, 130, 16), mask=mask)
    x, coefficients, weights = case.inputs()
    assert weights is not None
    spoiled = np.where(weights[..., None] == 0, np.float16("nan"), x).astype(np.float16)

    clean = run(executable, case, x, coefficients, weights)
    assert run(executable, case, spoiled, coefficients, weights).tobytes() == clean.tobytes()


def test_a_nan_reaches_the_rows_that_hold_it(executable: Path) -> None:
    token, channel = 70, 3
    for mode in contract.MODES:
        case = Case(mode, "float32", (2, 130, 8))
        x, coefficients, _ = case.inputs()
        x[1, token, channel] = np.nan

        seen = np.isnan(run(executable, case, x, coefficients, None))

        expected = np.zeros_like(seen)
        rows = {"mean": slice(0, 1), "causal": slice(token, None), "features": slice(token, token + 1)}
        expected[1, rows[mode], channel] = True
        np.testing.assert_array_equal(seen, expected)


def test_infinities_are_clamped(executable: Path) -> None:
    case = Case("features", "float16", (1, 2, 8), degree=1)
    x = np.array([np.inf, -np.inf], np.float16).reshape(1, 2, 1).repeat(8, 2)

    y = run(executable, case, x, np.ones((8, 1), np.float32), None)

    np.testing.assert_array_equal(y[0, :, 0], np.array([contract.CLAMP_HIGH, contract.CLAMP_LOW], np.float16))


@pytest.mark.parametrize("mode", ["mean", "causal"])
def test_a_masked_out_row_gives_zero(executable: Path, mode: str) -> None:
    case = Case(mode, "float32", (2, 70, 8), mask="bool")
    x, coefficients, weights = case.inputs()
    assert weights is not None
    weights[1] = False
    x[1] = np.nan

    assert not run(executable, case, x, coefficients, weights)[1].any()


@pytest.mark.parametrize("shape", [(0, 5, 8), (2, 0, 8)])
@pytest.mark.parametrize("mode", contract.MODES)
def test_empty_batches_and_rows(executable: Path, mode: str, shape: tuple[int, int, int]) -> None:
    case = Case(mode, "float16", shape)

    assert not run(executable, case, *case.inputs()).any()
