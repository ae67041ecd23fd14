"""More entries for a vocabulary: byte-pair merges learned on top of those that a tokenizer has.

A vocabulary learned from one language spells another in bytes, about three to a Chinese character. Going on
merging (Sennrich et al. 2016, arXiv 1508.07909) where the tokenizer stopped leaves every entry it has its id.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator

from tokenizers import Tokenizer as Inner
from tokenizers import models, trainers

from wafergpt.config import require
from wafergpt.errors import DataError
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.tokenizer.tokenizer_file import MAX_ENTRIES

_FIRST = 0xF0000  # planes 15 and 16 are private: a character stands for each entry
_LONGEST = 32  # of the entries there were, in a new one


def extended(tokenizer: Tokenizer, texts: Iterable[str], n_new: int) -> Tokenizer:
    """`tokenizer` with `n_new` entries more, learned from `texts`; same input, same result.

    Entries it has keep their ids, its merges come first; what the texts hold is written in fewer ids.
    Raises ConfigError for more than `MAX_ENTRIES` in all, DataError for texts that hold too few pairs or are
    not UTF-8.
    """
    total = tokenizer.vocab_size + n_new
    require(n_new >= 1, f"{n_new} new entries: there must be at least one")
    require(total <= MAX_ENTRIES, f"{total:,} entries are more than a tokenizer may have, {MAX_ENTRIES:,}")
    form = json.loads(tokenizer.to_bytes())
    for token in form["added_tokens"]:  # else the library counts theirs anew, after the new entries
        form["model"]["vocab"].setdefault(token["content"], token["id"])
    ids = tokenizer.inner.get_vocab(with_added_tokens=True)
    entries = {number: text for text, number in ids.items()}
    n_old, n_got = tokenizer.vocab_size, 0
    for pair in _merges(tokenizer, texts, n_new + n_new // 8 + 8):
        left, right = ("".join(entries[ord(part) - _FIRST] for part in side) for side in pair)
        if left + right not in ids:  # else the pair is another way to an entry there is
            form["model"]["vocab"][left + right] = ids[left + right] = n_old + n_got
            n_got += 1
        form["model"]["merges"].append([left, right])
        if n_got == n_new:
            return Tokenizer.from_bytes(json.dumps(form, ensure_ascii=False).encode())
    raise DataError(f"the texts hold too few pairs for {n_new} new entries; they support {n_got}")


def _merges(tokenizer: Tokenizer, texts: Iterable[str], n: int) -> list[list[str]]:
    """Pairs of entries, or of what earlier pairs made, in the characters that stand for entries."""
    inner = Inner(models.BPE())  # without pre-tokens: each text it is given is one
    trainer = trainers.BpeTrainer(
        vocab_size=tokenizer.vocab_size + n,
        min_frequency=2,  # a pair seen once teaches nothing
        max_token_length=_LONGEST,
        initial_alphabet=[chr(_FIRST + i) for i in range(tokenizer.vocab_size)],
        show_progress=False,
    )
    inner.train_from_iterator(_stand_ins(tokenizer, texts), trainer)
    found: list[list[str]] = json.loads(inner.to_str())["model"]["merges"]
    return found


def _stand_ins(tokenizer: Tokenizer, texts: Iterable[str]) -> Iterator[str]:
    """Every pre-token, a character for each of its entries."""
    assert tokenizer.inner.pre_tokenizer is not None
    known: dict[str, str] = {}
    for text in texts:
        try:
            pieces = tokenizer.inner.pre_tokenizer.pre_tokenize_str(text)
        except (UnicodeEncodeError, TypeError):
            raise DataError(
                "text cannot be learned from: it is not UTF-8 (it holds half a character)"
            ) from None
        for piece, _ in pieces:
            if piece not in known:
                tokens = tokenizer.inner.model.tokenize(piece)
                known[piece] = "".join(chr(_FIRST + token.id) for token in tokens)
            yield known[piece]
