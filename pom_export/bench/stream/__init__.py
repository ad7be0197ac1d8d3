"""What the next token costs after 1 to a million others, beside attention with a cache of keys and values."""
