"""Ways to spoil a valid file, by layer: bytes, archives, pickles, JSON, arrays."""
