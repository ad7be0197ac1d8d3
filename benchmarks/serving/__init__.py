"""Many streams at once, each continued token by token."""
