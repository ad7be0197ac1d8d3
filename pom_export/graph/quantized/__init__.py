"""Products with quantized weights: their values, how files hold them, how to find and to write them."""
