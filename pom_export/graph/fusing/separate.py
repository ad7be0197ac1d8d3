"""Rule for means that are taken before the features are complete: of each power, or of each product, by itself.

The mean is linear, so that the coefficients may follow it. What follows is then run with a single token, whose mean it
is itself, to find the polynomial, and with many to find the mean.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import onnx_ir as ir

from pom_export import contract
from pom_export.graph.fusing.aggregates import Aggregate, match_mean
from pom_export.graph.fusing.coefficients import exact_coefficients
from pom_export.graph.fusing.contributed import gelu
from pom_export.graph.fusing.evaluation import SHAPES, Array, Evaluator
from pom_export.graph.fusing.features import Features
from pom_export.graph.fusing.power import fitted, probes
from pom_export.graph.fusing.reached import Reached, shared_sources, values_of_tokens
from pom_export.graph.fusing.sources import KEYS
from pom_export.graph.fusing.tokens import Layout, layout_of, named

_AGREES: Final = 1e-6


def are_a_part(features: Features) -> bool:
    """Return whether the activation that features are computed of is used otherwise too, so that they may be a part."""
    h = features.activated
    if h is None:
        return False
    before, waiting = {features.value}, [features.value]
    while waiting:
        node = waiting.pop().producer()
        for value in () if node is None else node.inputs:
            if value is not None and value not in before and value is not h:
                before.add(value)
                waiting.append(value)
    return any(
        user.op_type not in SHAPES and not any(output in before for output in user.outputs) for user, _ in h.uses()
    )


def match_separate_powers(evaluator: Evaluator, part: Features) -> tuple[Features, Aggregate] | None:
    """Return the features of form "power" whose powers are averaged one by one, and their mean; None if there are none.

    Args:
        evaluator: of the graph.
        part: what was found of them: a power, or some of them.

    Raises:
        NotFusedError: it is a mean for some numbers of tokens only.
    """
    h = part.activated
    layout = None if h is None else layout_of(h, evaluator.axes)
    if h is None or layout is None:
        return None
    nodes = probes()
    found = None
    for reached in values_of_tokens(evaluator, h, layout):
        made = _of_single_tokens(evaluator, h, layout, reached, np.repeat(nodes[:, None], layout.width, 1))
        coefficients = None if made is None else fitted(nodes, made)
        if coefficients is None or not 1 < len(coefficients) <= contract.MAX_DEGREE + 1:
            continue
        constant, rest = coefficients[0], np.ascontiguousarray(coefficients[1:].T)
        if np.abs(constant).max() > _AGREES * np.abs(rest).max():
            continue
        exact = exact_coefficients(evaluator, h, reached.value, rest)

        def transform(p: Array, numbers: Array = exact.array) -> Array:
            powers = p.reshape(*p.shape[:2], -1)[..., None] ** np.arange(1, numbers.shape[1] + 1)
            result: Array = (powers * numbers).sum(-1).reshape(p.shape)
            return result

        mean = match_mean(evaluator, h, layout, reached, transform)
        found = found if mean is None else (Features(part.x, h, part.node, exact, activated=h, axes=part.axes), mean)
    return found


def match_separate_products(evaluator: Evaluator, x: ir.Value, node: str) -> tuple[Features, Aggregate] | None:
    """Return the features of form "product" whose products are averaged one by one, and their mean, or None.

    Raises:
        NotFusedError: it is a mean for some numbers of tokens only.
    """
    layout = layout_of(x, evaluator.axes)
    if layout is None:
        return None
    tokens = np.random.default_rng(0).uniform(-2, 2.5, (14, layout.width))
    found = None
    for reached in values_of_tokens(evaluator, x, layout):
        made = _of_single_tokens(evaluator, x, layout, reached, tokens)
        if made is None:
            continue
        for degree in range(2, contract.MAX_DEGREE + 1):
            if layout.width % degree or not np.allclose(made, _products(tokens, degree), rtol=_AGREES, atol=1e-9):
                continue

            def transform(p: Array, degree: int = degree) -> Array:
                return _products(p.reshape(-1, p.shape[-1]), degree).reshape(p.shape)

            mean = match_mean(evaluator, x, layout, reached, transform) if len(layout.channels) == 1 else None
            found = found if mean is None else (Features(x, x, node, degree=degree, axes=evaluator.axes), mean)
    return found


def _products(tokens: Array, degree: int) -> Array:
    result: Array = np.cumprod(gelu(tokens).reshape(len(tokens), degree, -1), 1).reshape(tokens.shape)
    return result


def _of_single_tokens(
    evaluator: Evaluator, start: ir.Value, layout: Layout, reached: Reached, tokens: Array
) -> Array | None:
    """Return a value for each token by itself, or among its likes where there must be several: (P, values of a token).

    It is None if it is not one for each token, or cannot be computed.
    """
    sources = shared_sources(evaluator, layout, reached)
    if not sources:
        return None
    rows, length = layout.batch or len(tokens), layout.tokens or 1
    parts = []
    for first in range(0, len(tokens), rows):
        part = tokens[first : first + rows]
        filled = np.concatenate([part, np.repeat(part[-1:], rows - len(part), 0)])
        alike = np.repeat(filled[:, None], length, 1).reshape(rows, length, *layout.channels)
        given = {start: layout.placed(alike)}
        sizes = layout.sizes(rows, length)
        if (source := sources[0]) is not None:
            ones = np.ones((rows, length) if source.kind == KEYS else (rows, length, length))
            given[source.value] = source.shaped(ones)
            sizes |= source.sizes(ones)
        sizes = named(sizes, evaluator.root)
        made = evaluator.run([reached.value], given, sizes).get(reached.value)
        made = None if made is None else layout.ordered(made)
        if made is None or made.size not in {filled.size, alike.size} or len(made) != rows:
            return None
        each = made.reshape(rows, -1, filled.shape[1])
        if not np.allclose(each, each[:, :1], rtol=_AGREES, atol=0):
            return None
        parts.append(each[: len(part), 0])
    return np.concatenate(parts)
