"""Initialise a PoM from the trained attention that it replaces."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pom_export.contract import LEAKY_SLOPE
from pom_export.mixer import PolynomialMixer

# hardsigmoid(0): the approximate value of the gate before training.
_GATE = 0.5


def start_from_values(
    mixer: PolynomialMixer, value_weight: Tensor, value_bias: Tensor | None, output: nn.Linear
) -> bool:
    """Give a mixer the value and output projections of attention, so that it starts as their mean.

    Attention with uniform weights is W_o mean(W_v x). With channels for W_v x and for -W_v x and the polynomial h, h(z)
    - h(-z) = 1.01 z up to the clamp at 6, so the mixer's output is the same times its gate. The gate is initially
    around 1/2, which is compensated for. Higher powers start at 0 in these channels and are learned.

    Args:
        mixer: the mixer, changed in place.
        value_weight: (a, d), projection of the context to the values.
        value_bias: (a), or None.
        output: projection of the heads to the output, (a to d).

    Returns:
        Whether it was done: not if the context projection is grouped, or there are fewer than 2 a channels.
    """
    inner, config = value_weight.shape[0], mixer.config
    if config.n_groups > 1 or config.channels < 2 * inner:
        return False
    scale = 1 / (_GATE * (1 + LEAKY_SLOPE))
    with torch.no_grad():
        mixer.qc_proj.weight[: 2 * inner] = torch.cat([value_weight, -value_weight])
        mixer.po_coeff[: 2 * inner] = 0
        mixer.po_coeff[: 2 * inner, 0] = 1
        mixer.ag_proj.weight.zero_()
        mixer.ag_proj.weight[:, : 2 * inner] = scale * torch.cat([output.weight, -output.weight], dim=1)
        if mixer.ag_proj.bias is not None:
            mixer.ag_proj.bias.copy_(_mean_bias(value_bias, output))
    return True


def _mean_bias(value_bias: Tensor | None, output: nn.Linear) -> Tensor:
    """Return the bias of W_o (W_v x + b_v) + b_o."""
    bias = output.weight.new_zeros(output.out_features) if output.bias is None else output.bias
    return bias if value_bias is None else bias + output.weight @ value_bias
