"""Named corpora: which reader makes documents of which asset."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Joined:
    """A corpus of several assets, whose folders `read` takes in this order."""

    assets: tuple[str, ...]
    read: Callable[..., Iterator[TextDocument]]


JOINED = {"bibles": Joined(("bible-kjv", "bible-web", "bible-bbe"), bible.verse_by_verse)}


def assets_of(name: str) -> tuple[str, ...]:
    """What the corpus `name` is made of."""
    return JOINED[name].assets if name in JOINED else (name,)


def documents(
    name: str, *, offline: bool = False, progress: Progress | None = None
) -> Iterator[TextDocument]:
    """The documents of the corpus `name`, an asset or of several, fetched if need be. Raises AssetError."""
    if name in JOINED:
        folders = [fetch(asset, offline=offline, progress=progress) for asset in assets_of(name)]
        return JOINED[name].read(*folders)
    if name not in READERS:
        get(name)  # an unknown name says so itself
        raise AssetError(f"asset '{name}' is not a text corpus{did_you_mean(name, list(READERS))}")
    return READERS[name](fetch(name, offline=offline, progress=progress))
