"""Convert older layouts of the same weights to the current one."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from pom_export.errors import CheckpointError

_CONTEXT, _GATE, _GATE_BIAS = "po_proj.weight", "se_proj.weight", "se_proj.bias"
_CONTEXT_BIAS = "po_proj.bias"
_JOINED, _JOINED_BIAS = "qc_proj.weight", "se_bias"
_COEFFICIENTS = "po_coeff"  # v1, which has the two projections too, lacks it
_MATRIX = 2  # the weight of a grouped projection has three dimensions


def with_joined_projections(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Join the separate projections of context and gate, the layout of v2 before 2026-03-28.

    Args:
        tensors: the state dict of a mixer, or of a model with mixers.

    Returns:
        The state dict in the current layout, and the prefixes of the mixers that were in the older one.

    Raises:
        CheckpointError: a context projection has a bias, which the current layout lacks; or a mixer has the gate's bias
            in both layouts.
    """
    prefixes = [name.removesuffix(_GATE) for name in tensors if name.endswith(_GATE)]
    older = [prefix for prefix in prefixes if _is_separate(tensors, prefix)]
    renamed: dict[str, str | None] = {}
    for prefix in older:
        _check_bias(tensors, prefix + _CONTEXT_BIAS)
        if prefix + _JOINED_BIAS in tensors:
            raise CheckpointError(
                f"{prefix}{_GATE_BIAS} and {prefix}{_JOINED_BIAS} are the same parameter in two layouts",
                "Save only one of them, so that it is clear which one to use",
            )
        renamed |= {
            prefix + _CONTEXT: prefix + _JOINED,
            prefix + _GATE_BIAS: prefix + _JOINED_BIAS,
            prefix + _GATE: None,
            prefix + _CONTEXT_BIAS: None,
        }
    result: dict[str, Tensor] = {}
    for name, tensor in tensors.items():
        new = renamed.get(name, name)
        if new is None:
            continue
        if name in renamed and name.endswith(_CONTEXT):
            gate = tensors[name.removesuffix(_CONTEXT) + _GATE]
            result[new] = torch.cat([tensor.detach(), gate.detach()])
        else:
            result[new] = tensor
    return result, older


def _is_separate(tensors: Mapping[str, Tensor], prefix: str) -> bool:
    needed = (_CONTEXT, _GATE, _GATE_BIAS, _COEFFICIENTS)
    if not all(prefix + name in tensors for name in needed) or prefix + _JOINED in tensors:
        return False
    context, gate = tensors[prefix + _CONTEXT], tensors[prefix + _GATE]
    return context.dim() == gate.dim() == _MATRIX and context.shape[1] == gate.shape[1]


def _check_bias(tensors: Mapping[str, Tensor], name: str) -> None:
    if name in tensors and bool((tensors[name] != 0).any()):
        raise CheckpointError(
            f"{name} is a bias of the context projection, which a v2 mixer with one group does not have",
            "Load it into your own class and call pom_export.export(module, output, example_inputs=(...))",
        )
