"""Read an exported file's metadata strictly: its claims are compared, not believed."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Final

from pom_export.graph.dimensions import CONTEXT_TOKENS, PAST_TOKENS, TOKENS
from pom_export.graph.precisions import PRECISIONS
from pom_export.json_text import parse_json
from pom_export.values import is_number, is_whole

METADATA_PREFIX: Final = "pom_export."
# The property that lists what a half-precision export keeps in float32: reasons by module, as JSON.
KEPT_IN_FLOAT32: Final = "kept_in_float32"
# The property that lists the modules among them that the user asked for, as JSON; other files lack it.
KEEP_FLOAT32: Final = "keep_float32"
# The property that says how much of its call a token sees: "causal" or "block-causal"; stateless files lack it.
STATEFUL: Final = "stateful"
# The property that says how many aggregations were replaced by standard operators; files with our op lack it.
INLINED: Final = "inlined"
# The property of files whose state a server carries: the output for each input, as JSON; see NumberStatesPass.
SERVER_STATES: Final = "server_states"
# The property that says how a file's products were quantized, as JSON; other files lack it. See QuantizedClaim.
QUANTIZED: Final = "quantized"
# The property that names the exported set of weights, if the checkpoint has several.
WEIGHTS: Final = "weights"
CAUSAL: Final = "causal"
BLOCK_CAUSAL: Final = "block-causal"
WEIGHT_TYPES: Final = ("int8", "int4", "fp8")
MASKS: Final = ("none", "causal", "padding", "full")

# The dimensions that a model's positions limit.
TOKEN_DIMENSIONS: Final = (TOKENS, CONTEXT_TOKENS, PAST_TOKENS)
# Smallest and largest size of a dimension; None: no upper limit.
Bounds = tuple[int, int | None]

_LIMITS: Final = ("values", "tokens", "scale", "ranges", "sizes")
_WORDS: Final = {
    "dtype": ("", *PRECISIONS),
    "mask": ("", *MASKS),
    STATEFUL: ("", CAUSAL, BLOCK_CAUSAL),
}
_SHA256: Final = re.compile(r"[0-9a-f]{64}")
_INLINED: Final = re.compile(r"[1-9][0-9]{0,5}")
_LONGEST: Final = 1 << 20
_MOST_INPUTS: Final = 1000
_MOST_COLUMNS: Final = 8
# Sizes, ids and positions are int64 in a graph.
_LARGEST: Final = 2**63 - 1


class ClaimError(ValueError):
    """A property is invalid; the text says which one and why."""


@dataclass(frozen=True)
class InputLimits:
    """Limits on a model's inputs beyond those of their types.

    Attributes:
        values: for integer inputs, how many values there are, starting at 0: one number, or one per column.
        tokens: the most tokens; None: no limit.
        scale: largest standard deviation of float16 inputs; None: no limit.
        ranges: for floating-point inputs, the smallest and the largest value.
        sizes: the smallest and the largest size of dynamic dimensions, by name; a largest size of None means no limit.
    """

    values: Mapping[str, Sequence[int]] = field(default_factory=dict)
    tokens: int | None = None
    scale: float | None = None
    ranges: Mapping[str, Sequence[float]] = field(default_factory=dict)
    sizes: Mapping[str, Bounds] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return a line of JSON for an exported file."""
        given = asdict(self)
        for name in ("ranges", "sizes"):
            if not given[name]:  # few models have these; files of others stay as they were before
                del given[name]
        return json.dumps(given, separators=(",", ":"))

    def bounds(self, dimension: str) -> Bounds:
        """Return the smallest and the largest size of a dynamic dimension; None: no limit."""
        low, high = self.sizes.get(dimension, (0, None))
        if self.tokens is not None and dimension in TOKEN_DIMENSIONS:
            high = self.tokens if high is None else min(high, self.tokens)
        return low, high

    def outside(self, dimension: str, size: int) -> str:
        """Return the limit that a dynamic dimension's size violates, such as "at most 8"; empty if none."""
        low, high = self.bounds(dimension)
        if size < low:
            return f"at least {low}"
        return f"at most {high}" if high is not None and size > high else ""


@dataclass(frozen=True)
class QuantizedClaim:
    """What `quantize` says of a file that it wrote.

    Attributes:
        weights: the type that most weights have: "int8", "int4" or "fp8".
        original: SHA-256 of the file that was quantized.
        kept: the names of the products that other weights were given, each with its type, such as "int8" or "float32".
    """

    weights: str
    original: str
    kept: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> str:
        """Return a line of JSON for the file."""
        return json.dumps(asdict(self), separators=(",", ":"))


@dataclass(frozen=True)
class Claims:
    """A file's properties, by name without the prefix, and the parsed values of those that are JSON.

    Attributes:
        properties: the properties as text: dtype, mask, stateful, limits, spec, source_sha256.
        limits: limits on the inputs; None: the file has none.
        spec: the spec of the model that was exported; empty for a user's own class.
        kept_in_float32: what a half-precision model keeps in float32 for exceptional reasons: reasons by module.
        keep_float32: the modules among them that the user asked for.
        quantized: how the products were quantized; None: the file does not say that they were.
    """

    properties: Mapping[str, str] = field(default_factory=dict)
    limits: InputLimits | None = None
    spec: Mapping[str, Any] = field(default_factory=dict)
    kept_in_float32: Mapping[str, str] = field(default_factory=dict)
    keep_float32: Sequence[str] = ()
    quantized: QuantizedClaim | None = None


