"""Save inputs and PyTorch's outputs at export, so that a later verification needs no checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from pom_export.arrays import read_npz
from pom_export.errors import InputError, printable
from pom_export.files import sha256_of
from pom_export.graph.exported_model import ExportedModel, TensorSpec, is_past, presents
from pom_export.json_text import parse_json
from pom_export.parity.case import Array, Case
from pom_export.parity.comparison import spreads
from pom_export.parity.inputs import fits, typed
from pom_export.parity.targets import Spread, Target
from pom_export.values import is_whole

_HINT = "Export again with `samples`, or give `checkpoint`"
_NUMBERS = "biuf"  # kinds of numpy types
_LONGEST_NAME = 100
_OWN = "own"


@dataclass(frozen=True)
class Recording:
    """Parity data.

    Attributes:
        cases: the inputs.
        targets: the expected outputs.
        own: whether the reference was a user's own module.
    """

    cases: list[Case]
    targets: list[Target]
    own: bool = False


def recording_path(model: str | os.PathLike[str]) -> Path:
    """Return the path of a model's parity data: model.onnx -> model.parity.npz."""
    return Path(model).with_suffix(".parity.npz")


def save_recording(
    path: Path, cases: Sequence[Case], targets: Sequence[Target], model_sha256: str, *, own: bool = False
) -> None:
    """Write cases, their targets and the hash of their model to a .npz.

    Args:
        path: path of the .npz.
        cases: the inputs.
        targets: the expected outputs, case by case.
        model_sha256: hash of the model.
        own: whether the reference is a user's own module.
    """
    names = [case.name for case in cases]
    arrays: dict[str, Array] = {"names": np.array(json.dumps(names)), "model_sha256": np.array(model_sha256)}
    if own:
        arrays[_OWN] = np.array(True)
    for i, (case, target) in enumerate(zip(cases, targets, strict=True)):
        arrays |= {f"{i}/in/{name}": array for name, array in case.feed.items()}
        arrays |= {f"{i}/out/{name}": array for name, array in target.outputs.items()}
        if case.cuts:
            calls = {"cuts": case.cuts, "axes": case.token_axes, "once": case.once, "partial": case.partial}
            arrays[f"{i}/calls"] = np.array(json.dumps(calls))
        arrays |= {f"{i}/spread/{name}": np.array(spread) for name, spread in target.spreads.items()}
        if target.unrounded is not None:
            arrays |= {f"{i}/unrounded/{name}": array for name, array in target.unrounded.outputs.items()}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # NumPy's stub does not accept a mapping


def recorded_model(path: Path) -> str | None:
    """Return the hash of the model that parity data belongs to; None if the file is not parity data."""
    try:
        arrays = read_npz(path, "parity data", only={"names", "model_sha256"})
    except InputError:
        return None
    return str(arrays["model_sha256"]) if arrays.keys() >= {"names", "model_sha256"} else None


def recording_of(model: ExportedModel) -> Recording | None:
    """Return the parity data that was saved with a file; None if there is none, or it belongs to another file."""
    path = recording_path(model.path)
    sha256 = sha256_of(model.path)
    if recorded_model(path) != sha256:
        return None
    return load_recording(path, sha256, model.inputs, model.outputs)


def load_recording(
    path: Path, model_sha256: str | None, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
) -> Recording:
    """Read what `save_recording` wrote, for a model with these inputs and outputs.

    Args:
        path: path of the .npz.
        model_sha256: hash of the model; None: it may have been recorded from another file, such as this one before a
            tool rewrote it.
        inputs: the model's inputs.
        outputs: the model's outputs.

    Raises:
        InputError: the file is missing, damaged, not parity data, or belongs to another model.
    """
    if not path.exists():
        raise InputError(
            f"nothing to compare with: no checkpoint was given and {path} does not exist",
            "Give `checkpoint`, or inputs and outputs with `inputs`, or export with `samples`",
        )
    try:
        arrays = read_npz(path, "archive")
        names = parse_json(str(arrays["names"]))
        recorded_sha256 = str(arrays["model_sha256"])
        if model_sha256 not in (None, recorded_sha256):
            raise ValueError("it was recorded from another file of this name")
        if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
            raise ValueError("it names no cases")
        own = _OWN in arrays
        cases = [
            _case(arrays, i, Case(printable(name, _LONGEST_NAME), _inputs(arrays, f"{i}/in/", inputs)))
            for i, name in enumerate(names)
        ]
        # One pass of a user's own model gives no state.
        lacking = {name for name in presents(inputs) if own and f"0/out/{name}" not in arrays}
        wanted = [spec for spec in outputs if spec.name not in lacking]
        targets = [_target(arrays, i, case, wanted) for i, case in enumerate(cases)]
    except InputError as error:
        raise InputError(f"{path} is not parity data of this model: {error.what}", _HINT) from error
    except KeyError as error:
        raise InputError(f"{path} is not parity data of this model: it lacks {error}", _HINT) from error
    except ValueError as error:
        raise InputError(f"{path} is not parity data of this model: {error}", _HINT) from error
    return Recording(cases, targets, own=own)


