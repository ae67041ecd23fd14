"""Commands to a house: the sentence templates of Home Assistant, expanded at random, with their intent.

The grammar: `(a|b)` one of them, `[a]` or nothing, `(a;b)` both in any order, `{list:slot}` a value, `<rule>`
a named template.
"""

from __future__ import annotations

import json
import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from wafergpt.errors import AssetError

PER_TEMPLATE = 12  # sentences at most
_TOKEN = re.compile(r"[()\[\]|;]|\{[^}]*\}|<[^>]*>|[^()\[\]|;{}<>]+")
# What a house would bring itself, or what a speaker would say where the template takes any words: ours.
_VALUES = {
    "area": ["kitchen", "living room", "bedroom", "office", "garage", "bathroom", "hallway", "garden"],
    "floor": ["first floor", "ground floor", "second floor", "upstairs", "downstairs", "basement"],
    "name": ["desk lamp", "coffee machine", "heater", "night light", "radio", "fountain", "TV", "humidifier"],
    "message": ["dinner is ready", "we leave in ten minutes", "time for bed", "the guests are here"],
    "search_query": ["the beatles", "classical music", "jazz", "the morning news", "abba", "star trek"],
    "zone": ["home", "work", "school", "the gym"],
    "timer_name": ["pizza", "laundry", "tea", "egg", "homework", "nap"],
    "timer_command": ["open the garage", "turn off the heater", "lock the front door", "play music"],
    "shopping_list_item": ["milk", "apples", "bread", "olive oil", "coffee", "batteries"],
    "todo_list_item": ["call the plumber", "water the plants", "pay the rent", "clean the oven"],
}
_NAMES_BY_DOMAIN = {
    "light": ["desk lamp", "ceiling light", "night light", "porch light"],
    "fan": ["ceiling fan", "tower fan", "desk fan"],
    "cover": ["garage door", "left curtain", "kitchen blinds", "front gate"],
    "lock": ["front door", "back door", "cellar door"],
    "media_player": ["TV", "living room speaker", "radio", "soundbar"],
    "climate": ["thermostat", "bedroom heater", "air conditioner"],
    "vacuum": ["robot vacuum", "rover", "dusty"],
    "lawn_mower": ["mower", "lawn robot"],
    "person": ["alice", "ben", "grandma"],
    "todo": ["chores", "party", "holiday"],
    "weather": ["london", "seattle", "home"],
}


def home_commands(folder: Path) -> Iterator[dict[str, Any]]:
    """{"text", "label", "group"}: up to `PER_TEMPLATE` sentences of each template, which is their group.

    A sentence that several intents could mean is left out.
    """
    found = list(_expanded(json.loads((folder / "en.json").read_text(encoding="utf-8"))))
    labels: dict[str, set[str]] = {}
    for record in found:
        labels.setdefault(record["text"], set()).add(record["label"])
    yield from (record for record in found if len(labels[record["text"]]) == 1)


def _expanded(data: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for intent, details in data["intents"].items():
        for block in details["data"]:
            slots = {**block.get("requires_context", {}), **block.get("slots", {})}
            for template in block["sentences"]:
                sentences = _Sentences(data, _names(slots.get("domain")), template)
                label = intent.removeprefix("Hass")
                group = f"{label}: {template}"
                yield from ({"text": text, "label": label, "group": group} for text in sentences.draw())


def _names(domain: Any) -> list[str]:
    domains = domain if isinstance(domain, list) else [domain]
    return [name for one in domains for name in _NAMES_BY_DOMAIN.get(one, [])] or _VALUES["name"]


class _Sentences:
    """Random sentences of one template; always the same ones."""

    def __init__(self, data: dict[str, Any], names: list[str], template: str) -> None:
        self._rules: dict[str, str] = data["expansion_rules"]
        self._lists: dict[str, Any] = data["lists"]
        self._names = names
        self._template = template
        self._random = random.Random(template)  # a text seeds by its SHA-512, the same everywhere

    def draw(self) -> list[str]:
        """Up to `PER_TEMPLATE` different ones; a template that allows few gives few."""
        found: dict[str, None] = {}
        for _ in range(4 * PER_TEMPLATE):
            if text := " ".join(self._expand(self._template).split()):
                found[text] = None
            if len(found) == PER_TEMPLATE:
                break
        return list(found)

    def _expand(self, template: str) -> str:
        tokens = _TOKEN.findall(template)
        if "".join(tokens) != template:
            raise AssetError(f"the template '{template}' is not in the grammar this reader knows")
        text = self._choices(tokens, "")
        if tokens:
            raise AssetError(f"the template '{template}' closes a bracket that it does not open")
        return text

    def _choices(self, tokens: list[str], end: str) -> str:
        """Consumes `tokens` up to the bracket `end`; one alternative, or a permutation."""
        parts, separator = [""], "|"
        while tokens and tokens[0] not in (")", "]"):
            token = tokens.pop(0)
            if token in ("|", ";"):
                separator = token
                parts.append("")
            else:
                parts[-1] += self._one(token, tokens)
        if (tokens.pop(0) if tokens else "") != end:
            raise AssetError(f"the template '{self._template}' has unbalanced brackets")
        if separator == ";":
            self._random.shuffle(parts)
            return " ".join(parts)
        return self._random.choice(parts)

    def _one(self, token: str, tokens: list[str]) -> str:
        if token == "(":
            return self._choices(tokens, ")")
        if token == "[":
            chosen = self._choices(tokens, "]")
            return chosen if self._random.random() < 0.5 else ""
        if token[0] == "{":
            return self._value(token[1:-1].partition(":")[0])
        if token[0] == "<":
            return self._expand(self._rules[token[1:-1]])
        return token

    def _value(self, name: str) -> str:
        if name == "name":
            return self._random.choice(self._names)
        if name in _VALUES:
            return self._random.choice(_VALUES[name])
        values = self._lists[name]
        if "range" in values:
            numbers = values["range"]
            return str(self._random.randrange(numbers["from"], numbers["to"] + 1, numbers.get("step", 1)))
        entry = self._random.choice(values["values"])
        return self._expand(entry["in"] if isinstance(entry, dict) else entry)
