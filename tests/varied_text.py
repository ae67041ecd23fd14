"""Many different strings, the same ones every time, for tests that compare tokenizers.

Thirteen kinds: prose, code, numbers, contractions, scripts of the world, CJK, emoji, combining marks,
whitespace, control characters, repetitions, any code points at all, and all of these mixed.
"""

from __future__ import annotations

import functools
import random
import unicodedata
from collections.abc import Callable, Iterator

_PROSE = """
the of and to in that was his he it with is for as had you not be her on at by which have or from this him
but all she they were my are me one their so an said them we who would been will no when there if more out up
into do any your what has man could other than our some very time about may like then such Cerebras wafer GPT
iPhone transformer antidisestablishmentarianism rhythm queue NASA McDonald O'Neill
"""
_LINES = r"""def f(x): return x ** 2
for (int i = 0; i < n; ++i) {
        if not a[i] == b['k']:
#include <vector>
SELECT * FROM t WHERE id='7';
<div class="a">&nbsp;</div>
https://example.com/a?b=c&d=%20
\begin{x}
{'a': [1, 2.5e-3], "b": null}
$ ls -la | grep x > /dev/null
@dataclass(frozen=True)
snake_case camelCase SCREAMING_CASE kebab-case 0xDEADBEEF
x+=1;y--;z!=w<<2 // ok?
==>
/**/
¯\_(ツ)_/¯"""
_CLITICS = "'s 's 't 're 've 'm 'll 'd 'S 'T 'RE 'VE 'M 'LL 'D 'sx 'rex ’s ’t ʼs 'ſ ''s 's' '"
_EMOJI_AND_JOINTS = """
😀 😂 ❤️ 👍🏽 👩‍👩‍👧‍👦 🏳️‍🌈 🇨🇭 🧑🏿‍🚀 ☺ ✨ 🀄 ⌚ 1️⃣ \u200d \ufe0f 🏽 a b2
"""
_WORDS = _PROSE.split()
_CODE = [*_LINES.split("\n"), "\r\n", "\n\n", "\n", "    ", "\t", "\t\t"]
_CONTRACTIONS = _CLITICS.split()
_NUMBERS = "0123456789" * 3 + ".,-+%$€£½²³٣٤५௧Ⅷ⅓①㊿"
_CJK = (
    "的一是不了人我在有他这中大来上国和说们为子到会你好世界"
    "今天気です私はカタカナひらがな안녕하세요세계、。，！？「」\u3000Ａｂ１"
)
_EMOJI = [*_EMOJI_AND_JOINTS.split(), " "]
_MARKS = [*map(chr, range(0x300, 0x330)), *"aeinouAEOS क ก ل ", "\u05b0", "\u0651", "\u0e31"]
_SPACES = [
    *" " * 12,
    *"\n\n\n\t\t\r\x0b\x0c\x85\xa0\u1680\u2003\u2009\u200a\u2028\u2029\u202f\u205f\u3000",
]
_CONTROLS = [*map(chr, (*range(32), *range(0x7F, 0xA0))), *"\xad\u200b\u202e\u2066\ufeff\ufffdab 1."]
_SCRIPTS = [
    range(0xC0, 0x250),  # Latin with marks
    range(0x370, 0x400),  # Greek
    range(0x400, 0x500),  # Cyrillic
    range(0x531, 0x58B),  # Armenian
    range(0x5D0, 0x5EB),  # Hebrew
    range(0x620, 0x6D4),  # Arabic
    range(0x904, 0x970),  # Devanagari
    range(0xE01, 0xE5B),  # Thai
    range(0x10D0, 0x10FB),  # Georgian
    range(0x1E00, 0x1F00),  # Latin and Vietnamese
    range(0x2010, 0x2060),  # punctuation
    range(0x20A0, 0x20B2),  # currency
    range(0x2100, 0x2400),  # letter-like, number forms, arrows, mathematics
    range(0x2500, 0x2700),  # boxes and symbols
]


def varied_texts(n_texts: int, seed: int = 0) -> Iterator[str]:
    """`n_texts` strings of all kinds in turn, up to a few hundred characters; few repeat. All encodable."""
    rng = random.Random(seed)
    for index in range(n_texts):
        yield _KINDS[index % len(_KINDS)](rng)


@functools.cache
def old_characters() -> list[str]:
    """Every character that Unicode 3.2 (2002) had and that is in the same class today, private ones aside.

    The oracles are built on different Unicode versions; on younger characters they need not agree.
    """
    then, now = unicodedata.ucd_3_2_0.category, unicodedata.category
    return [
        character
        for character in map(chr, range(0x2FA20))  # what follows are tags, private use and nothing
        if then(character)[0] == now(character)[0] and now(character) not in ("Cn", "Cs")
    ]


def _words(rng: random.Random) -> str:
    words = rng.choices(_WORDS, k=rng.randrange(1, 12))
    words[0] = rng.choice((str.title, str.upper, str.lower, str))(words[0])
    text = rng.choice((" ", " ", ", ", "-", "  ")).join(words)
    return rng.choice(("", " ", "\n")) + text + rng.choice(".!?;:")


def _scripts(rng: random.Random) -> str:
    block = rng.choice(_SCRIPTS)
    letters = (chr(code) for code in rng.choices(block, k=rng.randrange(1, 30)))
    old = (c for c in letters if unicodedata.ucd_3_2_0.category(c) != "Cn")
    return "".join(" " + c if rng.random() < 0.15 else c for c in old)


def _repeated(rng: random.Random) -> str:
    parts = (rng.choice(_CJK + "=-_ aA7\n.é") * rng.randrange(1, 60) for _ in range(rng.randrange(1, 4)))
    return "".join(parts)


def _any_characters(rng: random.Random) -> str:
    return "".join(rng.choices(old_characters(), k=rng.randrange(1, 15)))


def _mixed(rng: random.Random) -> str:
    return "".join(rng.choice(_KINDS[:-1])(rng)[:20] for _ in range(rng.randrange(2, 6)))


def _joined(alphabet: list[str] | str, longest: int) -> Callable[[random.Random], str]:
    return lambda rng: "".join(rng.choices(alphabet, k=rng.randrange(1, longest)))


def _between_words(alphabet: list[str], longest: int) -> Callable[[random.Random], str]:
    inner = _joined(alphabet, longest)
    return lambda rng: rng.choice(_WORDS) + inner(rng) + rng.choice((rng.choice(_WORDS), "", "7", "!"))


_KINDS: tuple[Callable[[random.Random], str], ...] = (
    _words,
    _joined(_CODE, 8),
    _joined(_NUMBERS, 25),
    _between_words(_CONTRACTIONS, 4),
    _scripts,
    _joined(_CJK, 30),
    _joined(_EMOJI, 12),
    _joined(_MARKS, 20),
    _between_words(_SPACES, 15),
    _joined(_CONTROLS, 20),
    _repeated,
    _any_characters,
    _mixed,
)
