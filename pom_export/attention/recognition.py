"""Recognise attention modules by class, by shape and names, or by what their code calls."""

from __future__ import annotations

import ast
import inspect
import textwrap
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache

from torch import nn

from pom_export.attention.costs import AttentionShape
from pom_export.errors import InputError, kind_of

TORCH, TIMM, HUGGING_FACE, FUSED, FUNCTION = "torch", "timm-style", "hugging-face-style", "fused c_attn", "function"

_SEPARATE_PROJECTIONS = (
    ("q_proj", "k_proj", "v_proj"),
    ("query", "key", "value"),
    ("to_q", "to_k", "to_v"),
    ("q_lin", "k_lin", "v_lin"),
    ("q", "k", "v"),
)
_OUTPUT_PROJECTIONS = ("o_proj", "out_proj", "proj", "dense", "out_lin", "o")
_HEAD_COUNTS = ("num_heads", "num_attention_heads", "n_heads", "n_head", "heads")
_TIMM_PARTS = {"qkv", "proj", "q_norm", "k_norm", "norm", "attn_drop", "proj_drop"}
# Modules that a PoM can do without.
_HARMLESS = (nn.Identity, nn.Softmax, nn.modules.dropout._DropoutNd)
_SDPA = "scaled_dot_product_attention"
_BY_HAND = (
    "its forward has a signature of its own: wrap MultiheadPolynomialMixer({dim}, {heads}) in a module with that "
    "signature, and assign it"
)
_OUTPUT_ELSEWHERE = "its output projection is elsewhere, and a PoM brings its own"


@dataclass(frozen=True)
class RecognisedAttention:
    """What a module was recognised as.

    Attributes:
        kind: one of this module's constants.
        shape: its sizes, or None if only its code was recognised.
        obstacle: why it can't be replaced, and what to do; "" if it can.
    """

    kind: str
    shape: AttentionShape | None
    obstacle: str


@dataclass
class Found:
    """An attention layer of a model.

    Attributes:
        name: its path; the first one if it is shared.
        module: the layer.
        what: what it was recognised as.
        layer: class of the torch.nn Transformer layer that it is part of, or "".
        places: its parents, each with its name there.
    """

    name: str
    module: nn.Module
    what: RecognisedAttention
    layer: str
    places: list[tuple[nn.Module, str]] = field(default_factory=list)


def find_attention(model: nn.Module) -> list[Found]:
    """Return a model's attention layers in order; shared ones are listed once.

    Raises:
        InputError: the model is not a module.
    """
    if not isinstance(model, nn.Module):
        raise InputError(f"the model is {kind_of(model)}", "Give an nn.Module")
    found: dict[nn.Module, Found] = {}
    visited: set[nn.Module] = set()

    def visit(module: nn.Module, name: str, layer: str) -> None:
        visited.add(module)
        what = recognise(module)
        if what is not None:
            found[module] = Found(name, module, what, layer)
            if what.kind != FUNCTION:
                return
        if isinstance(module, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            layer = type(module).__name__
        for child_name, child in module._modules.items():
            if child is None:
                continue
            if child not in visited:
                visit(child, f"{name}.{child_name}" if name else child_name, layer)
            if child in found:
                found[child].places.append((module, child_name))

    visit(model, "", "")
    return list(found.values())


def recognise(module: nn.Module) -> RecognisedAttention | None:
    """Return the kind of attention that a module is, or None."""
    recognisers: tuple[Callable[[nn.Module], RecognisedAttention | None], ...] = (
        _torch,
        _timm,
        _separate,
        _fused,
        _function,
    )
    what = next((what for recogniser in recognisers if (what := recogniser(module)) is not None), None)
    if what is None or what.obstacle or not (own := _added(module)):
        return what
    return replace(what, obstacle=f"it has {own}, which a PoM in its place would lose: replace it by hand, or keep it")


def _added(module: nn.Module) -> str:
    """Return what was added to this instance, or ""."""
    if module._forward_hooks or module._forward_pre_hooks:
        return "forward hooks"
    return "a forward that was assigned to it" if "forward" in vars(module) else ""


def _torch(module: nn.Module) -> RecognisedAttention | None:
    if not isinstance(module, nn.MultiheadAttention):
        return None
    dim, kdim, vdim = module.embed_dim, module.kdim, module.vdim
    weights = dim * (dim + kdim + vdim + dim)
    bytes_ = module.out_proj.weight.element_size()
    bias = module.in_proj_bias is not None
    obstacle = ""
    if type(module).forward is not nn.MultiheadAttention.forward:
        obstacle = f"{type(module).__name__} has a forward of its own: assign a MultiheadPolynomialMixer by hand"
    elif module.bias_k is not None or module.add_zero_attn:
        obstacle = "add_bias_kv and add_zero_attn have no meaning for a PoM: train without them"
    elif kdim != vdim:
        obstacle = f"keys have width {kdim} and values {vdim}, but PoM has a single context: project one of them first"
    return RecognisedAttention(
        TORCH, AttentionShape(dim, module.num_heads, weights, dim, 2 * dim, bytes_, kdim, bias), obstacle
    )


def _timm(module: nn.Module) -> RecognisedAttention | None:
    qkv, proj, heads = getattr(module, "qkv", None), getattr(module, "proj", None), _heads(module)
    packed, output = _sizes(qkv), _sizes(proj)
    if packed is None or output is None or not heads:
        return None
    dim, inner = packed[0], output[0]
    if packed[1] != 3 * inner or output[1] != dim:
        return None
    weights, bias = dim * 3 * inner + inner * dim, getattr(proj, "bias", None) is not None
    shape = AttentionShape(dim, heads, weights, inner, 2 * inner, _bytes(module), dim, bias)
    return RecognisedAttention(TIMM, shape, _timm_obstacle(module))


def _timm_obstacle(module: nn.Module) -> str:
    """Return what distinguishes a timm-style block from the plain one, such as a relative position bias."""
    for name in ("qkv", "proj"):
        if not isinstance(layer := getattr(module, name), nn.Linear):
            fold = "fold it into a plain nn.Linear first, such as with merge_and_unload (peft)"
            return f"its {name} is {kind_of(layer)}: {fold}"
    own = [name for name, _ in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False))]
    own += [
        name for name, child in module.named_children() if name not in _TIMM_PARTS and not isinstance(child, _HARMLESS)
    ]
    if own:
        return f"it holds {', '.join(own)}, which a PoM would drop: filter by hand, or keep it"
    parameters = list(inspect.signature(module.forward).parameters.values())
    required = [p.name for p in parameters if p.default is p.empty and p.kind is not p.VAR_KEYWORD]
    return "" if len(required) == 1 else f"its forward takes {', '.join(required)}, not one input: replace it by hand"


