"""Replaced parts of torch: only known versions of them, only in the threads that ask for it, and restored."""

from __future__ import annotations

import threading
import types

import pytest
import torch
from torch import nn
from torch.nn.modules import transformer

from pom_export.errors import InputError
from pom_export.torch_modes import autocast_entered, autocast_left
from pom_export.torch_patches import NEWEST, OLDEST, FlagPatch, FunctionPatch, fixed_sizes, traceable_transformers


def test_this_torch_is_known() -> None:
    """A newer one needs a review of what is replaced, and a new `NEWEST`."""
    assert OLDEST <= tuple(int(part) for part in torch.__version__.split(".")[:2]) <= NEWEST
    for patch in (fixed_sizes, traceable_transformers, autocast_entered, autocast_left):
        with patch.block():
            pass


def test_other_threads_find_what_is_torchs() -> None:
    causal, found = nn.Transformer.generate_square_subsequent_mask(3), []

    def look() -> None:
        found.append(transformer._detect_is_causal_mask(causal, None, 3))

    with traceable_transformers.block():
        look()
        thread = threading.Thread(target=look)
        thread.start()
        thread.join()
    look()
    assert found == [False, True, True]


def test_what_was_there_is_put_back_whatever_happens() -> None:
    before, within = transformer._detect_is_causal_mask, []

    def fail() -> None:
        within.append(transformer._detect_is_causal_mask)
        raise ValueError("of the block")

    with pytest.raises(ValueError, match="of the block"), traceable_transformers.block():
        fail()
    assert within != [before]
    assert transformer._detect_is_causal_mask is before


def test_what_is_not_known_is_refused() -> None:
    other = types.ModuleType("other_torch")
    function = FunctionPatch(other, "detect", ("mask",), lambda mask: mask)
    flag = FlagPatch(other, "PREFER", False)
    with (
        pytest.raises(InputError, match=r"has no function other_torch\.detect\(mask\)\. Use torch 2\.11"),
        function.block(),
    ):
        pass
    other.detect = lambda mask, size: (mask, size)  # type: ignore[attr-defined]
    other.PREFER = "yes"  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="has no function"), function.block():
        pass
    with pytest.raises(InputError, match=r"has no flag other_torch\.PREFER"), flag.block():
        pass
    other.detect, other.PREFER = (lambda mask: not mask), True  # type: ignore[attr-defined]
    with function.block(), flag.block():
        assert (other.detect(1), other.PREFER) == (1, False)
    assert (other.detect(1), other.PREFER) == (False, True)
