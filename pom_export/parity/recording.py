"""Parity data saved at export: inputs and PyTorch's outputs, so that verifying later needs no checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pom_export.errors import InputError
from pom_export.parity.inputs import Array, Case, load_npz


def recording_path(model: str | os.PathLike[str]) -> Path:
    """Return where the parity data of a model lies: model.onnx -> model.parity.npz."""
    return Path(model).with_suffix(".parity.npz")


def save_recording(
    path: Path, cases: Sequence[Case], outputs: Sequence[Mapping[str, Array]], model_sha256: str
) -> None:
    """Write cases and their outputs, and which model they are of, into one .npz."""
    names = [case.name for case in cases]
    arrays: dict[str, Array] = {"names": np.array(json.dumps(names)), "model_sha256": np.array(model_sha256)}
    for i, (case, expected) in enumerate(zip(cases, outputs, strict=True)):
        arrays |= {f"{i}/in/{name}": array for name, array in case.feed.items()}
        arrays |= {f"{i}/out/{name}": array for name, array in expected.items()}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes no mapping


def recorded_model(path: Path) -> str | None:
    """Return the sha256 of the model that parity data is of; None: the file is no parity data."""
    try:
        arrays = load_npz(path)
    except (OSError, ValueError):
        return None
    return str(arrays["model_sha256"]) if arrays.keys() >= {"names", "model_sha256"} else None


def load_recording(path: Path, model_sha256: str) -> tuple[list[Case], list[dict[str, Array]]]:
    """Read what `save_recording` wrote.

    Raises:
        InputError: the file is missing, not parity data, or of another model.
    """
    try:
        arrays = load_npz(path)
        names = [str(name) for name in json.loads(str(arrays.pop("names")))]
        recorded_sha256 = str(arrays.pop("model_sha256"))
        recordings = [_of(arrays, f"{i}/out/") for i in range(len(names))]
        if not names or not all(recordings):
            raise ValueError("it holds no outputs")
    except FileNotFoundError as error:
        raise InputError(
            f"nothing to compare with: no checkpoint was named and {path} does not exist",
            "Give --checkpoint, or export with --samples",
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{path} is not parity data: {error}", "Export again with --samples") from error
    if recorded_sha256 != model_sha256:
        raise InputError(
            f"{path} was recorded from another file of this name", "Export again with --samples, or give --checkpoint"
        )
    cases = [Case(name, _of(arrays, f"{i}/in/")) for i, name in enumerate(names)]
    return cases, recordings


def _of(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
