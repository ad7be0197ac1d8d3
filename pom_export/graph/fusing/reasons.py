"""Why nothing that is computed from features is a mean over tokens."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final

import numpy as np
import onnx_ir as ir

from pom_export.graph.fusing.evaluation import Array, Evaluator
from pom_export.graph.fusing.reached import Reached, shared_sources
from pom_export.graph.fusing.sources import KEYS
from pom_export.graph.fusing.tokens import TOKEN_RANK, Layout, named

_AGREES: Final = 2e-5
_TOKENS: Final = 6
# How far back an input that is added is looked for.
_FARTHEST: Final = 12


def why_not_a_mean(evaluator: Evaluator, features: ir.Value, layout: Layout, reached: Sequence[Reached]) -> str:
    """Return why none of the values that are computed from features is a mean over tokens."""
    reasons = [
        *_without_data(evaluator, features, layout, [each.value for each in reached if not each.data]),
        *_with_weights(evaluator, features, layout, reached),
    ]
    state = _state(evaluator, features, layout, reached)
    if state:
        return f"the input {state} is added to its sum over tokens, as in a stream: export the module itself for that"
    if reasons:
        return f"it takes {reasons[-1]}"
    if len(layout.channels) + 2 < TOKEN_RANK or not reached:
        return "nothing that is known follows its features"
    return "what follows its features is not a mean over tokens that is recognised"


def _without_data(
    evaluator: Evaluator, features: ir.Value, layout: Layout, values: Sequence[ir.Value]
) -> Iterator[str]:
    p = _features(layout)
    sizes = named(layout.sizes(*p.shape[:2]), evaluator.root)
    made = evaluator.run(values, {features: layout.placed(p)}, sizes)
    known = _known(p)
    for value in (each for each in values if each in made):
        flat = layout.ordered(made[value]).reshape(-1)
        alike = [reason for reason, array in known.items() if array.size == flat.size and _are_equal(flat, array)]
        divisor = None if alike else _divisor(flat, p.sum(1))
        yield from alike
        if divisor is not None and not np.isclose(divisor, p.shape[1]):
            yield f"the sum over its tokens, divided by {divisor:.6g} at {p.shape[1]} tokens, not by their number"


def _known(p: Array) -> Mapping[str, Array]:
    """Return what may be taken for a mean over tokens, of features (B, N, ...)."""
    earlier = np.cumsum(p, 1)
    counts = np.arange(1, p.shape[1] + 1).reshape(-1, *[1] * (p.ndim - 2))
    later = np.flip(np.cumsum(np.flip(p, 1), 1) / counts, 1)
    before = np.concatenate([np.zeros_like(p[:, :1]), (earlier / counts)[:, :-1]], 1)
    return {
        "the mean over its channels, not over its tokens": p.mean(-1),
        "the mean over the batch, not over its tokens": p.mean(0),
        "the sum over its tokens, not the mean": p.sum(1),
        "the largest of its tokens, not the mean": p.max(1),
        "the sum over the earlier tokens, not divided by their number": earlier,
        "the mean over both batch and tokens": p.mean((0, 1)),
        "the mean over the later tokens, not over the earlier ones": later,
        "the mean over the tokens before each, without the token itself": before,
    }


def _with_weights(
    evaluator: Evaluator, features: ir.Value, layout: Layout, reached: Sequence[Reached]
) -> Iterator[str]:
    """Yield how sums of the tokens that a mask keeps are not divided by their number."""
    p = _features(layout)
    rows, tokens = p.shape[:2]
    for each in (each for each in reached if each.data):
        for source in shared_sources(evaluator, layout, each):
            if source is None or source.kind != KEYS:
                continue
            weights = source.draw(np.random.default_rng(1), rows, tokens)
            sizes = {**layout.sizes(rows, tokens), **source.sizes(weights)}
            given = {features: layout.placed(p), source.value: source.shaped(weights)}
            made = evaluator.run([each.value], given, named(sizes, evaluator.root)).get(each.value)
            kept = (p * weights.reshape(rows, tokens, *[1] * (p.ndim - 2))).sum(1)
            divisor = None if made is None else _divisor(layout.ordered(made).reshape(-1), kept)
            if divisor is not None:
                yield f"the sum over the tokens that its mask keeps, {_divided(divisor, tokens)}"


def _divided(divisor: float, tokens: int) -> str:
    if np.isclose(divisor, 1):
        return "not the mean"
    if np.isclose(divisor, tokens):
        return "divided by the number of all tokens, not of those"
    return f"divided by {divisor:.6g} at {tokens} tokens, not by their number"


def _state(evaluator: Evaluator, features: ir.Value, layout: Layout, reached: Sequence[Reached]) -> str:
    """Return the name of an input that is added to sums of features, and has nothing for each token; empty if none."""
    own = {features, *(each.value for each in reached)}
    for node in dict.fromkeys(user for value in own for user, _ in value.uses() if user.op_type == "Add"):
        for value in node.inputs:
            first = None if value is None or value in own else evaluator.sources(value, _FARTHEST)[-1]
            if first is None or not first.is_graph_input() or first.dtype is None or first.shape is None:
                continue
            sizes = [size if isinstance(size, int) else size.value for size in first.shape]
            tokens = layout.names[1] if layout.tokens is None else layout.tokens
            if first.dtype.is_floating_point() and tokens not in sizes:
                return first.name or ""
    return ""


def _features(layout: Layout) -> Array:
    shape = (layout.batch or 2, layout.tokens or _TOKENS, *layout.channels)
    return np.random.default_rng(0).uniform(0.5, 2, shape)


def _are_equal(flat: Array, array: Array) -> bool:
    return bool(np.allclose(flat, array.reshape(-1), rtol=_AGREES))


def _divisor(flat: Array, total: Array) -> float | None:
    """Return the number that a sum was divided by; None if it was something else."""
    if flat.size != total.size or not np.isfinite(flat).all() or not flat.all():
        return None
    ratio = total.reshape(-1) / flat
    return float(ratio[0]) if np.allclose(ratio, ratio[0], rtol=_AGREES) else None
