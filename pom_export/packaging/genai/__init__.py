"""Packages for onnxruntime-genai: the model with the names that it looks for, a configuration, a tokenizer."""
