"""Texts with a label: sarcastic headlines, rated film sentences. Records are {"text", "label", "group"}."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wafergpt.errors import AssetError

CLEAR_RATING = 0.5  # nearer to 0 (of -4 to 4) the raters were not of one mind


def headlines(folder: Path) -> Iterator[dict[str, Any]]:
    """`sarcastic` or `serious`; the lines are chats, the headline is what the user says."""
    for line in (folder / "samples.jsonl").read_text(encoding="utf-8").splitlines():
        sample = json.loads(line)
        text = sample["input"][-1]["content"].strip()
        label = "sarcastic" if sample["ideal"] == "1" else "serious"
        yield {"text": text, "label": label, "group": text}


def film_sentences(folder: Path) -> Iterator[dict[str, Any]]:
    """`positive` or `negative` sentences of film reviews, by the sign of about 20 people's mean rating."""
    with tarfile.open(folder / "hutto_ICWSM_2014.tar.gz") as tar:
        stream = tar.extractfile("hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt")
        if stream is None:
            raise AssetError("the archive of ratings does not hold the film sentences as a file")
        lines = stream.read().decode("utf-8").split("\n")
    for line in lines:
        if not line.strip():
            continue
        _, rating, text = line.split("\t", 2)
        text = " ".join(text.split())
        if abs(float(rating)) >= CLEAR_RATING:
            yield {"text": text, "label": "positive" if float(rating) > 0 else "negative", "group": text}
