"""Inspect: say what a checkpoint holds."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from pom_export.errors import only_ours


@dataclass(frozen=True)
class Inspection:
    """What a checkpoint was recognised as.

    Attributes:
        checkpoint: its path.
        architecture: "mixer", "language-model", "nanogpt-pom" or "jit-pom".
        family: "pom-v1", "pom-v1-grouped" or "pom-v2".
        summary: one line for a person.
        config: hyper-parameters by their official names.
        parameters: number of trained values, tied ones once.
        dtypes: number of tensors of each floating-point type.
        weights: the set of weights that was taken, by the name that `weights` takes.
        other_weights: the sets that the file holds besides.
        sha256: of the file.
        notes: what else to know of the weights, a sentence each.
    """

    checkpoint: str
    architecture: str
    family: str
    summary: str
    config: Mapping[str, Any]
    parameters: int
    dtypes: Mapping[str, int]
    weights: str
    other_weights: Sequence[str]
    sha256: str
    notes: Sequence[str]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return asdict(self)


@only_ours
def inspect(
    path: str | os.PathLike[str],
    *,
    family: str | None = None,
    degree: int | None = None,
    heads: int | None = None,
    in_context_start: int | None = None,
    weights: str | None = None,
) -> Inspection:
    """Recognise a checkpoint; arguments and errors are those of `load_checkpoint`."""
    from pom_export.checkpoint import load_model

    loaded = load_model(
        path, family=family, degree=degree, heads=heads, in_context_start=in_context_start, weights=weights
    )
    return Inspection(
        checkpoint=os.fspath(path),
        architecture=loaded.spec.architecture,
        family=loaded.spec.family,
        summary=loaded.spec.summary(),
        config=asdict(loaded.spec.config),
        parameters=sum(parameter.numel() for parameter in loaded.module.parameters()),
        dtypes=dict(loaded.dtypes),
        weights=loaded.weights,
        other_weights=list(loaded.other_weights),
        sha256=loaded.sha256,
        notes=list(loaded.notes),
    )
