"""Tokenizer files nobody vouches for: a closed schema, from which GPT-2's tokenizer is built anew.

A `tokenizer.json` can ask the library for any pipeline, foreign regular expressions included. So the file is
never handed over: what it says is compared with what GPT-2 does, and only vocabulary, merges and special
tokens are taken from it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from typing import Any, NoReturn

from tokenizers import models

from wafergpt.errors import DataError, did_you_mean, shown
from wafergpt.tokenizer.bpe import END_OF_TEXT, Tokenizer, byte_alphabet, byte_level

MAX_ENTRIES = 100_000  # twice GPT-2's 50,257
MAX_TOKEN_CHARS = 1024  # GPT-2's longest entry has 128
MAX_SPECIAL = 1024
_MAX_SPECIAL_CHARS = 256

Special = dict[str, Any]  # content -> id, unchecked

# Every key that the library's own writer uses, with the values that leave GPT-2's encoding as it is.
_BYTE_LEVEL = {"type": ("ByteLevel",), "trim_offsets": (True, False), "use_regex": (True,)}
_PRE_TOKENIZER = {**_BYTE_LEVEL, "add_prefix_space": (False,)}
_AROUND = {**_BYTE_LEVEL, "add_prefix_space": (True, False)}  # decoder, post-processor: does not change ids
_MODEL = {
    "type": ("BPE",),
    "dropout": (None, 0, 0.0),
    "unk_token": (None, "", END_OF_TEXT),  # never used: all 256 bytes have entries
    "continuing_subword_prefix": (None, ""),
    "end_of_word_suffix": (None, ""),
    "fuse_unk": (False, True),
    "byte_fallback": (False,),
    "ignore_merges": (False,),
}
_ADDED = {"special": (True,), "single_word": (False,), "lstrip": (False,), "rstrip": (False,)}
_TOP = (
    "version",
    "truncation",
    "padding",
    "added_tokens",
    "normalizer",
    "pre_tokenizer",
    "post_processor",
    "decoder",
    "model",
)


def tokenizer_from_form(form: dict[str, Any]) -> tuple[Tokenizer, tuple[str, ...]]:
    """A tokenizer built anew from the parsed `tokenizer.json`, and notes on what was left out of it.

    Takes vocabulary and merges out of `form`, so that they are not held twice.

    Raises DataError with the rule (without the file) for anything that would encode otherwise than GPT-2 or
    does not fit together: see `_built`.
    """
    _known("tokenizer", form, _TOP)
    notes = []
    _allow("version", {"version": form.get("version", "1.0")}, {"version": ("1.0",)})
    if form.get("normalizer") is not None:
        _refuse("it normalises text, so decoding would not give it back")
    _allow("pre_tokenizer", _table("pre_tokenizer", form), _PRE_TOKENIZER, needs=("type",))
    _allow("decoder", _table("decoder", form), _AROUND, needs=("type",))
    for name in ("truncation", "padding"):
        if form.get(name) is not None:
            notes.append(f"the tokenizer's {name} was dropped; texts are encoded whole")
    notes += _post_processor(form.get("post_processor"))
    model = _table("model", form)
    vocabulary, merges = model.pop("vocab", None), model.pop("merges", None)
    _allow("model", model, _MODEL, needs=("type",))
    tables = {"vocabulary": vocabulary, "merges": merges, "special": _special(form.get("added_tokens"))}
    del vocabulary, merges
    return _built(tables), tuple(notes)


def tokenizer_from_files(vocabulary: Mapping[str, Any], merges: str, added: Mapping[str, Any]) -> Tokenizer:
    """From a parsed `vocab.json`, the text of `merges.txt` and a parsed `added_tokens.json` ({} if none).

    Added tokens become special tokens. Raises DataError as `_built`.
    """
    if merges.count("\n") > MAX_ENTRIES + 1:
        _refuse(f"it has over {MAX_ENTRIES} merges")
    lines = merges.split("\n")
    if lines[0].startswith("#version"):
        lines = lines[1:]
    special = dict(added)
    if END_OF_TEXT in vocabulary:
        special.setdefault(END_OF_TEXT, vocabulary[END_OF_TEXT])
    pairs = [line for line in lines if line]
    return _built({"vocabulary": vocabulary, "merges": pairs, "special": special})


def tokenizer_from_tables(
    vocabulary: Mapping[str, Any], merges: Sequence[Any], special: Mapping[str, Any]
) -> Tokenizer:
    """From tables that another kind of file holds, as GGUF does. Raises DataError as `_built`."""
    return _built({"vocabulary": vocabulary, "merges": merges, "special": special})


def _built(tables: dict[str, Any]) -> Tokenizer:
    """The tokenizer of a vocabulary (entry -> id), merges ("a b" or [a, b]) and special tokens (text -> id).

    Empties `tables`: each costs tens of MB, and is let go as soon as the next form of it is made.

    Raises DataError unless: the ids of all entries are 0, 1, ... without a gap; ordinary entries are spelt in
    GPT-2's 256 stand-in characters; parts and result of every merge are ordinary entries, no merge appears
    twice; no special token is one that text can produce; `<|endoftext|>` is special; sizes are within limits.
    """
    entries, special = tables.pop("vocabulary"), tables.pop("special")
    _check_vocabulary(entries, special)
    ordinary = entries.keys() - special.keys()
    alphabet = byte_alphabet().keys()
    for entry in ordinary:
        if not alphabet >= set(entry):
            _refuse(f"the entry {shown(entry)} is not spelt in GPT-2's byte characters")
    for text in special.keys() & alphabet:
        _refuse(f"the special token {shown(text)} is one of the 256 byte entries")
    if not ordinary >= alphabet:
        _refuse("it lacks some of the 256 byte entries, so it cannot encode every text")
    pairs = _merges(tables.pop("merges"), ordinary)
    model = models.BPE(vocab=entries, merges=pairs)
    del entries, ordinary, pairs
    order = sorted(special, key=special.__getitem__)
    tokenizer = Tokenizer(byte_level(model, special=order), is_ours=True)
    for text, token_id in special.items():
        if tokenizer.inner.token_to_id(text) != token_id:
            _refuse(f"the special token {shown(text)} cannot have the id {token_id}")
    return tokenizer


def _check_vocabulary(vocabulary: Any, special: Special) -> None:
    """The rules on the BPE model's own entries together with the special tokens."""
    if not isinstance(vocabulary, Mapping) or not vocabulary:
        _refuse("its vocabulary is not a table of entries and ids")
    if len(vocabulary) > MAX_ENTRIES:
        _refuse(f"its vocabulary has {len(vocabulary)} entries, over the limit of {MAX_ENTRIES}")
    if END_OF_TEXT not in special:
        _refuse(f"it has no special token {END_OF_TEXT}")
    if len(special) > MAX_SPECIAL:
        _refuse(f"it has {len(special)} special tokens, over the limit of {MAX_SPECIAL}")
    for text in special:
        if not 0 < len(text) <= _MAX_SPECIAL_CHARS or not text.isprintable():
            _refuse(
                f"{shown(text)} cannot be a special token (1 to {_MAX_SPECIAL_CHARS} printable characters)"
            )
    for entry in vocabulary:
        if not isinstance(entry, str) or not 0 < len(entry) <= MAX_TOKEN_CHARS:
            _refuse(f"the entry {shown(entry)} does not have 1 to {MAX_TOKEN_CHARS} characters")
    for text, token_id in special.items():
        if vocabulary.get(text, token_id) != token_id:
            _refuse(f"the special token {shown(text)} has another id in the vocabulary")
    new = [(text, token_id) for text, token_id in special.items() if text not in vocabulary]
    n_entries = len(vocabulary) + len(new)
    taken = bytearray(n_entries)
    for entry, token_id in [*vocabulary.items(), *new]:
        if type(token_id) is not int or not 0 <= token_id < n_entries:
            _refuse(f"the id of {shown(entry)} is {shown(token_id)}; {n_entries} entries count from 0")
        if taken[token_id]:
            _refuse(f"{shown(entry)} and another entry have the same id {token_id}")
        taken[token_id] = 1


