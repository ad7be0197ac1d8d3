"""The numbers of the ONNX Runtime op library against float64, for every kernel that this machine can run."""

from __future__ import annotations

import ctypes
import itertools
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from pom_export import contract
from pom_export.graph.schema import attributes
from pom_export.parity.tolerances import LONG_CAUSAL
from tests.op_calls import BFLOAT16, FLOATS, Call, Case
from tests.op_reference import exact
from tests.plugins.conftest import wide
from tests.plugins.cpu_kernels import every_kernel

PLACEHOLDER = np.full(1, np.nan, np.float32)

FORMS = {
    "power": Case("mean"),
    "rotated": Case("mean", rotation="float32", rotation_rows=1),
    "rotated_in_two": Case("mean", rotation="float32", rotary_blocks=2),
    "rotated_by_x_type": Case("mean", rotation="same", rotary_blocks=2, rotation_rows=1),
    "product": Case("mean", form=contract.PRODUCT),
}
# The others are as these, with a rotation of other tables.
_QUICK = ("power", "rotated_in_two", "product")
every_form = pytest.mark.parametrize(
    "form",
    [pytest.param(case, id=name, marks=[] if name in _QUICK else [pytest.mark.slow]) for name, case in FORMS.items()],
)
every_mode = pytest.mark.parametrize("mode", contract.MODES)
every_type = pytest.mark.parametrize("dtype", FLOATS)
aggregating = pytest.mark.parametrize("mode", ["mean", "causal"])


def sized(form: Case, mode: str, batch: int, tokens: int, width: int, **changes: Any) -> Case:
    """Return a case of `width` times `form.unit` channels."""
    return replace(form, mode=mode, shape=(batch, tokens, width * form.unit), **changes)


@every_form
@aggregating
def test_masks(on_every_kernel: Any, mode: str, form: Case) -> None:
    masks = [("none", None), ("bool", None), ("same", None), ("bool", 1), ("same", 1)]
    for dtype, (mask, rows) in itertools.product(FLOATS, masks):
        on_every_kernel.check(Call(sized(form, mode, 3, 65, 5, dtype=dtype, mask=mask, mask_rows=rows)))


@every_form
@every_mode
def test_widths(on_every_kernel: Any, mode: str, form: Case) -> None:
    for dtype, width in itertools.product(FLOATS, (1, 3, 7, 8, 17, 64, 130)):
        on_every_kernel.check(Call(sized(form, mode, 2, 21, width, dtype=dtype)))


@every_form
@every_mode
def test_tokens(on_every_kernel: Any, mode: str, form: Case) -> None:
    for tokens, batch in itertools.product((0, 1, 2, 63, 64, 65, 1000, 2500), (0, 1, 3)):
        on_every_kernel.check(Call(sized(form, mode, batch, tokens, 3)))


