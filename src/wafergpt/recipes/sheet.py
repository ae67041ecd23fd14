"""A recipe as a sheet of figures, each with its status and source: what `wafergpt recipe` prints."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from wafergpt.model.config import FlopsConvention, GPTConfig, Parametrization
from wafergpt.model.mup import Role, multipliers, rules, width_ratios
from wafergpt.recipes import cerebras_gpt
from wafergpt.recipes.cerebras_gpt import SOURCES, Phase, PublishedRecipe
from wafergpt.recipes.compute_optimal import Note, Recipe
from wafergpt.recipes.scaling_law import Status, law
from wafergpt.units import format_count, format_duration

Value = int | float | str


@dataclass(frozen=True, kw_only=True)
class Row:
    """One figure: `value` for machines, `text` for people."""

    figure: str
    value: Value
    text: str
    status: Status
    source: str


@dataclass(frozen=True, kw_only=True)
class Sheet:
    """All figures of one recipe. `notes` are traps and contradictions between the sources."""

    title: str
    config: GPTConfig
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()


def published_sheet(recipe: PublishedRecipe) -> Sheet:
    """The whole published recipe."""
    rows = (
        *_shape_rows(recipe.config, {}),
        *_count_rows(recipe.config),
        *_published_run_rows(recipe),
        *_optimizer_rows(recipe.peak_lr, recipe.end_lr, recipe.decay.value, recipe.adam_eps, {}),
        *_parametrization_rows(recipe.config, recipe.peak_lr),
        *_published_result_rows(recipe),
    )
    title = f"Cerebras-GPT {recipe.name}, as published"
    return Sheet(title=title, config=recipe.config, rows=rows, notes=recipe.notes)


def derived_sheet(recipe: Recipe) -> Sheet:
    """A recipe derived by the family's rules."""
    notes = {note.figure: note for note in recipe.notes}
    rows = (
        *_shape_rows(recipe.model, notes),
        *_count_rows(recipe.model),
        *_derived_run_rows(recipe, notes),
        *_optimizer_rows(recipe.peak_lr, recipe.end_lr, recipe.decay.value, recipe.adam_eps, notes),
        *_parametrization_rows(recipe.model, recipe.peak_lr),
        *_derived_result_rows(recipe, notes),
    )
    kind = _kind(recipe.model)
    title = f"Compute-optimal recipe: {format_count(recipe.model.n_params)} parameters, {kind}"
    return Sheet(title=title, config=recipe.model, rows=rows)


def _kind(config: GPTConfig) -> str:
    return "muP" if config.parametrization is Parametrization.MUP else "standard parametrisation"


def _published(figure: str, value: Value, text: str, source: str) -> Row:
    return Row(figure=figure, value=value, text=text, status=Status.PUBLISHED, source=SOURCES[source])


def _derived(figure: str, value: Value, text: str, source: str) -> Row:
    return Row(figure=figure, value=value, text=text, status=Status.DERIVED, source=source)


def _noted(row: Row, notes: Mapping[str, Note], figure: str) -> Row:
    """`row` with the status and source of the note about `figure`, where the recipe has one."""
    note = notes.get(figure)
    if note is None:
        return row
    return Row(figure=row.figure, value=row.value, text=row.text, status=note.status, source=note.text)


def _shape_rows(config: GPTConfig, notes: Mapping[str, Note]) -> list[Row]:
    rows = []
    for figure, value, note in (
        ("n_layers", config.n_layers, "shape"),
        ("d_model", config.d_model, "shape"),
        ("n_heads", config.n_heads, "shape"),
        ("d_head", config.d_head, "shape"),
        ("d_ffn", config.ffn_width, "shape"),
        ("vocabulary", config.vocab_size, "vocabulary"),
        ("sequence length", config.max_seq_len, "sequence length"),
    ):
        rows.append(_noted(_published(figure, value, f"{value:,}", "shape"), notes, note))
    return rows


def _count_rows(config: GPTConfig) -> list[Row]:
    kv_bytes = config.kv_bytes_per_token()
    return [
        _derived(
            "parameters", config.n_params, f"{config.n_params:,}", "V D + S D + L (12 D^2 + 13 D) + 2 D"
        ),
        _derived(
            "parameters without embeddings",
            config.n_params_non_embedding,
            f"{config.n_params_non_embedding:,}",
            "L (12 D^2 + 13 D) + 2 D",
        ),
        _derived(
            "KV cache bytes per token", kv_bytes, f"{kv_bytes:,}", "keys and values, bfloat16: 2 L D 2 bytes"
        ),
    ]