def _merges(merges: Any, ordinary: Set[str]) -> list[tuple[str, str]]:
    """The pairs in their order. A result is longer than its parts, so merges cannot go round in a circle."""
    if not isinstance(merges, list):
        _refuse("its merges are not a list")
    if len(merges) > MAX_ENTRIES:
        _refuse(f"it has {len(merges)} merges, over the limit of {MAX_ENTRIES}")
    pairs: dict[tuple[str, str], None] = {}
    for merge in merges:
        parts = merge.split(" ") if isinstance(merge, str) else merge
        if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, str) and p for p in parts):
            _refuse(f"the merge {shown(merge)} is not a pair of entries")
        pair = (parts[0], parts[1])
        if not ordinary >= {*pair, pair[0] + pair[1]}:
            _refuse(f"the merge {shown(merge)} uses or makes something that is not an ordinary entry")
        if pair in pairs:
            _refuse(f"the merge {shown(merge)} appears twice")
        pairs[pair] = None
    return list(pairs)


def _special(added: Any) -> Special:
    special: Special = {}
    if not isinstance(added, list):
        _refuse("its added_tokens are not a list")
    for token in added:
        if not isinstance(token, dict) or not isinstance(token.get("content"), str):
            _refuse(f"the added token {shown(token)} has no content")
        text = token["content"]
        _known("added token", token, ("id", "content", "normalized", *_ADDED))
        if token.get("special") is not True:
            _refuse(f"the added word {shown(text)} is not a special token; it would split words of the text")
        _allow(f"added token {shown(text)}", {k: v for k, v in token.items() if k in _ADDED}, _ADDED)
        if text in special:
            _refuse(f"the special token {shown(text)} is added twice")
        special[text] = token.get("id")
    return special