@every_form
@every_mode
def test_many_channels(on_every_kernel: Any, mode: str, form: Case) -> None:
    """More channels than one task takes."""
    on_every_kernel.check(Call(sized(form, mode, 1, 140, 1100 // form.unit)))


@every_mode
@pytest.mark.parametrize("form", [FORMS[name] for name in ("power", "rotated", "product")], ids=str)
def test_degrees(on_every_kernel: Any, form: Case, mode: str) -> None:
    for degree in range(contract.MIN_DEGREE, contract.MAX_DEGREE + 1):
        on_every_kernel.check(Call(sized(replace(form, degree=degree), mode, 1, 20, 11)))


def test_coefficients_of_half_precision(on_every_kernel: Any) -> None:
    on_every_kernel.check(Call(Case("mean", "float16", (2, 30, 12), coefficients="float16")))


@every_kernel
def test_every_half_value(onnxruntime_op: Any) -> None:
    """Including subnormals, infinities and NaNs."""
    x = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(1, -1, 64)
    feeds, node = {"x": x, "coefficients": np.ones((64, 1), np.float32)}, attributes("features")
    y = onnxruntime_op.run(feeds, node)
    expected = exact(feeds, node).y.astype(np.float16)
    assert np.array_equal(np.isnan(y), np.isnan(expected))
    # The kernel multiplies by the slope in float32, so at a tie the last place of float16 may differ.
    places = [(array + 0).view(np.int16).astype(int)[~np.isnan(expected)] for array in (y, expected)]
    assert abs(places[0] - places[1]).max() <= 1


@every_kernel
def test_every_bfloat16_value(onnxruntime_op: Any) -> None:
    """Rounded to nearest, ties to even; including subnormals, infinities and NaNs."""
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
    """Its largest error over its whole range, and its values at NaN and infinity."""
    x = np.concatenate([np.linspace(-8, 8, 400_001), [-3e38, -100, -0.0, 0, 100, 3e38]]).astype(np.float32)
    feeds, node = {"x": x.reshape(1, -1, 1), "coefficients": PLACEHOLDER}, attributes("features", degree=1)
    y, expected = onnxruntime_op.run(feeds, node).ravel(), exact(feeds, node).y.ravel()
    # The error of erf is 1.3e-7 (gelu.h), in units of x / 2. A unit in the last place of float32 is at most 1.2e-7 of
    # the value.
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
    onnxruntime_op: Any, mode: str, bad: float, width: int, form: Case
) -> None:
    absent = [0, 4, 20]
    for mask, weight in (("bool", True), ("same", 0.5)):
        call = Call(sized(form, mode, 2, 21, width, mask=mask))
        assert call.mask is not None
        call.mask[...] = weight
        call.mask[:, absent] = 0
        clean = onnxruntime_op.outputs_of(call)
        call.check(clean)
        for array in (call.x, *call.tables):
            array[:, absent] = bad
        assert onnxruntime_op.outputs_of(call)[0].tobytes() == clean[0].tobytes()


@every_kernel
@every_mode
def test_nan_in_an_active_token_propagates(onnxruntime_op: Any, mode: str) -> None:
    """To all channels that are computed together, of its own token and of the sums that include it."""
    for form, bad, reached in (
        (FORMS["power"], [2, 9], [2, 9]),
        (FORMS["rotated"], [2], [2, 12]),
        (FORMS["rotated_in_two"], [12], [2, 12]),
        (FORMS["product"], [12], [12, 22]),
    ):
        call = Call(sized(form, mode, 1, 21, 10))
        call.x[0, 5, bad] = np.nan
        expected = np.zeros((1, 1 if mode == "mean" else 21, call.x.shape[2]), bool)
        tokens = {"mean": slice(None), "causal": slice(5, None), "features": slice(5, 6)}[mode]
        expected[0, tokens, reached] = True
        assert np.array_equal(np.isnan(onnxruntime_op.outputs_of(call)[0]), expected)


@every_kernel
@every_form
@aggregating
def test_rows_without_weight_give_zero(onnxruntime_op: Any, mode: str, form: Case) -> None:
    call = Call(sized(form, mode, 2, 70, 5, mask="bool"))
    assert call.mask is not None
    call.mask[...] = False
    call.mask[0, 40:] = True
    call.x[1] = np.nan
    (y,) = onnxruntime_op.outputs_of(call)
    call.check([y])
    assert not y[1].any()
    assert mode == "mean" or not y[0, :40].any()


@every_form
@every_mode
def test_threads_change_no_bit(on_every_kernel: Any, mode: str, form: Case) -> None:
    mask = "none" if mode == "features" else "bool"
    for batch, tokens, channels in ((1, 20000, 24), (1, 700, 600), (3, 300, 60), (1, 90, 4800)):
        call = Call(sized(form, mode, batch, tokens, channels // form.unit, mask=mask))
        for kernel in on_every_kernel.each():
            (one,), *others = (on_every_kernel.op.outputs_of(call, threads) for threads in (1, 2, 2, 5))
            assert all(one.tobytes() == other.tobytes() for (other,) in others), (kernel, call.case)


@every_kernel
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("channels", [8, pytest.param(600, marks=pytest.mark.slow)])  # few, and more than one task's
def test_long_causal_sums_keep_their_precision(onnxruntime_op: Any, channels: int, masked: bool) -> None:
    used, tokens = 8, 131072 if channels == 8 else 16384
    case = Case("causal", shape=(1, tokens, channels), mask="same" if masked else "none", epsilon=0.0)
    call = Call(case)
    assert call.coefficients is not None
    call.x, call.coefficients[...] = abs(call.x), 0.1
    (y,) = onnxruntime_op.outputs_of(call, threads=2)
    few = Call(replace(case, shape=(1, tokens, used)))
    few.x, few.coefficients, few.mask = call.x[..., :used], call.coefficients[:used], call.mask
    few.check([y[..., :used]], LONG_CAUSAL)


@pytest.mark.slow
@every_kernel
@every_type
@pytest.mark.parametrize("form", [FORMS["power"], FORMS["rotated"]], ids=["power", "rotated"])
def test_an_output_beyond_the_caches_has_the_bits_of_a_small_one(onnxruntime_op: Any, form: Case, dtype: str) -> None:
    """From 32 MiB on, it is written past the caches."""
    call = Call(sized(form, "causal", 1, 333, 512 // form.unit, dtype=dtype))
    session = onnxruntime_op.shared_session(onnxruntime_op.model(call.feeds(), call.case.attributes()), threads=2)
    feeds, rows = wide(call.feeds()), rows_beyond_the_caches(call)
    (small,), (large,) = (
        session.run(None, each) for each in (feeds, feeds | {"x": np.repeat(feeds["x"], rows, axis=0)})
    )
    assert large.shape == (rows, *small.shape[1:])
    assert (large.view(np.int64) == small.view(np.int64)).all()


def rows_beyond_the_caches(call: Call) -> int:
    return 2**25 // call.x.nbytes + 1


@every_kernel
def test_a_table_of_one_row_serves_the_batch(onnxruntime_op: Any) -> None:
    call = Call(sized(FORMS["rotated"], "causal", 3, 20, 8))
    shared = onnxruntime_op.outputs_of(call)[0]
    for rows in (1, 3):
        tables = {name: np.repeat(table, rows, axis=0) for name, table in zip(("cos", "sin"), call.tables, strict=True)}
        assert onnxruntime_op.run(call.feeds() | tables, call.case.attributes()).tobytes() == shared.tobytes()


@pytest.mark.machine
@pytest.mark.parametrize("name", ["avx512", "avx2", "neon"])
def test_the_named_kernel_runs(
    onnxruntime_op: Any, monkeypatch: pytest.MonkeyPatch, onnxruntime_symbols: ctypes.CDLL, name: str
) -> None:
    call, outputs = Call(Case("features", shape=(1, 200, 64), degree=5)), {}
    for kernel in (name, "scalar"):
        monkeypatch.setenv("POM_CPU_KERNEL", kernel)
        if not onnxruntime_symbols.pom_cpu_kernel():
            pytest.skip(onnxruntime_symbols.pom_cpu_kernel_error().decode())
        assert onnxruntime_symbols.pom_cpu_kernel().decode() == kernel
        outputs[kernel] = onnxruntime_op.outputs_of(call)[0]
    # Only the vector kernels fuse multiply and add, so some last bits differ.
    assert outputs["scalar"].tobytes() != outputs[name].tobytes()
