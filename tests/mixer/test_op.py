"""The torch op: registration, gradients and the properties that define it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pom_export.mixer import polynomial_aggregation, reference

MODES_AND_MASKS = [
    ("mean", None),
    ("mean", "bool"),
    ("mean", "float"),
    ("causal", None),
    ("causal", "bool"),
    ("causal", "float"),
    ("features", None),
]
OP = torch.ops.pom.polynomial_aggregation.default
CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
# This one compiles, and takes as long as all the others.
COMPILED = "test_aot_dispatch_dynamic"
KINKS = (-10.0, 0.0, 6.0)  # where leaky_relu and the clamp have no derivative


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def draw_x(spread: float = 6.0) -> Tensor:
    """Return tokens (2, 5, 3), by default on every side of the kinks and not close to any."""
    x = spread * torch.randn(2, 5, 3, dtype=torch.float64)
    for kink in KINKS:
        x = torch.where((x - kink).abs() < 0.05, kink + 0.1, x)
    return x.requires_grad_()


def draw_coefficients(degree: int) -> Tensor:
    """Return coefficients (3, degree)."""
    return torch.randn(3, degree, dtype=torch.float64).requires_grad_()


def draw_mask(kind: str | None) -> Tensor | None:
    """Return weights (2, 5), the first of them 0."""
    if kind is None:
        return None
    weights = torch.rand(2, 5, dtype=torch.float64)
    weights = torch.where(weights < 0.3, 0.0, weights)
    weights[0, 0] = 0.0
    weights[0, 1] = 0.7
    return weights > 0 if kind == "bool" else weights


@pytest.mark.parametrize(("mode", "mask"), MODES_AND_MASKS)
def test_is_registered_correctly(mode: str, mask: str | None) -> None:
    torch.library.opcheck(OP, (draw_x(), draw_coefficients(3), draw_mask(mask), mode, 1e-7), test_utils=CHECKS)


# Each mode with each way to count its tokens, and both types of a mask.
@pytest.mark.parametrize(
    ("mode", "mask"),
    [
        pytest.param(mode, mask, marks=[] if (mode, mask) == ("causal", "bool") else [pytest.mark.slow])
        for mode, mask in MODES_AND_MASKS
        if (mode, mask) not in {("mean", "bool"), ("causal", "float")}
    ],
)
def test_compiles(mode: str, mask: str | None) -> None:
    torch.library.opcheck(OP, (draw_x(), draw_coefficients(3), draw_mask(mask), mode, 1e-7), test_utils=COMPILED)


# Finite differences of 6^16 have no correct digits left: the highest degree gets small tokens.
@pytest.mark.parametrize(("degree", "spread"), [(1, 6.0), (3, 6.0), (16, 0.5)])
@pytest.mark.parametrize(("mode", "mask"), MODES_AND_MASKS)
def test_gradients(mode: str, mask: str | None, degree: int, spread: float) -> None:
    weights = draw_mask(mask)

    def op(x: Tensor, coefficients: Tensor) -> Tensor:
        return polynomial_aggregation(x, coefficients, weights, mode, 0.25)

    inputs = (draw_x(spread), draw_coefficients(degree))
    assert torch.autograd.gradcheck(op, inputs)
    # Every element once; otherwise along random directions.
    assert torch.autograd.gradgradcheck(op, inputs, fast_mode=degree != 3)


def product_arguments(degree: int, mask: str | None, mode: str) -> tuple[Any, ...]:
    """Return the op's arguments in form "product", x (2, 5, 3 * degree)."""
    x = torch.randn(2, 5, 3 * degree, dtype=torch.float64, requires_grad=True)
    return x, None, draw_mask(mask), mode, 1e-7, degree


