"""Causal models as users write them: with mixers of several kinds, positions, attention, convolutions and contexts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from pom_export import MultiheadPolynomialMixer, PolynomialMixer, replace_attention
from tests.official_style import PoM, ProductPoM, RotaryPoM

VOCABULARY, WIDTH, TABLE = 50, 16, 64


def _mlp(width: int = WIDTH) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))


class Block(nn.Module):
    """A pre-norm block around any mixer, called by a function."""

    def __init__(self, mixer: nn.Module, call: Callable[[nn.Module, Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.mixer, self.mlp_norm, self.mlp = nn.LayerNorm(WIDTH), mixer, nn.LayerNorm(WIDTH), _mlp()
        self.call = call

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.call(self.mixer, self.norm(x))
        return x + self.mlp(self.mlp_norm(x))


def _causal(mixer: nn.Module, x: Tensor) -> Tensor:
    return mixer(x, mask="causal")


def _lower_triangle(mixer: nn.Module, x: Tensor) -> Tensor:
    return mixer(x, mask=torch.ones(x.shape[1], x.shape[1]).tril()[None])


class LearnedPositions(nn.Module):
    """An official-style GPT: learned positions, a tied head, a limit that it asserts."""

    def __init__(self, call: Callable[[nn.Module, Tensor], Tensor] = _causal) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(TABLE, WIDTH)
        self.blocks = nn.ModuleList(Block(PoM(WIDTH, 3, 2, 1, heads), call) for heads in (1, 4))
        self.head = nn.Linear(WIDTH, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, idx: Tensor) -> Tensor:
        assert idx.shape[1] <= TABLE
        x = self.tokens(idx) + self.positions(torch.arange(idx.shape[1], device=idx.device))
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class SlicedTable(nn.Module):
    """Positions from a slice of a parameter, v1 mixers, and vectors instead of ids."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(1, TABLE, WIDTH))
        self.block = Block(ProductPoM(WIDTH, 2, 2), _causal)
        self.grouped = Block(ProductPoM(WIDTH, 2, 2, n_head=4, bias=False), _lower_triangle)

    def forward(self, x: Tensor) -> Tensor:
        return self.grouped(self.block(x + self.table[:, : x.shape[1]]))