def _case(arrays: Mapping[str, Array], index: int, case: Case) -> Case:
    """Return a case with the calls that its tokens were split into.

    Raises:
        ValueError: the calls do not fit the inputs.
    """
    if f"{index}/calls" not in arrays:
        return case
    given = parse_json(str(arrays[f"{index}/calls"]))
    axes, once = (given[name] for name in ("axes", "once"))
    if not all(_are_axes(each, case) for each in (axes, once)) or not axes:
        raise ValueError("its calls do not fit its inputs")
    tokens = {case.feed[name].shape[axis] for name, axis in axes.items()}
    places = [0, *given["cuts"], max(tokens)]
    if len(tokens) != 1 or not all(map(is_whole, places)) or any(a >= b for a, b in pairwise(places)):
        raise ValueError("its calls do not fit its tokens")
    return replace(case, cuts=tuple(given["cuts"]), token_axes=axes, once=once, partial=given["partial"] is True)


def _are_axes(axes: Any, case: Case) -> bool:
    return isinstance(axes, dict) and all(
        name in case.feed and is_whole(axis) and 0 <= axis < case.feed[name].ndim for name, axis in axes.items()
    )


def _inputs(arrays: Mapping[str, Array], prefix: str, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    found = {spec.name: typed(arrays[prefix + spec.name], spec) for spec in specs}
    for spec in specs:
        array = found[spec.name]
        if not fits(array, spec) or not (array.size or is_past(spec.name)):
            raise ValueError(f"{spec.name} is {array.dtype}{list(array.shape)}, but the model takes {spec}")
    return found


def _outputs(arrays: Mapping[str, Array], prefix: str, specs: Sequence[TensorSpec]) -> dict[str, Array]:
    found = {spec.name: arrays[prefix + spec.name] for spec in specs}
    for name, array in found.items():
        if array.dtype.kind not in _NUMBERS:
            raise ValueError(f"{name} is {array.dtype}, not numbers")
    return found


def _target(arrays: Mapping[str, Array], index: int, case: Case, specs: Sequence[TensorSpec]) -> Target:
    outputs = _outputs(arrays, f"{index}/out/", specs)
    if not any(name.startswith(f"{index}/unrounded/") for name in arrays):
        return Target(outputs, _spreads(arrays, index, outputs))  # float32, or from an older export
    unrounded = _outputs(arrays, f"{index}/unrounded/", specs)
    if any(unrounded[name].shape != array.shape for name, array in outputs.items()):
        raise ValueError("its outputs without rounding have other shapes")
    rounding = _spreads(arrays, index, outputs)
    if rounding.keys() != {name for name, array in outputs.items() if array.dtype.kind == "f"}:
        raise ValueError("the rounding errors of an output are missing")
    return Target(outputs, rounding, Target(unrounded, spreads(case.feed, unrounded, outputs)))


def _spreads(arrays: Mapping[str, Array], index: int, outputs: Mapping[str, Array]) -> dict[str, tuple[Spread, ...]]:
    keys = {name: f"{index}/spread/{name}" for name in outputs}
    return {name: _spread(name, arrays[key]) for name, key in keys.items() if key in arrays}


def _spread(name: str, array: Array) -> tuple[Spread, ...]:
    if array.dtype != np.float64 or array.shape[1:] != (len(Spread._fields),) or not (array >= 0).all():
        raise ValueError(f"the rounding errors of {name} are not pairs of numbers")
    return tuple(Spread(*map(float, pair)) for pair in array)
