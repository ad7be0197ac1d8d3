"""Measure a model's speed and memory on all backends side by side, together with the machine's limits."""
