"""Move from attention to PoM: the drop-in layer, finding attention in a model, and replacing it."""

from pom_export.attention.multihead import MultiheadPolynomialMixer
from pom_export.attention.replacement import Kept, Replaced, ReplacementReport, replace_attention
from pom_export.attention.scanning import Finding, scan
from pom_export.attention.vision import VisionPolynomialMixer

__all__ = [
    "Finding",
    "Kept",
    "MultiheadPolynomialMixer",
    "Replaced",
    "ReplacementReport",
    "VisionPolynomialMixer",
    "replace_attention",
    "scan",
]
