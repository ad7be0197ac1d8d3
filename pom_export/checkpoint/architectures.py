"""The known architectures: how to recognise each by its names, and how to derive its configuration from shapes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from torch import Size

from pom_export import contract
from pom_export.checkpoint.families import JIT, LANGUAGE_MODEL, MIXER, NANOGPT, V1, V1_GROUPED, V2
from pom_export.checkpoint.hints import Hints
from pom_export.checkpoint.spec import Config
from pom_export.errors import CheckpointError, InputError
from pom_export.mixer import MixerConfig, ProductMixerConfig, RotaryConfig
from pom_export.models import GPTConfig, JiTConfig, LanguageModelConfig
from pom_export.models.jit import IN_CONTEXT_STARTS

Shapes = Mapping[str, Size]
_MixerConfig = TypeVar("_MixerConfig", MixerConfig, ProductMixerConfig)

_GROUPED_RANK = 3  # the weight of a 1x1 convolution
_LONGEST_INDEX = 10
_MOST_BLOCKS = 4096


@dataclass(frozen=True)
class Architecture:
    """A kind of checkpoint.

    Attributes:
        label: its value for `family`.
        architecture: the spec's architecture.
        family: the spec's family.
        typical: names in its state dicts; only those of block 0 if it has blocks.
        matches: returns whether names and ranks fit the architecture.
        derive: derives the hyper-parameters from shapes and hints.
        sampled_from_average: whether its authors use an average of the weights, so that a file's first average is the
            default.
    """

    label: str
    architecture: str
    family: str
    typical: tuple[str, ...]
    matches: Callable[[Shapes], bool]
    derive: Callable[[Shapes, Hints], Config]
    sampled_from_average: bool = False


def _below(shapes: Shapes, prefix: str) -> dict[str, Size]:
    return {name.removeprefix(prefix): shape for name, shape in shapes.items() if name.startswith(prefix)}


def _derived_below(
    shapes: Shapes, prefix: str, derive: Callable[[Shapes, Hints], _MixerConfig], hints: Hints
) -> _MixerConfig:
    """Derive a mixer's hyper-parameters from the names below a prefix; errors give the full name of a missing one."""
    try:
        return derive(_below(shapes, prefix), hints)
    except KeyError as error:
        raise KeyError(prefix + error.args[0]) from error


def _blocks(shapes: Shapes, prefix: str) -> list[int]:
    """Return the distinct indices of blocks, not all up to the largest, since an absurd name must not create a million.

    Raises:
        InputError: there are more than in any model; each of them would be built for the comparison.
    """
    found = {name.split(".", 1)[0] for name in _below(shapes, prefix)}
    indices = sorted({int(index) for index in found if index.isdecimal() and len(index) < _LONGEST_INDEX})
    if len(indices) > _MOST_BLOCKS:
        raise InputError(f"it has {len(indices):,} blocks, but at most {_MOST_BLOCKS:,} are supported")
    return indices


def _quotient(whole: int, part: int, message: str) -> int:
    if part == 0 or whole % part:
        raise InputError(message)
    return whole // part


def _v2_config(shapes: Shapes, hints: Hints) -> MixerConfig:
    channels, degree = shapes["po_coeff"][0], shapes["po_coeff"][1]
    dim = shapes["ag_proj.weight"][0]
    expand = _quotient(
        channels, dim, f"po_coeff has {channels} channels, not a multiple of ag_proj.weight's width {dim}"
    )
    if "qc_proj.weight" in shapes or "se_bias" in shapes:
        _ = shapes["qc_proj.weight"]
        groups, gates = 1, shapes["se_bias"][0]
    else:
        inputs = shapes["po_proj.weight"][1]
        if len(shapes["po_proj.weight"]) < _GROUPED_RANK:
            raise _incomplete_separate(shapes)
        groups, gates = dim // inputs if inputs else 0, shapes["se_proj.weight"][0]
    rotary = None
    if "freqs_cos" in shapes:
        rotary = RotaryConfig(shapes["freqs_cos"][0])
    elif "row_cos" in shapes:
        rotary = RotaryConfig(max_h=shapes["row_cos"][0], max_w=shapes["col_cos"][0])
    elif hints.rotary:
        raise InputError("the configuration asks for rotary positions, but the file has neither freqs_cos nor row_cos")
    heads = 1 if gates == channels else gates
    return MixerConfig(dim, degree, expand, groups, heads, _has_bias(shapes, "ag_proj", "po_proj"), rotary)


def _incomplete_separate(shapes: Shapes) -> Exception:
    """Return the reason why separate projections, the older layout of v2, cannot be joined."""
    absent = [name for name in ("se_proj.weight", "se_proj.bias") if name not in shapes]
    if absent:
        return KeyError(absent[0])
    context, gate = shapes["po_proj.weight"], shapes["se_proj.weight"]
    return InputError(f"po_proj.weight is {tuple(context)} and se_proj.weight {tuple(gate)}")


