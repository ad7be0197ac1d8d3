"""A layer, or a whole model of a checkpoint: our exports beside the published code, attention and the floor."""
