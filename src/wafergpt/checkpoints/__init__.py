"""Files <-> configuration and NumPy arrays: atomic, verified, no torch."""
