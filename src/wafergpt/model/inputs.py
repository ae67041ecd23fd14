"""What a caller hands to the model: checked, then turned into positions and an attention pattern.

Shapes: B batch, T new positions, S positions seen (cached + T).
"""

from __future__ import annotations

import torch
from torch import Tensor

from wafergpt.config import require


def check_input_ids(input_ids: Tensor, vocab_size: int) -> None:
    """Raise ConfigError unless input_ids is [B, T] (T >= 1) of integers in 0..vocab_size-1."""
    require(
        input_ids.ndim == 2 and input_ids.numel() > 0,
        f"input_ids must have shape [batch, positions], at least one of each; got {list(input_ids.shape)}",
    )
    check_ids("token id", input_ids, vocab_size, "the vocabulary")


def check_ids(what: str, ids: Tensor, limit: int, limit_name: str) -> None:
    """Raise ConfigError unless every id is an integer in 0..limit-1, naming the first that is not.

    The values are looked at on the CPU only: on another device that would wait for it at every step.
    """
    require(
        not (ids.is_floating_point() or ids.dtype is torch.bool), f"{what}s must be integers, not {ids.dtype}"
    )
    if ids.device.type != "cpu" or torch.compiler.is_compiling():
        return
    lowest, highest = ids.aminmax()
    if lowest < 0 or highest >= limit:
        wrong = ids[(ids < 0) | (ids >= limit)].flatten()[0].item()
        require(False, f"{what} {wrong} is outside {limit_name} (0 to {limit - 1})")


def real_tokens(attention_mask: Tensor | None, shape: tuple[int, int]) -> Tensor | None:
    """The mask as booleans [B, S], True where the token is real; None stays None (all real)."""
    if attention_mask is None:
        return None
    require(
        tuple(attention_mask.shape) == shape,
        f"attention_mask must have shape {list(shape)} (batch, cached and new positions); "
        f"got {list(attention_mask.shape)}",
    )
    require(
        not attention_mask.is_floating_point(),
        "attention_mask must be boolean or integer, 1 where the token is real; it is not an additive mask",
    )
    return attention_mask.bool()


def positions_of(position_ids: Tensor | None, mask: Tensor | None, past: int, input_ids: Tensor) -> Tensor:
    """Position of each new token, [B, T] or [T]: the one given, or how many real tokens stand before it."""
    n_new = input_ids.shape[1]
    if position_ids is not None:
        require(
            position_ids.shape == input_ids.shape,
            f"position_ids must have the shape of input_ids {list(input_ids.shape)}; "
            f"got {list(position_ids.shape)}",
        )
        return position_ids
    if mask is None:
        return torch.arange(past, past + n_new, device=input_ids.device)
    counted = mask.long().cumsum(1) - 1  # [B, S]; -1 before the first real token
    return counted.clamp(min=0)[:, past:]


def allowed_keys(mask: Tensor | None, n_new: int, n_seen: int, device: torch.device) -> Tensor:
    """[B or 1, 1, T, S] True where new position t may see position s: not later, and real."""
    new = torch.arange(n_seen - n_new, n_seen, device=device)
    causal = torch.arange(n_seen, device=device) <= new[:, None]  # [T, S]
    return causal[None, None] if mask is None else causal & mask[:, None, None, :]
