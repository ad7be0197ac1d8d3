"""Run a file's products of int4 and int8 weights, and what lies between them, as few nodes: `FusedLayers`.

A session on the CPU is created from a rewritten copy of the graph; the file stays as it is. Runs of nodes that our
library computes become one node each, whose program it runs without returning to ONNX Runtime (`rewriting.py`). The
arithmetic is that of the nodes: activations of a product are rounded to 8 bits as MatMulNBits rounds them.
"""
