"""Addresses and conversations kept as JSON."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wafergpt.assets.readers.document import TextDocument


def state_of_the_union(folder: Path) -> Iterator[TextDocument]:
    """233 addresses in order of year; the quotation marks some are wrapped in are taken off."""
    for path in sorted(folder.glob("*.json")):
        entry = json.loads(path.read_text(encoding="utf-8"))
        text = str(entry["text"]).strip()
        if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
            text = text[1:-1].strip()
        yield TextDocument(title=f"{entry['year']} {entry['name']}", text=text + "\n")


def conversations(folder: Path) -> Iterator[dict[str, Any]]:
    """{"messages", "group"} of the chit-chat between two people; who writes first is the user.

    Conversations without an answer are left out; what one person writes in a row is one message.
    """
    for name, conversation in json.loads((folder / "dataset.json").read_text(encoding="utf-8")).items():
        first = None
        messages: list[dict[str, str]] = []
        for turn in conversation["messages"]:
            first = first or turn[0]["sender"]
            role = "user" if turn[0]["sender"] == first else "assistant"
            text = " ".join(" ".join(message["text"] for message in turn).split())
            if text and messages and messages[-1]["role"] == role:
                messages[-1]["content"] += " " + text
            elif text and (messages or role == "user"):
                messages.append({"role": role, "content": text})
        if len(messages) > 1:
            yield {"messages": messages, "group": name}


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
