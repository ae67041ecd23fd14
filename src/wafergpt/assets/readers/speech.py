"""Addresses and conversations kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from wafergpt.assets.readers.document import TextDocument


def state_of_the_union(folder: Path) -> Iterator[TextDocument]:
    """233 addresses in order of year; the quotation marks some are wrapped in are taken off."""
    for path in sorted(folder.glob("*.json")):
        entry = json.loads(path.read_text(encoding="utf-8"))
        text = str(entry["text"]).strip()
        if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
            text = text[1:-1].strip()
        yield TextDocument(title=f"{entry['year']} {entry['name']}", text=text + "\n")


def chitchat(folder: Path) -> Iterator[TextDocument]:
    """One document per conversation: a line per message, speakers A and B in order of appearance."""
    for name, conversation in json.loads((folder / "dataset.json").read_text(encoding="utf-8")).items():
        speakers: dict[str, str] = {}
        lines = []
        for turn in conversation["messages"]:
            speaker = speakers.setdefault(turn[0]["sender"], "ABCDEFGH"[len(speakers) % 8])
            said = (" ".join(message["text"].split()) for message in turn)
            lines += [f"{speaker}: {message}" for message in said if message]
        if lines:
            yield TextDocument(title=name, text="\n".join(lines) + "\n")
