"""Run the PyTorch reference of a file while its modules are watched."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from pom_export.debugging.calls import Again, Call, Watcher, watched
from pom_export.parity.case import Case
from pom_export.parity.verification import record

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pom_export.graph.exported_model import ExportedModel
    from pom_export.graph.program import Program


class WatchedReference:
    """A model in float64 whose modules are watched, and for half precision also the model with rounded weights.

    Args:
        model: the file, which determines which of the weights are rounded.
        program: the program that computes the same, of the user's own modules.
        precision: the type that the file is judged by.
        weights: values that parameters of the program's module have instead of their own, in a quantized file.

    Attributes:
        has_files_weights: whether there are such values.
        kinds: the class of each module, by name.
        names: the first name of each module, by each of its names.
    """

    def __init__(
        self, model: ExportedModel, program: Program, precision: str, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        self._relay = _Relay()
        self._program = program
        watched_program = watched(program, self._relay)
        self._module = watched_program.module
        self._model = model
        self._precision = precision
        self._weights = weights or {}
        self.has_files_weights = bool(weights)
        self.kinds: Mapping[str, str] = watched_program.kinds
        self.names: Mapping[str, str] = watched_program.names

    def run(self, case: Case, watcher: Watcher, *, rounded: bool) -> None:
        """Run the model on a case.

        Args:
            case: the inputs.
            watcher: is told of each call of a module.
            rounded: whether the weights are rounded to the file's half type first.

        Raises:
            InputError: the model fails on the case.
        """
        self._relay.watcher = watcher
        record(self._wide(rounded), self._program.outputs, case)

    def _wide(self, rounded: bool) -> nn.Module:
        from pom_export.graph.quantized.reference import QuantizedModule
        from pom_export.graph.reference import Float64Module
        from pom_export.graph.rounding import RoundedModule
        from pom_export.parity.precision import rounding_of

        if self._weights:
            return QuantizedModule(self._module, self._weights)
        rounding = rounding_of(self._model, self._program, self._precision) if rounded else None
        if rounding is None:
            return Float64Module(self._module)
        return RoundedModule(self._module, rounding, values=False)


class _Relay:
    """Passes calls on to whatever watches the current run."""

    watcher: Watcher

    def enter(self, call: Call, given: list[Tensor]) -> list[Tensor | None]:
        return self.watcher.enter(call, given)

    def leave(self, call: Call, again: Again, made: list[Tensor]) -> list[Tensor | None] | None:
        return self.watcher.leave(call, again, made)