class RotaryByHand(nn.Module):
    """Rotary embeddings computed from positions, and the official rotary mixer."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.register_buffer("frequencies", 100.0 ** -(torch.arange(WIDTH // 4) / (WIDTH // 4)))
        self.rotary = RotaryPoM(WIDTH, 2, 2, TABLE)
        self.block = Block(PolynomialMixer(WIDTH, 2, 2), _causal)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        batch, count = input_ids.shape
        x = self.tokens(input_ids).view(batch, count, 2, WIDTH // 2).transpose(1, 2)
        angles = torch.outer(torch.arange(count, dtype=torch.float32), self.frequencies)
        cos, sin = angles.cos()[None, None], angles.sin()[None, None]
        first, second = x.chunk(2, dim=-1)
        x = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        x = x.transpose(1, 2).reshape(batch, count, WIDTH)
        x = x + self.rotary(x, mask="causal")
        return self.head(self.block(x))


class Attention(nn.Module):
    """Causal self-attention, by torch's function or written out with a buffer of ones."""

    def __init__(self, written_out: bool) -> None:
        super().__init__()
        self.qkv, self.out, self.written_out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), written_out
        self.register_buffer("bias", torch.ones(TABLE, TABLE).tril().view(1, 1, TABLE, TABLE))

    def forward(self, x: Tensor) -> Tensor:
        batch, count, width = x.shape
        q, k, v = (part.view(batch, count, 2, width // 2).transpose(1, 2) for part in self.qkv(x).split(width, dim=2))
        if self.written_out:
            scores = (q @ k.transpose(-2, -1)) * (width // 2) ** -0.5
            scores = scores.masked_fill(self.bias[:, :, :count, :count] == 0, float("-inf"))
            y = functional.softmax(scores, dim=-1) @ v
        else:
            y = functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        return self.out(y.transpose(1, 2).contiguous().view(batch, count, width))


class GroupedQuery(nn.Module):
    """Attention as Llama's classes write it: cached rotary tables, fewer keys than queries, a softmax in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.q, self.kv = (
            nn.Embedding(VOCABULARY, WIDTH),
            nn.Linear(WIDTH, WIDTH),
            nn.Linear(WIDTH, WIDTH),
        )
        angles = torch.outer(torch.arange(TABLE).float(), 100.0 ** -torch.arange(0, 1, 0.5)).repeat(1, 2)
        self.register_buffer("cos", angles.cos()[None, None], persistent=False)
        self.register_buffer("sin", angles.sin()[None, None], persistent=False)
        self.block = Block(PoM(WIDTH, 2, 2, 1, 1), _causal)

    def _turned(self, x: Tensor) -> Tensor:
        count = x.shape[2]
        first, second = x.chunk(2, dim=-1)
        return x * self.cos[:, :, :count] + torch.cat([-second, first], dim=-1) * self.sin[:, :, :count]

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> dict[str, Tensor | None]:
        batch, count = input_ids.shape
        x = self.tokens(input_ids)
        least = torch.finfo(x.dtype).min
        mask = torch.full((count, count), least).triu(1)[None, None].expand(batch, 1, count, count)
        if attention_mask is not None:
            mask = mask.masked_fill(attention_mask[:, None, None, :] == 0, least)
        q = self._turned(self.q(x).view(batch, count, 4, 4).transpose(1, 2))
        k, v = (part.view(batch, count, 2, 4).transpose(1, 2) for part in self.kv(x).chunk(2, dim=-1))
        k, v = (part[:, :, None].expand(-1, -1, 2, -1, -1).reshape(batch, 4, count, 4) for part in (self._turned(k), v))
        scores = q @ k.transpose(2, 3) / 2 + mask
        weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(q.dtype)
        x = x + (weights @ v).transpose(1, 2).reshape(batch, count, WIDTH)
        return {"logits": self.block(x), "past_key_values": None}


class Hybrid(nn.Module):
    """Mixers, attention of three kinds, causal convolutions of three kinds, and a shift of tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.padded = nn.Conv1d(WIDTH, WIDTH, 4, groups=WIDTH)
        self.cut = nn.Conv1d(WIDTH, WIDTH, 3, padding=4, dilation=2)
        self.mix = nn.Parameter(torch.rand(WIDTH))
        self.mixer = Block(PolynomialMixer(WIDTH, 2, 2, n_sel_heads=4), _causal)
        self.torch_attention = Attention(written_out=False)
        self.own_attention = Attention(written_out=True)
        self.multihead = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        count = input_ids.shape[1]
        x = self.tokens(input_ids)
        x = x + self.padded(functional.pad(x.transpose(1, 2), (3, 0))).transpose(1, 2)
        x = x + torch.tanh(self.cut(x.transpose(1, 2))[..., :count]).transpose(1, 2)
        before = torch.cat([torch.zeros_like(x[:, :1]), x[:, :-1]], dim=1)
        x = x * self.mix + before * (1 - self.mix)
        x = self.mixer(x)
        x = x + self.torch_attention(x)
        x = x + self.own_attention(x)
        mask = torch.ones(count, count, dtype=torch.bool).triu(1)
        x = x + self.multihead(x, x, x, attn_mask=mask)[0]
        return self.head(x)


@dataclass
class Output:
    """What Hugging Face's models return, in short."""

    logits: Tensor
    hidden_states: Tensor | None = None


class HuggingFaceStyle(nn.Module):
    """A class with the arguments and the masks of Hugging Face's decoders."""

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens, self.embed_positions = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(TABLE, WIDTH)
        self.mixers = nn.ModuleList(PoM(WIDTH, 2, 2, 1, 1) for _ in range(2))
        self.norm = nn.LayerNorm(WIDTH)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool = False,  # noqa: ARG002 (Hugging Face's signature)
        return_dict: bool = True,  # noqa: ARG002
    ) -> Output:
        count = input_ids.shape[1]
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if position_ids is None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)
        x = self.embed_tokens(input_ids) + self.embed_positions(position_ids)
        causal = torch.ones(count, count, dtype=torch.bool).tril()[None] & attention_mask[:, None, :].bool()
        for mixer in self.mixers:
            x = x + mixer(self.norm(x), mask=causal)
        return Output(self.lm_head(x))


class PackedMask(nn.Module):
    """A decoder whose mask is indexed by every row and position, and separates sequences that were packed together.

    The mask is made as in Hugging Face's transformers 5 (masking_utils.py).
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed_tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.heads = nn.Linear(WIDTH, 3 * WIDTH)
        self.mixer = PolynomialMixer(WIDTH, 2, 2)
        self.lm_head = nn.Linear(WIDTH, VOCABULARY, bias=False)

    def forward(self, input_ids: Tensor, position_ids: Tensor | None = None) -> Output:
        rows, count = input_ids.shape
        ids = input_ids.view(-1, count)
        if position_ids is None:
            position_ids = torch.arange(count)[None]
        places = position_ids.expand(rows, -1)
        packed = (torch.diff(places, prepend=places[:, :1] - 1, dim=-1) != 1).cumsum(-1)
        row = torch.arange(rows)[:, None, None, None]
        query, key = torch.arange(count)[None, None, :, None], torch.arange(count)[None, None, None, :]
        causal = places[row, key] <= places[row, query]
        mask = causal & (packed[row, query] == packed[row, key])
        x = self.embed_tokens(ids)
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.heads(x).chunk(3, -1))
        x = x + nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)
        return Output(self.lm_head(x + self.mixer(x, mask="causal")))


class TransformersDecoder(nn.Module):
    """torch's own Transformer decoder with causal mixers in place of its self-attention, and a memory."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        layer = nn.TransformerDecoderLayer(WIDTH, 2, 32, batch_first=True, norm_first=True)
        self.decoder = nn.TransformerDecoder(layer, 2)
        replace_attention(self.decoder, degree=2, expand=2)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, tgt: Tensor, memory: Tensor) -> Tensor:
        mask = nn.Transformer.generate_square_subsequent_mask(tgt.shape[1])
        return self.head(self.decoder(self.tokens(tgt), memory, tgt_mask=mask, tgt_is_causal=True))


