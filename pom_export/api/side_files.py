"""Files beside a model that certainly belong to it, and are removed when it is replaced."""

from __future__ import annotations

import os
from pathlib import Path

from pom_export.errors import InputError
from pom_export.files import sha256_of
from pom_export.graph.exported_model import read_model
from pom_export.graph.weights_file import own_weights
from pom_export.parity.recording import recorded_model, recording_path


def own_side_files(model: str | os.PathLike[str]) -> list[Path]:
    """Return the weights and the parity data that belong to the export at `model`, if there is one.

    Weights belong to it if their name consists of its name and a hash of their content or, as in earlier versions, if
    it refers to them and they are named after it. Parity data belongs to it if it was recorded from it.
    """
    file = Path(model)
    weights = own_weights(file)
    try:
        exported = read_model(file)
    except InputError:
        return weights
    if not exported.aggregations and not exported.inlined:
        return weights
    weights += [path for path in exported.weights if path.name == f"{file.name}.data"]
    recording = recording_path(file)
    return [*weights, recording] if recorded_model(recording) == sha256_of(file) else weights


def check_recording_place(model: str | os.PathLike[str]) -> None:
    """Raise InputError if the place of a model's parity data is taken by some other file."""
    place = recording_path(model)
    if place.is_file() and recorded_model(place) is None:
        raise InputError(f"{place}, where the samples would go, is not parity data", "Move it, or rename the output")
