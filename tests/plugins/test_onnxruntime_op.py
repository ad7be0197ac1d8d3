"""The ONNX Runtime op library against a float64 reference, for every kernel that this machine can run."""

from __future__ import annotations

import ctypes
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from pom_export import contract
from pom_export.parity.tolerances import LONG_CAUSAL, OPS, Tolerance
from pom_export.runtime.library import custom_ops_library

if TYPE_CHECKING:
    from pathlib import Path

KERNELS = ("scalar", pytest.param("avx2", marks=pytest.mark.machine))


@pytest.fixture(scope="module")
def library() -> Path:
    return custom_ops_library()


@pytest.fixture(scope="module")
def symbols(library: Path) -> ctypes.CDLL:
    loaded = ctypes.CDLL(str(library))
    for name in ("pom_contract", "pom_cpu_kernel", "pom_cpu_kernel_error"):
        getattr(loaded, name).restype = ctypes.c_char_p
    return loaded


@pytest.fixture(params=KERNELS)
def kernel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, symbols: ctypes.CDLL) -> str:
    monkeypatch.setenv("POM_CPU_KERNEL", request.param)
    if not symbols.pom_cpu_kernel():
        pytest.skip(symbols.pom_cpu_kernel_error().decode())
    return request.param


every_kernel = pytest.mark.usefixtures("kernel")


def node_attributes(**changed: Any) -> dict[str, Any]:
    attributes: dict[str, Any] = {
        "form": "power",
        "mode": "mean",
        "rotary_blocks": 1,
        "epsilon": 0.0,
        "plugin_version": "1",
        "plugin_namespace": "",
    }
    return {name: value for name, value in (attributes | changed).items() if value is not None}


def element_type(array: np.ndarray) -> int:
    return helper.np_dtype_to_tensor_dtype(array.dtype)


def model_of(
    feeds: dict[str, np.ndarray], attributes: dict[str, Any], functions: tuple[onnx.FunctionProto, ...] = ()
) -> bytes:
    inputs = [
        helper.make_tensor_value_info(name, element_type(array), [f"{name}{axis}" for axis in range(array.ndim)])
        for name, array in feeds.items()
    ]
    node = helper.make_node(contract.OP_NAME, list(feeds), ["y"], domain=contract.DOMAIN, **attributes)
    output = helper.make_tensor_value_info("y", inputs[0].type.tensor_type.elem_type, None)
    model = helper.make_model(
        helper.make_graph([node], "one_node", inputs, [output]),
        functions=functions,
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid(contract.DOMAIN, contract.OP_VERSION)],
        ir_version=10,
    )
    return model.SerializeToString()


def session_of(library: Path, model: bytes, threads: int = 1) -> Any:
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 4
    options.register_custom_ops_library(str(library))
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def run(
    library: Path,
    x: np.ndarray,
    coefficients: np.ndarray,
    mask: np.ndarray | None = None,
    *,
    threads: int = 1,
    **attributes: Any,
) -> np.ndarray:
    feeds = {"x": x, "coefficients": coefficients} | ({} if mask is None else {"mask": mask})
    session = session_of(library, model_of(feeds, node_attributes(**attributes)), threads)
    (y,) = session.run(None, feeds)
    assert y.dtype == x.dtype
    return y


