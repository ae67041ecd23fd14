"""A model card (README.md): YAML front matter for the hub, and the run's own figures, no others.

The keys of the front matter are those of the hub's specification (huggingface.co/docs/hub/model-cards, "Model
card metadata"). A figure that the provenance does not hold is not in the card.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.model.config import Activation
from wafergpt.units import format_count

FILE_NAME = "README.md"
_MAX_ROWS = 100
_MAX_VALUE_CHARS = 200


@dataclass(frozen=True, kw_only=True)
class CardFacts:
    """What only the publisher knows. Nothing is assumed: a licence left out is left out of the card."""

    name: str | None = None  # heading; None: the folder's name
    license: str | None = None  # an identifier of the hub, e.g. "apache-2.0"
    language: tuple[str, ...] = ()  # ISO 639-1 codes
    datasets: tuple[str, ...] = ()  # hub names
    base_model: str | None = None  # hub name of the model this one was made from
    held_out_nats_per_token: float | None = None  # measured by `wafergpt eval`
    held_out_data: str | None = None  # what it was measured on


def model_card(model: StoredModel, facts: CardFacts, *, name: str, dtype: str) -> str:
    """The README.md of a published folder; `name` is the heading where `facts` has none."""
    config = model.config
    title = " ".join((facts.name or name).split())
    parts = [
        _front_matter(facts, title),
        f"# {_cell(title)}",
        "A GPT-2 model in the standard Hugging Face layout, written by wafergpt. "
        "Any program that reads `GPT2LMHeadModel` runs it.",
        "## Shape",
        _table(
            {
                "parameters": f"{config.n_params:,} ({format_count(config.n_params)})",
                "layers": config.n_layers,
                "d_model": config.d_model,
                "heads": f"{config.n_heads} of {config.d_head}",
                "d_ffn": config.ffn_width,
                "context window": f"{config.max_seq_len} tokens",
                "vocabulary": f"{config.vocab_size} entries",
                "activation": "GELU, erf form" if config.activation is Activation.GELU else "GELU, tanh form",
                "weights stored as": dtype,
            }
        ),
    ]
    if facts.held_out_nats_per_token is not None:
        on = f" on {facts.held_out_data}" if facts.held_out_data else ""
        parts += ["## Results", f"Held-out loss{on}: {facts.held_out_nats_per_token:.4f} nats per token."]
    rows = _flat(model.provenance)
    if rows:
        parts += ["## Where it comes from", _table(rows)]
    if model.notes:
        parts += ["## Notes of the conversion", "\n".join(f"- {_cell(note)}" for note in model.notes)]
    return "\n\n".join(parts) + "\n"


def _front_matter(facts: CardFacts, title: str) -> str:
    """The metadata block; each value in JSON, which YAML contains."""
    matter: dict[str, Any] = {
        "language": list(facts.language),
        "license": facts.license,
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["gpt2", "wafergpt"],
        "datasets": list(facts.datasets),
        "base_model": facts.base_model,
    }
    if facts.held_out_nats_per_token is not None:
        measured = {
            "task": {"type": "text-generation"},
            "dataset": {"name": facts.held_out_data or "held-out text", "type": "held-out"},
            "metrics": [
                {"type": "cross-entropy", "name": "nats per token", "value": facts.held_out_nats_per_token}
            ],
        }
        matter["model-index"] = [{"name": title, "results": [measured]}]
    lines = [f"{key}: {json.dumps(value)}" for key, value in matter.items() if value not in (None, [])]
    return "\n".join(["---", *lines, "---"])


def _flat(facts: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested provenance as dotted keys; lists and long texts are left out, as are rows beyond a hundred."""
    rows: dict[str, Any] = {}
    for key, value in facts.items():
        if isinstance(value, Mapping):
            rows |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, (str, int, float)) and len(str(value)) <= _MAX_VALUE_CHARS:
            rows[f"{prefix}{key}"] = value
    return dict(list(rows.items())[:_MAX_ROWS])


def _table(rows: Mapping[str, Any]) -> str:
    lines = [f"| {_cell(key)} | {_cell(value)} |" for key, value in rows.items()]
    return "\n".join(["| | |", "|---|---|", *lines])


def _cell(value: Any) -> str:
    """One line that cannot end the table or start markup: the text may come from somebody else's file."""
    text = " ".join(str(value).split())
    for character in "\\`|<>[]*":
        text = text.replace(character, "\\" + character)
    return text
