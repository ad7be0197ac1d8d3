"""Run a stateful export token by token."""
