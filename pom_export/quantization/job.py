"""Quantize a file within a budget: choose, write, prove, measure."""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Final

import numpy as np

from pom_export.errors import InputError, ParityError
from pom_export.files import sha256_of
from pom_export.graph.exported_model import ExportedModel, read_model
from pom_export.graph.loading import load_graph
from pom_export.graph.module_names import is_inside, matching
from pom_export.graph.module_values import ModuleValues
from pom_export.parity.case import Array, Case
from pom_export.parity.recording import Recording, recording_path, save_recording
from pom_export.parity.rewritten import Rewriting
from pom_export.parity.targets import Target
from pom_export.parity.trials import trial_cases
from pom_export.quantization.candidates import FASTER, Candidate, most_suitable
from pom_export.quantization.choosing import FLOAT32, Budget, Choice, Chooser
from pom_export.quantization.data import Data
from pom_export.quantization.modules import errors_of_modules
from pom_export.quantization.proof import prove, save_dequantized
from pom_export.quantization.quality import ACCURACY, Judge, Run
from pom_export.quantization.recipes import SCALED, Recipe, claim_of, save_quantized
from pom_export.quantization.report import QuantizeResult
from pom_export.quantization.rounded_weights import FEWEST_QUANTIZED, RoundedWeights
from pom_export.quantization.speed import Speed, speed_calls, time_files
from pom_export.quantization.trials import Trials, runner_of
from pom_export.runtime.session import inference_session

# Shares of the products that get more bits in any case, one after the other, as long as what was held out loses more
# than what they were chosen on.
_AT_LEAST: Final = (0.0, 0.125, 0.25, 0.5, 1.0, 1.125, 1.25, 1.5)
# With a file within the budget, faster forms get more bits up to this share.
_ENOUGH: Final = 0.25
# Rows of a call on which products are put in order, one by one.
_RANKED_ROWS: Final = 2
# Errors this many times the smallest are not worth some speed.
_MUCH_LARGER: Final = 2
# Without any other limit: outputs whose errors are half as large as they are have little to do with the original's.
_USELESS: Final = 0.5
# Names of products in a note.
_MOST_NAMED: Final = 4
_WIDEN: Final = "Allow more (`max_loss`, `max_error`), ask for int8, or give more text or inputs: `calibrate`"


