"""How GPT-2 splits text before byte-pair merging, and where a long text may be cut without changing that.

The pattern is the one of OpenAI's GPT-2 encoder (encoder.py, 2019): contractions, then letters,
numbers and other symbols with at most one leading space, then whitespace that leaves its last
character to the next word. The `tokenizers` library runs it in Rust on full Unicode; here it is
written for Python's `re` over the part of Unicode whose classes have not changed for decades, which
makes an exact and much faster path for most text (see encoder.py).
"""

from __future__ import annotations

import functools
import re
import unicodedata
from collections.abc import Iterator

# Emoji came after Unicode 3.2; all of this block has been assigned, and symbols, since Unicode 8.0 (2015).
_EMOJI = range(0x1F300, 0x1F650)
# Unicode's White_Space property. Python's \s also holds U+001C to U+001F, so it is not used.
_WHITESPACE = "\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"


def stable_code_points() -> Iterator[tuple[int, str]]:
    """(code point, L, N or another class) of those whose class is the same in every Unicode version.

    They were assigned in Unicode 3.2 (2002) and belong to the same class today, so the library's tables and
    Python's agree on them whatever their versions. tests/parity/test_pretokens.py compares every one.
    """
    for code in range(0x10000):
        then, now = unicodedata.ucd_3_2_0.category(chr(code))[0], unicodedata.category(chr(code))[0]
        if then == now and unicodedata.category(chr(code)) not in ("Cn", "Cs"):
            yield code, now
    yield from ((code, "S") for code in _EMOJI)


def _ranges(codes: list[int]) -> str:
    """The inside of a character class that holds exactly `codes` (ascending)."""
    parts: list[str] = []
    start = previous = codes[0]
    for code in [*codes[1:], -1]:
        if code != previous + 1:
            parts.append(f"\\U{start:08x}-\\U{previous:08x}")
            start = code
        previous = code
    return "".join(parts)


@functools.cache
def _patterns() -> tuple[re.Pattern[str], re.Pattern[str]]:
    """(GPT-2's pattern over the stable code points, a pattern that finds any other code point)."""
    stable = list(stable_code_points())
    letters = _ranges([code for code, category in stable if category == "L"])
    numbers = _ranges([code for code, category in stable if category == "N"])
    space = _WHITESPACE
    gpt2 = re.compile(
        "'(?:[stmd]|re|ve|ll)"
        f"| ?[{letters}]+| ?[{numbers}]+| ?[^{space}{letters}{numbers}]+"
        f"|[{space}]+(?![^{space}])|[{space}]+"
    )
    return gpt2, re.compile(f"[^{_ranges([code for code, _ in stable])}]")


def is_stable(text: str) -> bool:
    """True if `split` gives the library's own pre-tokens for `text`."""
    return text.isascii() or _patterns()[1].search(text) is None


def split(text: str) -> list[str]:
    """GPT-2's pre-tokens of a text for which `is_stable` holds; joined, they are the text again."""
    return _patterns()[0].findall(text)


# No pre-token continues across these points, whatever surrounds them, and none before them looks past
# them: a non-space followed by a space or line feed (only whitespace pre-tokens hold an inner space, and a
# run of them cannot end here), and CJK punctuation followed by a CJK letter (the symbol class
# excludes letters; contractions begin with an apostrophe).
_SAFE_CUT = re.compile(r"(?:[!-~]|[^\W_])(?=[ \n])|[。！？，、；：](?=[ぁ-ゖァ-ヺ一-龥가-힣])")


def last_safe_cut(text: str, start: int, end: int) -> int | None:
    """The largest known i in (start, end] with encode(text) = encode(text[:i]) + encode(text[i:]).

    A cut at `end` needs the character after it, so `end` is below len(text).
    """
    step = 256  # look from the back in growing strides: most text has a space within a few characters
    upper = min(end, len(text) - 1)
    low = upper
    while low > start:
        low = max(start, upper - step)
        cut = None
        for match in _SAFE_CUT.finditer(text, low, upper + 1):
            if start < match.end() <= upper:
                cut = match.end()
        if cut is not None:
            return cut
        step *= 4
    return None


def pieces(text: str, max_chars: int) -> Iterator[str]:
    """Cut `text` at safe points into pieces of at most `max_chars` where possible.

    A stretch without a safe point stays whole, so pieces can be longer; joined they are the text.
    """
    start = 0
    while len(text) - start > max_chars:
        cut = last_safe_cut(text, start, start + max_chars)
        if cut is None:
            match = _SAFE_CUT.search(text, start + max_chars - 1)
            if match is None or match.end() >= len(text):
                break
            cut = match.end()
        yield text[start:cut]
        start = cut
    if start < len(text):
        yield text[start:]
