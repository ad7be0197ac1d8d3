"""The weights of a model's products in the types that a form has, rounded when they are first needed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from pom_export.errors import InputError
from pom_export.graph.exported_model import ExportedModel
from pom_export.graph.quantized.block_weights import QuantizedWeight
from pom_export.graph.quantized.products import FloatProduct
from pom_export.parity.case import Array, Arrays
from pom_export.quantization.activations import activation_scales
from pom_export.quantization.choosing import FLOAT32, tell_some
from pom_export.quantization.for_tensorrt import kept_by_default
from pom_export.quantization.recipes import Recipe
from pom_export.quantization.rounding import error_of
from pom_export.quantization.trials import Trials

FEWEST_QUANTIZED: Final = 0.5
"""Less than this share of the weights in fewer bits is not worth a file."""


class RoundedWeights:
    """Rounds products' weights, and chooses the scales of their activations.

    Args:
        model: the file.
        trials: the same, with what its products multiply within reach.
        calibration: the calls on which scales are chosen.
        names: the products that may be quantized.
        progress: called with one line per stage.
    """

    def __init__(
        self,
        model: ExportedModel,
        trials: Trials,
        calibration: Sequence[Arrays],
        names: Sequence[str],
        progress: Callable[[str], None],
    ) -> None:
        self._model = model
        self._trials = trials
        self._calibration = calibration
        self._products = {name: trials.products[name] for name in names}
        self._progress = progress
        # By what forms have in common, and by type.
        self._rounded: dict[tuple[str, str], dict[str, QuantizedWeight]] = {}
        self._errors: dict[tuple[str, str], dict[str, float]] = {}
        self._scales: dict[str, float] = {}

    def free(self, recipe: Recipe) -> dict[str, int]:
        """Return the products that may have a form, each with how many weights it has.

        Raises:
            InputError: they are too few.
        """
        scales = self.scales(recipe)
        # What was always 0 has no scale, so its products stay as they are.
        free = {
            name: self._products[name].size
            for name in self._fitting(recipe)
            if recipe.activations is None or self._products[name].input in scales
        }
        share = sum(free.values()) / sum(each.size for each in self._products.values())
        if share < FEWEST_QUANTIZED:
            raise InputError(
                f"{len(free)} of {len(self._products)} products, with {share:.0%} of the weights, can be "
                f"{recipe.kinds[0]} in this form, which is not worth a file",
                "Choose other `weights` or `activations`",
            )
        return free

    def of(self, recipe: Recipe, types: Mapping[str, str]) -> dict[str, QuantizedWeight]:
        """Return the weights of the products whose type is not float32, by their types."""
        return {name: self._round(recipe, kind)[name] for name, kind in types.items() if kind != FLOAT32}

    def errors(self, recipe: Recipe, types: Mapping[str, str]) -> dict[str, float]:
        """Return how far the products with these weights are off, on the calibration inputs; see `error_of`."""
        found = {}
        for name, kind in types.items():
            if kind != FLOAT32:
                self._round(recipe, kind)
                found[name] = self._errors[recipe.rounding, kind][name]
        return found

    def scales(self, recipe: Recipe) -> Mapping[str, float]:
        """Return the scales of the products' activations by name; none if the form has none."""
        if recipe.activations is not None and not self._scales:
            inputs = {self._products[name].input for name in self._fitting(recipe)}
            self._progress(f"calibrating {len(inputs)} activations for {recipe.activations}")
            self._scales = activation_scales(self._model.path, inputs, self._calibration, recipe.activations)
        return self._scales

    def _fitting(self, recipe: Recipe) -> list[str]:
        kept = kept_by_default(list(self._products.values()), recipe.activations)
        return [name for name, each in self._products.items() if name not in kept and recipe.fits(each.shape)]

    def _round(self, recipe: Recipe, kind: str) -> Mapping[str, QuantizedWeight]:
        key = recipe.rounding, kind
        if key not in self._rounded:
            self._progress(f"rounding to {kind}: what the products multiply")
            free = self.free(recipe)
            found: dict[str, QuantizedWeight] = {}
            errors: dict[str, float] = {}

            def use(product: FloatProduct, moments: Array) -> None:
                tell_some(self._progress, f"rounding to {kind}", len(found), len(free))
                found[product.name] = recipe.round(product.matrix(), kind, moments)
                errors[product.name] = error_of(product.matrix(), found[product.name], moments)

            self._trials.moments(free, self._calibration, use)
            self._rounded[key], self._errors[key] = found, errors
        return self._rounded[key]
