"""Model repositories for NVIDIA's Triton Inference Server, and what the Python backend runs in it."""
