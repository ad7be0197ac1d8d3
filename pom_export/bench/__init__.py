"""How fast a model runs, and in how much memory: every backend side by side, with the machine's own limits."""
