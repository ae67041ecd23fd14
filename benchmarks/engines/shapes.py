"""The two shapes that the training benchmark times, and what every engine trains them with (no torch)."""

from __future__ import annotations

from dataclasses import dataclass

PEAK_LR, BETAS, WEIGHT_DECAY, CLIP_NORM = 6e-4, (0.9, 0.95), 0.1, 1.0


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A model and its window; `micro_batches` are the sizes tried for the best one."""

    n_layers: int
    d_model: int
    n_heads: int
    seq_len: int
    vocab_size: int = 50257
    micro_batches: tuple[int, ...]

    @property
    def flops_per_token(self) -> int:
        """6 (12 L D^2 + V D) + 6 L D T: the matrix products, causal attention counted once."""
        matrices = 12 * self.n_layers * self.d_model**2 + self.vocab_size * self.d_model
        return 6 * matrices + 6 * self.n_layers * self.d_model * self.seq_len


SHAPES = {
    "small": Shape(n_layers=6, d_model=384, n_heads=6, seq_len=256, micro_batches=(4, 8, 16)),
    "111M": Shape(n_layers=10, d_model=768, n_heads=12, seq_len=512, micro_batches=(1, 2, 4)),
    # Seconds of work, to see that everything runs; its figures mean nothing.
    "smoke": Shape(n_layers=2, d_model=64, n_heads=2, seq_len=32, vocab_size=512, micro_batches=(2, 4)),
}
