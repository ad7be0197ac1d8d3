"""Recognise causal masks that a model gives its mixers as tensors, by their values."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from pom_export.mixer import Mixer


@contextmanager
def watch_masks(module: nn.Module) -> Iterator[dict[Mixer, bool]]:
    """Note, for each mixer that is called in the block, whether every call is causal."""
    causal: dict[Mixer, bool] = {}

    def note(mixer: nn.Module, args: Any, kwargs: Any) -> None:
        assert isinstance(mixer, Mixer)
        causal[mixer] = causal.get(mixer, True) and _is_causal(mixer, args, kwargs)

    with ExitStack() as stack:
        for part in module.modules():
            if isinstance(part, Mixer):
                stack.callback(part.register_forward_pre_hook(note, with_kwargs=True).remove)
        yield causal


def make_causal(mixer: Mixer) -> None:
    """Make every call of a mixer causal; a trace shows the mask that it was called with."""
    mixer.register_forward_pre_hook(_as_causal, with_kwargs=True)


@torch.library.custom_op("pom::masked_by", mutates_args=())
def _masked_by(query: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG001 (read from the trace)
    """Return a copy of a query; in a trace, this says which mask its mixer was called with."""
    return query.clone()


@_masked_by.register_fake
def _(query: Tensor, mask: Tensor) -> Tensor:  # noqa: ARG001
    return torch.empty_like(query)


MASKED = torch.ops.pom.masked_by.default


def _as_causal(mixer: nn.Module, args: Any, kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    given = inspect.signature(mixer.forward).bind(*args, **kwargs).arguments
    query, mask = given.pop("query"), given.get("mask")
    if isinstance(mask, Tensor):
        query = _masked_by(query, mask)
    return (query,), {**given, "context": None, "mask": None, "causal": True}


def _is_causal(mixer: Mixer, args: Any, kwargs: Any) -> bool:
    given = inspect.signature(mixer.forward).bind(*args, **kwargs).arguments
    mask, context = given.get("mask"), given.get("context")
    if (context is not None and context is not given["query"]) or given.get("state") is not None:
        return False
    if isinstance(mask, Tensor):
        return _is_triangle(mask) or (bool(given.get("causal")) and bool((mask == 1).all()))
    return mask == "causal" or bool(given.get("causal"))


def _is_triangle(mask: Tensor) -> bool:
    if mask.dim() != 3 or mask.shape[1] != mask.shape[2] or mask.shape[1] < 2:
        return False
    expected = torch.ones(mask.shape[1:], dtype=torch.bool).tril()
    return bool((mask == expected.to(mask.dtype)).all())
