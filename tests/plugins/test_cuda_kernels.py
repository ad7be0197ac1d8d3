"""The CUDA kernels, compiled with g++ and run on the CPU under sanitizers, against float64.

What only a GPU can show stays open: timing, memory ordering between blocks, what nvcc makes of the code.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt
import pytest
import torch

from pom_export import contract
from pom_export.mixer.reference import polynomial_aggregation
from pom_export.parity.tolerances import OPS

if TYPE_CHECKING:
    from collections.abc import Callable

ROOT = Path(__file__).resolve().parents[2]
CUDA = ROOT / "plugins" / "cuda"
DOUBLE = Path(__file__).parent / "cuda_emulation"
FLAGS = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-attributes", "-Wno-unknown-pragmas"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
# Numbers of pom::DataType.
TYPES = {"float32": 0, "float16": 1, "bfloat16": 2, "bool": 3}
DTYPES = {"float32": np.float32, "float16": np.float16, "bfloat16": ml_dtypes.bfloat16, "bool": np.bool_}
FLOATS = ("float32", "float16", "bfloat16")
MASKS = ("none", "bool", "same")  # "same": of x's type
MASKED_MODES = [(mode, mask) for mode in ("mean", "causal") for mask in MASKS] + [("features", "none")]

Array = npt.NDArray[Any]


def cuda_headers() -> Path | None:
    """Return the folder of cuda_fp16.h, or None."""
    homes = [Path(os.environ[name]) for name in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(name)]
    nvcc = shutil.which("nvcc")
    homes += [Path(nvcc).resolve().parents[1]] if nvcc else []
    folders = [home / "include" for home in (*homes, Path("/usr/local/cuda"))]
    return next((folder for folder in folders if (folder / "cuda_fp16.h").is_file()), None)


@pytest.fixture(scope="module")
def executable(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the kernels and their test double with g++, under the address and undefined-behaviour sanitizers."""
    headers = cuda_headers()
    if headers is None or shutil.which("g++") is None:
        pytest.skip("needs g++ and the CUDA toolkit's headers: set CUDA_HOME")
    folder = tmp_path_factory.mktemp("cuda_emulation")
    folders = [f"-I{CUDA}", f"-I{CUDA.parent / 'include'}", f"-I{DOUBLE}", "-isystem", str(headers)]

    def compiled(source: Path) -> Path:
        made = folder / f"{source.name}.o"
        subprocess.run(["g++", *FLAGS, *SANITIZERS, *folders, "-x", "c++", "-c", source, "-o", made], check=True)
        return made

    sources = [*CUDA.glob("*.cu"), *CUDA.glob("*.cpp"), ROOT / "plugins" / "aggregate.cpp", *DOUBLE.glob("*.cpp")]
    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    program = folder / "run_aggregate"
    subprocess.run(["g++", *SANITIZERS, *objects, "-o", program], check=True)
    return program


@dataclass(frozen=True)
class Case:
    """One call. `shift`, `table_shift`: the bytes that x, gate and output, cos and sin lie off alignment."""

    mode: str
    dtype: str = "float32"
    shape: tuple[int, int, int] = (2, 37, 5)
    degree: int = 3
    mask: str = "none"
    mask_rows: int | None = None  # None: one a row of the batch
    coefficients: str = "float32"
    epsilon: float = 0.5
    form: str = contract.POWER
    rotation: str = "none"  # else the tables' type
    rotation_rows: int | None = None  # as mask_rows
    rotary_blocks: int = 1
    shift: int = 0
    table_shift: int = 0
    skipped_barrier: int = -1  # see cuda_emulation.h
    gate: str = "none"  # else its activation
    gate_tokens: int | None = None  # None: x's
    gates: int | None = None  # None: one a channel
    bias: str = "float32"

    @property
    def mask_type(self) -> str:
        return self.dtype if self.mask == "same" else "bool"


