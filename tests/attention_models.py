"""Causal language models whose attention is written as people write it, each with a mixer after it."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, einsum, nn
from torch.nn import functional

from pom_export import PolynomialMixer

VOCABULARY, WIDTH, HEADS, TABLE = 50, 32, 4, 64
HEAD = WIDTH // HEADS


class LanguageModel(nn.Module):
    """Attention and a mixer between an embedding and a head."""

    def __init__(self, attention: nn.Module, positions: int | None = None) -> None:
        super().__init__()
        self.tokens, self.attention, self.norm = nn.Embedding(VOCABULARY, WIDTH), attention, nn.LayerNorm(WIDTH)
        self.positions = nn.Embedding(positions, WIDTH) if positions else None
        self.mixer, self.head = PolynomialMixer(WIDTH, 2, 2), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, idx: Tensor) -> Tensor:
        x = self.tokens(idx)
        if self.positions is not None:
            x = x + self.positions(torch.arange(idx.shape[1]))
        x = x + self.attention(self.norm(x))
        return self.head(x + self.mixer(x, mask="causal"))


class Projected(nn.Module):
    """Projections, and what attends between them."""

    def __init__(self, kv_heads: int = HEADS) -> None:
        super().__init__()
        self.q, self.kv = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, 2 * HEAD * kv_heads)
        self.out, self.kv_heads = nn.Linear(WIDTH, WIDTH), kv_heads

    def split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return queries, keys and values, (B, N, heads, width)."""
        batch, count, _ = x.shape
        k, v = self.kv(x).view(batch, count, 2, self.kv_heads, HEAD).unbind(2)
        return self.q(x).view(batch, count, HEADS, HEAD), k, v

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.attend(*self.split(x)).flatten(2))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        raise NotImplementedError


class Einsum(Projected):
    """Heads before tokens, the largest score subtracted, a mask of a triangle, as in x-transformers."""

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in (q * HEAD**-0.5, k, v))
        scores = einsum("b h i d, b h j d -> b h i j", q, k)
        rows, columns = scores.shape[-2:]
        mask = torch.ones((rows, columns), dtype=torch.bool).triu(columns - rows + 1)
        scores = scores.masked_fill(mask, -torch.finfo(scores.dtype).max)
        weights = (scores - scores.amax(dim=-1, keepdim=True)).softmax(dim=-1)
        return einsum("b h i j, b h j d -> b h i d", weights, v).transpose(1, 2)


