"""Run a user's model through its stateful form in PyTorch, call by call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from pom_export.graph.copying import copy_module
from pom_export.graph.exported_model import nested, present_name
from pom_export.graph.outputs import named_outputs
from pom_export.graph.program import Program
from pom_export.graph.programs.own_stateful import context_inputs, empty_inputs, stateful_program, token_inputs
from pom_export.graph.replacing import replace_mixers


def program_of(model: nn.Module, examples: Mapping[str, Tensor], *, masked: bool = False) -> Program:
    """Return the stateful program of a model, with our mixers in place of the user's."""
    return stateful_program(replace_mixers(copy_module(model)).module, examples, masked=masked)


def streamed(program: Program, feed: Mapping[str, Tensor], cuts: Sequence[int]) -> Tensor:
    """Return a program's first output for tokens that come in several calls."""
    empty = empty_inputs(program)
    count = next(feed[name] for name in token_inputs(program)).shape[1]
    rows = next(iter(feed.values())).shape[0]
    past = {name: empty[name].new_zeros((rows, *empty[name].shape[1:])) for name in empty if name not in feed}
    parts = []
    for start, stop in pairwise((0, *cuts, count)):
        call = {name: feed[name] for name in program.inputs if name in feed}
        call |= {name: feed[name][:, start:stop] for name in token_inputs(program)}
        if start:
            call |= {name: feed[name][:, :0] for name in context_inputs(program)}
        with torch.no_grad():
            outputs = dict(zip(program.outputs, program.module(**nested({**call, **past})), strict=True))
        past = {name: outputs[present_name(name)] for name in past}
        parts.append(outputs[program.outputs[0]])
    return torch.cat(parts, 1)


def one_pass(model: nn.Module, feed: Mapping[str, Tensor]) -> Tensor:
    """Return a model's first output for all tokens at once."""
    with torch.no_grad():
        return next(iter(named_outputs(copy_module(model).eval()(**feed)).values()))


def difference(found: Tensor, expected: Tensor) -> float:
    """Return the largest difference as a share of the largest expected value."""
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())