@dataclass
class Call:
    """A case and its tensors: x beyond both clamps, absent tokens in front, a causal row starts with an empty sum."""

    case: Case

    def __post_init__(self) -> None:
        case, rng = self.case, np.random.default_rng(7)
        batch, tokens, channels = case.shape
        # Of form product's 16 factors, those of a half type must not overflow.
        centre, spread = (0.5, 3.0) if case.form == contract.POWER else (1.0, 0.7)
        self.x: Array = rng.normal(centre, spread, case.shape).astype(DTYPES[case.dtype])
        self.coefficients: Array | None = None
        if case.form == contract.POWER:
            # Every power contributes about as much at the upper clamp.
            scale = contract.CLAMP_HIGH ** -np.arange(1.0, case.degree + 1)
            coefficients = rng.normal(0.3, 1.0, (channels, case.degree)) * scale
            self.coefficients = coefficients.astype(DTYPES[case.coefficients])
        self.mask: Array | None = None
        if case.mask != "none":
            shape = (batch if case.mask_rows is None else case.mask_rows, tokens)
            weights = rng.uniform(0.1, 2.0, shape) * (rng.uniform(size=shape) < 0.7)
            weights[:1, : tokens // 4] = 0.0
            self.mask = weights.astype(DTYPES[case.mask_type])
        self.tables: list[Array] = []  # cos and sin
        if case.rotation != "none":
            rows = batch if case.rotation_rows is None else case.rotation_rows
            angles = rng.uniform(-4.0, 4.0, (rows, tokens, channels // 2))
            self.tables = [table.astype(DTYPES[case.rotation]) for table in (np.cos(angles), np.sin(angles))]
        self.gate: Array | None = None
        self.gate_bias: Array | None = None
        if case.gate != "none":
            gates = case.gates or channels
            gate_shape = (batch, tokens if case.gate_tokens is None else case.gate_tokens, gates)
            self.gate = rng.normal(0.5, 3.0, gate_shape).astype(DTYPES[case.dtype])
            self.gate_bias = rng.normal(0.0, 1.0, gates).astype(DTYPES[case.bias])

    def message(self) -> bytes:
        """Return what run_aggregate reads."""
        case = self.case
        mask_rows = -1 if self.mask is None else self.mask.shape[0]
        rotation_rows = self.tables[0].shape[0] if self.tables else -1
        tables_type = "float32" if case.rotation == "none" else case.rotation
        types = [TYPES[name] for name in (case.dtype, case.coefficients, case.mask_type, tables_type)]
        words = [case.form, case.mode, case.rotary_blocks, case.epsilon, *case.shape, case.degree]
        words += [mask_rows, rotation_rows, *types, case.shift, case.table_shift, case.skipped_barrier]
        if self.gate is None:
            words += [contract.GATE_ACTIVATIONS[0], -1, 0, 0]
        else:
            words += [case.gate, *self.gate.shape[1:], TYPES[case.bias]]
        tensors = (self.x, self.gate, self.gate_bias, self.coefficients, self.mask, *self.tables)
        given = [tensor.tobytes() for tensor in tensors if tensor is not None]
        return " ".join(map(str, words)).encode() + b"\n" + b"".join(given)

    @property
    def output_shape(self) -> tuple[int, int, int]:
        batch, tokens, channels = self.x.shape
        if self.gate is not None:
            return batch, self.gate.shape[1], channels
        return batch, 1 if self.case.mode == "mean" else tokens, channels

    def features(self) -> Array:
        """Return p in float64, and the same of absolute values."""
        x = self.x.astype(np.float64)
        if self.coefficients is None:
            chunks = np.stack(np.split(x, self.case.degree, axis=-1))
            erf = torch.erf(torch.from_numpy(chunks) / 2**0.5).numpy()
            factors = np.stack([0.5 * chunks * (1 + erf), 0.5 * abs(chunks) * (1 + abs(erf))])
            return np.concatenate(list(factors.cumprod(1).swapaxes(0, 1)), axis=-1)
        h = np.clip(np.where(x < 0, contract.LEAKY_SLOPE * x, x), contract.CLAMP_LOW, contract.CLAMP_HIGH)
        powers = h[..., None] ** np.arange(1, self.case.degree + 1) * self.coefficients.astype(np.float64)
        return self.rotated(np.stack([powers.sum(-1), abs(powers).sum(-1)]))

    def rotated(self, terms: Array) -> Array:
        """Rotate features, and bound the absolute values of the rotated."""
        if not self.tables:
            return terms
        blocks = self.case.rotary_blocks
        cos, sin = (
            np.split(np.stack([table, abs(table)]).astype(np.float64), blocks, axis=-1) for table in self.tables
        )
        halves, sign = np.split(terms, 2 * blocks, axis=-1), np.array([-1.0, 1.0]).reshape(2, 1, 1, 1)
        turned = []
        for block in range(blocks):
            first, second = halves[2 * block : 2 * block + 2]
            turned.append(first * cos[block] + sign * second * sin[block])
            turned.append(second * cos[block] + first * sin[block])
        return np.concatenate(turned, axis=-1)

    def reference(self) -> tuple[Array, Array]:
        """Return y or z in float64, and the same of absolute values: what its rounding errors are measured by."""
        y, magnitude = self.aggregate()
        if self.gate is None or self.gate_bias is None:
            return y, magnitude
        repeats = self.x.shape[2] // self.gate.shape[2]
        terms = np.stack([self.gate, np.broadcast_to(self.gate_bias, self.gate.shape)]).astype(np.float64)
        total = terms.sum(0)
        s = {"identity": total, "sigmoid": 1 / (1 + np.exp(-total)), "hardsigmoid": np.clip(total / 6 + 0.5, 0, 1)}
        error = abs(s[self.case.gate]) + abs(terms).sum(0)
        return s[self.case.gate].repeat(repeats, -1) * y, error.repeat(repeats, -1) * magnitude

    def aggregate(self) -> tuple[Array, Array]:
        """Return y, and what its rounding errors are measured by."""
        terms = self.features()
        if self.case.mode == "features":
            return terms[0], terms[1]
        rows = self.x.shape[:2]
        weights = np.ones(rows) if self.mask is None else np.broadcast_to(self.mask.astype(np.float64), rows)
        weights = weights[..., None]
        sums, totals = np.where(weights == 0, 0.0, weights * terms).cumsum(2), weights.cumsum(1)
        if self.case.mode == "mean":
            sums = np.where(weights == 0, 0.0, weights * terms).sum(2, keepdims=True)
            totals = weights.sum(1, keepdims=True)
        epsilon = 0.0 if self.mask is None else self.case.epsilon
        means = np.where(totals == 0, 0.0, sums / np.where(totals == 0, 1.0, totals + epsilon))
        return means[0], means[1]


def run(executable: Path, *calls: Call) -> list[Array]:
    """Run the kernels, each call in both orders of blocks and threads, which must agree bit by bit."""
    environment = os.environ | {"ASAN_OPTIONS": "detect_leaks=0"}  # leaks need ptrace, and kernels allocate nothing
    sent = b"".join(call.message() for call in calls)
    done = subprocess.run([executable], input=sent, capture_output=True, check=False, env=environment)
    assert done.returncode == 0, done.stderr.decode()
    outputs, offset = [], 0
    for call in calls:
        shape = call.output_shape
        y = np.frombuffer(done.stdout, call.x.dtype, int(np.prod(shape)), offset).reshape(shape)
        outputs.append(y)
        offset += y.nbytes
    assert offset == len(done.stdout)
    return outputs


def assert_matches(executable: Path, *calls: Call) -> None:
    """Compare every element with float64, by the magnitude of its own terms and not of the largest output."""
    for call, y in zip(calls, run(executable, *calls), strict=True):
        want, magnitude = call.reference()
        tolerance = OPS[call.case.dtype]
        errors = abs(y.astype(np.float64) - want)  # a NaN is in no bound
        assert (errors <= tolerance.absolute + tolerance.relative * magnitude).all(), (call.case, errors.max())


@pytest.fixture
def check(executable: Path) -> Callable[..., None]:
    return lambda *cases: assert_matches(executable, *map(Call, cases))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("mode", "mask"), MASKED_MODES)
def test_modes_masks_and_types(check: Callable[..., None], mode: str, mask: str, dtype: str) -> None:
    """One channel and one pack at a time, one mask a row and one for the whole batch."""
    case = Case(mode, dtype, mask=mask)
    shapes = [(3, 65, 17), (3, 130, 64), (1, 2500, 24)]
    cases = [replace(case, shape=shape, mask_rows=rows) for shape in shapes for rows in (None, 1)]
    check(*(case for case in cases if mask != "none" or case.mask_rows is None))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", contract.MODES)
def test_shapes(check: Callable[..., None], mode: str, dtype: str) -> None:
    mask = "none" if mode == "features" else "same"
    shapes = [(1, tokens, channels) for tokens in (0, 1, 2, 63, 64, 65) for channels in (1, 3, 8, 17, 130)]
    shapes += [(0, 5, 8), (3, 0, 8), (0, 0, 1), (3, 63, 3), (3, 700, 8), (1, 700, 17), (1, 700, 1)]
    check(*(Case(mode, dtype, shape, mask=mask, degree=1 + index % 4) for index, shape in enumerate(shapes)))


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("float32", (3, 700, 130)),  # one channel at a time: 5 channel tiles, 11 chunks of 2 steps
        ("float32", (1, 300, 264)),  # packs: 3 tiles, the last one almost empty
        ("float16", (1, 20000, 1)),  # 20 chunks of the largest size
        ("float32", (1, 40000, 4)),  # a sequential sum of this length errs by 1e-4
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["mean", "causal"])
def test_tokens_over_several_blocks(
    check: Callable[..., None], mode: str, dtype: str, shape: tuple[int, int, int]
) -> None:
    check(Case(mode, dtype, shape, mask="bool"))


@pytest.mark.parametrize(("mode", "dtype"), [("mean", "float16"), ("causal", "float16"), ("causal", "float32")])
def test_chunks_of_several_steps(check: Callable[..., None], mode: str, dtype: str) -> None:
    """A batch large enough to fill the device leaves each block more tokens than its threads hold at once."""
    check(Case(mode, dtype, (67, 150, 136), mask="bool"))


@pytest.mark.parametrize("mode", contract.MODES)
def test_degrees(check: Callable[..., None], mode: str) -> None:
    degrees = (1, 2, 3, 7, contract.MAX_DEGREE)
    check(*(Case(mode, dtype, (2, 90, 24), degree=degree) for degree in degrees for dtype in FLOATS))


@pytest.mark.parametrize("mode", contract.MODES)
def test_coefficients_of_xs_type(check: Callable[..., None], mode: str) -> None:
    check(*(Case(mode, dtype, (2, 90, channels), coefficients=dtype) for dtype in FLOATS for channels in (17, 24)))


@pytest.mark.parametrize(
    "case",
    [
        Case("causal", mask="bool", shape=(2, 9, 6)),
        Case("features", shape=(2, 9, 8), rotation="float32", rotary_blocks=2),
        Case("mean", shape=(2, 9, 6), rotation="float32", rotation_rows=1, mask="same"),
        Case("causal", shape=(2, 9, 9), form=contract.PRODUCT, mask="same"),
    ],
    ids=str,
)
def test_the_reference_here_is_the_ops(case: Case) -> None:
    call = Call(case)
    x, *others = (
        None if tensor is None else torch.from_numpy(tensor if tensor.dtype == np.bool_ else tensor.astype(np.float64))
        for tensor in (call.x, call.coefficients, call.mask, *call.tables)
    )
    assert x is not None
    coefficients, mask, *tables = others
    cos, sin = tables or (None, None)
    degree = 0 if case.form == contract.POWER else case.degree
    y = polynomial_aggregation(
        x,
        coefficients,
        mask,
        case.mode,
        case.epsilon,
        degree=degree,
        cos=cos,
        sin=sin,
        rotary_blocks=case.rotary_blocks,
    )
    np.testing.assert_allclose(call.reference()[0], y.numpy(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("mode", "mask"), MASKED_MODES)
def test_rotation(check: Callable[..., None], mode: str, mask: str, dtype: str) -> None:
    """Both types and ranks of the tables, one and two blocks, packs and single channels, one chunk and several."""
    case = Case(mode, dtype, mask=mask)
    tables = [replace(case, rotation=kind, rotation_rows=rows) for kind in ("float32", dtype) for rows in (None, 1)]
    packs = [((2, 37, 32), 1), ((2, 34, 32), 2)]
    odd = [((3, 65, 2), 1), ((2, 37, 6), 1), ((2, 33, 12), 2), ((1, 33, 528), 2)]
    check(
        *(replace(each, shape=shape, rotary_blocks=blocks) for each in tables for shape, blocks in packs),
        *(replace(each, shape=shape, rotary_blocks=blocks) for each, (shape, blocks) in zip(tables, odd, strict=True)),
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", contract.MODES)
def test_rotation_of_every_degree_and_alignment(check: Callable[..., None], mode: str, dtype: str) -> None:
    """Half a tile where the coefficients of a whole one do not fit shared memory; x and tables off alignment."""
    case = Case(mode, dtype, (2, 40, 544), rotation=dtype)
    degrees = (1, 14, contract.MAX_DEGREE)
    off = np.dtype(DTYPES[dtype]).itemsize
    small = replace(case, shape=(2, 40, 64))
    check(
        *(replace(case, degree=degree) for degree in degrees),
        replace(small, shift=off),
        replace(small, table_shift=off),
    )


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(("mode", "mask"), MASKED_MODES)
def test_product(check: Callable[..., None], mode: str, mask: str, dtype: str) -> None:
    """Even and odd degrees, factors of single channels and of packs, one mask a row and one for the whole batch."""
    case = Case(mode, dtype, mask=mask, form=contract.PRODUCT)
    factors = {1: 24, 2: 33, 3: 16, 4: 5, 5: 8}
    cases = [replace(case, degree=degree, shape=(3, 66, degree * factor)) for degree, factor in factors.items()]
    cases += [replace(case, degree=degree, shape=(2, 37, degree * 8)) for degree in (2, contract.MAX_DEGREE)]
    check(*cases, *(replace(each, mask_rows=1) for each in cases[:2] if mask != "none"))


@pytest.mark.parametrize("mode", contract.MODES)
def test_product_off_alignment(check: Callable[..., None], mode: str) -> None:
    case = Case(mode, form=contract.PRODUCT, shape=(2, 50, 24))
    check(*(replace(case, dtype=dtype, shift=np.dtype(DTYPES[dtype]).itemsize) for dtype in FLOATS))


FORMS = {
    "rotation": Case("mean", rotation="float32"),
    "shared rotation": Case("mean", rotation="float32", rotation_rows=1, rotary_blocks=2),
    "product": Case("mean", form=contract.PRODUCT),
}
"""Of every form but the one that has its own tests."""


@pytest.mark.parametrize(
    ("dtype", "shape"),
    [
        ("float32", (0, 5, 12)),
        ("float32", (3, 0, 12)),
        ("float16", (1, 2500, 12)),  # chunks of the largest size
        ("float32", (2, 300, 132)),  # several tiles and chunks
        ("float16", (1, 70, 1056)),  # packs: several tiles, the last one almost empty
    ],
    ids=str,
)
@pytest.mark.parametrize("mode", ["mean", "causal"])
@pytest.mark.parametrize("form", FORMS)
def test_every_form_over_several_blocks(
    check: Callable[..., None], form: str, mode: str, dtype: str, shape: tuple[int, int, int]
) -> None:
    check(replace(FORMS[form], mode=mode, mask="bool", shape=shape, dtype=dtype))


def test_the_workspace_of_one_full_tile_is_enough(check: Callable[..., None]) -> None:
    """As many chunks as there can be, each with the sums of all of the widest tile's channels."""
    check(Case("mean", "float16", (1, 264 * 16, 512), degree=1, rotation="float16"))


@pytest.mark.parametrize("form", ["rotation", "product"])
def test_every_form_in_chunks_of_several_steps(check: Callable[..., None], form: str) -> None:
    check(replace(FORMS[form], mode="causal", mask="bool", shape=(67, 70, 66)))


@pytest.mark.parametrize("mode", contract.MODES)
def test_unaligned_pointers_take_the_scalar_path(check: Callable[..., None], mode: str) -> None:
    """A 16-byte access off alignment would stop the undefined-behaviour sanitizer."""
    check(*(Case(mode, dtype, (2, 50, 24), shift=np.dtype(DTYPES[dtype]).itemsize) for dtype in FLOATS))


@pytest.mark.parametrize(
    ("mode", "barrier", "tokens"),
    # The last is between two steps of one chunk, which only many tokens make.
    [("features", 0, 40), ("mean", 0, 40), ("mean", 1, 40), ("causal", 0, 40), ("causal", 1, 40), ("causal", 2, 700)],
)
def test_a_missing_barrier_would_be_seen(check: Callable[..., None], mode: str, barrier: int, tokens: int) -> None:
    """The double itself: it finds the absence of each __syncthreads() that the kernels have."""
    with pytest.raises(AssertionError):
        check(Case(mode, "float32", (3, tokens, 130), skipped_barrier=barrier))


@pytest.mark.parametrize("mode", ["mean", "causal"])
@pytest.mark.parametrize("mask", ["bool", "same"])
@pytest.mark.parametrize("form", [None, *FORMS])
def test_absent_tokens_may_hold_anything(executable: Path, form: str | None, mask: str, mode: str) -> None:
    case = replace(FORMS[form] if form else Case(mode), mode=mode, shape=(2, 50, 48), mask=mask)
    for dtype in FLOATS:
        clean, spoiled = (Call(replace(case, dtype=dtype)) for _ in range(2))
        assert spoiled.mask is not None
        spoiled.x[spoiled.mask == 0] = np.nan
        for table in spoiled.tables:
            absent = spoiled.mask == 0
            table[absent if len(table) > 1 else absent.all(0, keepdims=True)] = np.nan

        outputs = run(executable, clean, spoiled)

        assert np.isfinite(outputs[0].astype(np.float64)).all()
        assert outputs[0].tobytes() == outputs[1].tobytes()


@pytest.mark.parametrize("mode", contract.MODES)
def test_a_nan_reaches_the_rows_that_hold_it(executable: Path, mode: str) -> None:
    token, channel = 70, 3
    rows = {"mean": slice(0, 1), "causal": slice(token, None), "features": slice(token, token + 1)}
    for dtype in FLOATS:
        call = Call(Case(mode, dtype, (2, 130, 8)))
        call.x[1, token, channel] = np.nan

        (y,) = run(executable, call)

        expected = np.zeros(y.shape, bool)
        expected[1, rows[mode], channel] = True
        np.testing.assert_array_equal(np.isnan(y.astype(np.float64)), expected)


def test_infinities_are_clamped(executable: Path) -> None:
    call = Call(Case("features", "float16", (1, 2, 8), degree=1))
    call.x[0, 0], call.x[0, 1] = np.inf, -np.inf
    assert_matches(executable, call)


@pytest.mark.parametrize("mode", ["mean", "causal"])
@pytest.mark.parametrize("mask", ["bool", "same"])
def test_a_masked_out_row_gives_zero(executable: Path, mode: str, mask: str) -> None:
    for epsilon in (0.0, 0.5):
        call = Call(Case(mode, "float16", (2, 70, 8), mask=mask, epsilon=epsilon))
        assert call.mask is not None
        call.mask[1] = 0
        call.x[1] = np.nan
        (y,) = run(executable, call)
        assert not y[1].any()
        assert np.isfinite(y).all()


GATED_MODES = ("mean", "causal")


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("activation", contract.GATE_ACTIVATIONS)
@pytest.mark.parametrize("mode", GATED_MODES)
def test_gate(check: Callable[..., None], mode: str, activation: str, dtype: str) -> None:
    """Packs and single channels, both types of the bias, one gate a channel, a head and all channels."""
    case = Case(mode, dtype, mask="same", gate=activation)
    sizes = [(17, None), (17, 1), (24, None), (24, 3), (24, 6), (24, 1), (64, 8), (64, 64)]
    shapes = [((2, 37, channels), gates) for channels, gates in sizes]
    shapes += [((1, 2500, 8), None), ((3, 130, 264), None), ((3, 65, 264), 33)]
    check(
        *(replace(case, shape=shape, gates=gates, bias=bias) for shape, gates in shapes for bias in {"float32", dtype})
    )


@pytest.mark.parametrize("tokens", [0, 1, 31, 33, 700])
def test_a_mean_serves_any_number_of_tokens(check: Callable[..., None], tokens: int) -> None:
    """As in cross-attention, where gate and context have tokens of their own."""
    shapes = [(3, 9, 5), (2, 40, 520), (2, 0, 8), (0, 5, 8)]
    check(*(Case("mean", dtype, shape, gate="sigmoid", gate_tokens=tokens) for dtype in FLOATS for shape in shapes))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("mode", GATED_MODES)
def test_every_form_with_a_gate(check: Callable[..., None], mode: str, dtype: str) -> None:
    """Two packs a thread, half a tile where the bias of a whole one does not fit shared memory, odd degrees."""
    rotated = Case(mode, dtype, (2, 40, 544), rotation=dtype, gate="hardsigmoid", mask="bool")
    product = Case(mode, dtype, (3, 66, 48), form=contract.PRODUCT, gate="sigmoid", mask="bool")
    check(
        *(replace(rotated, degree=degree, gates=gates) for degree in (13, 14) for gates in (None, 34)),
        replace(rotated, shape=(2, 33, 12), rotary_blocks=2),
        *(replace(product, gates=gates, degree=degree) for gates in (None, 6, 2) for degree in (2, 3)),
        replace(product, shape=(67, 70, 66)),
    )


@pytest.mark.parametrize("mode", GATED_MODES)
def test_a_gate_over_several_blocks_and_steps(check: Callable[..., None], mode: str) -> None:
    case = Case(mode, "float16", mask="bool", gate="sigmoid")
    check(*(replace(case, shape=shape) for shape in [(67, 150, 136), (1, 2500, 1056), (0, 5, 8), (3, 0, 8)]))


@pytest.mark.parametrize("mode", GATED_MODES)
def test_a_gate_off_alignment(check: Callable[..., None], mode: str) -> None:
    cases = [Case(mode, dtype, (2, 50, 24), gate="sigmoid") for dtype in FLOATS]
    check(*(replace(case, shift=np.dtype(DTYPES[case.dtype]).itemsize) for case in cases))


@pytest.mark.parametrize("mode", GATED_MODES)
def test_nothing_is_rounded_between_the_aggregate_and_the_output(executable: Path, mode: str) -> None:
    """A gate that brings the mean of a half type's sums back into range: y alone would be infinite."""
    call = Call(Case(mode, "float16", (1, 40, 16), gate="identity"))
    assert call.coefficients is not None
    assert call.gate is not None
    assert call.gate_bias is not None
    call.x[...] = 6.0
    call.coefficients[...] = 1e4
    call.gate[...], call.gate_bias[...] = 2**-12, 0.0
    assert_matches(executable, call)


@pytest.mark.parametrize("mode", GATED_MODES)
@pytest.mark.parametrize("activation", contract.GATE_ACTIVATIONS)
def test_gates_beyond_every_bound(executable: Path, activation: str, mode: str) -> None:
    """Infinite gates saturate, and a NaN stays in its own element."""
    call = Call(Case(mode, "float32", (1, 70, 8), gate=activation))
    assert call.gate is not None
    call.gate[0, 3, 1], call.gate[0, 4, 1], call.gate[0, 5, 1] = np.nan, np.inf, -np.inf
    (z,) = run(executable, call)
    infinite = 1 + 2 * (activation == "identity")
    assert (~np.isfinite(z)).sum() == infinite
    assert np.isnan(z[0, 3, 1])
    if activation != "identity":
        assert z[0, 5, 1] == 0
