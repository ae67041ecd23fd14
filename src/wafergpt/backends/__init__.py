"""One face for every place a forward pass can run."""
