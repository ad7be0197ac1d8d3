"""Measure how far an exported model's outputs are from PyTorch's."""
