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


def save_recording(path: Path, cases: Sequence[Case], outputs: Sequence[Mapping[str, Array]]) -> None:
    """Write cases and their outputs into one .npz."""
    arrays: dict[str, Array] = {"names": np.array(json.dumps([case.name for case in cases]))}
    for i, (case, expected) in enumerate(zip(cases, outputs, strict=True)):
        arrays |= {f"{i}/in/{name}": array for name, array in case.feed.items()}
        arrays |= {f"{i}/out/{name}": array for name, array in expected.items()}
    np.savez_compressed(path, **arrays)  # type: ignore[arg-type]  # numpy's stub takes no mapping


def load_recording(path: Path) -> tuple[list[Case], list[dict[str, Array]]]:
    """Read what `save_recording` wrote.

    Raises:
        InputError: the file is missing or not parity data.
    """
    try:
        arrays = load_npz(path)
        names = json.loads(str(arrays.pop("names")))
    except FileNotFoundError as error:
        raise InputError(
            f"nothing to compare with: no checkpoint was named and {path} does not exist",
            "Give --checkpoint, or export with --samples",
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise InputError(f"{path} is not parity data: {error}", "Export again with --samples") from error
    cases = [Case(name, _of(arrays, f"{i}/in/")) for i, name in enumerate(names)]
    return cases, [_of(arrays, f"{i}/out/") for i in range(len(names))]


def _of(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
