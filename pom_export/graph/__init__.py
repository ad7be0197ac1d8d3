"""From a module to an ONNX graph: schema, function body, translation, passes."""
