"""The results of inspecting a checkpoint, a model or an engine, as data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, ClassVar


@dataclass(frozen=True)
class Inspection:
    """What a file holds.

    Attributes:
        kind: "checkpoint", "model" or "engine".
    """

    kind: ClassVar[str]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values."""
        return {"kind": self.kind, **asdict(self)}


@dataclass(frozen=True)
class CheckpointInspection(Inspection):
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
    """What an ONNX file declares; its metadata is what it says of itself, which `verify` compares.

    Attributes:
        model: its path.
        architecture: of the checkpoint that it was exported from; None: of a user's own class.
        family: the same.
        config: hyper-parameters by their official names; empty for a user's own class.
        aggregations: number of aggregation nodes.
        aggregation_kinds: those nodes by kind: the op, the attributes, and how many there are (`count`).
        without_function: ops among them that the file holds no function of.
        inputs: name, dtype and axes of each input.
        outputs: the same of each output.
        state: what a token sees of its call, "causal" or "block-causal"; None: the file keeps no state.
        dtype: "float32", "float16" or "bfloat16": the type of weights and activations.
        kept_in_float32: what a half-precision model keeps in float32 because of its values: reasons by module.
        opset: version of the standard ops.
        limits: what the inputs may hold: most tokens, counts and ranges of values, sizes.
        metadata: what the file says of itself besides.
        weights: paths of its files of external weights.
        bytes: size of the file and of these.
        sha256: of the file.
    """

    kind: ClassVar[str] = "model"

    model: str
    architecture: str | None
    family: str | None
    config: Mapping[str, Any]
    aggregations: int
    aggregation_kinds: Sequence[Mapping[str, Any]]
    without_function: Sequence[str]
    inputs: Sequence[str]
    outputs: Sequence[str]
    state: str | None
    dtype: str
    kept_in_float32: Mapping[str, str]
    opset: int
    limits: Mapping[str, Any]
    metadata: Mapping[str, str]
    weights: Sequence[str]
    bytes: int
    sha256: str


@dataclass(frozen=True)
class EngineInspection(Inspection):
    """What the manifest says of an engine, which is the file that was built: their hashes agree.

    Attributes:
        engine: its path.
        manifest: its manifest's values, as `EngineInfo` has them: targets, versions, layers, profiles, hashes.
    """

    kind: ClassVar[str] = "engine"

    engine: str
    manifest: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-able values: those of the manifest, with the path that was given."""
        return {"kind": self.kind, **self.manifest, "engine": self.engine}
