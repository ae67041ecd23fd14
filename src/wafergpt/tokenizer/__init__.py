"""Byte-level BPE: GPT-2's own, training one of any size, and incremental decoding."""