def rotary_arguments(blocks: int, batched: bool, mask: str | None, mode: str) -> tuple[Any, ...]:
    """Return the op's arguments with a rotation, x (2, 5, 8)."""
    x = 3 * torch.randn(2, 5, 8, dtype=torch.float64)
    x = torch.where(x.abs() < 0.05, 0.1, x).requires_grad_()
    coefficients = torch.randn(8, 3, dtype=torch.float64, requires_grad=True)
    angles = 6 * torch.rand(*([2] if batched else []), 5, 4, dtype=torch.float64)
    return x, coefficients, draw_mask(mask), mode, 0.0, 0, angles.cos(), angles.sin(), blocks


@pytest.mark.parametrize(("mode", "mask"), MODES_AND_MASKS)
@pytest.mark.parametrize(
    "degree", [pytest.param(1, marks=pytest.mark.slow), 2, pytest.param(5, marks=pytest.mark.slow)]
)
def test_the_product_form_is_registered_and_differentiable(mode: str, mask: str | None, degree: int) -> None:
    x, *rest = product_arguments(degree, mask, mode)
    if degree == 2:
        torch.library.opcheck(OP, (x, *rest), test_utils=CHECKS)
    assert torch.autograd.gradcheck(lambda tokens: polynomial_aggregation(tokens, *rest), (x,))
    assert torch.autograd.gradgradcheck(lambda tokens: polynomial_aggregation(tokens, *rest), (x,), fast_mode=True)


@pytest.mark.parametrize(("mode", "mask"), MODES_AND_MASKS)
@pytest.mark.parametrize(("blocks", "batched"), [pytest.param(1, False, marks=pytest.mark.slow), (2, True)])
def test_the_rotation_is_registered_and_differentiable(mode: str, mask: str | None, blocks: int, batched: bool) -> None:
    x, coefficients, *rest = rotary_arguments(blocks, batched, mask, mode)
    if batched:
        torch.library.opcheck(OP, (x, coefficients, *rest), test_utils=CHECKS)
    assert torch.autograd.gradcheck(lambda *inputs: polynomial_aggregation(*inputs, *rest), (x, coefficients))
    assert torch.autograd.gradgradcheck(
        lambda *inputs: polynomial_aggregation(*inputs, *rest), (x, coefficients), fast_mode=True
    )


@pytest.mark.slow
def test_the_other_forms_compile() -> None:
    for arguments in (product_arguments(2, "bool", "causal"), rotary_arguments(2, True, "bool", "causal")):
        torch.library.opcheck(OP, arguments, test_utils=COMPILED)


def test_the_product_form_is_the_formula() -> None:
    x, *rest = product_arguments(3, None, "features")
    first, second, third = (torch.nn.functional.gelu(chunk) for chunk in x.split(3, dim=-1))
    expected = torch.cat([first, first * second, first * second * third], dim=-1)
    torch.testing.assert_close(polynomial_aggregation(x, *rest), expected)


@pytest.mark.parametrize(
    ("blocks", "pairs"), [(1, [(0, 4), (1, 5), (2, 6), (3, 7)]), (2, [(0, 2), (1, 3), (4, 6), (5, 7)])]
)
def test_the_rotation_turns_the_documented_pairs(blocks: int, pairs: list[tuple[int, int]]) -> None:
    x, coefficients, *_, cos, sin, _ = rotary_arguments(blocks, True, None, "features")
    plain = polynomial_aggregation(x, coefficients, None, "features")
    turned = polynomial_aggregation(x, coefficients, None, "features", cos=cos, sin=sin, rotary_blocks=blocks)
    for column, (i, j) in enumerate(pairs):
        plane = torch.complex(plain[..., i], plain[..., j]) * torch.complex(cos[..., column], sin[..., column])
        torch.testing.assert_close(torch.complex(turned[..., i], turned[..., j]), plane)


