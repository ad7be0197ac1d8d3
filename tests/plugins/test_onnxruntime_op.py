"""The numbers of the ONNX Runtime op library against float64, for every kernel that this machine can run."""

from __future__ import annotations

import ctypes
from dataclasses import dataclass, replace
from math import erf, sqrt
from typing import Any

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper

from pom_export import contract
from pom_export.graph.schema import attributes
from pom_export.mixer.reference import polynomial_aggregation
from pom_export.parity.tolerances import LONG_CAUSAL, OPS, Tolerance

Arrays = dict[str, np.ndarray]

BFLOAT16 = helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16)

every_kernel = pytest.mark.usefixtures("cpu_kernel")

PLACEHOLDER = np.full(1, np.nan, np.float32)


@dataclass(frozen=True)
class Form:
    """A polynomial, and how many channels come together in it."""

    degree: int = 3
    product: bool = False
    rotary_blocks: int = 0
    table_type: str = "float32"  # or "x": that of x
    table_per_batch: bool = False

    @property
    def unit(self) -> int:
        return self.degree if self.product else max(2 * self.rotary_blocks, 1)

    def attributes(self, mode: str, epsilon: float = 0.0) -> dict[str, Any]:
        degree = self.degree if self.product else 0
        return attributes(mode, epsilon, degree=degree, rotary_blocks=max(self.rotary_blocks, 1))

    def feeds(
        self, batch: int, tokens: int, width: int, dtype: type = np.float32, mask: np.ndarray | None = None
    ) -> Arrays:
        """Return inputs of `width` times `unit` channels: x beyond every bend, and powers that stay within float16."""
        random = np.random.default_rng(0)
        shape = (batch, tokens, width * self.unit)
        x = random.standard_normal(shape) * (1.5 if self.product else 4)
        x[..., ::3] *= 2 if self.product else 8
        feeds = {"x": x.astype(dtype), "coefficients": PLACEHOLDER}
        if not self.product:
            scales = 6.0 ** np.arange(self.degree)
            feeds["coefficients"] = (random.standard_normal((shape[-1], self.degree)) / scales).astype(np.float32)
        if mask is not None or self.rotary_blocks:
            feeds["mask"] = PLACEHOLDER if mask is None else mask
        if self.rotary_blocks:
            table = (*([batch] if self.table_per_batch else []), tokens, shape[-1] // 2)
            angles = random.uniform(0, 2 * np.pi, table)
            table_type = dtype if self.table_type == "x" else self.table_type
            feeds |= {"cos": np.cos(angles).astype(table_type), "sin": np.sin(angles).astype(table_type)}
        return feeds


FORMS = {
    "power": Form(),
    "rotated": Form(rotary_blocks=1),
    "rotated_in_two": Form(rotary_blocks=2, table_per_batch=True),
    "rotated_by_x_type": Form(rotary_blocks=2, table_type="x"),
    "product": Form(product=True),
}
every_form = pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
every_mode = pytest.mark.parametrize("mode", contract.MODES)
every_type = pytest.mark.parametrize(
    "dtype", [np.float32, np.float16, BFLOAT16], ids=["float32", "float16", "bfloat16"]
)
aggregating = pytest.mark.parametrize("mode", ["mean", "causal"])


def real(feeds: Arrays) -> Arrays:
    """Return the inputs that are not placeholders, in float64."""
    return {
        name: array if array.dtype == bool else array.astype(np.float64)
        for name, array in feeds.items()
        if array.ndim > 1
    }


def exact(feeds: Arrays, node: dict[str, Any]) -> np.ndarray:
    """Return the op's output in float64."""
    inputs = {name: torch.from_numpy(array) for name, array in real(feeds).items()}
    return polynomial_aggregation(
        inputs["x"],
        inputs.get("coefficients"),
        inputs.get("mask"),
        node["mode"],
        node["epsilon"],
        degree=node["degree"],
        cos=inputs.get("cos"),
        sin=inputs.get("sin"),
        rotary_blocks=node["rotary_blocks"],
    ).numpy()


def magnitudes(feeds: Arrays, node: dict[str, Any]) -> np.ndarray:
    """Return the features with every term made positive: what rounding is measured by, so that terms may cancel."""
    inputs = real(feeds)
    x = inputs["x"]
    if node["degree"]:
        factors = abs(x) * (1 + abs(np.vectorize(erf, [float])(x / sqrt(2)))) / 2
        chunks = np.split(factors, node["degree"], axis=-1)
        return np.cumprod(chunks, axis=0).swapaxes(0, 1).swapaxes(1, 2).reshape(x.shape)
    h = abs(np.clip(np.where(x >= 0, x, contract.LEAKY_SLOPE * x), contract.CLAMP_LOW, contract.CLAMP_HIGH))
    coefficients = abs(inputs["coefficients"])
    p = (h[..., None] ** np.arange(1, coefficients.shape[1] + 1) * coefficients).sum(-1)
    if "cos" not in inputs:
        return p
    pairs_shape = (p.shape[1], node["rotary_blocks"], 2, p.shape[2] // node["rotary_blocks"] // 2)
    pairs = p.reshape(p.shape[0], *pairs_shape)
    cos, sin = (
        abs(inputs[name]).reshape(*inputs[name].shape[:-2], *np.delete(pairs_shape, 2), 1).swapaxes(-1, -2)
        for name in ("cos", "sin")
    )
    return (pairs * cos + pairs[..., ::-1, :] * sin).reshape(p.shape)


def averaged(p: np.ndarray, feeds: Arrays, node: dict[str, Any]) -> np.ndarray:
    """Return the op's average of the positive p: that of its own polynomial of degree 1, below the upper clamp."""
    scale = np.nanmax(p, initial=1.0)
    identity = {"x": p / scale, "coefficients": np.ones((p.shape[-1], 1))}
    mask = {"mask": feeds["mask"]} if "mask" in feeds else {}
    return scale * exact(identity | mask, attributes(node["mode"], node["epsilon"]))


def assert_matches(y: np.ndarray, feeds: Arrays, node: dict[str, Any], tolerance: Tolerance | None = None) -> None:
    value, magnitude = exact(feeds, node), averaged(magnitudes(feeds, node), feeds, node)
    assert y.shape == value.shape
    bound = tolerance or OPS[str(y.dtype)]
    error = abs(y.astype(np.float64) - value)
    assert np.all(error <= bound.relative * magnitude + bound.absolute), error.max()


def mask_of(kind: str, batch: int, tokens: int, dtype: type) -> np.ndarray | None:
    random = np.random.default_rng(7)
    rows = 1 if kind.endswith("broadcast") else batch
    if kind == "none":
        return None
    keep = random.random((rows, tokens)) < 0.7
    return keep if kind.startswith("bool") else (keep * random.uniform(0.25, 1, keep.shape)).astype(dtype)


MASKS = ("none", "bool", "fractional", "bool_broadcast", "fractional_broadcast")


@every_kernel
@every_form
@every_type
@pytest.mark.parametrize("mask_kind", MASKS)
@aggregating
def test_masks(onnxruntime_op: Any, mode: str, mask_kind: str, dtype: type, form: Form) -> None:
    node = form.attributes(mode, 0.5)
    feeds = form.feeds(3, 65, 5, dtype, mask_of(mask_kind, 3, 65, dtype))
    assert_matches(onnxruntime_op.run(feeds, node), feeds, node)


@every_kernel
@every_form
@every_mode
@pytest.mark.parametrize("width", [1, 3, 7, 8, 17, 64, 130])
def test_widths(onnxruntime_op: Any, mode: str, width: int, form: Form) -> None:
    node = form.attributes(mode)
    for dtype in (np.float32, np.float16, BFLOAT16):
        feeds = form.feeds(2, 21, width, dtype)
        assert_matches(onnxruntime_op.run(feeds, node), feeds, node)


@every_kernel
@every_form
@every_mode
@pytest.mark.parametrize("tokens", [0, 1, 2, 63, 64, 65, 1000, 2500])
def test_tokens(onnxruntime_op: Any, mode: str, tokens: int, form: Form) -> None:
    node = form.attributes(mode)
    for batch in (0, 1, 3):
        feeds = form.feeds(batch, tokens, 3)
        assert_matches(onnxruntime_op.run(feeds, node), feeds, node)


@every_kernel
@every_form
@every_mode
def test_many_channels(onnxruntime_op: Any, mode: str, form: Form) -> None:
    """More channels than one task takes."""
    node = form.attributes(mode)
    feeds = form.feeds(1, 140, 1100 // form.unit)
    assert_matches(onnxruntime_op.run(feeds, node), feeds, node)


@every_kernel
@every_mode
@pytest.mark.parametrize("form", [Form(), Form(rotary_blocks=1), Form(product=True)])
@pytest.mark.parametrize("degree", range(contract.MIN_DEGREE, contract.MAX_DEGREE + 1))
def test_degrees(onnxruntime_op: Any, degree: int, form: Form, mode: str) -> None:
    form = replace(form, degree=degree)
    node, feeds = form.attributes(mode), form.feeds(1, 20, 11)
    assert_matches(onnxruntime_op.run(feeds, node), feeds, node)


@every_kernel
def test_coefficients_of_half_precision(onnxruntime_op: Any) -> None:
    form = FORMS["power"]
    node, feeds = form.attributes("mean"), form.feeds(2, 30, 12, np.float16)
    feeds["coefficients"] = feeds["coefficients"].astype(np.float16)
    assert_matches(onnxruntime_op.run(feeds, node), feeds, node)


@every_kernel
def test_every_half_value(onnxruntime_op: Any) -> None:
    """Subnormals, infinities and NaNs too."""
    x = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(1, -1, 64)
    feeds, node = {"x": x, "coefficients": np.ones((64, 1), np.float32)}, attributes("features")
    y = onnxruntime_op.run(feeds, node)
    expected = exact(feeds, node).astype(np.float16)
    assert np.array_equal(np.isnan(y), np.isnan(expected))
    # The kernel multiplies by the slope in float32: the last place of float16 may differ where that is a tie.
    places = [(array + 0).view(np.int16).astype(int)[~np.isnan(expected)] for array in (y, expected)]
    assert abs(places[0] - places[1]).max() <= 1


@every_kernel
def test_every_bfloat16_value(onnxruntime_op: Any) -> None:
    """Rounded to nearest, ties to even; subnormals, infinities and NaNs too."""
    x = np.arange(65536, dtype=np.uint16).view(BFLOAT16).reshape(1, -1, 64)
    feeds, node = {"x": x, "coefficients": np.full((64, 1), 0.7, np.float32)}, attributes("features")
    y = onnxruntime_op.run(feeds, node).astype(np.float32)
    wide = x.astype(np.float32)
    with np.errstate(invalid="ignore"):  # signalling NaNs
        h = np.clip(np.maximum(wide, wide * np.float32(contract.LEAKY_SLOPE)), np.float32(-0.1), np.float32(6))
        expected = (h * np.float32(0.7)).astype(BFLOAT16).astype(np.float32)
    assert np.array_equal(y, expected, equal_nan=True)


@every_kernel
def test_gelu(onnxruntime_op: Any) -> None:
    """Its largest error, over its whole range, and its value where it has no digits of its own."""
    x = np.concatenate([np.linspace(-8, 8, 400_001), [-3e38, -100, -0.0, 0, 100, 3e38]]).astype(np.float32)
    feeds, node = {"x": x.reshape(1, -1, 1), "coefficients": PLACEHOLDER}, attributes("features", degree=1)
    y, expected = onnxruntime_op.run(feeds, node).ravel(), exact(feeds, node).ravel()
    # Of erf: 1.3e-7 (gelu.h), in units of x / 2. A place of float32 is at most 1.2e-7 of the value.
    assert np.all(abs(y - expected) <= 1.3e-7 * np.minimum(abs(x), 1) / 2 + 1.2e-7 * abs(expected) + 1e-12)
    special = np.array([np.nan, np.inf], np.float32).reshape(1, 2, 1)
    y = onnxruntime_op.run(feeds | {"x": special}, node).ravel()
    assert np.isnan(y[0])
    assert y[1] == np.inf


@every_kernel
@every_form
@pytest.mark.parametrize(("bad", "width"), [(np.nan, 11), (np.inf, 11), (np.nan, 600)])
@aggregating
def test_a_masked_token_is_absent_whatever_it_holds(
    onnxruntime_op: Any, mode: str, bad: float, width: int, form: Form
) -> None:
    node, absent = form.attributes(mode), [0, 4, 20]
    for mask in (np.ones((2, 21), bool), np.full((2, 21), 0.5, np.float32)):
        mask[:, absent] = 0
        feeds = form.feeds(2, 21, width, mask=mask)
        clean = onnxruntime_op.run(feeds, node)
        assert_matches(clean, feeds, node)
        feeds["x"][:, absent] = bad
        for table in {"cos", "sin"} & set(feeds):
            feeds[table][..., absent, :] = bad
        assert onnxruntime_op.run(feeds, node).tobytes() == clean.tobytes()


@every_kernel
@every_mode
def test_nan_in_an_active_token_propagates(onnxruntime_op: Any, mode: str) -> None:
    """Into all channels that come together, of its own token and of the sums that have it."""
    for form, bad, reached in (
        (FORMS["power"], [2, 9], [2, 9]),
        (FORMS["rotated"], [2], [2, 12]),
        (FORMS["rotated_in_two"], [12], [2, 12]),
        (FORMS["product"], [12], [12, 22]),
    ):
        feeds = form.feeds(1, 21, 10)
        feeds["x"][0, 5, bad] = np.nan
        expected = np.zeros((1, 1 if mode == "mean" else 21, feeds["x"].shape[2]), bool)
        tokens = {"mean": slice(None), "causal": slice(5, None), "features": slice(5, 6)}[mode]
        expected[0, tokens, reached] = True
        assert np.array_equal(np.isnan(onnxruntime_op.run(feeds, form.attributes(mode))), expected)


@every_kernel
@every_form
@aggregating
def test_rows_without_weight_give_zero(onnxruntime_op: Any, mode: str, form: Form) -> None:
    mask = np.zeros((2, 70), bool)
    mask[0, 40:] = True
    node, feeds = form.attributes(mode), form.feeds(2, 70, 5, mask=mask)
    feeds["x"][1] = np.nan
    y = onnxruntime_op.run(feeds, node)
    assert not y[1].any()
    assert mode == "mean" or not y[0, :40].any()
    first = {name: array[:1] if len(array) == 2 and array.ndim > 1 else array for name, array in feeds.items()}
    assert_matches(y[:1], first, node)


@every_kernel
@every_form
@pytest.mark.parametrize("shape", [(1, 20000, 24), (1, 700, 600), (3, 300, 60), (1, 90, 4800)])
@every_mode
def test_threads_change_no_bit(onnxruntime_op: Any, mode: str, shape: tuple[int, int, int], form: Form) -> None:
    batch, tokens, channels = shape
    feeds = form.feeds(batch, tokens, channels // form.unit)
    feeds |= {"mask": np.random.default_rng(1).random((batch, tokens)) < 0.8} if mode != "features" else {}
    one, *others = (onnxruntime_op.run(feeds, form.attributes(mode), threads) for threads in (1, 2, 2, 5))
    assert all(one.tobytes() == other.tobytes() for other in others)


@every_kernel
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("channels", [8, 600])  # few, and more than one task's
def test_long_causal_sums_keep_their_precision(onnxruntime_op: Any, channels: int, masked: bool) -> None:
    used, node = 8, attributes("causal")
    feeds = Form().feeds(1, 131072 if channels == 8 else 16384, channels)
    feeds = {"x": abs(feeds["x"]), "coefficients": np.full((channels, 3), 0.1, np.float32)}
    if masked:
        feeds["mask"] = np.random.default_rng(1).uniform(0.25, 1, feeds["x"].shape[:2]).astype(np.float32)
    y = onnxruntime_op.run(feeds, node, threads=2)[..., :used]
    few = feeds | {"x": feeds["x"][..., :used], "coefficients": feeds["coefficients"][:used]}
    assert_matches(y, few, node, LONG_CAUSAL)


@every_kernel
@every_type
@pytest.mark.parametrize("form", [FORMS["power"], FORMS["rotated"]], ids=["power", "rotated"])
def test_an_output_beyond_the_caches_has_the_bits_of_a_small_one(onnxruntime_op: Any, form: Form, dtype: type) -> None:
    """From 32 MiB on, it is written past the caches."""
    node, feeds = form.attributes("causal"), form.feeds(1, 333, 512 // form.unit, dtype)
    batch = 2**25 // feeds["x"].nbytes + 1
    large = onnxruntime_op.run(feeds | {"x": np.repeat(feeds["x"], batch, axis=0)}, node, threads=2)
    assert large.nbytes >= 2**25
    small = onnxruntime_op.run(feeds, node)
    assert (large.view(np.uint8) == small.view(np.uint8)).all()


@every_kernel
def test_a_table_of_one_row_serves_the_batch(onnxruntime_op: Any) -> None:
    form = Form(rotary_blocks=1)
    node, feeds = form.attributes("causal"), form.feeds(3, 20, 8)
    shared = onnxruntime_op.run(feeds, node)
    for rows in (1, 3):
        tables = {name: np.repeat(feeds[name][None], rows, axis=0) for name in ("cos", "sin")}
        assert onnxruntime_op.run(feeds | tables, node).tobytes() == shared.tobytes()


@pytest.mark.machine
@pytest.mark.parametrize("name", ["avx512", "avx2", "neon"])
def test_the_named_kernel_runs(
    onnxruntime_op: Any, monkeypatch: pytest.MonkeyPatch, onnxruntime_symbols: ctypes.CDLL, name: str
) -> None:
    feeds, outputs = Form(degree=5).feeds(1, 200, 64), {}
    for kernel in (name, "scalar"):
        monkeypatch.setenv("POM_CPU_KERNEL", kernel)
        if not onnxruntime_symbols.pom_cpu_kernel():
            pytest.skip(onnxruntime_symbols.pom_cpu_kernel_error().decode())
        assert onnxruntime_symbols.pom_cpu_kernel().decode() == kernel
        outputs[kernel] = onnxruntime_op.run(feeds, attributes("features"))
    # Only vectors fuse a multiply and an add, so that some last bits differ.
    assert outputs["scalar"].tobytes() != outputs[name].tobytes()
