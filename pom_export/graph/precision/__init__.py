"""Which nodes of a float32 graph may compute in half precision, and which may not."""

from pom_export.graph.precision.plan import PrecisionPlan, plan_precision

__all__ = ["PrecisionPlan", "plan_precision"]
