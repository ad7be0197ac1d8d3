"""How one of our models becomes a graph, and which options fit together. Does not need torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Final

from pom_export.checkpoint.families import JIT, LANGUAGE_MODEL, NANOGPT
from pom_export.errors import InputError
from pom_export.graph.claims import MASKS
from pom_export.values import is_whole

_LANGUAGE_MODELS: Final = (LANGUAGE_MODEL, NANOGPT)


@dataclass(frozen=True)
class GraphOptions:
    """How a model becomes a graph.

    Attributes:
        mask: "none", "causal", "padding" ((B, N) input) or "full" ((B, T, N) input); None: the architecture's own.
        cross: whether the mixer gets a separate context input (B, M, d).
        positions: whether the tokens' positions are an input, (N) or (N, 2) int64; for rotary mixers.
        static: (batch, tokens) to fix, or None for dynamic dimensions. Context tokens are fixed to `tokens`.
        stateful: whether a call continues from a state that is an input, and returns the next state. The mask is then
            "causal", which is the default, or "padding" to mask tokens at the end of each row.
        block_causal: for a stateful mixer: whether all tokens of a call see the whole call, not only the tokens up to
            themselves.
    """

    mask: str | None = None
    cross: bool = False
    positions: bool = False
    static: tuple[int, int] | None = None
    stateful: bool = False
    block_causal: bool = False

    @property
    def default_mask(self) -> str:
        """The mask of a mixer if none is given."""
        return "causal" if self.stateful and not self.block_causal else "none"


def check_options(options: GraphOptions, kind: str | None = None) -> None:
    """Refuse options that contradict each other, or that do not fit the model as far as its kind is known.

    Args:
        options: the requested options.
        kind: one of `FAMILIES`, or an architecture; None: not known yet.

    Raises:
        InputError: an option is unusable.
    """
    if options.mask is not None and options.mask not in MASKS:
        raise InputError(f"unknown mask {options.mask!r}", f"Choose one of {', '.join(MASKS)}")
    _check_static(options.static)
    if kind in _LANGUAGE_MODELS:
        _check_language_model(options)
    elif kind == JIT:
        _check_image_model(options)
    else:
        _check_mixer(options)


def _check_static(static: Any) -> None:
    """Raise InputError for sizes that are not two whole numbers of at least 1."""
    if static is None:
        return
    hint = "Example: `static=(1, 256)`"
    if not isinstance(static, Sequence) or len(static) != 2 or not all(map(is_whole, static)):
        raise InputError(f"`static` must be two whole numbers, batch and tokens, got {static!r}", hint)
    if min(static) < 1:
        raise InputError(f"the sizes of `static` must be at least 1, got {static[0]}x{static[1]}", hint)


def _check_language_model(options: GraphOptions) -> None:
    fitting = {None, "causal", *(["padding"] if options.stateful else [])}
    asked = {"`cross`": options.cross, "`positions`": options.positions, "`block_causal`": options.block_causal}
    asked[f"`mask={options.mask!r}`"] = options.mask not in fitting
    if refused := [name for name, given in asked.items() if given]:
        raise InputError(f"a language model is causal; {refused[0]} does not apply", "Leave it out")


def _check_image_model(options: GraphOptions) -> None:
    given = [f.name for f in fields(options) if f.name != "static" and getattr(options, f.name)]
    if given:
        raise InputError(
            f"an image model mixes all patches of an image, in one call; `{given[0]}` does not apply", "Leave it out"
        )


def _check_mixer(options: GraphOptions) -> None:
    """Check the options of a single mixer. What is refused here does not fit any other model of ours either."""
    if options.block_causal and not options.stateful:
        raise InputError("`block_causal` says what the tokens of a stateful call see", "Give `stateful=True` too")
    if options.cross and options.stateful:
        raise InputError("`cross` cannot be combined with `stateful`", "Leave one out")
    if options.cross and options.mask == "causal":
        raise InputError("`mask='causal'` cannot be combined with `cross`", "Use `mask` none, padding or full")
    if options.stateful and options.mask not in {None, options.default_mask, "padding"}:
        other = "With `block_causal`" if options.block_causal else "With `stateful` alone"
        raise InputError(
            f"`mask={options.mask!r}` cannot be combined with this kind of state",
            f"{other}, leave `mask` out or use `mask='padding'`",
        )