def reference(
    x: np.ndarray, coefficients: np.ndarray, mask: np.ndarray | None = None, mode: str = "mean", epsilon: float = 0.0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the op's output in float64, and the same with every term made positive (what errors are measured by)."""
    x, coefficients = x.astype(np.float64), coefficients.astype(np.float64)
    h = np.clip(np.where(x >= 0, x, contract.LEAKY_SLOPE * x), contract.CLAMP_LOW, contract.CLAMP_HIGH)
    powers = h[..., None] ** np.arange(1, coefficients.shape[1] + 1)
    terms = np.stack([(powers * coefficients).sum(-1), (abs(powers) * abs(coefficients)).sum(-1)])
    if mode == "features":
        return terms[0], terms[1]
    weights = np.ones(x.shape[:2]) if mask is None else np.broadcast_to(mask.astype(np.float64), x.shape[:2])
    weighted = np.where(weights[..., None] == 0, 0, terms * weights[..., None])
    totals, sums = weights.cumsum(1)[..., None], weighted.cumsum(2)
    if mode == "mean":
        totals, sums = weights.sum(1)[:, None, None], weighted.sum(2, keepdims=True)
    if mask is not None:
        sums, totals = np.where(totals == 0, 0, sums), np.where(totals == 0, 1, totals + epsilon)
    means = sums / np.where(totals == 0, 1, totals)
    return means[0], means[1]


def assert_matches(y: np.ndarray, expected: tuple[np.ndarray, np.ndarray], tolerance: Tolerance | None = None) -> None:
    value, magnitude = expected
    assert y.shape == value.shape
    bound = tolerance or OPS[str(y.dtype)]
    # Against the largest value that an element's sum could reach, so that cancelling terms don't count as errors.
    assert np.all(abs(y - value) <= bound.relative * magnitude + bound.absolute), abs(y - value).max()


def tensors(batch: int, tokens: int, channels: int, degree: int, dtype: type, seed: int = 0) -> list[np.ndarray]:
    """Return x, with values beyond both clamps, and coefficients that keep degree 16 within float16."""
    random = np.random.default_rng(seed)
    x = (random.standard_normal((batch, tokens, channels)) * 4).astype(dtype)
    x[..., ::3] = (x[..., ::3] * 8).astype(dtype)
    coefficients = random.standard_normal((channels, degree)) / 6.0 ** np.arange(degree)
    return [x, coefficients.astype(np.float32)]


def mask_of(kind: str, batch: int, tokens: int, dtype: type) -> np.ndarray | None:
    random = np.random.default_rng(7)
    rows = 1 if kind.endswith("broadcast") else batch
    if kind == "none":
        return None
    keep = random.random((rows, tokens)) < 0.7
    return keep if kind.startswith("bool") else (keep * random.uniform(0.25, 1, keep.shape)).astype(dtype)


MASKS = ("none", "bool", "fractional", "bool_broadcast", "fractional_broadcast")


@every_kernel
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("mask_kind", MASKS)
@pytest.mark.parametrize("mode", ["mean", "causal"])
def test_masks(library: Path, mode: str, mask_kind: str, dtype: type) -> None:
    x, coefficients = tensors(3, 65, 17, 3, dtype)
    mask = mask_of(mask_kind, 3, 65, dtype)
    y = run(library, x, coefficients, mask, mode=mode, epsilon=0.5)
    assert_matches(y, reference(x, coefficients, mask, mode, 0.5))


@every_kernel
@pytest.mark.parametrize("mode", contract.MODES)
@pytest.mark.parametrize("channels", [1, 3, 7, 8, 17, 64, 130])
def test_channels(library: Path, mode: str, channels: int) -> None:
    for dtype in (np.float32, np.float16):
        x, coefficients = tensors(2, 64, channels, 3, dtype)
        assert_matches(run(library, x, coefficients, mode=mode), reference(x, coefficients, None, mode))


@every_kernel
@pytest.mark.parametrize("mode", contract.MODES)
@pytest.mark.parametrize("tokens", [0, 1, 2, 63, 64, 65, 1000, 2500])
def test_tokens(library: Path, mode: str, tokens: int) -> None:
    for batch in (0, 1, 3):
        x, coefficients = tensors(batch, tokens, 9, 2, np.float32)
        assert_matches(run(library, x, coefficients, mode=mode), reference(x, coefficients, None, mode))


@every_kernel
@pytest.mark.parametrize("mode", contract.MODES)
def test_many_channels(library: Path, mode: str) -> None:
    """More channels than one task takes."""
    x, coefficients = tensors(1, 300, 1100, 3, np.float32)
    assert_matches(run(library, x, coefficients, mode=mode), reference(x, coefficients, None, mode))


@every_kernel
@pytest.mark.parametrize("degree", range(contract.MIN_DEGREE, contract.MAX_DEGREE + 1))
def test_degrees(library: Path, degree: int) -> None:
    x, coefficients = tensors(1, 20, 11, degree, np.float32)
    for mode in contract.MODES:
        assert_matches(run(library, x, coefficients, mode=mode), reference(x, coefficients, None, mode))


@every_kernel
def test_coefficients_of_half_precision(library: Path) -> None:
    x, coefficients = tensors(2, 30, 12, 3, np.float16)
    half = coefficients.astype(np.float16)
    assert_matches(run(library, x, half), reference(x, half))


@every_kernel
def test_every_half_value(library: Path) -> None:
    """Subnormals, infinities and NaNs too."""
    x = np.arange(65536, dtype=np.uint16).view(np.float16).reshape(1, -1, 64)
    y = run(library, x, np.ones((64, 1), np.float32), mode="features")
    with np.errstate(invalid="ignore"):
        expected = reference(x, np.ones((64, 1)), None, "features")[0].astype(np.float16)
    assert np.array_equal(np.isnan(y), np.isnan(expected))
    # The kernel multiplies by the slope in float32: the last place of float16 may differ where that is a tie.
    places = [(array + 0).view(np.int16).astype(int)[~np.isnan(expected)] for array in (y, expected)]
    assert abs(places[0] - places[1]).max() <= 1


@every_kernel
@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("mode", ["mean", "causal"])
def test_a_masked_token_is_absent_whatever_it_holds(library: Path, mode: str, bad: float) -> None:
    x, coefficients = tensors(2, 21, 10, 3, np.float32)
    for mask in (np.ones((2, 21), bool), np.full((2, 21), 0.5, np.float32)):
        mask[:, [0, 4, 20]] = 0
        x[:, [0, 4, 20]] = bad
        y = run(library, x, coefficients, mask, mode=mode)
        assert_matches(y, reference(np.nan_to_num(x), coefficients, mask, mode))


@every_kernel
@pytest.mark.parametrize("mode", contract.MODES)
def test_nan_in_an_active_token_propagates(library: Path, mode: str) -> None:
    x, coefficients = tensors(1, 21, 10, 3, np.float32)
    x[0, 5, [2, 9]] = np.nan
    expected = np.zeros((1, 1 if mode == "mean" else 21, 10), bool)
    expected[0, {"mean": slice(None), "causal": slice(5, None), "features": slice(5, 6)}[mode]] = np.isnan(x[0, 5])
    assert np.array_equal(np.isnan(run(library, x, coefficients, mode=mode)), expected)


@every_kernel
@pytest.mark.parametrize("mode", ["mean", "causal"])
def test_rows_without_weight_give_zero(library: Path, mode: str) -> None:
    x, coefficients = tensors(2, 70, 10, 3, np.float32)
    x[1] = np.nan
    mask = np.zeros((2, 70), bool)
    mask[0, 40:] = True
    y = run(library, x, coefficients, mask, mode=mode)
    assert not y[1].any()
    assert mode == "mean" or not y[0, :40].any()
    assert_matches(y[:1], reference(x[:1], coefficients, mask[:1], mode))


@every_kernel
@pytest.mark.parametrize("shape", [(1, 5000, 24), (1, 700, 600), (3, 400, 33)])
@pytest.mark.parametrize("mode", contract.MODES)
def test_threads_change_no_bit(library: Path, mode: str, shape: tuple[int, int, int]) -> None:
    x, coefficients = tensors(*shape, 3, np.float32)
    one, two = (run(library, x, coefficients, mode=mode, threads=threads) for threads in (1, 2))
    assert one.tobytes() == two.tobytes()


@every_kernel
@pytest.mark.parametrize("channels", [8, 600])  # cut by tokens, and by channels
def test_long_causal_sums_keep_their_precision(library: Path, channels: int) -> None:
    tokens, used = 131072 if channels == 8 else 16384, 8
    x = abs(tensors(1, tokens, channels, 3, np.float32)[0])
    coefficients = np.full((channels, 3), 0.1, np.float32)
    y = run(library, x, coefficients, mode="causal")[..., :used]
    assert_matches(y, reference(x[..., :used], coefficients[:used], None, "causal"), LONG_CAUSAL)


@pytest.mark.machine
def test_the_named_kernel_runs(library: Path, monkeypatch: pytest.MonkeyPatch, symbols: ctypes.CDLL) -> None:
    monkeypatch.delenv("POM_CPU_KERNEL", raising=False)
    if symbols.pom_cpu_kernel() != b"avx2":
        pytest.skip("this machine has one kernel")
    x, coefficients = tensors(1, 200, 64, 5, np.float32)
    outputs = {}
    for name in ("scalar", "avx2"):
        monkeypatch.setenv("POM_CPU_KERNEL", name)
        assert symbols.pom_cpu_kernel().decode() == name
        outputs[name] = run(library, x, coefficients, mode="features")
    # Only avx2 fuses a multiply and an add, so that some last bits differ.
    assert outputs["scalar"].tobytes() != outputs["avx2"].tobytes()


def test_an_unknown_kernel_is_an_error(library: Path, monkeypatch: pytest.MonkeyPatch, symbols: ctypes.CDLL) -> None:
    monkeypatch.setenv("POM_CPU_KERNEL", "sse9")
    assert symbols.pom_cpu_kernel() == b""
    assert b"scalar" in symbols.pom_cpu_kernel_error()
    with pytest.raises(Exception, match=r'POM_CPU_KERNEL must be one of .*scalar.*, got "sse9"'):
        run(library, *tensors(1, 2, 3, 1, np.float32))


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"form": "product"}, 'form must be one of "power", got "product"'),
        ({"mode": "median"}, 'mode must be one of "mean", "causal", "features", got "median"'),
        ({"mode": None}, "the attribute mode is missing"),
        ({"mode": 3}, "mode must be a string"),
        ({"rotary_blocks": 2}, "rotary_blocks must be 1, got 2"),
        ({"rotary_blocks": 2**40}, "rotary_blocks is out of range, got 1099511627776"),
        ({"epsilon": -1.0}, "epsilon must be finite and not negative, got -1"),
        ({"epsilon": float("nan")}, "epsilon must be finite and not negative, got nan"),
        ({"epsilon": float("inf")}, "epsilon must be finite and not negative, got inf"),
    ],
)
def test_invalid_attributes_fail_the_session(library: Path, attributes: dict[str, Any], message: str) -> None:
    with pytest.raises(Exception, match=message):
        run(library, *tensors(1, 2, 3, 1, np.float32), **attributes)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 3), (3, 1)], r"x must be \(batch, tokens, channels\), got shape \(2, 3\)"),
        ([(1, 2, 0), (0, 1)], r"x must be .* at least one channel, got \(1, 2, 0\)"),
        ([(1, 2, 3), (3,)], r"coefficients must be \(3, degree\) .* got shape \(3\)"),
        ([(1, 2, 3), (4, 1)], r"coefficients must be \(3, degree\) .* got shape \(4, 1\)"),
        ([(1, 2, 3), (3, 0)], "coefficients must have 1 to 16 columns, got 0"),
        ([(1, 2, 3), (3, 17)], "coefficients must have 1 to 16 columns, got 17"),
        ([(1, 2, 3), (3, 1), (1, 4)], r"mask must be \(1 or 1, 2\) .* got shape \(1, 4\)"),
        ([(1, 2, 3), (3, 1), (2,)], r"mask must be \(1 or 1, 2\) .* got shape \(2\)"),
        ([(4, 2, 3), (3, 1), (3, 2)], "mask must have 1 or 4 rows, got 3"),
    ],
)
def test_invalid_shapes_fail_the_run(library: Path, shapes: list[tuple[int, ...]], message: str) -> None:
    with pytest.raises(Exception, match=message):
        run(library, *(np.ones(shape, np.float32) for shape in shapes))


