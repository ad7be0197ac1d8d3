"""Generate text with a streaming language model: tokenizers, sampling, generation."""