def _has_bias(shapes: Shapes, *names: str) -> bool:
    """Return whether any of the layers has a bias; then all must have one."""
    return any(f"{name}.bias" in shapes for name in names)


def _degree_and_expand(factors: int, hints: Hints) -> tuple[int, int]:
    """Split K * k, because the shapes of v1 only determine the product."""
    choices = [degree for degree in range(1, min(factors, contract.MAX_DEGREE) + 1) if factors % degree == 0]
    if hints.degree is None and factors > 1:
        raise CheckpointError(
            f"the shapes of a v1 mixer do not determine its degree: degree x expand is {factors}",
            f'Give `degree` {_either(choices)}, or a config.json beside the file with "degree"{_doubts(hints)}',
        )
    degree = hints.degree or 1
    if degree not in choices:
        raise CheckpointError(
            f"degree {degree}{hints.origin('degree')} does not fit the shapes: degree x expand is {factors}",
            f"Give `degree` {_either(choices)}",
        )
    return degree, factors // degree


def _doubts(hints: Hints) -> str:
    return f" ({'; '.join(hints.doubts)})" if hints.doubts else ""


def _either(choices: Sequence[int]) -> str:
    *most, last = map(str, choices)
    return f"{', '.join(most)} or {last}" if most else last


def _v1_config(shapes: Shapes, hints: Hints) -> ProductMixerConfig:
    projection = shapes["po_proj.weight"]
    dim = shapes["ag_proj.weight"][0]
    factors = _quotient(
        projection[0], dim, f"po_proj.weight has {projection[0]} rows, not a multiple of ag_proj.weight's width {dim}"
    )
    heads = None
    if len(projection) == _GROUPED_RANK:
        heads = _quotient(dim, projection[1], f"po_proj.weight's groups of {projection[1]} don't divide {dim}")
    degree, expand = _degree_and_expand(factors, hints)
    return ProductMixerConfig(dim, degree, expand, heads, _has_bias(shapes, "ag_proj", "po_proj", "se_proj"))


def _language_model_config(shapes: Shapes, hints: Hints) -> LanguageModelConfig:
    return LanguageModelConfig(
        vocab_size=shapes["embedding.weight"][0],
        n_layers=len(_blocks(shapes, "blocks.")),
        window=shapes["convolution.weight"][2],
        mlp_width=shapes["blocks.0.mlp_up.weight"][0],
        mixer=_derived_below(shapes, "blocks.0.mixer.", _v2_config, hints),
    )


def _gpt_config(shapes: Shapes, hints: Hints) -> GPTConfig:
    if hints.local:
        raise InputError("its configuration asks for attention in local windows, which is not supported")
    embedding = shapes.get("transformer.wte.weight") or shapes["lm_head.weight"]
    indices = _blocks(shapes, "transformer.h.")
    attention = tuple(i for i in indices if f"transformer.h.{i}.attn.c_attn.weight" in shapes)
    mixers = [i for i in indices if i not in attention]
    if not mixers:
        raise CheckpointError(
            "it is a language model with self-attention in every block: it has no mixer",
            "See docs/pom.md for how to replace attention with PoM",
        )
    mixer = _derived_below(shapes, f"transformer.h.{mixers[0]}.attn.pom.", _v1_config, hints)
    width = embedding[1]
    heads = _gpt_heads(shapes, "rotary.inv_freq", width, hints)
    in_attention = [f"transformer.h.{i}.attn.rotary.inv_freq" for i in attention]
    return GPTConfig(
        vocab_size=embedding[0],
        n_layer=len(indices),
        n_head=heads,
        n_embd=width,
        mixer_heads=mixer.heads,
        attention_heads=_gpt_heads(shapes, in_attention[0], width, hints) if attention else heads,
        degree=mixer.degree,
        expand=mixer.expand,
        mlp_width=shapes[f"transformer.h.{indices[0]}.mlp.c_fc.weight"][0],
        attention_layers=attention,
    )


def _gpt_heads(shapes: Shapes, buffer: str, width: int, hints: Hints) -> int:
    """Return the number of heads of a rotation, whose buffer determines the width of a head."""
    if buffer in shapes:
        pairs = shapes[buffer][0]
        return _quotient(width, 2 * pairs, f"{buffer}'s {pairs} frequencies don't divide width {width}")
    if hints.heads is None:
        raise CheckpointError(
            f"the shapes do not determine the number of heads: the buffer {buffer} is missing",
            'Give `heads`, or a config.json beside the file with "n_head"',
        )
    return hints.heads