@pytest.mark.parametrize(
    ("dtypes", "mode", "message"),
    [
        ([np.float64, np.float32], "mean", "x is of ONNX element type 11"),
        ([np.bool_, np.float32], "mean", "x must be float32, float16 or bfloat16, got bool"),
        ([np.float32, np.float16], "mean", "coefficients must be float32 or of x's type"),
        ([np.float32, np.float32, np.float16], "mean", "mask must be bool or of x's type"),
        ([np.float32, np.float32, np.int64], "mean", "mask is of ONNX element type 7"),
        ([np.float32, np.float32, np.bool_], "features", 'mode "features" takes no mask'),
    ],
)
def test_invalid_types_fail_the_session(library: Path, dtypes: list[type], mode: str, message: str) -> None:
    shapes = ((1, 2, 3), (3, 1), (1, 2))
    feeds = {name: np.ones(shape, dtype) for name, shape, dtype in zip(contract.INPUTS, shapes, dtypes, strict=False)}
    with pytest.raises(Exception, match=message):
        session_of(library, model_of(feeds, node_attributes(mode=mode)))


def test_missing_attributes_take_the_contracts_defaults(library: Path) -> None:
    x, coefficients = tensors(1, 4, 3, 2, np.float32)
    absent = dict.fromkeys(set(contract.ATTRIBUTES) - {"mode"})
    assert_matches(run(library, x, coefficients, **absent), reference(x, coefficients))


