"""Python functions that return complete configurations of runs, no torch."""