def _separate(module: nn.Module) -> RecognisedAttention | None:
    for names in _SEPARATE_PROJECTIONS:
        sizes = [_sizes(getattr(module, name, None)) for name in names]
        query, key, value = sizes
        if query is None or key is None or value is None or key[0] != value[0]:
            continue
        output = next((name for name in _OUTPUT_PROJECTIONS if _sizes(getattr(module, name, None))), None)
        output_sizes = _sizes(getattr(module, output)) if output else None
        weights = sum(rows * columns for rows, columns in (query, key, value, output_sizes or (0, 0)))
        bias = getattr(getattr(module, output or names[2]), "bias", None) is not None
        shape = AttentionShape(
            query[0], _heads(module), weights, query[1], key[1] + value[1], _bytes(module), key[0], bias
        )
        what = _by_hand(HUGGING_FACE, shape)
        return what if output else replace(what, obstacle=f"{what.obstacle}; {_OUTPUT_ELSEWHERE}")
    return None


def _fused(module: nn.Module) -> RecognisedAttention | None:
    packed, output = _sizes(getattr(module, "c_attn", None)), _sizes(getattr(module, "c_proj", None))
    if packed is None or output is None or packed[1] != 3 * packed[0]:
        return None
    dim = packed[0]
    shape = AttentionShape(dim, _heads(module), 4 * dim * dim, dim, 2 * dim, _bytes(module), dim, bias=True)
    return _by_hand(FUSED, shape)


def _function(module: nn.Module) -> RecognisedAttention | None:
    # TorchScript modules have no Python code.
    forward = getattr(type(module), "forward", None)
    if forward is None or not _calls_sdpa(forward):
        return None
    return RecognisedAttention(
        FUNCTION, None, f"its forward calls {_SDPA}; its sizes are not known: replace it by hand"
    )


def _by_hand(kind: str, shape: AttentionShape) -> RecognisedAttention:
    return RecognisedAttention(kind, shape, _BY_HAND.format(dim=shape.embed_dim, heads=shape.heads or "heads"))


@cache
def _calls_sdpa(forward: Callable[..., object]) -> bool:
    if forward.__module__.startswith("torch."):
        return False
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(forward)))
    except (OSError, TypeError, SyntaxError):
        return False
    names = (getattr(node, "attr", getattr(node, "id", None)) for node in ast.walk(tree))
    return _SDPA in names


def _sizes(part: object) -> tuple[int, int] | None:
    """Return (inputs, outputs) of a linear layer: torch's, quantised, adapted, or Hugging Face's Conv1D."""
    if isinstance(base := getattr(part, "base_layer", None), nn.Module):
        return _sizes(base)
    for inputs, outputs in (("in_features", "out_features"), ("nx", "nf")):
        sizes = getattr(part, inputs, None), getattr(part, outputs, None)
        if isinstance(part, nn.Module) and isinstance(sizes[0], int) and isinstance(sizes[1], int):
            return sizes[0], sizes[1]
    return None


def _heads(module: nn.Module) -> int:
    """Return the number of heads according to a module or its `config`, or 0."""
    for owner in (module, getattr(module, "config", None)):
        for name in _HEAD_COUNTS:
            value = getattr(owner, name, None)
            if isinstance(value, int) and value > 0:
                return value
    return 0


def _bytes(module: nn.Module) -> int:
    return next((parameter.element_size() for parameter in module.parameters()), 4)