class Job:
    """Quantizes one file.

    Args:
        original: the file.
        data: the inputs to choose and to measure on.
        budget: what may be lost.
        weights: the type to give weights where possible.
        recipes: the forms to try.
        purpose: what the file is for.
        keep: names of modules that stay in float32, or patterns.
        folder: where files may be put while it works.
        name: the name of the file to make; that of its weights, if they are in a file beside it, begins with it.
        progress: called with one line per stage.
    """

    def __init__(
        self,
        original: ExportedModel,
        data: Data,
        budget: Budget,
        weights: str,
        recipes: Sequence[Recipe],
        purpose: str,
        keep: Sequence[str],
        folder: Path,
        name: str,
        progress: Callable[[str], None],
    ) -> None:
        self._original = original
        self._data = data
        self._weights = weights
        self._recipes = recipes
        self._purpose = purpose
        self._folder = folder
        self._name = name
        self._progress = progress
        self._sha256 = sha256_of(original.path)
        self._choosers: dict[str, Chooser] = {}
        with ExitStack() as stack:
            self._trials = stack.enter_context(Trials(original))
            self._names = self._free_products(keep)
            self._rounded = RoundedWeights(original, self._trials, data.calibration, self._names, progress)
            plain = self._trials.run_with({})
            self._chosen_on = Judge(original, plain, data, data.calibration, data.calibration_labels)
            self._ranked_on = Judge(original, plain, data, [_first_rows(original, data.calibration[0], _RANKED_ROWS)])
            self._held_out = Judge(original, plain, data, data.held_out, data.labels)
            self._budget = self._usable(budget)
            self._stack = stack.pop_all()

    def __enter__(self) -> Job:
        """Return itself; leaving frees the model."""
        return self

    def __exit__(self, *exception: object) -> None:
        """Free the model."""
        self._stack.close()

    def run(self) -> Candidate:
        """Return the file to keep, of those that are within the budget: the fastest, or one as fast and more accurate.

        Raises:
            ParityError: there is none, or it does not compute what it should.
        """
        best: Candidate | None = None
        found: list[Candidate] = []
        for at_least in _AT_LEAST:
            made = self._candidates(at_least)
            usable = [each for each in made if self._budget.allows(each.quality) and self._is_worth_it(each)]
            if usable or found:
                is_enough = at_least >= _ENOUGH or not self._is_faster(made, usable or found)
                found = self._accurate([*found, *usable])
                if is_enough:
                    return self._chosen(found)
                continue
            closest = min(made, key=lambda each: self._budget.used(each.quality))
            best = closest if best is None or self._used(closest) < self._used(best) else best
            if not any(map(self._is_worth_it, made)):
                break  # with more of them, even less would be in fewer bits
        assert best is not None
        if self._budget.allows(best.quality):
            raise ParityError(
                f"a file within the budget would have {1 - self._quantized_share(best):.0%} of the weights in float32, "
                f"and not be worth it: it {self._in_words(best)}",
                _WIDEN,
            )
        raise ParityError(f"no file is within the budget: the closest {self._in_words(best)}", _WIDEN)

    def _is_faster(self, made: Sequence[Candidate], usable: Sequence[Candidate]) -> bool:
        """Return whether a form that is beyond the budget is much faster than those within, and more bits may help."""
        others = [each for each in made if each not in usable]
        if not others or self._recipes[0].rounding == SCALED:
            return False
        times = [each.time(self._purpose) for each in self._timed([*usable, *others])]
        return min(times[len(usable) :]) < FASTER * min(times[: len(usable)])

    def _chosen(self, usable: Sequence[Candidate]) -> Candidate:
        chosen = most_suitable(self._timed(usable), self._purpose)
        self._proof = self._prove(chosen)
        return chosen

    def result(self, made: Candidate, staged: Path, output: str) -> QuantizeResult:
        """Describe a file that `run` returned, and that is at `staged` now."""
        file = read_model(staged)
        self._progress("comparing modules")
        case = Case("held out", _first_rows(self._original, self._data.held_out[0], 1))
        errors, types = self._rounded.errors(made.recipe, made.choice.types), self._named(made.choice.types)
        modules, unmeasured = errors_of_modules(file, self._original, case, types, errors)
        return QuantizeResult(
            model=output,
            weights=self._weights,
            form=made.recipe.name,
            **file.facts(),
            original_bytes=self._original.bytes,
            sha256=sha256_of(staged),
            products=dict(Counter(types.values())),
            kept={name: kind for name, kind in types.items() if kind != self._weights},
            quality=made.quality,
            measured_on=self._data.source,
            speed=made.speed,
            modules=modules,
            checked=self._proof.paths,
            cases=list(self._proof.cases),
            notes=[*self._notes(), *unmeasured, *self._proof.notes],
        )

    def save_recording(self, recording: Recording, made: Candidate, staged: Path) -> None:
        """Save parity data for a file: the inputs of the original's, and the outputs of the dequantized original."""
        run = runner_of(inference_session(self._dequantized(made), kernels=False))
        targets = [Target({name: _wide(array) for name, array in run(case.feed).items()}) for case in recording.cases]
        save_recording(recording_path(staged), recording.cases, targets, sha256_of(staged), own=recording.own)

    def _free_products(self, keep: Sequence[str]) -> list[str]:
        values = ModuleValues(load_graph(self._original.path))
        kept = matching(keep, values.modules - {""}) if keep else []
        names = [name for name, product in self._trials.products.items() if not is_inside(product.module, kept)]
        if not names:
            raise InputError("`keep_float32` keeps every product, so nothing can be quantized", "Keep fewer modules")
        return names

    def _usable(self, budget: Budget) -> Budget:
        """Return the budget as far as the inputs can tell what is used of it."""
        quality = self._held_out.quality(self._trials.run_with({}))
        if quality.measure == ACCURACY and not quality.original:
            raise InputError(
                f"the original is wrong about every row of {self._data.source} that is held out, so nothing measures "
                "what is lost",
                "Check the labels, or give more rows: `calibrate`",
            )
        if quality.measure or budget.max_loss is None:
            return budget
        if not budget.is_default:
            raise InputError(
                f"`max_loss` is {budget.max_loss:g}, but nothing measures what the model loses on {self._data.source}",
                "Give text or a .npz with labels (`calibrate`), or limit the errors of outputs instead: `max_error`",
            )
        return replace(budget, max_loss=None, max_rms=_USELESS)

    def _candidates(self, at_least: float) -> list[Candidate]:
        """Return a file for each form; see `Chooser.choose`."""
        choices: dict[str, Choice] = {}
        made = []
        for index, recipe in enumerate(self._recipes):
            if recipe.rounding not in choices:
                choices[recipe.rounding] = self._choose(recipe, at_least)
            choice = choices[recipe.rounding]
            file = self._fresh(f"candidate{index} with {at_least}")
            self._save(recipe, choice.types, file)
            self._progress(f"measuring {recipe.name}")
            quality = self._held_out.quality(runner_of(inference_session(file)))
            made.append(Candidate(file, recipe, choice, quality))
        return made

    def _choose(self, recipe: Recipe, at_least: float) -> Choice:
        free = self._rounded.free(recipe)
        if recipe.rounding not in self._choosers:
            self._choosers[recipe.rounding] = Chooser(
                functools.partial(self._run_with, recipe),
                self._chosen_on,
                self._ranked_on,
                free,
                recipe.kinds,
                self._budget,
                self._progress,
            )
        choice = self._choosers[recipe.rounding].choose(at_least)
        others = dict.fromkeys(self._trials.products.keys() - set(free), FLOAT32)
        types = {**choice.types, **others}
        return replace(choice, types={name: types[name] for name in self._trials.products})

    def _run_with(self, recipe: Recipe, types: Mapping[str, str]) -> Run:
        """Return what runs the model with types of weights; with its activations rounded if their scales are fixed."""
        if recipe.activations is None:
            return self._trials.run_with(self._rounded.of(recipe, types))
        file = self._fresh("trial")
        self._save(recipe, types, file)
        return runner_of(inference_session(file))

    def _fresh(self, kind: str) -> Path:
        """Return where to put a file, in a folder of its own: large weights go beside it."""
        folder = self._folder / kind
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        return folder / self._name

    def _save(self, recipe: Recipe, types: Mapping[str, str], file: Path) -> None:
        claim = claim_of(self._weights, self._sha256, self._named(types))
        weights, scales = self._rounded.of(recipe, types), self._rounded.scales(recipe)
        save_quantized(self._original.path, file, weights, recipe, claim, scales)

    def _named(self, types: Mapping[str, str]) -> dict[str, str]:
        """Return the types of weights by product: those that stay as they are have the original's."""
        return {name: self._original.precision if kind == FLOAT32 else kind for name, kind in types.items()}

    def _accurate(self, made: list[Candidate]) -> list[Candidate]:
        """Leave out files whose errors are much larger than the smallest, if there is no budget to judge them by."""
        if self._budget.limits:
            return made
        most = _MUCH_LARGER * min(each.quality.rms_error for each in made)
        return [each for each in made if each.quality.rms_error <= most]

    def _timed(self, made: Sequence[Candidate]) -> list[Candidate]:
        if self._recipes[0].rounding == SCALED:
            return list(made)  # what it takes on this processor says nothing of a GPU
        self._progress("timing")
        calls = speed_calls(self._original, self._data.held_out)
        times = time_files([self._original.path, *(each.file for each in made)], calls)
        return [
            replace(each, speed=[Speed(what, found[0], found[index]) for what, found in times.items()])
            for index, each in enumerate(made, 1)
        ]

    def _prove(self, made: Candidate) -> Rewriting:
        cases = trial_cases(self._original)
        self._progress(f"comparing with the original with rounded weights on {len(cases)} cases")
        return prove(self._original.path, made.file, self._dequantized(made), cases, self._folder)

    def _dequantized(self, made: Candidate) -> Path:
        path = self._folder / "dequantized.onnx"
        save_dequantized(self._original.path, path, self._rounded.of(made.recipe, made.choice.types))
        return path

    def _is_worth_it(self, made: Candidate) -> bool:
        return self._quantized_share(made) >= FEWEST_QUANTIZED

    def _quantized_share(self, made: Candidate) -> float:
        """Return the share of the weights in fewer bits, of those that were not to be kept."""
        sizes = {name: self._trials.products[name].size for name in self._names}
        return sum(size for name, size in sizes.items() if made.choice.types[name] != FLOAT32) / sum(sizes.values())

    def _used(self, made: Candidate) -> float:
        return self._budget.used(made.quality)

    def _in_words(self, made: Candidate) -> str:
        quality, counts = made.quality, Counter(made.choice.types.values())
        lost = f"loses {quality.loss:.3%} of {quality.measure}, " if quality.loss is not None else ""
        types = ", ".join(f"{count} of {len(made.choice.types)} products in {kind}" for kind, count in counts.items())
        return f"{lost}has errors of up to {quality.error:.2e} of the largest output, and has {types}"

    def _notes(self) -> list[str]:
        notes = []
        if self._data.drawn:
            notes.append(
                "the inputs were random, which says nothing of what the model is for: give `calibrate` to choose and "
                "measure on real ones"
            )
        if not self._budget.limits:
            notes.append("nothing limited how far the outputs may be off; `max_error` does")
        if others := self._trials.others:
            names = f"{', '.join(others[:_MOST_NAMED])}{', ...' if len(others) > _MOST_NAMED else ''}"
            what = (
                "1 other product stays as it is"
                if len(others) == 1
                else f"{len(others)} other products stay as they are"
            )
            notes.append(f"{what}: only products x @ W outside of branches and loops are quantized ({names})")
        return notes


def _first_rows(model: ExportedModel, call: Mapping[str, Array], count: int) -> Mapping[str, Array]:
    """Return a call with at most so many rows, if the first axis of all inputs is that of rows and may be any."""
    first = {spec.axes[0] if spec.axes else None for spec in model.inputs}
    fixed = len(first) > 1 or not all(isinstance(axis, str) for axis in first)
    return call if fixed else {name: array[:count] for name, array in call.items()}


def _wide(array: Array) -> Array:
    return array.astype(np.float64) if array.dtype.kind == "f" else array
