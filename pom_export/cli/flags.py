"""Replace parameters in the library's messages with the command line's options."""

from __future__ import annotations

import ast
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pom_export.errors import REPORT, SEE_CAUSE

# Parameters named in messages whose options have the same name.
_ALIKE: Final = (
    *(
        "activations",
        "against",
        "atol",
        "backend",
        "backends",
        "batch",
        "block_causal",
        "bench",
        "calibrate",
        "chat_template",
        "checkpoint",
        "cross",
        "degree",
        "dtype",
    ),
    *(
        "engine",
        "family",
        "force",
        "heads",
        "in_context_start",
        "inputs",
        "keep_float32",
        "mask",
        "max_error",
        "max_loss",
        "max_tokens",
        "name",
        "opset",
    ),
    *(
        "positions",
        "ray",
        "rtol",
        "runtime",
        "samples",
        "save_state",
        "seed",
        "stateful",
        "static",
        "targets",
        "temperature",
    ),
    *("threads", "timing_cache", "tokenizer", "tokens", "top_k", "top_p", "weights"),
)
_OTHERS: Final = {
    "max_shapes": "--maxShapes",
    "min_shapes": "--minShapes",
    "n_groups": "--groups",
    "opt_shapes": "--optShapes",
    "target": "--for",
    "use_plugin": "--plugin",
}
PARAMETERS: Final[Mapping[str, str]] = {name: f"--{name.replace('_', '-')}" for name in _ALIKE} | _OTHERS
"""Options by parameter."""
# `name` or `name=value`, as the library writes them.
_NAMED: Final = re.compile(r"`([a-z]\w*)(?:=([^`]+))?`")
_SENTENCES: Final = {
    SEE_CAUSE: "Run with --debug for the trace",
    REPORT: "Run with --debug and report it",
}


def in_flags(text: str) -> str:
    """Replace the parameters in a library message by options: `stateful=True` becomes --stateful."""
    for of_library, of_commands in _SENTENCES.items():
        text = text.replace(of_library, of_commands)
    return _NAMED.sub(_option, text)


def _option(match: re.Match[str]) -> str:
    option = PARAMETERS.get(match[1])
    if option is None:
        return match[0]
    value = True if match[2] is None else _value(match[2])
    if isinstance(value, bool):
        return option if value else option.replace("--", "--no-", 1)
    return f"{option} {as_typed(value)}"


def _value(text: str) -> Any:
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError):
        return text  # a placeholder such as NAME


def as_typed(value: Any) -> str:
    """Format a value as the command line takes it: sizes as 1x256, shapes by name as x:1x256x16,mask:1x256."""
    if isinstance(value, Mapping):
        return ",".join(f"{name}:{as_typed(each)}" for name, each in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return "x".join(map(str, value))
    return str(value)
