"""The benchmark of quantized weights."""
