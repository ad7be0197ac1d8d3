"""Time one call of an image model with PoM, beside the same model with self-attention."""
