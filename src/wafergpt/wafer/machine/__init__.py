"""A cycle-level mesh of processing elements on which real values flow."""