def _published_run_rows(recipe: PublishedRecipe) -> list[Row]:
    rows = [
        _published("tokens", recipe.n_tokens, f"{recipe.n_tokens:,}", "steps"),
        _derived(
            "tokens per parameter",
            recipe.tokens_per_param,
            f"{recipe.tokens_per_param:.2f}",
            "embeddings included",
        ),
    ]
    for number, phase in enumerate(recipe.phases, start=1):
        prefix = f"phase {number}: " if len(recipe.phases) > 1 else ""
        rows.extend(_phase_rows(phase, prefix))
    return rows


def _phase_rows(phase: Phase, prefix: str) -> list[Row]:
    batch = f"{phase.batch_sequences:,} sequences, {phase.batch_tokens:,} tokens"
    warmup_tokens = phase.warmup_steps * phase.batch_tokens
    warmup = f"{phase.warmup_steps:,} steps, {format_count(warmup_tokens)} tokens"
    whole_schedule = phase.n_steps == phase.warmup_steps + phase.decay_steps
    steps = f"{phase.n_steps:,}"
    if not whole_schedule:
        steps += f", from {phase.first_step:,} to {phase.last_step:,} of the schedule"
    rows = [
        _published(f"{prefix}batch in sequences", phase.batch_sequences, batch, "batch"),
        _published(f"{prefix}warm-up steps", phase.warmup_steps, warmup, "steps"),
        _published(f"{prefix}decay steps", phase.decay_steps, f"{phase.decay_steps:,}", "steps"),
        _published(f"{prefix}steps", phase.n_steps, steps, "steps"),
    ]
    if phase.n_systems is not None:
        rows.append(_published(f"{prefix}CS-2 systems", phase.n_systems, f"{phase.n_systems}", "systems"))
    return rows


def _derived_run_rows(recipe: Recipe, notes: Mapping[str, Note]) -> list[Row]:
    batch = f"{recipe.batch_sequences:,} sequences, {recipe.batch_tokens:,} tokens"
    warmup = f"{recipe.warmup_steps:,} steps, {format_count(recipe.warmup_tokens)} tokens"
    per_param = recipe.tokens_per_param
    whole = "whole batches in the tokens, rounded down as published"
    return [
        _noted(_derived("tokens", recipe.total_tokens, f"{recipe.total_tokens:,}", whole), notes, "tokens"),
        _derived("tokens per parameter", per_param, f"{per_param:.2f}", "after rounding to whole batches"),
        _noted(_derived("batch in sequences", recipe.batch_sequences, batch, ""), notes, "batch"),
        _noted(_derived("warm-up steps", recipe.warmup_steps, warmup, ""), notes, "warm-up"),
        _derived("steps", recipe.total_steps, f"{recipe.total_steps:,}", whole),
    ]


def _optimizer_rows(
    peak_lr: float, end_lr: float, decay: str, adam_eps: float, notes: Mapping[str, Note]
) -> list[Row]:
    beta_1, beta_2 = cerebras_gpt.ADAM_BETAS
    decay_text = f"linear warm-up from 0, {decay} decay"
    weight_decay = f"{cerebras_gpt.WEIGHT_DECAY:g}, not on biases and LayerNorm"
    clip = f"{cerebras_gpt.GRADIENT_CLIP_NORM:g}, global norm"
    return [
        _noted(_published("peak LR", peak_lr, f"{peak_lr:.1e}", "learning rate"), notes, "peak LR"),
        _noted(_published("end LR", end_lr, f"{end_lr:.1e}", "learning rate"), notes, "decay"),
        _noted(_published("decay", decay, decay_text, "learning rate"), notes, "decay"),
        _published("AdamW beta 1", beta_1, f"{beta_1:g}", "optimizer"),
        _published("AdamW beta 2", beta_2, f"{beta_2:g}", "optimizer"),
        _published("AdamW eps", adam_eps, f"{adam_eps:.0e}", "eps"),
        _published("weight decay", cerebras_gpt.WEIGHT_DECAY, weight_decay, "optimizer"),
        _published("gradient clipping", cerebras_gpt.GRADIENT_CLIP_NORM, clip, "optimizer"),
        _published("precision", cerebras_gpt.PRECISION, cerebras_gpt.PRECISION, "optimizer"),
        _published("dropout", 0.0, "none", "optimizer"),
    ]


