"""How big, how long, how fast: a compute-optimal recipe by the family's published rules. Pure functions.

`from_params` gives a complete `Recipe`, `for_config` gives one for a shape already chosen; `recipes.budget`
starts from FLOPs or hours. Each figure carries a `Note` that says whether the rule is published, derived from
published figures, or assumed by us where nothing is published.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from itertools import pairwise

from wafergpt.errors import ConfigError
from wafergpt.model.config import GPTConfig, Parametrization
from wafergpt.model.mup import width_ratios
from wafergpt.recipes import cerebras_gpt
from wafergpt.recipes.cerebras_gpt import Decay
from wafergpt.recipes.scaling_law import Status, law
from wafergpt.recipes.shape import PUBLISHED_VOCAB_SIZE, SMALL_MODEL_PARAMS, shape
from wafergpt.units import format_count

TOKENS_PER_PARAM = 20  # total parameters, embeddings included; exact for all seven runs (arXiv 2304.03208)

WARMUP_TOKENS = 375e6  # every size's warm-up, 346 to 1525 steps, is this many tokens (Cerebras_GPT/*.yaml)
WARMUP_FRACTION = 0.1  # the 40M proxy's, whose run is too short for the above: 152 of 1525 steps
SHORTEST_FULL_WARMUP_TOKENS = 2.2e9  # 111M's run, the shortest with the full warm-up

# Below 111M's run the batch falls as tokens ** 0.45: the least-squares slope of the seven published
# points in log-log. (Power Lines, arXiv 2505.13738, finds 0.38 for the optimal batch on other data.)
BATCH_EXPONENT = 0.45
BATCH_MULTIPLE = 8  # sequences; every published batch is a multiple of 8

# AdamW's epsilon: at most sqrt(mean of v) / 1000, hence 1e-8 up to 2.7B, 1e-9 from 6.7B (arXiv 2304.03208).
LARGE_MODEL_PARAMS = 4.2e9  # geometric mean of 2.7B and 6.7B, where the published value changes

LAW_TOLERANCE = 0.1  # the scaling law is quoted for runs within 10 % of 20 tokens per parameter


@dataclass(frozen=True, kw_only=True)
class Note:
    """What stands behind one figure of a recipe."""

    figure: str
    status: Status
    text: str


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a training run needs that the family's rules decide; `runs` makes a TrainConfig of it."""

    model: GPTConfig
    batch_sequences: int
    total_steps: int
    warmup_steps: int
    peak_lr: float  # base rate: under muP the hidden matrices get peak_lr / m (`model.mup.rules`)
    decay: Decay = Decay.LINEAR
    final_lr_fraction: float = cerebras_gpt.FINAL_LR_FRACTION
    adam_betas: tuple[float, float] = cerebras_gpt.ADAM_BETAS
    adam_eps: float = 1e-8
    weight_decay: float = cerebras_gpt.WEIGHT_DECAY
    clip_norm: float = cerebras_gpt.GRADIENT_CLIP_NORM
    duration_s: float | None = None  # expected, where a rate was measured
    notes: tuple[Note, ...] = ()

    @property
    def seq_len(self) -> int:
        """Tokens per training sequence."""
        return self.model.max_seq_len

    @property
    def batch_tokens(self) -> int:
        """Tokens per optimiser step."""
        return self.batch_sequences * self.seq_len

    @property
    def total_tokens(self) -> int:
        """Tokens of the whole run."""
        return self.total_steps * self.batch_tokens

    @property
    def warmup_tokens(self) -> int:
        """Tokens of the warm-up."""
        return self.warmup_steps * self.batch_tokens

    @property
    def end_lr(self) -> float:
        """Base learning rate at the end."""
        return self.peak_lr * self.final_lr_fraction

    @property
    def tokens_per_param(self) -> float:
        """Tokens per parameter, embeddings included."""
        return self.total_tokens / self.model.n_params

    @property
    def flops(self) -> float:
        """Training FLOPs in the headline convention."""
        return self.model.training_flops(self.total_tokens)

    @property
    def expected_loss(self) -> float | None:
        """The scaling law's Pile loss in nats per GPT-2 token; None away from 20 tokens per parameter."""
        if abs(self.tokens_per_param / TOKENS_PER_PARAM - 1) > LAW_TOLERANCE:
            return None
        return law(self.model.parametrization).loss(self.flops)


