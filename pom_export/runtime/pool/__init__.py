"""Many streams through one loaded model: each call takes a token, or a piece of a prompt, of many of them."""