class EncoderDecoder(nn.Module):
    """An encoder that mixes the whole source, and a decoder that mixes it into every token."""

    def __init__(self) -> None:
        super().__init__()
        self.source, self.target = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(VOCABULARY, WIDTH)
        self.encoder = Block(PoM(WIDTH, 2, 2, 1, 1), lambda mixer, x: mixer(x))
        self.self_mixer = Block(PoM(WIDTH, 2, 2, 1, 4), _causal)
        self.cross = PoM(WIDTH, 2, 2, 1, 1)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        context = self.encoder(self.source(src))
        x = self.self_mixer(self.target(tgt))
        return self.head(x + self.cross(x, context))


class AttendingEncoder(nn.Module):
    """An encoder of torch's attention, and cross attention with a mask of all tokens and all of the source's.

    Hugging Face's encoder-decoders make such masks, and take views of what attention returns.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tokens, self.heads = nn.Embedding(VOCABULARY, WIDTH), nn.Linear(WIDTH, 3 * WIDTH)
        self.mixer = PolynomialMixer(WIDTH, 2, 2)

    def attend(self, query: Tensor, source: Tensor) -> Tensor:
        mask = torch.ones((), dtype=torch.bool).expand(query.shape[0], 1, query.shape[1], source.shape[1])
        q = self.heads(query).chunk(3, -1)[0]
        _, k, v = self.heads(source).chunk(3, -1)
        q, k, v = (each.view(*each.shape[:2], 2, WIDTH // 2).transpose(1, 2) for each in (q, k, v))
        attended = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return attended.transpose(1, 2).reshape(*query.shape[:2], WIDTH)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        source = self.tokens(src)
        source = source + self.attend(source, source)
        x = self.mixer(self.tokens(tgt), mask="causal")
        return x + self.attend(x, source)


class MaskedSource(nn.Module):
    """An encoder-decoder that leaves the source's padding out, in cross attention and in cross mixing."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.block = Block(PolynomialMixer(WIDTH, 2, 2), _causal)
        self.cross = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.mixer = PolynomialMixer(WIDTH, 2, 2)

    def forward(self, tgt: Tensor, src: Tensor, src_mask: Tensor) -> Tensor:
        x = self.block(self.tokens(tgt))
        source = self.tokens(src)
        x = x + self.cross(x, source, source, key_padding_mask=src_mask == 0, need_weights=False)[0]
        return x + self.mixer(x, source, src_mask)


