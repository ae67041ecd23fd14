"""How big, how long, how fast: pure functions of the published recipe, no torch."""