def _jit_config(shapes: Shapes, hints: Hints) -> JiTConfig:
    if "blocks.0.attn.qkv.weight" in shapes:
        raise CheckpointError(
            "it is an image model with self-attention in every block: it has no mixer",
            "See docs/pom.md for how to replace attention with PoM",
        )
    if any(name.startswith("blocks.0.attn.pom.") for name in shapes):
        raise CheckpointError(
            "it is an earlier version of the image model, which rotates tokens by their positions before its mixers",
            "Load it into its own class and call pom_export.export(module, output, example_inputs=(x, t, y))",
        )
    mixer = _derived_below(shapes, "blocks.0.attn.", _v2_config, hints)
    if mixer.rotary is None or mixer.rotary.blocks == 1:
        raise InputError("its mixers lack the tables row_cos and col_cos")
    patches, embedding = shapes["x_embedder.proj1.weight"], shapes["pos_embed"]
    tokens, patch = embedding[1], patches[2]
    side = math.isqrt(tokens)
    if side * side != tokens:
        raise InputError(f"pos_embed has {tokens} patches, which is not a square number, and images are square")
    depth = len(_blocks(shapes, "blocks."))
    in_context = shapes["in_context_posemb"][1] if "in_context_posemb" in shapes else 0
    return JiTConfig(
        input_size=side * patch,
        patch_size=patch,
        hidden_size=embedding[2],
        depth=depth,
        num_heads=mixer.n_sel_heads,
        num_classes=shapes["y_embedder.embedding_table.weight"][0] - 1,
        bottleneck_dim=patches[0],
        in_context_len=in_context,
        in_context_start=_in_context_start(depth, hints) if in_context else 0,
        pom_degree=mixer.degree,
        pom_expand=mixer.expand,
        pom_n_groups=mixer.n_groups,
        mlp_width=shapes["blocks.0.mlp.w3.weight"][1],
        max_h=mixer.rotary.max_h,
        max_w=mixer.rotary.max_w,
        channels=patches[1],
    )


def _in_context_start(depth: int, hints: Hints) -> int:
    """Return the block before which the in-context tokens are inserted: the hint, or that of the published models."""
    start = IN_CONTEXT_STARTS.get(depth) if hints.in_context_start is None else hints.in_context_start
    if start is None:
        published = ", ".join(map(str, IN_CONTEXT_STARTS))
        raise CheckpointError(
            f"its shapes do not say before which of its {depth} blocks the in-context tokens go; that is known only "
            f"for the published depths, {published}",
            f"Give `in_context_start`, 0 to {depth - 1}: the in_context_start of its constructor",
        )
    if start >= depth:
        raise CheckpointError(
            f"in_context_start {start}{hints.origin('in_context_start')} does not fit: it has {depth} blocks",
            f"Choose one from 0 to {depth - 1}",
        )
    return start


def _is_v1(shapes: Shapes, rank: int) -> bool:
    named = {"po_proj.weight", "se_proj.weight", "ag_proj.weight"} <= shapes.keys() and "po_coeff" not in shapes
    return named and len(shapes["po_proj.weight"]) == rank


_V1_NAMES = ("po_proj.weight", "se_proj.weight", "ag_proj.weight")

# In the order in which they are tried.
ARCHITECTURES = (
    Architecture(
        NANOGPT,
        NANOGPT,
        V1_GROUPED,
        (
            *(f"transformer.h.0.attn.pom.{name}" for name in _V1_NAMES),
            *("transformer.wte.weight", "lm_head.weight", "rotary.inv_freq"),
            *("transformer.h.0.mlp.c_fc.weight", "transformer.h.0.mlp.c_proj.weight"),
        ),
        lambda shapes: any(
            ".attn.pom." in name or ".attn.c_attn." in name for name in _below(shapes, "transformer.h.")
        ),
        _gpt_config,
    ),
    Architecture(
        JIT,
        JIT,
        V2,
        (
            *("pos_embed", "x_embedder.proj1.weight", "y_embedder.embedding_table.weight", "final_layer.linear.weight"),
            *(f"blocks.0.attn.{name}" for name in ("qc_proj.weight", "se_bias", "po_coeff", "ag_proj.weight")),
        ),
        lambda shapes: {"pos_embed", "x_embedder.proj1.weight", "y_embedder.embedding_table.weight"} <= shapes.keys(),
        _jit_config,
        sampled_from_average=True,
    ),
    Architecture(
        LANGUAGE_MODEL,
        LANGUAGE_MODEL,
        V2,
        (
            *("embedding.weight", "convolution.weight", "norm.weight"),
            *(f"blocks.0.{name}.weight" for name in ("mixer_norm", "mlp_norm", "mlp_up", "mlp_down")),
            *(f"blocks.0.mixer.{name}" for name in ("qc_proj.weight", "se_bias", "po_coeff", "ag_proj.weight")),
        ),
        lambda shapes: "embedding.weight" in shapes and any("mixer." in name for name in _below(shapes, "blocks.0.")),
        _language_model_config,
    ),
    Architecture(
        V2,
        MIXER,
        V2,
        ("po_coeff", "ag_proj.weight", "qc_proj.weight", "se_bias"),
        lambda shapes: "po_coeff" in shapes,
        _v2_config,
    ),
    Architecture(V1, MIXER, V1, _V1_NAMES, lambda shapes: _is_v1(shapes, 2), _v1_config),
    Architecture(V1_GROUPED, MIXER, V1_GROUPED, _V1_NAMES, lambda shapes: _is_v1(shapes, _GROUPED_RANK), _v1_config),
)
