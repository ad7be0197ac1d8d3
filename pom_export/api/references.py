"""Choose the reference that the arguments of `verify` and `debug` ask for."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from pom_export.api.arguments import check_count, check_reference
from pom_export.api.expecting import Expected, expected_of_checkpoint, expected_of_pairs, expected_of_recording
from pom_export.api.expecting_own import expected_of_module, expected_of_own
from pom_export.graph.exported_model import ExportedModel
from pom_export.parity.inputs import Inputs

if TYPE_CHECKING:
    from torch import nn

    from pom_export.api.source import Examples


@dataclass(frozen=True)
class Reference:
    """The reference that the arguments ask for."""

    checkpoint: str | os.PathLike[str] | None
    module: nn.Module | None
    example_inputs: Examples | None
    inputs: Inputs | None
    seed: int
    hints: Mapping[str, Any]

    def check(self) -> None:
        """Raise InputError for arguments that do not fit together, before anything is read."""
        check_count("seed", self.seed, "The same seed draws the same inputs")
        check_reference(
            self.checkpoint,
            has_module=self.module is not None,
            has_examples=self.example_inputs is not None,
            hints=self.hints,
        )

    def expected(self, model: ExportedModel) -> Expected:
        """Return the model's expected outputs."""
        if self.module is not None:
            return expected_of_module(model, self.module, self.example_inputs, self.inputs, self.seed)
        if self.checkpoint is not None and _is_program(self.checkpoint):
            return expected_of_own(model, self.checkpoint, None, self.inputs, self.hints)
        if self.checkpoint is not None:
            return expected_of_checkpoint(model, self.checkpoint, self.inputs, self.seed, self.hints)
        if self.inputs is not None:
            return expected_of_pairs(model, self.inputs)
        return expected_of_recording(model)


def _is_program(checkpoint: str | os.PathLike[str]) -> bool:
    from pom_export.checkpoint.exported_program import is_exported_program

    return is_exported_program(checkpoint)
