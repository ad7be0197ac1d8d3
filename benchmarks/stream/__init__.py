"""One token after contexts of any length, on a language model of PoM and on ones of self-attention."""
