"""OpenAI's protocol of completions and chat completions, over a `TextBatch`."""
