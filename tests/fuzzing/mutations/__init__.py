"""Ways to spoil a good file, by layer: bytes, archives, pickles, JSON, arrays, protocol buffers."""