@pytest.mark.parametrize(("mode", "tokens"), [("mean", 1), ("causal", "x1"), ("features", "x1")])
def test_the_outputs_type_and_shape_are_inferred(library: Path, mode: str, tokens: int | str) -> None:
    x, coefficients = tensors(1, 4, 3, 2, np.float16)
    session = session_of(library, model_of({"x": x, "coefficients": coefficients}, node_attributes(mode=mode)))
    (y,) = session.get_outputs()
    assert (y.type, y.shape) == ("tensor(float16)", ["x0", tokens, "x2"])


def test_the_kernel_wins_over_a_function_of_the_same_name(library: Path) -> None:
    wrong = helper.make_function(
        contract.DOMAIN,
        contract.OP_NAME,
        list(contract.INPUTS),
        list(contract.OUTPUTS),
        [helper.make_node("Neg", ["x"], ["y"])],
        [helper.make_opsetid("", 20)],
        attributes=list(contract.ATTRIBUTES),
    )
    x, coefficients = tensors(1, 4, 3, 2, np.float32)
    feeds = {"x": x, "coefficients": coefficients}
    (y,) = session_of(library, model_of(feeds, node_attributes(mode="causal"), (wrong,))).run(None, feeds)
    assert_matches(y, reference(x, coefficients, None, "causal"))


def test_the_library_has_the_contract(symbols: ctypes.CDLL) -> None:
    assert symbols.pom_contract().decode() == contract.signature()
