"""Determine what a (B, T, N) mask is by computing it: causal, the same for every query, or neither."""

from pom_export.graph.masks.kinds import CAUSAL, SAME_ROWS, MaskKind, kind_of
from pom_export.graph.masks.rows import NoRowError, last_row

__all__ = ["CAUSAL", "SAME_ROWS", "MaskKind", "NoRowError", "kind_of", "last_row"]
