"""The shape of a transformer as the closed forms need it, and what follows from it: parameters and FLOPs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class GPTLike(Protocol):
    """What a shape needs of `model.config.GPTConfig`."""

    @property
    def n_layers(self) -> int: ...
    @property
    def d_model(self) -> int: ...
    @property
    def ffn_width(self) -> int: ...
    @property
    def n_heads(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...


@dataclass(frozen=True, kw_only=True)
class Shape:
    """A transformer of equal layers. `gated_ffn`: three FFN matrices; `vocab` 0: no head (a classifier)."""

    n_layers: int
    d_model: int
    d_ffn: int
    n_heads: int
    n_kv_heads: int
    vocab: int
    gated_ffn: bool = False

    @classmethod
    def of(cls, config: GPTLike) -> Shape:
        """The shape of a GPT of ours."""
        return cls(
            n_layers=config.n_layers,
            d_model=config.d_model,
            d_ffn=config.ffn_width,
            n_heads=config.n_heads,
            n_kv_heads=config.n_heads,
            vocab=config.vocab_size,
        )

    @property
    def kv_width(self) -> int:
        """Columns of the key (and of the value) projection."""
        return self.d_model * self.n_kv_heads // self.n_heads

    @property
    def layer_parameters(self) -> int:
        """Weights of one layer's matrices."""
        attention = 2 * self.d_model * self.d_model + 2 * self.d_model * self.kv_width
        return attention + (3 if self.gated_ffn else 2) * self.d_model * self.d_ffn

    @property
    def n_parameters(self) -> int:
        """Weights of all layers and of the vocabulary matrix, counted once."""
        return self.n_layers * self.layer_parameters + self.vocab * self.d_model

    def parameters_with_vectors(self, seq_len: int) -> int:
        """All parameters of a GPT-2-like model: positions, biases and norms too (Cerebras-GPT's count)."""
        vectors = 9 * self.d_model + self.d_ffn
        return self.n_parameters + seq_len * self.d_model + self.n_layers * vectors

    def layer_flops(self, n_tokens: float, seq_len: int) -> float:
        """FLOPs of one layer, forward and backward; attention over whole windows, not halved by the mask."""
        return n_tokens * (6.0 * self.layer_parameters + 12.0 * seq_len * self.d_model)

    def head_flops(self, n_tokens: float) -> float:
        """FLOPs of the vocabulary head, forward and backward."""
        return 6.0 * n_tokens * self.vocab * self.d_model

    def reported_flops_per_token(self, seq_len: int) -> float:
        """Training FLOPs per token as the Cerebras-GPT model cards count them.

        6 per weight, 24 L S D for attention, 10 V D for embedding and head, 9 L H S for the softmax: gives
        all seven headline figures (arXiv 2304.03208, appendix F; constants derived from the figures).
        """
        attention = (
            24.0 * self.n_layers * seq_len * self.d_model + 9.0 * self.n_layers * self.n_heads * seq_len
        )
        return 6.0 * self.n_layers * self.layer_parameters + attention + 10.0 * self.vocab * self.d_model
