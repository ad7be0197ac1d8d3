"""A Polynomial Mixer in place of a vision transformer's attention block."""

from __future__ import annotations

from torch import Tensor, nn

from pom_export.attention.multihead import MultiheadPolynomialMixer
from pom_export.errors import InputError


class VisionPolynomialMixer(nn.Module):
    """Mixes a sequence with itself, called like timm's `Attention`.

    Args:
        mixer: the layer, with `batch_first`.
        proj_drop: dropout of the output, or None.
    """

    def __init__(self, mixer: MultiheadPolynomialMixer, proj_drop: nn.Module | None = None) -> None:
        super().__init__()
        self.mixer = mixer
        self.proj_drop = nn.Identity() if proj_drop is None else proj_drop

    def forward(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Mix tokens.

        Args:
            x: (B, N, d).
            attn_mask: must be None.
            is_causal: whether token i only sees the tokens 0..i.

        Returns:
            (B, N, d).

        Raises:
            InputError: a mask was given.
        """
        if attn_mask is not None:
            raise InputError(
                f"a replaced block was given a mask of shape {tuple(attn_mask.shape)}",
                "Use MultiheadPolynomialMixer, which takes masks",
            )
        return self.proj_drop(self.mixer(x, x, x, is_causal=is_causal)[0])
