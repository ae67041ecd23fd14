"""How good is it: perplexity, bits per byte, and simple baselines."""
