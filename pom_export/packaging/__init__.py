"""Put a model into a folder that a server loads: its files, its configuration, a client, a check, and a manifest."""
