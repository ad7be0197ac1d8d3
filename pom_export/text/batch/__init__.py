"""Many texts that are continued at once, over one pool of streams."""
