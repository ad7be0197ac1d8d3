"""The results of inspecting a checkpoint, a model or an engine, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Inspection:
    """The contents of a file.

    Attributes:
        kind: "checkpoint", "model" or "engine".
    """

    kind: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Return the inspection as JSON-serialisable values."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class CheckpointInspection(Inspection):
    """The model that a checkpoint was recognised as.

    Attributes:
        checkpoint: its path.
        architecture: "mixer", "language-model", "nanogpt-pom" or "jit-pom".
        family: "pom-v1", "pom-v1-grouped" or "pom-v2".
        summary: one line for a person.
        config: hyper-parameters by their official names.
        parameters: number of trained values; tied ones count once.
        dtypes: number of tensors of each floating-point type.
        weights: name of the chosen set of weights, as the `weights` parameter takes it.
        other_weights: names of the file's other sets.
        sha256: of the file.
        notes: further remarks about the weights, one sentence each.
    """

    kind: ClassVar[str] = "checkpoint"

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


@dataclass(frozen=True)
class ModelInspection(Inspection):
    """What an ONNX file declares. Its metadata is the file's own claim, which `verify` checks.

    Attributes:
        model: its path.
        architecture: architecture of the checkpoint that it was exported from; None for a user's own class.
        family: family of that checkpoint; None for a user's own class.
        config: hyper-parameters by their official names; empty for a user's own class.
        aggregations: number of aggregation nodes.
        inlined: number of aggregations that standard operators compute instead, by the file's own account.
        aggregation_kinds: the distinct kinds among those nodes: the op, its attributes, and how many there are
            (`count`).
        without_function: those ops that the file contains no function for.
        inputs: name, dtype and axes of each input.
        outputs: the same for each output.
        state: how much of its call a token sees, "causal" or "block-causal"; None: the file keeps no state.
        dtype: "float32", "float16" or "bfloat16": the type of weights and activations.
        kept_in_float32: modules of a half-precision model that stay in float32 for exceptional reasons, with the
            reasons.
        quantized: how its products are quantized: `products` lists the weights' types, how activations are rounded, and
            how many there are of a kind; `weights` and `kept` are the file's own account. None: none is.
        opset: version of the standard ops.
        limits: limits on the inputs: the most tokens, counts and ranges of values, sizes.
        metadata: the file's other metadata.
        weights: paths of its files of external weights.
        bytes: total size of the file and its external weights.
        sha256: the file's hash.
    """

    kind: ClassVar[str] = "model"

    model: str
    architecture: str | None
    family: str | None
    config: Mapping[str, Any]
    aggregations: int
    inlined: int
    aggregation_kinds: Sequence[Mapping[str, Any]]
    without_function: Sequence[str]
    inputs: Sequence[str]
    outputs: Sequence[str]
    state: str | None
    dtype: str
    kept_in_float32: Mapping[str, str]
    quantized: Mapping[str, Any] | None
    opset: int
    limits: Mapping[str, Any]
    metadata: Mapping[str, str]
    weights: Sequence[str]
    bytes: int
    sha256: str


@dataclass(frozen=True)
class EngineInspection(Inspection):
    """The manifest of an engine, whose hash was found to match.

    Attributes:
        engine: its path.
        manifest: the manifest's values, as in `EngineInfo`: targets, versions, layers, profiles, hashes.
    """

    kind: ClassVar[str] = "engine"

    engine: str
    manifest: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the manifest's JSON-serialisable values, with the path that was given."""
        return {"kind": self.kind, **self.manifest, "engine": self.engine}
