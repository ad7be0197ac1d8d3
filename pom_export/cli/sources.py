"""The checkpoint or module that a command exports."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Final

from pom_export.cli.models import check_is_checkpoint, model_from, names_module
from pom_export.errors import InputError
from pom_export.files import check_replaceable, readable_file

# The suffix of torch.export programs, which have inputs of their own.
_PROGRAM: Final = ".pt2"
# What messages call the file that --example-inputs names.
_EXAMPLES: Final = "file of example inputs"


def check_source(reference: str, example_inputs: str | None, options: Mapping[str, Any]) -> None:
    """Refuse arguments that do not fit together, before torch is imported, which takes seconds."""
    from pom_export.api import arguments
    from pom_export.graph.options import GraphOptions

    graph = GraphOptions(**{each.name: options[each.name] for each in fields(GraphOptions)})
    hints = {name: options[name] for name in arguments.HINTS}
    if names_module(reference):
        arguments.check_for_module(hints)
        if example_inputs is not None:
            arguments.check_for_own_inputs(graph, hints, module=True)
            readable_file(example_inputs, _EXAMPLES)
        return
    if example_inputs is not None:
        raise InputError(f"--example-inputs is for a module, and {reference} is a path", "Leave it out")
    check_is_checkpoint(reference)
    if Path(reference).suffix != _PROGRAM:
        arguments.check_for_checkpoint(graph, hints)


def source_of(reference: str, example_inputs: str | None, outputs: Sequence[str]) -> tuple[Any, Any]:
    """Return a checkpoint's path unchanged, or the module that is named, and its example inputs.

    Args:
        reference: the path or name.
        example_inputs: the file that `--example-inputs` names.
        outputs: files to write, which must not be those that the module comes from.
    """
    from pom_export.arrays import read_npz

    if not names_module(reference):
        return reference, None
    named = model_from(reference)
    for output in outputs:
        check_replaceable(Path(output), [named.file, example_inputs])
    if example_inputs is not None:
        return named.module, read_npz(example_inputs, _EXAMPLES)
    named.check_has_examples(reference, "--example-inputs")
    return named.module, named.example_inputs
