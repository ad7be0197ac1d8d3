"""Turn a module into an ONNX graph: schema, function body, translation, passes."""
