"""The tokenizer of a model folder nobody vouches for: `tokenizer.json`, or `vocab.json` and `merges.txt`."""

from __future__ import annotations

from typing import Any

from wafergpt.checkpoints.untrusted.folder import UntrustedFolder
from wafergpt.errors import DataError
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.tokenizer.tokenizer_file import tokenizer_from_files, tokenizer_from_form
from wafergpt.units import MIB

FORM_NAME = "tokenizer.json"
VOCABULARY_NAME = "vocab.json"
MERGES_NAME = "merges.txt"
ADDED_NAME = "added_tokens.json"
SETTINGS_NAME = "tokenizer_config.json"
MAX_TOKENIZER_BYTES = 16 * MIB  # GPT-2's has 1.4 MB in the old form, 3.5 MB in Transformers 5's
MAX_TOKENIZER_VALUES = 510_000  # 100,000 entries (name and id) and as many merges as pairs


def read_tokenizer(folder: UntrustedFolder) -> tuple[Tokenizer | None, tuple[str, ...]]:
    """The folder's tokenizer, None if it has no tokenizer files, and notes on what was left out of it.

    `tokenizer.json` goes before `vocab.json` and `merges.txt`, as in Transformers. Of
    `tokenizer_config.json` only what changes token ids is read: `add_prefix_space` is refused. Raises
    CheckpointError for a file that cannot be read, DataError for a tokenizer that is not GPT-2's kind; both
    name the file and the rule.
    """
    if folder.has(FORM_NAME):
        _check_settings(folder)
        try:
            return tokenizer_from_form(_read_json(folder, FORM_NAME))
        except DataError as error:
            raise DataError(f"{folder.path}/{FORM_NAME}: {error}") from None
    if not folder.has(VOCABULARY_NAME) or not folder.has(MERGES_NAME):
        return None, ()
    _check_settings(folder)
    vocabulary = _read_json(folder, VOCABULARY_NAME)
    added = folder.read_json(ADDED_NAME) if folder.has(ADDED_NAME) else {}
    try:
        merges = folder.read_bytes(MERGES_NAME, MAX_TOKENIZER_BYTES).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{folder.path}/{MERGES_NAME}: not UTF-8: {error}") from None
    try:
        return tokenizer_from_files(vocabulary, merges, added), ()
    except DataError as error:
        files = f"{VOCABULARY_NAME} with {MERGES_NAME}" + (f" and {ADDED_NAME}" if added else "")
        raise DataError(f"{folder.path}/{files}: {error}") from None


def _read_json(folder: UntrustedFolder, name: str) -> dict[str, Any]:
    return folder.read_json(name, max_bytes=MAX_TOKENIZER_BYTES, max_values=MAX_TOKENIZER_VALUES)


def _check_settings(folder: UntrustedFolder) -> None:
    if not folder.has(SETTINGS_NAME):
        return
    settings = folder.read_json(SETTINGS_NAME)
    if settings.get("add_prefix_space", False) is not False:
        rule = "add_prefix_space puts a space before every text, which is not supported"
        raise DataError(f"{folder.path}/{SETTINGS_NAME}: {rule}")
