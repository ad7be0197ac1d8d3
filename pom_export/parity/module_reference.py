"""Reference outputs from PyTorch: a module in float64, and how far a half type moves its outputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from pom_export.errors import InputError
from pom_export.parity.case import Case
from pom_export.parity.comparison import spreads
from pom_export.parity.targets import Target
from pom_export.parity.verification import record

if TYPE_CHECKING:
    from torch import nn

    from pom_export.graph.rounding import Rounding


class ModuleReference:
    """A module in float64 and, for half precision, the same module with rounding.

    Args:
        module: the module, unchanged.
        reference: the module in float64.
        outputs: names of the outputs, in order.
        rounding: what a half-precision file rounds; None: the outputs are compared in float32.
        single: whether the error of the module in float32 is measured too.
    """

    def __init__(
        self,
        module: nn.Module,
        reference: nn.Module,
        outputs: Sequence[str],
        rounding: Rounding | None = None,
        *,
        single: bool = False,
    ) -> None:
        from pom_export.graph.rounding import RoundedModule

        self.reference = reference
        self.outputs = outputs
        self._single = module if single and rounding is None else None
        self.rounded: tuple[nn.Module, nn.Module] | None = None
        if rounding is not None:
            device, weights = (RoundedModule(module, rounding, values=values) for values in (True, False))
            self.rounded = (device, weights)

    def target(self, case: Case) -> Target:
        """Compute the expected outputs of a case.

        Raises:
            InputError: the module fails on it.
        """
        outputs = record(self.reference, self.outputs, case)
        if self.rounded is None:
            single = None if self._single is None else record(self._single, self.outputs, case, np.float32)
            return Target(outputs, {} if single is None else spreads(case.feed, single, outputs))
        device, weights = self.rounded
        try:
            on_device = spreads(case.feed, record(device, self.outputs, case), outputs)
            unrounded = record(weights, self.outputs, case)
        except InputError:
            return Target(
                outputs
            )  # layers that require inputs of their weights' type: the effect of rounding is not known
        return Target(outputs, on_device, Target(unrounded, spreads(case.feed, unrounded, outputs)))
