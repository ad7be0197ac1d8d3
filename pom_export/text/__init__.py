"""Text through a streaming language model: tokenizers, sampling, generation."""
