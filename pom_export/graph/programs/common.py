"""Code shared by the programs of a mixer."""

from __future__ import annotations

import torch
from torch import nn

from pom_export.errors import InputError
from pom_export.graph.exported_model import TOKENS, InputLimits
from pom_export.graph.options import GraphOptions
from pom_export.graph.program import Axes
from pom_export.mixer import ProductMixer, RotaryConfig, RotaryPolynomialMixer

# The product form has no clamp: for large inputs, its products of K factors exceed float16's range.
_PRODUCT_SCALE = 4.0


def rotary_of(mixer: nn.Module, options: GraphOptions) -> RotaryConfig | None:
    """Return the positions of a rotary mixer; None for other mixers.

    Raises:
        InputError: the options do not fit.
    """
    rotary = mixer.rotary if isinstance(mixer, RotaryPolynomialMixer) else None
    if options.positions and rotary is None:
        raise InputError("the mixer has no rotary positions; `positions` does not apply", "Leave it out")
    if rotary is not None and rotary.blocks > 1 and not options.positions:
        raise InputError(
            "the mixer's positions are rows and columns, which only the caller can give", "Give `positions=True`"
        )
    return rotary


def _add_positions(axes: Axes, rotary: RotaryConfig, source: str) -> InputLimits:
    """Add the position inputs to the axes, and return the limits on them."""
    columns = () if rotary.blocks == 1 else (rotary.blocks,)
    axes["positions"] = ((TOKENS, *columns), torch.int64)
    names = ["positions"]
    if source != TOKENS:
        axes["context_positions"] = ((source, *columns), torch.int64)
        names.append("context_positions")
    return InputLimits(dict.fromkeys(names, rotary.limits))


def mixer_limits(
    mixer: nn.Module, rotary: RotaryConfig | None, options: GraphOptions, axes: Axes, source: str = TOKENS
) -> InputLimits:
    """Return the limits on a mixer's inputs, after adding the position inputs to the axes.

    Args:
        mixer: the mixer.
        rotary: its positions.
        options: whether the positions are inputs.
        axes: axes of the inputs.
        source: name of the context's token dimension.
    """
    if rotary is not None and options.positions:
        return _add_positions(axes, rotary, source)
    return InputLimits(
        tokens=rotary.max_seq_len if rotary is not None else None,
        scale=_PRODUCT_SCALE if isinstance(mixer, ProductMixer) else None,
    )
