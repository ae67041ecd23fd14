"""Chat templates: Jinja programs that come with a model. We carry them as text and never render them.

Whoever loads a model that we write may render its template, so a template passes only if it is made of what
chat templates are made of: a closed list of statements, filters, functions and methods, small numbers,
shallow loops. This is a filter and no proof of harmlessness: render foreign templates in a sandbox.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any, NoReturn

from wafergpt.checkpoints.untrusted.folder import UntrustedFolder
from wafergpt.errors import CheckpointError, shown
from wafergpt.units import KIB, format_bytes

TEMPLATE_NAME = "chat_template.jinja"
OLD_TEMPLATE_NAME = "chat_template.json"
SETTINGS_NAME = "tokenizer_config.json"
MAX_TEMPLATE_BYTES = 64 * KIB  # published templates have 0.1 to 16 KB
MAX_NUMBER = 10_000
MAX_LOOP_DEPTH = 4
MAX_NESTING = 64

_STATEMENTS = {
    *("for", "endfor", "if", "elif", "else", "endif", "set", "endset", "macro", "endmacro"),
    *("generation", "endgeneration", "break", "continue", "raw", "endraw"),
}
_FILTERS = {
    *("trim", "tojson", "upper", "lower", "capitalize", "title", "length", "count", "first", "last", "join"),
    *("default", "d", "list", "string", "int", "float", "items", "dictsort", "selectattr", "rejectattr"),
    *("select", "reject", "map", "safe", "escape", "e", "unique", "reverse", "sort", "replace"),
}
_FUNCTIONS = {"namespace", "range", "raise_exception", "strftime_now", "dict", "caller"}
_METHODS = {
    *(
        "strip",
        "lstrip",
        "rstrip",
        "split",
        "startswith",
        "endswith",
        "upper",
        "lower",
        "title",
        "capitalize",
    ),
    *("replace", "items", "keys", "values", "get", "find", "append", "pop", "index", "count"),
}
_TOKEN = re.compile(
    r"""(?P<string>"[^"\\]*+(?:\\.[^"\\]*+)*+"|'[^'\\]*+(?:\\.[^'\\]*+)*+')"""
    r"|(?P<number>[0-9][0-9_]*(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?)"
    r"|(?P<name>[^\W\d]\w*)"
    r"|(?P<operator>\*\*|//|==|!=|<=|>=|[-+*/%~|.,:()\[\]{}<>=])"
    r"|(?P<space>\s+)"
    r"|(?P<other>.)",
    re.DOTALL,
)
_OPEN = re.compile(r"\{\{|\{%|\{#")
_CLOSE = {"{{": "}}", "{%": "%}"}
_HIDDEN = re.compile(r"\\[^nrt\\'\"\n]")  # \x5f, \u005f, \137 spell characters that a search would miss
_END_RAW = re.compile(r"\{%[-+]?\s*endraw\s*[-+]?%\}")

Refuse = Callable[[str], NoReturn]
Token = tuple[str, str]  # kind, text


def check_template(text: str, label: str) -> None:
    """Refuse a template that holds anything but the usual; `label` names the file.

    Raises CheckpointError with the file and the construct: over 64 KiB; a statement, filter, function or
    method that is not listed above (include, import, attr, format, ...); a name or text with a leading
    underscore or `__`; a hidden character; `**`, text times number, a number over 10,000; loops over 4 deep,
    a range inside a range; brackets over 64 deep; a block that does not end.
    """

    def refuse(what: str) -> NoReturn:
        raise CheckpointError(f"{label}: chat template: {what}")

    size_bytes = len(text.encode("utf-8", "surrogatepass"))
    if size_bytes > MAX_TEMPLATE_BYTES:
        refuse(f"{format_bytes(size_bytes)} are over the limit of {format_bytes(MAX_TEMPLATE_BYTES)}")
    if any(ord(c) < 32 and c not in "\n\r\t" for c in text):
        refuse("it holds control characters")
    checker = _Checker(refuse)
    for is_statement, tokens in _blocks(text, refuse):
        checker.block(is_statement, tokens)


class _Checker:
    """Walks over the blocks of one template, knowing the macros and loops that are open."""

    def __init__(self, refuse: Refuse) -> None:
        self._refuse = refuse
        self._macros: set[str] = set()
        self._ranges: list[bool] = []  # one per open loop: does it count with range()?

    def block(self, is_statement: bool, tokens: list[Token]) -> None:
        word = tokens[0][1] if tokens and tokens[0][0] == "name" else ""
        if is_statement:
            if word not in _STATEMENTS:
                self._refuse(f"the statement {shown(word)} is not allowed")
            if word == "macro" and len(tokens) > 1:
                self._macros.add(tokens[1][1])
            if word == "endfor" and self._ranges:
                self._ranges.pop()
        n_ranges = sum(kind == "name" and text == "range" for kind, text in tokens)
        if n_ranges > 1 or (n_ranges and any(self._ranges)):
            self._refuse("a range inside a range is not allowed")
        if is_statement and word == "for":
            self._ranges.append(bool(n_ranges))
            if len(self._ranges) > MAX_LOOP_DEPTH:
                self._refuse(f"loops are more than {MAX_LOOP_DEPTH} deep")
        self._expression(tokens[1:] if is_statement else tokens)

    def _expression(self, tokens: list[Token]) -> None:
        depth = 0
        padded = [("", ""), *tokens, ("", "")]
        for before, (kind, text), after in zip(padded, tokens, padded[2:], strict=False):
            if kind == "other":
                self._refuse(f"{shown(text)} is not part of an expression")
            if text in ("(", "[", "{") and kind == "operator":
                depth += 1
                if depth > MAX_NESTING:
                    self._refuse(f"brackets are more than {MAX_NESTING} deep")
            elif text in (")", "]", "}") and kind == "operator":
                depth -= 1
            self._token(before, kind, text, after)

    def _token(self, before: Token, kind: str, text: str, after: Token) -> None:
        if kind == "number" and float(text.replace("_", "")) > MAX_NUMBER:
            self._refuse(f"the number {text[:40]} is over the limit of {MAX_NUMBER}")
        if kind == "string":
            self._text(text)
            if "*" in (before[1], after[1]) or before[1] == "%" or after[1] == "%":
                self._refuse("text times a number, or text formatted with %, is not allowed")
        if (kind, text) == ("operator", "**"):
            self._refuse("the power '**' is not allowed")
        if kind != "name":
            return
        if text.startswith("_") or "__" in text:
            self._refuse(f"the name {shown(text)} begins with or holds underscores that reach into Python")
        if before == ("operator", "|"):
            if text not in _FILTERS:
                self._refuse(f"the filter {shown(text)} is not allowed")
        elif after == ("operator", "(") and text not in ("in", "not", "and", "or", "if", "else", "is"):
            is_method = before == ("operator", ".")
            if text not in (_METHODS if is_method else _FUNCTIONS | self._macros):
                self._refuse(f"the {'method' if is_method else 'function'} {shown(text)} is not allowed")

    def _text(self, literal: str) -> None:
        if _HIDDEN.search(literal):
            self._refuse(f"the text {shown(literal)} hides characters behind a backslash")
        if literal[1:-1].startswith("_") or "__" in literal:
            self._refuse(f"the text {shown(literal)} could name something inside Python")


def _blocks(text: str, refuse: Refuse) -> Iterator[tuple[bool, list[Token]]]:
    """(is it a statement, its tokens) of every `{{ }}` and `{% %}`; comments and raw text are skipped."""
    position = 0
    while opening := _OPEN.search(text, position):
        position = opening.end()
        if opening[0] == "{#":
            end = text.find("#}", position)
            if end < 0:
                refuse("a comment does not end")
            position = end + 2
            continue
        tokens, position = _tokens(text, position, _CLOSE[opening[0]], refuse)
        yield opening[0] == "{%", tokens
        if opening[0] == "{%" and tokens == [("name", "raw")]:
            raw = _END_RAW.search(text, position)
            if raw is None:
                refuse("raw text does not end")
            position = raw.end()


def _tokens(text: str, position: int, close: str, refuse: Refuse) -> tuple[list[Token], int]:
    """The tokens up to `close`, without white space and the `-` that trims it; and the position after."""
    tokens: list[Token] = []
    open_braces = 0
    if text[position : position + 1] in ("-", "+"):
        position += 1
    while position < len(text):
        if text.startswith(close, position) and not (close == "}}" and open_braces):
            if tokens and tokens[-1] in (("operator", "-"), ("operator", "+")):
                tokens.pop()
            return tokens, position + len(close)
        match = _TOKEN.match(text, position)
        assert match is not None and match.lastgroup is not None  # the last alternative takes any character
        if match.lastgroup != "space":
            tokens.append((match.lastgroup, match[0]))
        open_braces += (match[0] == "{") - (match[0] == "}")
        position = match.end()
    refuse("a block does not end")


def read_chat_template(folder: UntrustedFolder) -> tuple[str | None, tuple[str, ...]]:
    """The folder's chat template after `check_template`, None if it has none; and notes.

    Looked for in `chat_template.jinja`, `chat_template.json`, then `tokenizer_config.json`, as Transformers
    does. Of several named templates the one called "default" is taken. Raises CheckpointError.
    """
    notes: list[str] = []
    if folder.has(TEMPLATE_NAME):
        label = f"{folder.path}/{TEMPLATE_NAME}"
        try:
            found: Any = folder.read_bytes(TEMPLATE_NAME, MAX_TEMPLATE_BYTES).decode("utf-8")
        except UnicodeDecodeError as error:
            raise CheckpointError(f"{label}: not UTF-8: {error}") from None
    else:
        name = OLD_TEMPLATE_NAME if folder.has(OLD_TEMPLATE_NAME) else SETTINGS_NAME
        label = f"{folder.path}/{name}"
        found = folder.read_json(name).get("chat_template") if folder.has(name) else None
    if isinstance(found, list):
        named = {one.get("name"): one.get("template") for one in found if _is_named(one, label)}
        found = named.pop("default", None)
        notes += [f"the chat template {shown(name)} was dropped" for name in named]
    if found is None:
        return None, tuple(notes)
    if not isinstance(found, str):
        raise CheckpointError(f"{label}: chat_template is {shown(found)}, not text")
    check_template(found, label)
    return found, tuple(notes)


def _is_named(one: Any, label: str) -> bool:
    if isinstance(one, dict) and set(one) == {"name", "template"} and isinstance(one["name"], str):
        return True
    raise CheckpointError(f"{label}: chat_template holds {shown(one)}, which is not a named template")