def _post_processor(form: Any) -> list[str]:
    if form is None:
        return []
    if not isinstance(form, dict):
        _refuse("its post_processor is not an object")
    if form.get("type") == "TemplateProcessing":
        if form.get("special_tokens"):
            return ["the tokenizer's template was dropped; no special tokens are put around a text"]
        return []  # what Transformers 5 writes: it adds nothing
    _allow("post_processor", form, _AROUND, needs=("type",))
    return []


def _table(name: str, form: Mapping[str, Any]) -> dict[str, Any]:
    value = form.get(name)
    if not isinstance(value, dict):
        _refuse(f"its {name} is {shown(value)}, not an object")
    return value


def _allow(
    name: str,
    form: Mapping[str, Any],
    allowed: Mapping[str, tuple[Any, ...]],
    needs: tuple[str, ...] = (),
) -> None:
    """Refuse a key that is not in `allowed`, a value that is not among its values, and a missing key."""
    for key in needs:
        if key not in form:
            _refuse(f"its {name} has no {key}")
    for key in [key for key in allowed if key in form]:  # the type comes first, which explains the most
        value = form[key]
        if not any(value is one or (type(value) is type(one) and value == one) for one in allowed[key]):
            values = " or ".join(repr(one) for one in allowed[key])
            _refuse(f"its {name} has {key} {shown(value)}; GPT-2's kind has {values}")
    _known(name, form, tuple(allowed))


def _known(name: str, form: Mapping[str, Any], keys: tuple[str, ...]) -> None:
    for key in form:
        if key not in keys:
            _refuse(f"its {name} has the unknown key {shown(key)}{did_you_mean(key[:64], keys)}")


def _refuse(rule: str) -> NoReturn:
    raise DataError(f"not a GPT-2 style tokenizer: {rule}")
