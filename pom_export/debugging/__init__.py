"""Find the module of a model whose outputs in an exported file differ from PyTorch's, and why."""
