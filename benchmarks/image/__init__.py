"""One call of an image model of PoM beside the same one with self-attention."""
