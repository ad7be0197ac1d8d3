"""Time a layer or the model of a checkpoint: our exports beside the published code, attention and the lower bound."""