class EinsumGrouped(Projected):
    """Tokens before heads, fewer keys than queries, a comparison of positions."""

    def __init__(self) -> None:
        super().__init__(kv_heads=2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        k, v = (part.repeat_interleave(2, dim=2) for part in (k, v))
        scores = einsum("bihd,bjhd->bhij", q, k) / math.sqrt(HEAD)
        place = torch.arange(q.shape[1])
        scores = torch.where(place[:, None] >= place, scores, torch.tensor(-math.inf))
        return einsum("bhij,bjhd->bihd", scores.softmax(-1), v)


class EinsumMultiQuery(Projected):
    """One head of keys and values without an axis of heads, and heads that are mixed."""

    def __init__(self) -> None:
        super().__init__(kv_heads=1)
        self.mix = nn.Parameter(torch.randn(HEADS, HEADS))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        scores = einsum("bihd,bjd->bhij", q, k[:, :, 0]) * HEAD**-0.5
        scores = einsum("bhij,hg->bgij", scores, self.mix)
        scores = scores + torch.full(scores.shape[-2:], -math.inf).triu(1)
        return einsum("bhij,bjd->bihd", scores.softmax(-1), v[:, :, 0])


class ComplexRotary(Projected):
    """Rotations as products of complex numbers, and keys repeated for groups of queries, as in Meta's Llama."""

    def __init__(self) -> None:
        super().__init__(kv_heads=2)
        angles = torch.outer(torch.arange(TABLE), 100.0 ** -torch.arange(0, 1, 2 / HEAD)).float()
        self.freqs_cis = torch.polar(torch.ones_like(angles), angles)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, count = q.shape[:2]
        freqs = self.freqs_cis[:count].view(1, count, 1, HEAD // 2)
        pairs = (torch.view_as_complex(part.float().reshape(*part.shape[:-1], -1, 2)) for part in (q, k))
        q, k = (torch.view_as_real(part * freqs).flatten(3).type_as(q) for part in pairs)
        k, v = (
            part[:, :, :, None].expand(-1, -1, -1, 2, -1).reshape(batch, count, HEADS, HEAD).transpose(1, 2)
            for part in (k, v)
        )
        scores = q.transpose(1, 2) @ k.transpose(2, 3) / math.sqrt(HEAD)
        scores = scores + torch.full((count, count), -math.inf).triu(1).type_as(scores)
        return (scores.float().softmax(-1).type_as(q) @ v).transpose(1, 2)


class Biased(Projected):
    """A mask and a bias, which a function computes for a number of tokens, in torch's attention or written out."""

    def __init__(self, bias: Callable[[nn.Module, int], Tensor], *, written_out: bool = False) -> None:
        super().__init__()
        self.bias, self.written_out, self.table = bias, written_out, nn.Embedding(8, HEADS)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        bias = self.bias(self, q.shape[2])
        if not self.written_out:
            return functional.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2)
        return ((q @ k.mT * HEAD**-0.5 + bias).softmax(-1) @ v).transpose(1, 2)


def _distances(count: int) -> Tensor:
    place = torch.arange(count)
    return place[:, None] - place


_SLOPES = (2.0 ** -torch.arange(1, HEADS + 1)).view(1, HEADS, 1, 1)


def _by_distance(_: nn.Module, count: int) -> Tensor:
    """ALiBi as its authors define it."""
    away = _distances(count)
    return (-away * _SLOPES).masked_fill(away < 0, -math.inf)


def _from_the_end(_: nn.Module, count: int) -> Tensor:
    """ALiBi as MPT computes it: from the last key, which a softmax does not notice."""
    bias = torch.arange(1 - count, 1, dtype=torch.float32).view(1, 1, 1, count) * _SLOPES
    return bias.masked_fill(torch.ones(count, count, dtype=torch.bool).triu(1), -1e9)


def _buckets(layer: nn.Module, count: int) -> Tensor:
    """T5's learned bias for ranges of distances."""
    away = -torch.min(-_distances(count), torch.zeros(1, dtype=torch.int64))
    far = 4 + (torch.log(away.float() / 4) / math.log(20 / 4) * 4).to(torch.int64)
    bucket = torch.where(away < 4, away, torch.min(far, torch.full_like(far, 7)))
    bias = layer.table(bucket).permute(2, 0, 1)[None]
    return bias + (1 - torch.ones(count, count).tril()) * torch.finfo(bias.dtype).min


def _window(_: nn.Module, count: int) -> Tensor:
    """The last tokens and the first two."""
    away = _distances(count)
    return (away >= 0) & ((away < 4) | (torch.arange(count) < 2))


class RelativeKeys(Projected):
    """Embeddings of distances beside the keys, as in Shaw et al."""

    def __init__(self) -> None:
        super().__init__()
        self.relative = nn.Embedding(9, HEAD)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        q, k, v = (part.transpose(1, 2) for part in (q, k, v))
        away = -_distances(q.shape[2])
        scores = q @ k.mT + einsum("bhid,ijd->bhij", q, self.relative(away.clamp(-4, 4) + 4))
        return (scores.masked_fill(away > 0, -math.inf).softmax(-1) @ v).transpose(1, 2)


class MergedHeads(Projected):
    """Queries whose heads are merged with the tokens, as in GPT-BigCode, and a table of a mask."""

    def __init__(self) -> None:
        super().__init__(kv_heads=1)
        self.register_buffer("seen", torch.ones(TABLE, TABLE, dtype=torch.bool).tril())

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, count = q.shape[:2]
        scores = torch.empty(batch, count * HEADS, count)
        scores = torch.baddbmm(torch.zeros_like(scores), q.reshape(batch, -1, HEAD), k[:, :, 0].mT, beta=0)
        scores = torch.where(self.seen[:count, None, :count], scores.view(batch, count, HEADS, count), -1e9)
        return torch.bmm(scores.softmax(-1).view(batch, -1, count), v[:, :, 0]).view(batch, count, HEADS, HEAD)


class SinksAndPairs(Projected):
    """A learned score that no token has, two softmaxes of which one is subtracted, and a mask that tokens decide."""

    def __init__(self) -> None:
        super().__init__()
        self.sink = nn.Parameter(torch.zeros(HEADS))

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        batch, count = q.shape[:2]
        scores = einsum("bihd,bjhd->bhij", q, k)
        hidden = (k[:, :, 0, 0] > 0.5)[:, None, None] | torch.ones(count, count, dtype=torch.bool).triu(1)
        scores = scores.masked_fill(hidden & ~torch.eye(count, dtype=torch.bool), -math.inf)
        scores = torch.cat([scores, self.sink.view(1, -1, 1, 1).expand(batch, -1, count, 1)], dim=-1)
        weights = (scores - scores.max(-1, keepdim=True).values).softmax(-1)[..., :-1]
        weights = weights.view(batch, 2, HEADS // 2, count, count)
        return einsum("bhij,bjhd->bihd", torch.cat([weights[:, 0] - weights[:, 1]] * 2, 1), v)


ATTENTION: dict[str, Callable[[], nn.Module]] = {
    "einsum": lambda: LanguageModel(Einsum(), TABLE),
    "grouped einsum": lambda: LanguageModel(EinsumGrouped(), TABLE),
    "multi-query einsum": lambda: LanguageModel(EinsumMultiQuery(), TABLE),
    "complex rotary": lambda: LanguageModel(ComplexRotary()),
    "alibi": lambda: LanguageModel(Biased(_by_distance)),
    "alibi from the end": lambda: LanguageModel(Biased(_from_the_end, written_out=True)),
    "buckets": lambda: LanguageModel(Biased(_buckets, written_out=True)),
    "window": lambda: LanguageModel(Biased(_window)),
    "relative keys": lambda: LanguageModel(RelativeKeys()),
    "merged heads": lambda: LanguageModel(MergedHeads(), TABLE),
    "sinks and pairs": lambda: LanguageModel(SinksAndPairs(), TABLE),
}
"""Models by name; their input is `idx`."""
