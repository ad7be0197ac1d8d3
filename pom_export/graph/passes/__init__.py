"""Edits of the exported graph, one onnx_ir pass per file."""

from pom_export.graph.passes.attach_functions import AttachFunctionsPass
from pom_export.graph.passes.claim_least import ClaimLeastPass
from pom_export.graph.passes.delay_transpose import DelayTransposePass
from pom_export.graph.passes.divide_norms import DivideNormsPass
from pom_export.graph.passes.factor_gate import FactorGatePass
from pom_export.graph.passes.fold_tables import FoldTablesPass
from pom_export.graph.passes.fuse_gate import FuseGatePass
from pom_export.graph.passes.inline_functions import InlineFunctionsPass
from pom_export.graph.passes.lower_precision import LowerPrecisionPass
from pom_export.graph.passes.name_by_module import NameByModulePass
from pom_export.graph.passes.name_dimensions import NameDimensionsPass
from pom_export.graph.passes.number_states import NumberStatesPass
from pom_export.graph.passes.recognise_causal import RecogniseCausalPass
from pom_export.graph.passes.share_transposed import ShareTransposedPass
from pom_export.graph.passes.spell_out import SpellOutPass
from pom_export.graph.passes.split_projection import SplitProjectionPass
from pom_export.graph.passes.stamp_metadata import StampMetadataPass

__all__ = [
    "AttachFunctionsPass",
    "ClaimLeastPass",
    "DelayTransposePass",
    "DivideNormsPass",
    "FactorGatePass",
    "FoldTablesPass",
    "FuseGatePass",
    "InlineFunctionsPass",
    "LowerPrecisionPass",
    "NameByModulePass",
    "NameDimensionsPass",
    "NumberStatesPass",
    "RecogniseCausalPass",
    "ShareTransposedPass",
    "SpellOutPass",
    "SplitProjectionPass",
    "StampMetadataPass",
]