def _parametrization_rows(config: GPTConfig, peak_lr: float) -> list[Row]:
    """Initialisation of each role and, under muP, the per-size table."""
    table = rules(config)
    rows = [
        _derived(f"init std, {label}", std, f"{std:.7g}", f"formula of {SOURCES['initialisation']}")
        for label, std in (
            ("embeddings", table[Role.EMBEDDING].init_std),
            ("QKV and FFN in", table[Role.HIDDEN_IN].init_std),
            ("attention out", table[Role.ATTENTION_OUT].init_std),
            ("FFN out", table[Role.FFN_OUT].init_std),
        )
    ]
    if config.mup is None:
        return rows
    m, m_ffn, forward = width_ratios(config).d_model, width_ratios(config).d_ffn, multipliers(config)
    hidden_lr = peak_lr * table[Role.HIDDEN_IN].lr_scale
    ffn_out_lr = peak_lr * table[Role.FFN_OUT].lr_scale
    for figure, value, text in (
        ("muP width ratio m", m, f"{m:g} = {config.d_model} / {config.mup.base_d_model}"),
        ("muP FFN ratio", m_ffn, f"{m_ffn:g} = {config.d_ffn} / {config.mup.base_d_ffn}"),
        ("peak LR, hidden matrices", hidden_lr, f"{hidden_lr:.6g} = base / m"),
        ("peak LR, FFN out", ffn_out_lr, f"{ffn_out_lr:.6g} = base / FFN ratio"),
        ("embedding multiplier", forward.embedding, f"{forward.embedding:g}"),
        ("logit multiplier", forward.logits, f"{forward.logits:.7g} = output multiplier / m"),
        ("attention scale", forward.attention_scale, f"1/{config.d_head}, not 1/sqrt"),
    ):
        rows.append(_derived(figure, value, text, f"rule of {SOURCES['muP']}"))
    return rows


_CONVENTIONS = (
    ("training FLOPs", FlopsConvention.CEREBRAS, "formula of arXiv 2304.03208 appendix F"),
    ("training FLOPs, attention once", FlopsConvention.CEREBRAS_TABLE, "the same, attention counted once"),
    ("training FLOPs, 6 N", FlopsConvention.SIX_N, "6 x parameters x tokens"),
)


def _flops_rows(config: GPTConfig, n_tokens: int) -> list[Row]:
    rows = []
    for figure, convention, source in _CONVENTIONS:
        flops = config.training_flops(n_tokens, convention)
        rows.append(_derived(figure, flops, f"{flops:.3e}", source))
    return rows


def _published_result_rows(recipe: PublishedRecipe) -> list[Row]:
    rows = []
    for figure, value, source in (
        ("published training FLOPs", recipe.headline_flops, "headline FLOPs"),
        ("published training FLOPs, older table", recipe.older_flops, "older FLOPs"),
    ):
        if value is not None:
            rows.append(_published(figure, value, f"{value:.1e}", source))
    rows.extend(_flops_rows(recipe.config, recipe.n_tokens))
    for figure, value, source in (
        ("Pile test loss", recipe.test_loss, "loss"),
        ("Pile test loss, model card", recipe.card_loss, "card loss"),
    ):
        if value is not None:
            rows.append(_published(figure, value, f"{value:.3f} nats/token", source))
    used = law(recipe.config.parametrization)
    text = f"{recipe.predicted_loss:.3f} nats/token"
    if recipe.test_loss is not None:
        text += f" ({recipe.predicted_loss / recipe.test_loss - 1:+.1%} of the published loss)"
    reach = "; extrapolated" if used.extrapolates(recipe.flops()) else ""
    rows.append(_derived("predicted loss", recipe.predicted_loss, text, f"scaling law: {used.source}{reach}"))
    return rows


def _derived_result_rows(recipe: Recipe, notes: Mapping[str, Note]) -> list[Row]:
    rows = _flops_rows(recipe.model, recipe.total_tokens)
    if recipe.expected_loss is not None:
        text = f"{recipe.expected_loss:.3f} nats/token"
        row = _derived("expected loss", recipe.expected_loss, text, "scaling law")
        rows.append(_noted(row, notes, "expected loss"))
    if recipe.duration_s is not None:
        text = f"{recipe.duration_s:,.0f} ({format_duration(recipe.duration_s)})"
        row = _derived("training time in seconds", recipe.duration_s, text, "")
        rows.append(_noted(row, notes, "duration"))
    return rows
