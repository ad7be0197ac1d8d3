"""Inputs of a user's own module: as the module takes them, and as the file does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from pom_export.errors import InputError
from pom_export.graph.exported_model import ExportedModel, TensorSpec
from pom_export.parity.case import Case
from pom_export.parity.names import fits
from pom_export.runtime.runners import to_numpy

if TYPE_CHECKING:
    from pom_export.api.source import Examples
    from pom_export.graph.program import Program


def specs_of(program: Program) -> list[TensorSpec]:
    """Describe a program's inputs as its examples are."""
    return [TensorSpec(name, to_numpy(tensor).dtype, tuple(tensor.shape)) for name, tensor in program.inputs.items()]


def as_taken(model: ExportedModel, specs: Sequence[TensorSpec], names: Mapping[str, str]) -> list[TensorSpec]:
    """Describe the inputs by the module's names, with the types and axes of the file.

    Raises:
        InputError: an example does not fit the file.
    """
    given = {spec.name: spec for spec in model.inputs}
    taken = []
    for spec in specs:
        found = given[names.get(spec.name, spec.name)]
        if not fits(found, spec):
            raise InputError(f"model {model.path} takes {found}, the example is {spec}", "Give inputs that it takes")
        taken.append(replace(found, name=spec.name))
    return taken


def as_examples(case: Case) -> Examples:
    """Return a case's inputs as examples for a module."""
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in case.feed.items()}
