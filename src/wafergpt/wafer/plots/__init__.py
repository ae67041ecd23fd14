"""Figures of the wafer (matplotlib, the `plots` extra)."""
