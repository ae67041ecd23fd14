"""LibreOffice's help: its paragraphs in two languages, and its headings with what they are about.

Every paragraph carries an id that is the same in all languages, so (page, id) aligns them.
"""

from __future__ import annotations

import html
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

_BLOCK = re.compile(r'<(p|h[1-6]) id="((?:par|hd)_id\w+)"[^>]*>(.*?)</\1>', re.DOTALL)
_INNERMOST_SPAN = re.compile(r"<span\b([^>]*)>((?:(?!<span\b).)*?)</span>", re.DOTALL)
# Text that is shown on another system only; "Ctrl" is the default of "Command".
_OTHER_SYSTEM = re.compile(r'hidden="true" id="(?!default)')
_TAG = re.compile(r"<[^>]*>")
MIN_WORDS = 4  # shorter ones are names of commands
MIN_QUESTION_WORDS, MIN_ANSWER_WORDS = 3, 10  # shorter ones say little away from their page


def translations(english: Path, other: Path) -> Iterator[dict[str, Any]]:
    """{"source", "target", "group"} of paragraphs with at least four words that differ in both languages."""
    for page in sorted(english.glob("*.html")):
        targets = _by_id(other / page.name)
        for name, text in _by_id(page).items():
            target = targets.get(name, "")
            if len(text.split()) >= MIN_WORDS and target and target != text:
                yield {"source": text, "target": target, "group": page.stem}


def help_desk(english: Path) -> Iterator[dict[str, Any]]:
    """{"messages", "group"}: a heading as the user's question, the paragraph after it as the answer."""
    for page in sorted(english.glob("*.html")):
        heading = ""
        for tag, _, text in _blocks(page):
            if tag != "p":
                heading = text if len(text.split()) >= MIN_QUESTION_WORDS else ""
            elif heading and len(text.split()) >= MIN_ANSWER_WORDS:
                messages = [{"role": "user", "content": heading}, {"role": "assistant", "content": text}]
                yield {"messages": messages, "group": page.stem}
                heading = ""


def _by_id(page: Path) -> dict[str, str]:
    """The texts whose id no other text of the page has."""
    blocks = _blocks(page)
    counts = Counter(name for _, name, _ in blocks)
    return {name: text for _, name, text in blocks if counts[name] == 1}


def _blocks(page: Path) -> list[tuple[str, str, str]]:
    """(tag, id, text) of the paragraphs of a page that hold text, in order."""
    found = []
    for tag, name, inner in _BLOCK.findall(page.read_text(encoding="utf-8")):
        text = " ".join(html.unescape(_TAG.sub("", _shown(inner))).split())
        if text:
            found.append((tag, name, text))
    return found


def _shown(markup: str) -> str:
    """Without what a reader on Linux or Windows does not see; spans open from the inside."""
    before = ""
    while before != markup:
        before = markup
        markup = _INNERMOST_SPAN.sub(lambda m: "" if _OTHER_SYSTEM.search(m[1]) else m[2], markup)
    return markup
