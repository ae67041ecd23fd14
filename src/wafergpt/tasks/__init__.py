"""What a model can be taught: examples to tokens and loss mask, answers, scores (no torch)."""
