"""Refuse arguments of `export` and `verify` that do not fit together. Does not need torch."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final

from pom_export.checkpoint.families import FAMILIES
from pom_export.checkpoint.hints import check_kind
from pom_export.errors import InputError
from pom_export.graph.opsets import check_opset, default_opset
from pom_export.graph.options import GraphOptions, check_options
from pom_export.graph.precisions import PRECISIONS, canonical_precision
from pom_export.suggestions import did_you_mean
from pom_export.values import is_number, is_whole

HINTS: Final = ("family", "degree", "heads", "in_context_start", "weights")
"""Arguments of `load_model` besides the path: what a checkpoint may not say itself."""


def file_settings(dtype: str, opset: int | None) -> tuple[str, int]:
    """Return the canonical name of a type, and the opset to export it with.

    Raises:
        InputError: the type is unknown, or the opset is not supported.
    """
    dtype = canonical_precision(str(dtype))  # torch.float16 too
    if dtype not in PRECISIONS:
        hint = did_you_mean(dtype, PRECISIONS) or f"Choose one of {', '.join(PRECISIONS)}"
        raise InputError(f"unknown dtype {dtype!r}", hint)
    opset = default_opset(dtype) if opset is None else opset
    check_opset(opset)
    return dtype, opset


def check_names(keep_float32: Sequence[str]) -> None:
    """Raise InputError unless `keep_float32` is a list of names."""
    is_list = isinstance(keep_float32, Sequence) and not isinstance(keep_float32, str)
    if not is_list or not all(isinstance(name, str) and name for name in keep_float32):
        raise InputError(
            f"`keep_float32` must be a list of modules' names, got {keep_float32!r}",
            "Example: `keep_float32=['head']`",
        )


def check_keep(keep_float32: Sequence[str], dtype: str) -> None:
    """Raise InputError unless `keep_float32` is a list of names, which is empty for a float32 file."""
    check_names(keep_float32)
    if keep_float32 and dtype == PRECISIONS[0]:
        raise InputError(
            "`keep_float32` is for a file in half precision, and this one is float32",
            "Give `dtype='float16'` too, or leave it out",
        )


def check_half(dtype: str) -> None:
    """Raise InputError unless a type is a half-precision one."""
    if dtype == PRECISIONS[0]:
        raise InputError(
            f"`dtype={dtype!r}` is no half precision, and nothing has to be kept",
            f"Choose {' or '.join(PRECISIONS[1:])}",
        )


def check_for_checkpoint(options: GraphOptions, hints: Mapping[str, Any]) -> None:
    """Raise InputError for options that contradict each other, or that do not fit the given family."""
    family = hints.get("family")
    check_options(options, family)
    if family in FAMILIES:  # an unknown one is named when the checkpoint is read
        check_kind(family, hints.get("heads"), hints.get("in_context_start"))


def check_for_module(hints: Mapping[str, Any]) -> None:
    """Raise InputError if an argument for checkpoints is given with a module."""
    _refuse(hints, "for checkpoints, and this is a module")


def check_for_own_inputs(options: GraphOptions, hints: Mapping[str, Any], *, module: bool = False) -> None:
    """Raise InputError for options that do not apply to a module or program with its own inputs.

    Args:
        options: how the model becomes a graph.
        hints: arguments for checkpoints.
        module: whether it is a module, which can be given a state.
    """
    given = asdict(options)
    if module and options.stateful:
        check_options(options)
        del given["stateful"]
        if options.mask in {"causal", "padding"}:
            del given["mask"]
    _refuse({**given, **hints}, "for our own models; this one has its own inputs")


def _refuse(options: Mapping[str, Any], why: str) -> None:
    for name, value in options.items():
        if value is not None and value is not False:
            raise InputError(f"`{name}` is {why}", "Leave it out")


def check_reference(
    checkpoint: str | os.PathLike[str] | None, *, has_module: bool, has_examples: bool, hints: Mapping[str, Any]
) -> None:
    """Raise InputError if two references are given, or arguments without the reference that they belong to."""
    if has_module and checkpoint is not None:
        raise InputError("both a checkpoint and a module are given", "Give one of them")
    if has_examples and not has_module:
        raise InputError("example_inputs need a module, and none was given", "Give module too, or inputs alone")
    if has_module:
        check_for_module(hints)
        return
    for name, value in hints.items():
        if value is not None and checkpoint is None:
            raise InputError(f"`{name}={value!r}` is for a checkpoint, and none was given", "Give `checkpoint`")


def check_bounds(rtol: float | None, atol: float | None) -> None:
    """Raise InputError for a bound that is negative, infinite or NaN."""
    for name, bound in (("rtol", rtol), ("atol", atol)):
        if bound is not None and not (is_number(bound) and 0 <= bound < math.inf):
            raise InputError(f"`{name}` must be finite and not negative, got {bound!r}", f"Example: `{name}=1e-4`")


def check_count(name: str, value: int, if_zero: str) -> None:
    """Raise InputError for a value that is not a whole number of at least 0; the hint says what 0 does."""
    if not (is_whole(value) and value >= 0):
        raise InputError(f"`{name}` must be a whole number of at least 0, got {value!r}", if_zero)