def training_tokens(n_params: int) -> int:
    """Compute-optimal tokens for `n_params` total parameters."""
    return TOKENS_PER_PARAM * n_params


def total_steps(n_tokens: float, batch_tokens: int) -> int:
    """Whole optimiser steps in `n_tokens`, at least one. Rounds down, as all published runs do."""
    return max(1, int(n_tokens // batch_tokens))


def warmup_steps(n_tokens: float, batch_tokens: int) -> int:
    """Linear warm-up: 375M tokens, or 10 % of a run shorter than 111M's 2.2e9. Rounds down, as published."""
    if n_tokens >= SHORTEST_FULL_WARMUP_TOKENS:
        return int(WARMUP_TOKENS // batch_tokens)
    return int(WARMUP_FRACTION * total_steps(n_tokens, batch_tokens))


def batch_tokens(n_tokens: float) -> float:
    """Batch for a run of `n_tokens`, in tokens, before rounding to whole sequences.

    Log-log interpolation of the published table (13B: its second phase), constant above it, a power law
    with exponent `BATCH_EXPONENT` below.
    """
    table = [(r.n_tokens, r.phases[-1].batch_tokens) for r in _published_standard()]
    if n_tokens <= table[0][0]:
        return float(table[0][1] * (n_tokens / table[0][0]) ** BATCH_EXPONENT)
    for (tokens_0, batch_0), (tokens_1, batch_1) in pairwise(table):
        if n_tokens <= tokens_1:
            weight = math.log(n_tokens / tokens_0) / math.log(tokens_1 / tokens_0)
            return float(batch_0 ** (1 - weight) * batch_1**weight)
    return table[-1][1]


def batch_sequences(n_tokens: float, seq_len: int) -> int:
    """`batch_tokens` as a number of sequences: the nearest multiple of 8, at least 8."""
    return BATCH_MULTIPLE * max(1, round(batch_tokens(n_tokens) / seq_len / BATCH_MULTIPLE))


def adam_eps(n_params: int) -> float:
    """AdamW's epsilon by size."""
    return 1e-9 if n_params >= LARGE_MODEL_PARAMS else 1e-8


def peak_lr(config: GPTConfig) -> float:
    """Base learning rate: under muP the proxy's 6e-3 at every width, else the nearest published size's."""
    if config.parametrization is Parametrization.MUP:
        return cerebras_gpt.MUP_BASE_LR
    nearest = min(_published_standard(), key=lambda r: abs(math.log(r.config.n_params / config.n_params)))
    return nearest.peak_lr


def _published_standard() -> list[cerebras_gpt.PublishedRecipe]:
    return [r for r in cerebras_gpt.RECIPES.values() if r.config.parametrization is Parametrization.STANDARD]


def for_config(config: GPTConfig, n_tokens: float | None = None) -> Recipe:
    """The recipe for a given shape, over `n_tokens` (default: 20 per parameter).

    Raises ConfigError when `n_tokens` does not fill one batch.
    """
    tokens = training_tokens(config.n_params) if n_tokens is None else n_tokens
    if not (math.isfinite(tokens) and tokens > 0):
        raise ConfigError(f"n_tokens = {n_tokens!r} must be positive and finite")
    sequences = batch_sequences(tokens, config.max_seq_len)
    batch = sequences * config.max_seq_len
    if tokens < batch:
        raise ConfigError(f"{format_count(tokens)} tokens do not fill one batch of {batch} tokens")
    return Recipe(
        model=config,
        batch_sequences=sequences,
        total_steps=total_steps(tokens, batch),
        warmup_steps=warmup_steps(tokens, batch),
        peak_lr=peak_lr(config),
        adam_eps=adam_eps(config.n_params),
        notes=_notes(config, tokens),
    )


def from_params(
    n_params: float,
    *,
    parametrization: Parametrization = Parametrization.MUP,
    vocab_size: int | None = None,
    seq_len: int | None = None,
) -> Recipe:
    """The recipe for a model of about `n_params` parameters. Raises ConfigError when no shape fits."""
    config = shape(n_params, parametrization=parametrization, vocab_size=vocab_size, seq_len=seq_len)
    recipe = for_config(config)
    return replace(recipe, notes=(*_shape_notes(config, vocab_size, seq_len), *recipe.notes))


def _shape_notes(config: GPTConfig, vocab_size: int | None, seq_len: int | None) -> tuple[Note, ...]:
    """What decided width, depth, vocabulary and sequence length."""
    small = config.n_params < SMALL_MODEL_PARAMS
    ratio = config.d_model / config.n_layers
    proportions = "published: d_model / n_layers about 80, or GPT-3 shapes"
    if config.d_model < 320:  # 80 : 1 gives fewer than four layers
        shape_note = Note(
            figure="shape", status=Status.ASSUMED, text=f"{proportions}; here {ratio:.0f}, at least 4 layers"
        )
    else:
        shape_note = Note(figure="shape", status=Status.DERIVED, text=f"{proportions}; here {ratio:.0f}")
    notes = [shape_note]
    for figure, given, published, rule in (
        (
            "vocabulary",
            vocab_size,
            f"GPT-2 BPE, {PUBLISHED_VOCAB_SIZE}",
            "35 % of the parameters, as in 111M",
        ),
        ("sequence length", seq_len, "max_sequence_length of every run", "2.5 % of the parameters"),
    ):
        if given is not None:
            notes.append(Note(figure=figure, status=Status.ASSUMED, text="as requested"))
        elif small:
            text = f"largest power of two whose embedding is within {rule}"
            notes.append(Note(figure=figure, status=Status.ASSUMED, text=text))
        else:
            notes.append(Note(figure=figure, status=Status.PUBLISHED, text=published))
    return tuple(notes)


def _notes(config: GPTConfig, n_tokens: float) -> tuple[Note, ...]:
    """What decided the figures of the run itself."""
    by_rule = n_tokens == training_tokens(config.n_params)
    tokens_text = "20 per parameter, embeddings included (arXiv 2304.03208)" if by_rule else "as requested"
    below_table = n_tokens < _published_standard()[0].n_tokens
    full_warmup = n_tokens >= SHORTEST_FULL_WARMUP_TOKENS
    return (
        Note(figure="tokens", status=Status.PUBLISHED if by_rule else Status.ASSUMED, text=tokens_text),
        Note(
            figure="batch",
            status=Status.ASSUMED if below_table else Status.DERIVED,
            text=f"the published table carried below 111M as tokens^{BATCH_EXPONENT}, our choice of rule"
            if below_table
            else "interpolated in the published table",
        ),
        _lr_note(config),
        Note(
            figure="warm-up",
            status=Status.PUBLISHED,
            text="375M tokens, as every size" if full_warmup else "10 % of a short run, as the 40M proxy",
        ),
        Note(
            figure="decay",
            status=Status.PUBLISHED,
            text="linear to 10 % of the peak (the paper finds it tends to beat cosine, section 2.3)",
        ),
        Note(figure="AdamW", status=Status.PUBLISHED, text=cerebras_gpt.SOURCES["optimizer"]),
        _init_note(config),
        _loss_note(config, n_tokens, by_rule),
    )


def _lr_note(config: GPTConfig) -> Note:
    if config.parametrization is Parametrization.STANDARD:
        text = "that of the nearest published size; only those sizes' rates are published"
        return Note(figure="peak LR", status=Status.ASSUMED, text=text)
    m = width_ratios(config).d_model
    below = "; narrower than the proxy, where transfer was not shown" if m < 1 else ""
    text = f"muP: tuned on the 40M proxy, hidden matrices get it divided by m = {m:.4g}{below}"
    return Note(figure="peak LR", status=Status.DERIVED, text=text)


def _init_note(config: GPTConfig) -> Note:
    if config.parametrization is Parametrization.STANDARD:
        text = "0.02, output projections 0.02/sqrt(2 L); truncated normal cut at 2 sigma"
    else:
        text = "muP: 0.08 tuned on the 40M proxy, scaled with width; truncated normal cut at 2 sigma"
    return Note(figure="initialisation", status=Status.PUBLISHED, text=text)


def _loss_note(config: GPTConfig, n_tokens: float, by_rule: bool) -> Note:
    used, flops = law(config.parametrization), config.training_flops(n_tokens)
    low, high = used.fitted_flops
    reach = f", extrapolated from {low:.1e} to {high:.1e} FLOPs" if used.extrapolates(flops) else ""
    rule = "" if by_rule else ", valid near 20 tokens per parameter only"
    text = f"scaling law ({used.source}){reach}{rule}; nats per GPT-2 token on the Pile, not on other text"
    return Note(figure="expected loss", status=Status.DERIVED, text=text)
