"""Rewrite graphs of standard operators, which anybody's exporter made of a mixer, to the op.

Recognition works on numbers: the part of the graph between the projected tokens and their aggregate is run in float64
on chosen inputs and compared with the op's definition. How it is written does not matter, and what is almost it is
named with the reason.
"""

from pom_export.graph.fusing.finding import Findings, find_aggregations
from pom_export.graph.fusing.rewriting import put_aggregation
from pom_export.graph.fusing.shapes import Seen, complete_shapes, inferred

__all__ = ["Findings", "Seen", "complete_shapes", "find_aggregations", "inferred", "put_aggregation"]
