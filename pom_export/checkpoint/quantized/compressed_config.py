"""What the configuration of compressed-tensors says about the layers of a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from pom_export.checkpoint.quantized.tensor import LayoutError

# None is what older files say, and groups that are like the whole.
_FORMATS: Final = (None, "pack-quantized", "int-quantized", "float-quantized", "naive-quantized", "mixed-precision")
_DENSE: Final = (None, "dense")
_ACTIVATIONS: Final = ("input_activations", "output_activations")
METHOD: Final = "compressed-tensors"
CONFIG: Final = "quantization_config in config.json"
CONFIG_HINT: Final = (
    "Put the config.json of compressed-tensors beside the file, or save the weights in bfloat16 or wider, before they "
    "are quantized"
)


@dataclass(frozen=True)
class Scheme:
    """How a group of layers is quantized, as the configuration says.

    Attributes:
        bits: bits of a weight.
        is_float: whether the stored weights are floating point.
        symmetric: whether there are no zero points.
        group: columns that share a scale, or None.
        block: rows and columns that share a scale, or None.
        ordered: whether columns are assigned to groups by a `weight_g_idx`.
        activations: whether the layers quantize their input as well.
    """

    bits: int
    is_float: bool
    symmetric: bool
    group: int | None
    block: tuple[int, int] | None
    ordered: bool
    activations: bool


def schemes_in(config: Mapping[str, Any] | None) -> Sequence[Scheme] | None:
    """Return the schemes in a configuration; None if it is not one of compressed-tensors.

    Raises:
        LayoutError: it describes something that is not known, with "it" being the model.
    """
    if config is None or config.get("quant_method") != METHOD:
        return None
    if config.get("transform_config"):
        raise LayoutError(f"{CONFIG} has a transform_config, whose transforms are no part of the weights")
    sparsity = config.get("sparsity_config")
    if config.get("format") not in _FORMATS or (isinstance(sparsity, dict) and sparsity.get("format") not in _DENSE):
        said = sparsity.get("format") if isinstance(sparsity, dict) and sparsity else config.get("format")
        raise LayoutError(f"{CONFIG} says that the format is {str(said)[:40]!r}")
    groups = config.get("config_groups")
    found = [
        _scheme(group["weights"], any(group.get(name) is not None for name in _ACTIVATIONS))
        for group in (groups.values() if isinstance(groups, dict) else ())
        if isinstance(group, dict) and isinstance(group.get("weights"), dict) and group.get("format") in _FORMATS
    ]
    if not found:
        raise LayoutError(f"{CONFIG} has no config_groups with weights in a format that is read", CONFIG_HINT)
    return found


def _scheme(values: Mapping[str, Any], activations: bool) -> Scheme:
    bits, kind, symmetric = values.get("num_bits"), values.get("type", "int"), values.get("symmetric", True)
    group, block = values.get("group_size"), values.get("block_structure")
    good = type(bits) is int and kind in ["int", "float"] and type(symmetric) is bool
    good = good and (group is None or (type(group) is int and group >= -1))
    if block is not None:
        extents = block if isinstance(block, list) else []
        good = good and len(extents) == 2 and all(type(extent) is int and extent > 0 for extent in extents)
    if not good:
        raise LayoutError(f"{CONFIG} describes weights as {str(dict(values))[:100]}", CONFIG_HINT)
    assert isinstance(bits, int)
    size = group if group is not None and group > 0 else None
    shared = (block[0], block[1]) if block is not None else None
    return Scheme(bits, kind == "float", symmetric, size, shared, values.get("actorder") == "group", activations)