@pytest.mark.parametrize(("mode", "mask"), MODES_AND_MASKS)
def test_equals_the_formula_written_as_loops(mode: str, mask: str | None) -> None:
    x, coefficients, weights = draw_x().detach(), draw_coefficients(4).detach(), draw_mask(mask)
    h = torch.where(x > 0, x, 0.01 * x).clip(-0.1, 6.0)
    p = torch.stack([coefficients[:, j] * h ** (j + 1) for j in range(4)]).sum(0)
    m = torch.ones(2, 5, dtype=torch.float64) if weights is None else weights.double()
    expected = torch.zeros_like(x[:, :1] if mode == "mean" else x)
    for b in range(2):
        for i in range(expected.shape[1]):
            seen = slice(0, 5 if mode == "mean" else i + 1)
            total = m[b, seen].sum()
            if mode == "features":
                expected[b, i] = p[b, i]
            elif total:
                expected[b, i] = (m[b, seen, None] * p[b, seen]).sum(0) / total

    torch.testing.assert_close(polynomial_aggregation(x, coefficients, weights, mode), expected)


@pytest.mark.parametrize("mask", [None, "bool", "float"])
def test_causal_output_depends_on_the_prefix_only(mask: str | None) -> None:
    x, coefficients, weights = draw_x().detach(), draw_coefficients(3).detach(), draw_mask(mask)
    changed = x.clone()
    changed[:, 3:] += 1.0

    y, y_changed = (polynomial_aggregation(tokens, coefficients, weights, "causal") for tokens in (x, changed))

    assert torch.equal(y[:, :3], y_changed[:, :3])
    assert not torch.equal(y[:, 3:], y_changed[:, 3:])
    # The last prefix is the whole.
    torch.testing.assert_close(y[:, -1:], polynomial_aggregation(x, coefficients, weights, "mean"))


def test_mean_does_not_depend_on_the_order_of_tokens() -> None:
    x, coefficients = draw_x().detach(), draw_coefficients(3).detach()
    order = torch.tensor([3, 1, 4, 0, 2])

    y, permuted = (polynomial_aggregation(tokens, coefficients, None, "mean") for tokens in (x, x[:, order]))

    torch.testing.assert_close(y, permuted)


@pytest.mark.parametrize("mode", ["mean", "causal"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float64])
def test_a_mask_of_ones_is_no_mask(mode: str, dtype: torch.dtype) -> None:
    x, coefficients = draw_x().detach(), draw_coefficients(3).detach()

    y = polynomial_aggregation(x, coefficients, torch.ones(2, 5, dtype=dtype), mode)

    torch.testing.assert_close(y, polynomial_aggregation(x, coefficients, None, mode))


@pytest.mark.parametrize("absent", [torch.nan, torch.inf])
@pytest.mark.parametrize("mode", ["mean", "causal"])
@pytest.mark.parametrize("mask", ["bool", "float"])
def test_a_token_of_weight_0_counts_as_absent(mode: str, mask: str, absent: float) -> None:
    x, coefficients, weights = draw_x().detach(), draw_coefficients(3), draw_mask(mask)
    assert weights is not None
    poisoned = x.masked_fill((weights == 0).unsqueeze(-1), absent).requires_grad_()

    y = polynomial_aggregation(poisoned, coefficients, weights, mode)
    gradients = torch.autograd.grad(y.sum(), (poisoned, coefficients))

    torch.testing.assert_close(y, polynomial_aggregation(x, coefficients, weights, mode))
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert gradients[0][weights == 0].eq(0).all()


