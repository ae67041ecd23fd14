"""How our own pattern splits text, against the `tokenizers` library; test_tokenizer.py compares the ids."""

from __future__ import annotations

import pytest
from tokenizers import pre_tokenizers

from wafergpt.tokenizer.pretokens import is_stable, split, stable_code_points

LIBRARY = pre_tokenizers.ByteLevel(add_prefix_space=False)


def library_split(text: str) -> list[str]:
    return [text[start:end] for _, (start, end) in LIBRARY.pre_tokenize_str(text)]


def test_every_stable_code_point_is_split_as_by_the_library() -> None:
    """Beside a letter, a number, a symbol and a space each class shows; about 50,000 code points."""
    codes = [code for code, _ in stable_code_points()]
    assert len(codes) > 48_000
    for start in range(0, len(codes), 64):
        text = "".join(
            f"\n\na{chr(c)}b1{chr(c)}2.{chr(c)}, {chr(c)} '{chr(c)}" for c in codes[start : start + 64]
        )
        assert is_stable(text)
        assert split(text) == library_split(text)


def test_a_wrong_class_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """The planted bug: Python's own \\s, which differs in U+001C to U+001F."""
    import re

    from wafergpt.tokenizer import pretokens

    wrong = re.compile(r"'(?:[stmd]|re|ve|ll)| ?[^\W\d_]+| ?\d+| ?[^\s\w]+|\s+(?!\S)|\s+")
    monkeypatch.setattr(pretokens, "_patterns", lambda: (wrong, wrong))
    assert split("a\x1c\x1cb") != library_split("a\x1c\x1cb")