class NamedAsHuggingFaceDoes(MaskedSource):
    """Hugging Face's names, by which input_ids and attention_mask belong to the source."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor, decoder_input_ids: Tensor) -> Tensor:  # type: ignore[override]
        return super().forward(decoder_input_ids, input_ids, attention_mask)


class PickedSource(nn.Module):
    """A decoder whose every token gets a summary of the source: its first, last, largest and some other tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.encoder = Block(PolynomialMixer(WIDTH, 2, 2), lambda mixer, x: mixer(x))
        self.block = Block(PolynomialMixer(WIDTH, 2, 2), _causal)

    def forward(self, tgt: Tensor, src: Tensor) -> Tensor:
        encoded = self.encoder(self.tokens(src))
        # As CLIP's text encoder finds the last token of a text: it has the largest id.
        end = encoded[torch.arange(src.shape[0]), src.argmax(dim=1)]
        summary = encoded[:, :1] + encoded[:, -1].unsqueeze(1) + encoded.max(dim=1, keepdim=True).values + end[:, None]
        return self.block(self.tokens(tgt) + summary)


class TimeFirst(nn.Module):
    """A stack of torch's encoder layers with mixers, tokens first."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.mixer = MultiheadPolynomialMixer(WIDTH, 2, degree=2, expand=2)
        self.head = nn.Linear(WIDTH, VOCABULARY)

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tokens(input_ids).transpose(0, 1)
        mask = torch.ones(x.shape[0], x.shape[0], dtype=torch.bool).triu(1)
        x = x + self.mixer(x, x, x, attn_mask=mask)[0]
        return self.head(x.transpose(0, 1))


class MovingAverage(nn.Module):
    """A layer with a state of its own: an exponential moving average over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.decay = nn.Parameter(torch.rand(WIDTH))

    def forward(self, x: Tensor) -> Tensor:
        steps = torch.arange(x.shape[1])
        age = steps[:, None] - steps[None]
        weights = torch.where(age[..., None] >= 0, self.decay ** age.clamp(min=0)[..., None], 0.0)
        return torch.einsum("ijd,bjd->bid", weights, x)

    def state_shapes(self) -> dict[str, tuple[int, ...]]:
        return {"average": (WIDTH,)}

    def stream(self, x: Tensor, state: dict[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        steps = torch.arange(1, x.shape[1] + 1)
        y = self.forward_of_call(x) + state["average"][:, None] * self.decay ** steps[:, None]
        return y, {"average": y[:, -1]}

    def forward_of_call(self, x: Tensor) -> Tensor:
        return type(self).forward(self, x)


class WithOwnLayer(nn.Module):
    """A mixer after a layer of the user's own that keeps a state."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.average = MovingAverage()
        self.block = Block(PolynomialMixer(WIDTH, 2, 2), _causal)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.block(self.average(self.tokens(input_ids)))


class CrossAttention(nn.Module):
    """A decoder whose tokens attend to a memory, and mixers of two widths."""

    def __init__(self) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCABULARY, WIDTH)
        self.block = Block(PolynomialMixer(WIDTH, 2, 2), _causal)
        self.cross = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.wide = Block(PolynomialMixer(WIDTH, 2, 4), _causal)

    def forward(self, tgt: Tensor, memory: Tensor) -> Tensor:
        x = self.block(self.tokens(tgt))
        x = x + self.cross(x, memory, memory, need_weights=False)[0]
        return self.wide(x)


class LastToken(LearnedPositions):
    """nanoGPT's habit: without targets, only the last token's logits, and no loss."""

    def __init__(self, select: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.select = select

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        x = self.tokens(idx) + self.positions(torch.arange(idx.shape[1]))
        for block in self.blocks:
            x = block(x)
        if targets is None:
            return self.head(self.select(x)), None
        logits = self.head(x)
        return logits, functional.cross_entropy(logits.flatten(0, 1), targets.flatten())


def _ids(*shape: int) -> Tensor:
    return torch.randint(0, VOCABULARY, shape, generator=torch.Generator().manual_seed(0))


MODELS: dict[str, tuple[Callable[[], nn.Module], Callable[[], dict[str, Any]]]] = {
    "learned positions": (LearnedPositions, lambda: {"idx": _ids(2, 9)}),
    "triangle": (lambda: LearnedPositions(_lower_triangle), lambda: {"idx": _ids(2, 9)}),
    "sliced table": (SlicedTable, lambda: {"x": torch.randn(2, 9, WIDTH)}),
    "rotary by hand": (RotaryByHand, lambda: {"input_ids": _ids(2, 9)}),
    "hybrid": (Hybrid, lambda: {"input_ids": _ids(2, 9)}),
    "grouped query": (
        GroupedQuery,
        lambda: {"input_ids": _ids(2, 9), "attention_mask": torch.ones(2, 9, dtype=torch.int64)},
    ),
    "hugging face": (
        HuggingFaceStyle,
        lambda: {"input_ids": _ids(2, 9), "attention_mask": torch.ones(2, 9, dtype=torch.int64)},
    ),
    "packed mask": (PackedMask, lambda: {"input_ids": _ids(2, 9)}),
    "transformers decoder": (TransformersDecoder, lambda: {"tgt": _ids(2, 9), "memory": torch.randn(2, 5, WIDTH)}),
    "encoder-decoder": (EncoderDecoder, lambda: {"src": _ids(2, 9), "tgt": _ids(2, 9)}),
    "attending encoder": (AttendingEncoder, lambda: {"src": _ids(2, 5), "tgt": _ids(2, 9)}),
    "own layer": (WithOwnLayer, lambda: {"input_ids": _ids(2, 9)}),
    "cross attention": (CrossAttention, lambda: {"tgt": _ids(2, 9), "memory": torch.randn(2, 5, WIDTH)}),
    "masked source": (
        MaskedSource,
        lambda: {"tgt": _ids(2, 9), "src": _ids(2, 5), "src_mask": torch.tensor([[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]])},
    ),
    "masked source, named as hugging face does": (
        NamedAsHuggingFaceDoes,
        lambda: {
            "input_ids": _ids(2, 9),
            "attention_mask": torch.tensor([[1] * 7 + [0] * 2, [1] * 9]),
            "decoder_input_ids": _ids(2, 9),
        },
    ),
    "picked source": (PickedSource, lambda: {"tgt": _ids(2, 9), "src": _ids(2, 6)}),
    "time first": (TimeFirst, lambda: {"input_ids": _ids(2, 9)}),
}
"""Models and example inputs by name."""

LAST_TOKEN: dict[str, Callable[[Tensor], Tensor]] = {
    "list": lambda x: x[:, [-1], :],
    "slice": lambda x: x[:, -1:],
    "index": lambda x: x[:, -1],
}
"""Ways to select the last token."""
