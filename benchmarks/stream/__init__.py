"""Time one token after contexts of any length, in a language model with PoM and in ones with self-attention."""
