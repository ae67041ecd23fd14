"""What every reader yields."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class TextDocument:
    """One document of a corpus: its text and a title for messages and manifests."""

    title: str
    text: str
