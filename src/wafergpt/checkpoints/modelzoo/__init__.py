"""Cerebras Model Zoo: its YAML configurations and its `.mdl` checkpoints."""
