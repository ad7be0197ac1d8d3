"""Rule for form "power" (v2): a polynomial of clamp(leaky_relu(x)), channel by channel, however it is written."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import onnx_ir as ir
from numpy.polynomial import chebyshev

from pom_export import contract
from pom_export.graph.fusing.coefficients import exact_coefficients
from pom_export.graph.fusing.evaluation import Array, Evaluator
from pom_export.graph.fusing.features import Features, NotFusedError, tolerance_of
from pom_export.graph.fusing.tokens import Layout, after, layout_of, run_tokens

# The most nodes that compute the features of a token.
_LONGEST: Final = 200
# Polynomials of up to this degree are told apart from other functions, by their values at so many points.
_LARGEST_DEGREE: Final = 24
_POINTS: Final = 49
_NEGLIGIBLE: Final = 1e-10
_AGREES: Final = 1e-6
# Before, at and beyond each bend of the activation.
_BENDS: Final = np.array(
    [-1000, -100, -11, -10.01, -10, -9.99, -9, -1, -0.1, -1e-3, 0, 1e-3, 0.5, 1, 3, 5, 5.99, 6, 6.01, 7, 100, 1000]
)


@dataclass(frozen=True)
class Polynomial:
    """A polynomial without constant term.

    Attributes:
        value: the value that holds it.
        coefficients: (C, K), in float64.
        others: other values that hold it, the last one first.
    """

    value: ir.Value
    coefficients: Array
    others: tuple[ir.Value, ...] = ()


def activation(x: Array) -> Array:
    """Return clamp(leaky_relu(x))."""
    return np.clip(np.where(x > 0, x, contract.LEAKY_SLOPE * x), contract.CLAMP_LOW, contract.CLAMP_HIGH)


def match_power(evaluator: Evaluator, x: ir.Value) -> Features | None:
    """Return the features that are computed from x, or None.

    Raises:
        NotFusedError: it is almost that; the text says what is missing.
    """
    layout = layout_of(x, evaluator.axes)
    if layout is None:
        return None
    values = after(evaluator, x, _LONGEST)
    tokens = np.repeat(_BENDS[:, None], layout.width, 1)
    computed = run_tokens(evaluator, x, layout, tokens, values)
    wanted = activation(tokens)
    close = tolerance_of(x)
    for value, array in computed.items():
        if array.shape == wanted.shape and np.allclose(array, wanted, rtol=close, atol=1e-9):
            found = polynomial_of(evaluator, value, layout)
            if found is not None:
                return _features(evaluator, x, value, found)
    return None


def probes() -> Array:
    """Return the numbers on which polynomials are told from other functions."""
    nodes: Array = np.cos(np.pi * (np.arange(_POINTS) + 0.5) / _POINTS)
    return nodes


def polynomial_of(evaluator: Evaluator, h: ir.Value, layout: Layout) -> Polynomial | None:
    """Return the last value after h that is a polynomial of each of its channels; None if there is none.

    Raises:
        NotFusedError: it has a constant term, or too high a degree.
    """
    own = layout_of(h, evaluator.axes)
    if own is None or own.width != layout.width:
        return None
    values = after(evaluator, h, _LONGEST)
    nodes = probes()
    computed = run_tokens(evaluator, h, own, np.repeat(nodes[:, None], own.width, 1), values)
    # Far beyond both clamps, so that nothing is clamped after h.
    random = np.random.default_rng(0).uniform(5 * contract.CLAMP_LOW, 2 * contract.CLAMP_HIGH, (14, own.width))
    checked = run_tokens(evaluator, h, own, random, values, batch=2)
    found: tuple[ir.Value, Array] | None = None
    others: tuple[ir.Value, ...] = ()
    for value in values:
        if value not in computed or value not in checked or computed[value].shape[1] != own.width:
            continue
        coefficients = fitted(nodes, computed[value])
        if coefficients is not None and _agrees(coefficients, random, checked[value]):
            same = found is not None and np.array_equal(computed[found[0]], computed[value])
            others = (found[0], *others) if found is not None and same else ()
            found = (value, coefficients)
    if found is None:
        return None
    value, coefficients = found
    constant, rest = coefficients[0], coefficients[1:]
    if not len(rest):
        return None
    if np.abs(constant).max() > _AGREES * np.abs(rest).max():
        raise NotFusedError(f"its polynomial has a constant term, up to {np.abs(constant).max():.3g}")
    if len(rest) > contract.MAX_DEGREE:
        raise NotFusedError(f"its polynomial is of degree {len(rest)}, and the op takes up to {contract.MAX_DEGREE}")
    return Polynomial(value, np.ascontiguousarray(rest.T), others)


def fitted(nodes: Array, values: Array) -> Array | None:
    """Return the coefficients of the powers 0 to K, (K + 1, C); None if the values are not a polynomial's."""
    if not np.isfinite(values).all():
        return None
    series = chebyshev.chebfit(nodes, values, _LARGEST_DEGREE + 4)
    scale = np.maximum(np.abs(series).max(0), 1e-300)
    degrees = np.flatnonzero((np.abs(series) > _NEGLIGIBLE * scale).any(1))
    if not len(degrees) or degrees[-1] > _LARGEST_DEGREE:
        return None
    kept = series[: degrees[-1] + 1]
    matrix = np.zeros((len(kept), len(kept)))
    for degree in range(len(kept)):
        powers = chebyshev.cheb2poly(np.eye(len(kept))[degree])
        matrix[: len(powers), degree] = powers
    result: Array = matrix @ kept
    return result


