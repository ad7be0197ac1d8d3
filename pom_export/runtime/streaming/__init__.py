"""Streams: a stateful export, run token by token."""
