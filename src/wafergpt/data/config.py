"""What `wafergpt prepare` needs to know (no torch)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from wafergpt.config import require
from wafergpt.errors import ConfigError
from wafergpt.units import MIB


class HeldOutMode(StrEnum):
    """Which text is kept out of training."""

    NONE = "none"
    BLOCKS = "blocks"  # every N-th block of `block_chars` characters
    DOCUMENTS = "documents"  # every N-th document


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Every `every`-th unit is held out, the last of each `every`.

    Blocks count the characters of all documents in order. Where training text meets held-out text, a
    document ends on both sides.
    """

    mode: HeldOutMode = HeldOutMode.NONE
    every: int = 20
    block_chars: int = 4000

    def __post_init__(self) -> None:
        require(self.every >= 2, f"held_out.every = {self.every} must be at least 2")
        require(self.block_chars >= 1, f"held_out.block_chars = {self.block_chars} must be at least 1")

    @classmethod
    def parse(cls, text: str) -> HeldOut:
        """`none`, `documents:EVERY` or `blocks:EVERY:CHARS`. Raises ConfigError."""
        mode, *numbers = text.split(":")
        wanted = {"none": 0, "documents": 1, "blocks": 2}
        good = wanted.get(mode) == len(numbers) and all(number.isdecimal() for number in numbers)
        require(good, f"--held-out {text!r} is not none, documents:EVERY or blocks:EVERY:CHARS")
        fields = dict(zip(("every", "block_chars"), map(int, numbers), strict=False))
        return cls(mode=HeldOutMode(mode), **fields)


@dataclass(frozen=True, kw_only=True)
class PrepareConfig:
    """`sources`: files, folders, globs, or `asset:NAME`. `tokenizer`: `gpt2`, `train:SIZE`, or a path."""

    sources: tuple[str, ...]
    output: Path
    tokenizer: str = "gpt2"
    held_out: HeldOut = field(default_factory=HeldOut)
    text_field: str = "text"  # of jsonl, csv and parquet
    document_separator: str | None = None  # in text files; None: a file is one document
    licence: str = "not stated"  # of files, for the manifest; assets bring their own
    shard_tokens: int = 100_000_000
    tokenizer_bytes: int = 256 * MIB  # at most this much training text, from the start, teaches `train:SIZE`
    n_workers: int | None = None  # processes that tokenise; None: one per core
    overwrite: bool = False  # replace what is in `output`
    offline: bool = False  # use assets of the cache only

    def __post_init__(self) -> None:
        require(len(self.sources) > 0, "name at least one text file, folder or asset to prepare")
        require(self.shard_tokens >= 1, f"shard_tokens = {self.shard_tokens} must be at least 1")
        require(self.tokenizer_bytes >= 1, f"tokenizer_bytes = {self.tokenizer_bytes} must be at least 1")
        n_workers = self.n_workers
        require(n_workers is None or 1 <= n_workers <= 1024, f"n_workers = {n_workers} must lie in 1 to 1024")
        require(
            self.document_separator != "",
            "document_separator is empty; leave it out",
        )
        require(self.trained_vocab_size != 0, "tokenizer = 'train:0' has no entries")

    @property
    def trained_vocab_size(self) -> int | None:
        """The SIZE of `train:SIZE`, or None if no tokenizer is to be trained. Raises ConfigError."""
        kind, _, size = self.tokenizer.partition(":")
        if kind != "train":
            return None
        if not size.isdecimal():
            raise ConfigError(f"--tokenizer {self.tokenizer!r}: write train:SIZE, for example train:4096")
        return int(size)
