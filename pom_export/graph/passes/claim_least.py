"""Declare the oldest ONNX version that the model works with."""

from __future__ import annotations

import onnx
import onnx_ir as ir


class ClaimLeastPass(ir.passes.InPlacePass):
    """Set the lowest IR version that goes with the opsets: 9 at opset 20, which ONNX Runtime 1.17 reads.

    An opset's IR version has all types that its ops support, and the file uses nothing that came with a later IR
    version.
    """

    def call(self, model: ir.Model) -> ir.passes.PassResult:
        """Set the version."""
        opsets = [onnx.helper.make_opsetid(domain, version) for domain, version in model.opset_imports.items()]
        lowest = onnx.helper.find_min_ir_version_for(opsets, ignore_unknown=True)
        modified, model.ir_version = model.ir_version != lowest, lowest
        return ir.passes.PassResult(model, modified=modified)
