"""Closed-form cost of what runs on a wafer: training, inference, and single programs."""
