"""Decide which nodes of a float32 graph may compute in half precision."""

from pom_export.graph.precision.plan import PrecisionPlan, plan_precision

__all__ = ["PrecisionPlan", "plan_precision"]
