"""Judge quantized products: their weights against a model's, and what each computes against exact arithmetic."""
