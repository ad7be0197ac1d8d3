"""Rule for form "product" (v1): running products of the GELU of a token's chunks, however they are written."""

from __future__ import annotations

import itertools
from typing import Final

import numpy as np
import onnx_ir as ir

from pom_export import contract
from pom_export.graph.fusing.contributed import gelu, gelu_by_tanh
from pom_export.graph.fusing.evaluation import Array, Evaluator
from pom_export.graph.fusing.features import Features, NotFusedError, tolerance_of
from pom_export.graph.fusing.tokens import Layout, after, layout_of, run_tokens

_LONGEST: Final = 200
_POINTS: Final = np.array([-50, -6, -3, -1, -0.75, -0.1, 0, 0.1, 0.5, 1, 2, 3, 6, 50])
_AGREES: Final = 1e-6


def match_product(evaluator: Evaluator, x: ir.Value, activation: ir.Node) -> Features | None:
    """Return the features that are computed from x, or None.

    Args:
        evaluator: of the graph.
        x: the value.
        activation: the first node of an activation of it, for which the result is named.

    Raises:
        NotFusedError: it is almost that: the activation is another one.
    """
    layout = layout_of(x, evaluator.axes)
    if layout is None:
        return None
    values = after(evaluator, x, _LONGEST)
    random = np.random.default_rng(0).uniform(0.25, 2.5, (14, layout.width))
    computed = run_tokens(evaluator, x, layout, random, values, batch=2)
    wide = np.random.default_rng(1).normal(0, 4, (14, layout.width))
    wider = run_tokens(evaluator, x, layout, wide, values)
    made = {value: array for value, array in computed.items() if array.shape == random.shape and value in wider}
    degrees = _degrees(layout.width)
    for value in reversed(made):
        for degree in degrees:
            if _is_product(gelu(random), made[value], degree, tolerance_of(x)):
                why = _why_not(evaluator, x, layout, value, degree)
                if why and degree == 1:
                    continue  # one of many functions
                if why:
                    raise NotFusedError(why)
                if not _is_product(gelu(wide), wider[value], degree, tolerance_of(x)):
                    continue
                others = tuple(each for each in reversed(made) if np.array_equal(made[each], made[value]))
                return Features(x, value, activation.name or "", degree=degree, others=others[1:], axes=evaluator.axes)
    alike = run_tokens(evaluator, x, layout, np.repeat(random[:, :1], layout.width, 1), list(made), batch=2)
    for value, degree in itertools.product(reversed(made), degrees[:-1]):
        if value not in alike or not _are_powers(alike[value], degree):
            continue
        activated = _activated(evaluator, x, layout, value, random, degree)
        if _is_product(activated, made[value], degree, _AGREES):
            why = _why_not(evaluator, x, layout, value, degree)
            if why:
                raise NotFusedError(why)
    return None


def _degrees(width: int) -> list[int]:
    return [degree for degree in range(contract.MAX_DEGREE, 0, -1) if width % degree == 0]


def _is_product(activated: Array | None, features: Array, degree: int, close: float) -> bool:
    """Return whether features are the running products of the chunks of activated tokens."""
    if activated is None:
        return False
    chunks = activated.reshape(len(activated), degree, -1)
    wanted = np.cumprod(chunks, 1).reshape(features.shape)
    scale = np.abs(wanted).max()
    return bool(np.allclose(features, wanted, rtol=degree * close, atol=min(close * scale, degree * close)))


def _are_powers(features: Array, degree: int) -> bool:
    """Return whether the features of tokens with equal channels are the powers of a number."""
    first, *others = np.split(features, degree, axis=1)
    return all(np.allclose(part, first ** (j + 2), rtol=_AGREES, atol=1e-12) for j, part in enumerate(others))


def _activated(
    evaluator: Evaluator, x: ir.Value, layout: Layout, features: ir.Value, tokens: Array, degree: int
) -> Array | None:
    """Return the activation of tokens, whatever it is, as seen in the first chunk of the features."""
    width = layout.width // degree
    parts = []
    for chunk in np.split(tokens, degree, axis=1):
        made = run_tokens(evaluator, x, layout, np.tile(chunk, (1, degree)), [features], batch=2).get(features)
        if made is None:
            return None
        parts.append(made[:, :width])
    activated = np.concatenate(parts, 1)
    # Anything is a product of factors that are 0 or 1.
    return activated if np.ptp(activated) > _AGREES and not np.allclose(activated, tokens) else None


def _why_not(evaluator: Evaluator, x: ir.Value, layout: Layout, features: ir.Value, degree: int) -> str:
    """Return how the activation differs from GELU with erf; empty if it does not."""
    width = layout.width // degree
    tokens = np.repeat(_POINTS[:, None], layout.width, 1)
    made = run_tokens(evaluator, x, layout, tokens, [features]).get(features)
    if made is None:
        return "its activation cannot be computed by itself"
    found, wanted = made[:, :width][:, 0], gelu(_POINTS)
    close = tolerance_of(x)
    if np.allclose(found, wanted, rtol=close, atol=close):
        return ""
    if np.allclose(found, gelu_by_tanh(_POINTS), rtol=1e-4, atol=1e-6):
        return "its activation is GELU by tanh, not with erf"
    worst = int(np.abs(found - wanted).argmax())
    of = f"of {_POINTS[worst]:g} it is {found[worst]:.6g}, not {wanted[worst]:.6g}"
    return f"its activation is not GELU with erf: {of}"
