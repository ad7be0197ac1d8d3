"""Compare the cost of attention with that of the PoM that would replace it.

Multiply-adds of one layer, one sequence of N tokens, width d, C = expand * d channels, S gate values per token:

    attention   N * (weights of its projections)              query, key, value, output: 4 d^2 where all are d x d
                + 2 * N^2 * a                                 scores, and weighted values; a: width of all heads
    PoM         N * (d * C / groups + d * S + C * d)          context, gate and output projections
                + N * C * (degree + 2)                        Horner's rule, the sum, and the gate
                + N * kdim * d                                only where the context has a different width

Bytes that one sequence keeps in order to continue after N tokens:

    attention   N * (width of keys + width of values) * bytes of an element        the KV cache
    PoM         2 * C * 4 + 8                         a float32 sum and its rounding compensation; an int64 count

Softmax, biases, norms and memory traffic are left out on both sides, and a causal mask is assumed to save nothing.
These are counts, not times.
"""

from __future__ import annotations

from dataclasses import dataclass

_FLOAT32_BYTES, _INT64_BYTES = 4, 8


@dataclass(frozen=True)
class AttentionShape:
    """The sizes of an attention layer.

    Attributes:
        embed_dim: width d of the queries, and of the output.
        heads: number of heads; 0 if unknown.
        weights: number of elements in the weights of all projections, without biases.
        inner: width of all query heads together.
        cache_width: number of elements that each token adds to the KV cache.
        element_bytes: bytes per element.
        kdim: width of the context.
        bias: whether the output projection has a bias.
    """

    embed_dim: int
    heads: int
    weights: int
    inner: int
    cache_width: int
    element_bytes: int
    kdim: int
    bias: bool


@dataclass(frozen=True)
class PomShape:
    """The sizes of the PoM layers that replace attention, as in `MultiheadPolynomialMixer`."""

    degree: int = 3
    expand: int = 2
    n_groups: int = 1

    def heads_for(self, attention: AttentionShape) -> int:
        """Return the number of gate heads: attention's or, if that does not divide C, 1 (one gate per channel)."""
        channels = self.expand * attention.embed_dim
        return attention.heads if attention.heads > 1 and channels % attention.heads == 0 else 1


@dataclass(frozen=True)
class Cost:
    """The multiply-adds of a layer, and the bytes that it keeps, for a number of tokens; see the module's docstring."""

    tokens: int
    attention_macs: int
    pom_macs: int
    cache_bytes: int
    state_bytes: int


def cost(attention: AttentionShape, pom: PomShape, tokens: int) -> Cost:
    """Return the costs of both layers for a number of tokens."""
    dim, channels, heads = attention.embed_dim, pom.expand * attention.embed_dim, pom.heads_for(attention)
    gates = heads if heads > 1 else channels
    pom_a_token = dim * channels // pom.n_groups + dim * gates + channels * dim + channels * (pom.degree + 2)
    if attention.kdim != dim:
        pom_a_token += attention.kdim * dim
    return Cost(
        tokens=tokens,
        attention_macs=tokens * attention.weights + 2 * tokens**2 * attention.inner,
        pom_macs=tokens * pom_a_token,
        cache_bytes=tokens * attention.cache_width * attention.element_bytes,
        state_bytes=2 * channels * _FLOAT32_BYTES + _INT64_BYTES,
    )