def _agrees(coefficients: Array, h: Array, values: Array) -> bool:
    powers = h[None] ** np.arange(len(coefficients))[:, None, None]
    terms = coefficients[:, None] * powers
    return bool((np.abs(terms.sum(0) - values) <= _AGREES * np.abs(terms).sum(0) + 1e-12).all())


def _features(evaluator: Evaluator, x: ir.Value, h: ir.Value, found: Polynomial) -> Features:
    coefficients = exact_coefficients(evaluator, h, found.value, found.coefficients)
    if coefficients.array.shape[1] > contract.MAX_DEGREE:
        raise NotFusedError(f"it has coefficients of {coefficients.array.shape[1]} powers, and the op takes up to 16")
    node = h.producer()
    name = (node.name if node is not None else None) or ""
    return Features(x, found.value, name, coefficients, others=found.others, activated=h, axes=evaluator.axes)


def near_power(evaluator: Evaluator, h: ir.Value, x: ir.Value) -> tuple[ir.Value, str] | None:
    """Return the polynomial of an activation that is not ours, and how that differs; None if there is none.

    Args:
        evaluator: of the graph.
        h: the result of an activation.
        x: what it is applied to.
    """
    layout = layout_of(x, evaluator.axes)
    if layout is None:
        return None
    try:
        found = polynomial_of(evaluator, h, layout)
    except NotFusedError:
        return None
    if found is None or found.coefficients.shape[1] < 2 or _is_uniform(found.coefficients):
        return None
    points = run_tokens(evaluator, x, layout, np.repeat(_BENDS[:, None], layout.width, 1), [h]).get(h)
    if points is None or np.allclose(points[:, 0], activation(_BENDS), rtol=tolerance_of(x), atol=1e-9):
        return None
    return found.value, _why_not(points[:, 0])


def _is_uniform(coefficients: Array) -> bool:
    """Return whether all channels have the same polynomial, as in the approximation of another function."""
    return len(coefficients) > 1 and bool((np.abs(coefficients - coefficients[:1]) <= _AGREES).all())


def _why_not(values: Array) -> str:
    wanted = activation(_BENDS)
    of = dict(zip(_BENDS.tolist(), values.tolist(), strict=True))
    if abs(of[1000.0] - contract.CLAMP_HIGH) > _AGREES:
        return _clamp(of[1000.0], of[100.0], "upper", contract.CLAMP_HIGH)
    if abs(of[-1.0] + contract.LEAKY_SLOPE) > _AGREES:
        return f"its activation of -1 is {of[-1.0]:.6g}, not {-contract.LEAKY_SLOPE:g}: the leaky slope differs"
    if abs(of[-1000.0] - contract.CLAMP_LOW) > _AGREES:
        return _clamp(of[-1000.0], of[-100.0], "lower", contract.CLAMP_LOW)
    worst = int(np.abs(values - wanted).argmax())
    return f"its activation of {_BENDS[worst]:g} is {values[worst]:.6g}, not {wanted[worst]:.6g}"


def _clamp(value: float, before: float, name: str, limit: float) -> str:
    if value != before:
        return f"its activation has no {name} clamp, which must be at {limit:g}"
    return f"its activation clamps at {value:.6g}, not at {limit:g}"