@pytest.mark.parametrize("epsilon", [0.0, 1e-7])
@pytest.mark.parametrize("mode", ["mean", "causal"])
def test_no_tokens_and_masked_rows_give_zero(mode: str, epsilon: float) -> None:
    coefficients = draw_coefficients(3)
    x = draw_x()
    weights = torch.ones(2, 5, dtype=torch.bool)
    weights[1] = False

    y = polynomial_aggregation(x, coefficients, weights, mode, epsilon)
    gradients = torch.autograd.grad(y.sum(), (x, coefficients))
    empty = polynomial_aggregation(x[:, :0], coefficients, None, mode, epsilon)

    assert y[1].eq(0).all()
    assert gradients[0][1].eq(0).all()
    assert all(gradient.isfinite().all() for gradient in gradients)
    assert empty.shape == (2, 1 if mode == "mean" else 0, 3)
    assert empty.eq(0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_sums_half_precision_tokens_in_float32(dtype: torch.dtype) -> None:
    x = torch.ones(1, 4096, 1, dtype=dtype)  # both types stop counting by ones before 4096

    y = polynomial_aggregation(x, torch.ones(1, 1, dtype=dtype), None, "causal")

    assert y.dtype == dtype
    assert y.eq(1).all()


TABLES = {"cos": torch.ones(5, 2), "sin": torch.ones(5, 2)}


class LargestResult(TorchDispatchMode):
    """Records the size of the largest tensor that any op returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.numel = max(self.numel, *sizes, 0)
        return result


@pytest.mark.parametrize("masked", [False, True])
def test_causal_needs_memory_linear_in_the_tokens(masked: bool) -> None:
    tokens, channels = 20_000, 2
    x = torch.randn(1, tokens, channels, requires_grad=True)
    coefficients = torch.randn(channels, 3, requires_grad=True)
    weights = torch.rand(1, tokens) if masked else None

    y = polynomial_aggregation(x, coefficients, weights, "causal")
    with LargestResult() as largest:
        # The op's forward is opaque to the mode; its implementation is not.
        reference.polynomial_aggregation(x, coefficients, weights, "causal")
        torch.autograd.grad(y.sum(), (x, coefficients))

    assert tokens * channels <= largest.numel <= 4 * tokens * channels


@pytest.mark.parametrize(
    ("change", "seen"),
    [
        ({"mode": "median"}, "'median'"),
        ({"x": torch.zeros(2, 3)}, r"\(2, 3\)"),
        ({"coefficients": torch.zeros(4, 2)}, r"\(4, 2\)"),
        ({"coefficients": torch.zeros(3, 17)}, "17"),
        ({"coefficients": torch.zeros(3, 0)}, "0"),
        ({"mask": torch.ones(2, 5, 1)}, r"\(2, 5, 1\)"),
        ({"mask": torch.ones(2, 5), "mode": "features"}, "features"),
        ({"mask": torch.ones(2, 5, requires_grad=True)}, "detach"),
        ({"degree": 2}, "must be 0"),
        ({"coefficients": None}, "got 0"),
        ({"coefficients": None, "degree": 17}, "17"),
        ({"coefficients": None, "degree": 2}, "got 3"),
        ({"cos": torch.ones(5, 1)}, "together"),
        ({"cos": torch.ones(5, 1), "sin": torch.ones(5, 1)}, "multiple of 2 channels"),
        ({"x": torch.zeros(2, 5, 4), "coefficients": torch.ones(4, 2), **TABLES, "rotary_blocks": 3}, "1 or 2, got 3"),
        ({"x": torch.zeros(2, 5, 6), "coefficients": torch.ones(6, 2), **TABLES}, r"\(tokens, 3\)"),
        ({"x": torch.zeros(2, 5, 4), "coefficients": None, "degree": 2, **TABLES}, "takes no cos"),
    ],
)
def test_refuses_what_breaks_the_contract(change: dict[str, Any], seen: str) -> None:
    arguments = {"x": torch.zeros(2, 5, 3), "coefficients": torch.ones(3, 2), "mask": None, "mode": "mean", **change}

    with pytest.raises(ValueError, match=seen):
        polynomial_aggregation(**arguments)


def test_refuses_a_mask_of_another_length() -> None:
    with pytest.raises(RuntimeError, match="mask has 4 tokens, x has 5"):
        polynomial_aggregation(torch.zeros(2, 5, 3), torch.ones(3, 2), torch.ones(2, 4), "mean")
