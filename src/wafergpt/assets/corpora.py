"""Named corpora: which reader makes documents of which asset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from wafergpt.assets.download import Progress
from wafergpt.assets.fetch import fetch
from wafergpt.assets.readers import bible, dictionaries, novels, speech
from wafergpt.assets.readers.document import TextDocument
from wafergpt.assets.table import get
from wafergpt.errors import AssetError, did_you_mean

READERS: dict[str, Callable[[Path], Iterator[TextDocument]]] = {
    "pydoc": dictionaries.python_topics,
    "bible-bbe": bible.basic_english,
    "bible-kjv": bible.by_offsets,
    "bible-web": bible.by_offsets,
    "chitchat": speech.chitchat,
    "sotu": speech.state_of_the_union,
    "moby-dick": novels.moby_dick,
    "janeausten": novels.jane_austen,
    "wordnet": dictionaries.wordnet,
    "gcide": dictionaries.gcide,
}


def documents(
    name: str, *, offline: bool = False, progress: Progress | None = None
) -> Iterator[TextDocument]:
    """The documents of the corpus asset `name`, fetched if need be. Raises AssetError."""
    if name not in READERS:
        get(name)  # an unknown name says so itself
        raise AssetError(f"asset '{name}' is not a text corpus{did_you_mean(name, list(READERS))}")
    return READERS[name](fetch(name, offline=offline, progress=progress))
