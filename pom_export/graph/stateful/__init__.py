"""Give a user's causal model a state, so that it can be called on a few tokens at a time."""