def read_claims(entries: Iterable[tuple[str, str]]) -> Claims:
    """Read a file's metadata; properties without our prefix belong to others and are left out.

    Args:
        entries: keys and values.

    Raises:
        ClaimError: a property occurs twice, is too long, or has a value that no export writes.
    """
    properties: dict[str, str] = {}
    for key, value in entries:
        if not key.startswith(METADATA_PREFIX):
            continue
        name = key.removeprefix(METADATA_PREFIX)
        if name in properties:
            raise ClaimError(f"it has the property {name!r} twice")
        if len(value) > _LONGEST:
            raise ClaimError(f"its property {name!r} has {len(value)} characters")
        properties[name] = value
    for name, words in _WORDS.items():
        if properties.get(name, "") not in words:
            raise ClaimError(f"its property {name!r} is {properties[name][:80]!r}, not one of {', '.join(words[1:])}")
    if "source_sha256" in properties and not _SHA256.fullmatch(properties["source_sha256"]):
        raise ClaimError("its property 'source_sha256' is not a SHA-256")
    if INLINED in properties and not _INLINED.fullmatch(properties[INLINED]):
        raise ClaimError(f"its property {INLINED!r} is {properties[INLINED][:80]!r}, not a number of aggregations")
    kept = _mapping(properties, KEPT_IN_FLOAT32)
    if not all(isinstance(reason, str) for reason in kept.values()):
        raise ClaimError(f"its property {KEPT_IN_FLOAT32!r} holds something other than reasons")
    spec = _mapping(properties, "spec")
    if not isinstance(spec.get("config", {}), dict):
        raise ClaimError("its property 'spec' has a config that is not a mapping")
    quantized = _quantized(properties)
    return Claims(properties, _limits(properties), spec, kept, _names(properties, KEEP_FLOAT32), quantized)


def _quantized(properties: Mapping[str, str]) -> QuantizedClaim | None:
    if QUANTIZED not in properties:
        return None
    given = _mapping(properties, QUANTIZED)
    weights, original, kept = (given.get(each.name) for each in fields(QuantizedClaim))
    known = given.keys() == {each.name for each in fields(QuantizedClaim)} and weights in WEIGHT_TYPES
    if not known or not isinstance(original, str) or not _SHA256.fullmatch(original):
        raise ClaimError(f"its property {QUANTIZED!r} does not say how it was quantized")
    if not isinstance(kept, dict) or not all(isinstance(each, str) for each in kept.values()):
        raise ClaimError(f"its property {QUANTIZED!r} has no types of products")
    return QuantizedClaim(str(weights), original, kept)


def _names(properties: Mapping[str, str], name: str) -> tuple[str, ...]:
    value = _parsed(properties, name, "[]")
    if not isinstance(value, list) or not all(isinstance(each, str) and each for each in value):
        raise ClaimError(f"its property {name!r} is not a list of names")
    return tuple(value)


def _mapping(properties: Mapping[str, str], name: str) -> dict[str, Any]:
    value = _parsed(properties, name, "{}")
    if not isinstance(value, dict):
        raise ClaimError(f"its property {name!r} is not a mapping")
    return value


def _parsed(properties: Mapping[str, str], name: str, otherwise: str) -> Any:
    try:
        return parse_json(properties.get(name, otherwise))
    except ValueError as error:
        raise ClaimError(f"its property {name!r} cannot be read: {error}") from error


def _limits(properties: Mapping[str, str]) -> InputLimits | None:
    if "limits" not in properties:
        return None
    given = _mapping(properties, "limits")
    values, tokens, scale, ranges, sizes = (given.get(name) for name in _LIMITS)
    values, ranges, sizes = ({} if given is None else given for given in (values, ranges, sizes))
    if unknown := given.keys() - set(_LIMITS):
        raise ClaimError(f"its limits have the unknown key {min(unknown)[:80]!r}")
    if not isinstance(values, dict) or len(values) > _MOST_INPUTS:
        raise ClaimError("its limits' values are not a mapping of inputs")
    for name, counts in values.items():
        if not isinstance(counts, list) or not 0 < len(counts) <= _MOST_COLUMNS or not all(map(_is_count, counts)):
            raise ClaimError(f"its limits for {name[:80]!r} are not counts of values")
    if tokens is not None and not _is_count(tokens):
        raise ClaimError("its limits' tokens are not a count")
    if scale is not None and (type(scale) not in (int, float) or not 0 < scale < _LARGEST):
        raise ClaimError("its limits' scale is not a positive number")
    if not isinstance(ranges, dict) or len(ranges) > _MOST_INPUTS:
        raise ClaimError("its limits' ranges are not a mapping of inputs")
    for name, ends in ranges.items():
        if not isinstance(ends, list) or len(ends) != 2 or not all(map(_is_number, ends)) or ends[0] >= ends[1]:
            raise ClaimError(f"its limits for {name[:80]!r} are not a smallest and a largest value")
    if not isinstance(sizes, dict) or len(sizes) > _MOST_INPUTS:
        raise ClaimError("its limits' sizes are not a mapping of dimensions")
    for name, bounds in sizes.items():
        if not _are_bounds(bounds):
            raise ClaimError(f"its limits for the dimension {name[:80]!r} are not a smallest and a largest size")
    return InputLimits(values, tokens, scale, ranges, {name: (low, high) for name, (low, high) in sizes.items()})


def _are_bounds(bounds: object) -> bool:
    if not isinstance(bounds, list) or len(bounds) != 2:
        return False
    low, high = bounds
    smallest = type(low) is int and 0 <= low <= _LARGEST
    return smallest and (high is None or (_is_count(high) and low <= high))


def _is_number(value: Any) -> bool:
    return is_number(value) and -_LARGEST < value < _LARGEST


def _is_count(value: Any) -> bool:
    return is_whole(value) and 0 < value <= _LARGEST
