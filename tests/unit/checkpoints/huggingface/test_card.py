"""The model card: front matter that YAML reads, figures of the run, nothing a stranger's text can break."""

from __future__ import annotations

import dataclasses

import yaml

from model_lab import stored_model
from wafergpt.checkpoints.huggingface.card import CardFacts, model_card

FACTS = CardFacts(
    name="Small: a model",
    license="apache-2.0",
    language=("en",),
    datasets=("someone/text",),
    held_out_nats_per_token=2.5,
    held_out_data="the last chapter",
)


def split(card: str) -> tuple[dict[str, object], str]:
    _, front, body = card.split("---\n", 2)
    return yaml.safe_load(front), body


def test_front_matter_and_figures() -> None:
    front, body = split(model_card(stored_model(), FACTS, name="folder", dtype="float32"))
    assert (
        front["license"] == "apache-2.0"
        and front["language"] == ["en"]
        and front["tags"] == ["gpt2", "wafergpt"]
    )
    assert front["pipeline_tag"] == "text-generation" and front["library_name"] == "transformers"
    assert "model-index" in front and "base_model" not in front
    assert "# Small: a model" in body and "2.5000 nats per token" in body and "the last chapter" in body
    assert f"{stored_model().config.n_params:,}" in body


def test_nothing_is_assumed() -> None:
    front, body = split(model_card(stored_model(), CardFacts(), name="folder", dtype="float32"))
    assert not {"license", "language", "datasets", "model-index"} & set(front)
    assert "# folder" in body and "Results" not in body


def test_provenance_is_listed_flat() -> None:
    facts = {"step": 300, "training": {"optim": {"peak_lr": 0.006}}, "long": "x" * 500, "list": [1, 2]}
    model = dataclasses.replace(stored_model(), provenance=facts)
    _, body = split(model_card(model, CardFacts(), name="folder", dtype="float32"))
    assert "| step | 300 |" in body and "training.optim.peak_lr | 0.006" in body
    assert "xxx" not in body and "list" not in body


def test_foreign_text_stays_in_its_cell() -> None:
    hostile = "a | b\n---\nlicense: evil <img src=x> [link](http://x) `code`"
    model = dataclasses.replace(stored_model(), provenance={"name": hostile}, notes=(hostile,))
    front, body = split(model_card(model, CardFacts(name=hostile), name="folder", dtype="float32"))
    assert "license" not in front
    assert not any(line.startswith(("---", "license")) for line in body.splitlines())
    assert "<img" not in body.replace("\\<img", "") and "[link]" not in body
