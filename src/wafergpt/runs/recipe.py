"""One question, one sheet: what to train, asked by name, size, compute or time (no torch)."""

from __future__ import annotations

from collections.abc import Callable

from wafergpt.config import require
from wafergpt.model.config import Parametrization
from wafergpt.recipes import budget, cerebras_gpt, compute_optimal
from wafergpt.recipes.budget import TrainingRate
from wafergpt.recipes.compute_optimal import Recipe
from wafergpt.recipes.sheet import Sheet, derived_sheet, published_sheet

__all__ = ["Recipe", "Sheet", "TrainingRate", "derived", "published"]


def published(name: str) -> Sheet:
    """The published recipe of a Cerebras-GPT. Raises ConfigError for an unknown or unpublished one."""
    return published_sheet(cerebras_gpt.get(name))


def derived(
    *,
    n_params: float | None = None,
    flops: float | None = None,
    hours: float | None = None,
    measure: Callable[[Recipe], TrainingRate] | None = None,
    parametrization: str = "mup",
    vocab_size: int | None = None,
    seq_len: int | None = None,
) -> Sheet:
    """A recipe by the family's rules from exactly one of `n_params`, `flops` and `hours`.

    `hours` needs `measure`; `parametrization` is "mup" or "standard". Raises ConfigError for none or
    several of the three, for one that no recipe fits, or another parametrisation.
    """
    kinds = [kind.value for kind in Parametrization]
    require(parametrization in kinds, f"parametrization '{parametrization}' is not one of {', '.join(kinds)}")
    kind = Parametrization(parametrization)
    given = [value for value in (n_params, flops, hours) if value is not None]
    require(len(given) == 1, "give exactly one of a parameter count, FLOPs and hours")
    if n_params is not None:
        recipe = compute_optimal.from_params(
            n_params, parametrization=kind, vocab_size=vocab_size, seq_len=seq_len
        )
    elif flops is not None:
        recipe = budget.from_flops(flops, parametrization=kind, vocab_size=vocab_size, seq_len=seq_len)
    else:
        assert hours is not None
        assert measure is not None, "hours are turned into a size by a measured rate"
        recipe = budget.from_hours(
            hours, measure, parametrization=kind, vocab_size=vocab_size, seq_len=seq_len
        )
    return derived_sheet(recipe)
