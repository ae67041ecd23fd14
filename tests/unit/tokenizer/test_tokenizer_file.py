"""Foreign tokenizer files: built anew from a closed schema, or refused with the rule."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest

from wafergpt.errors import DataError
from wafergpt.tokenizer import tokenizer_file
from wafergpt.tokenizer.bpe import END_OF_TEXT, Tokenizer
from wafergpt.tokenizer.tokenizer_file import tokenizer_from_files, tokenizer_from_form

Form = dict[str, Any]
TEXTS = ["It's the year 2023:\n\tübergrößen, 数字と🎉 emoji!!  x", " the then  ", END_OF_TEXT]


@pytest.fixture(scope="module")
def trained() -> Tokenizer:
    return Tokenizer.train(["the then there them in the inner thinner " * 20], 264)


@pytest.fixture
def form(trained: Tokenizer) -> Form:
    value: Form = json.loads(trained.to_bytes())
    return value


def test_our_own_file_comes_back_byte_for_byte(trained: Tokenizer, form: Form) -> None:
    rebuilt, notes = tokenizer_from_form(form)
    assert rebuilt.to_bytes() == trained.to_bytes()
    assert notes == ()


def test_the_files_of_a_slow_tokenizer_give_the_same(trained: Tokenizer, form: Form) -> None:
    merges = "#version: 0.2\n" + "".join(f"{left} {right}\n" for left, right in form["model"]["merges"])
    rebuilt = tokenizer_from_files(form["model"]["vocab"], merges, {})
    assert rebuilt.to_bytes() == trained.to_bytes()
    padded = tokenizer_from_files(form["model"]["vocab"], merges, {"[PAD]": 264})
    assert padded.vocab_size == 265
    assert padded.token_bytes(264) == b"[PAD]"


def test_the_old_form_of_gpt2_is_read(trained: Tokenizer, form: Form) -> None:
    """As tokenizers 0.8 wrote it: merges as text, several keys absent, `normalized` true."""
    model = form["model"]
    old = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [{**form["added_tokens"][0], "normalized": True}],
        "normalizer": None,
        "pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True},
        "post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False},
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True},
        "model": {
            "type": "BPE",
            "dropout": None,
            "unk_token": None,
            "continuing_subword_prefix": "",
            "end_of_word_suffix": "",
            "fuse_unk": False,
            "vocab": model["vocab"],
            "merges": [f"{left} {right}" for left, right in model["merges"]],
        },
    }
    rebuilt, notes = tokenizer_from_form(old)
    assert notes == ()
    assert rebuilt.encode_batch(TEXTS) == trained.encode_batch(TEXTS)


def test_what_transformers_writes_is_read_with_its_chat_tokens(trained: Tokenizer, tmp_path: Any) -> None:
    transformers = pytest.importorskip("transformers")
    trained.save(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}', encoding="utf-8")
    theirs = transformers.AutoTokenizer.from_pretrained(str(tmp_path))
    chat = ["<|im_start|>", "<|im_end|>"]
    theirs.add_special_tokens({"pad_token": "<|pad|>", "additional_special_tokens": chat})
    theirs.save_pretrained(str(tmp_path / "saved"))
    written = json.loads((tmp_path / "saved" / "tokenizer.json").read_bytes())
    rebuilt, notes = tokenizer_from_form(written)
    assert notes == ()
    assert rebuilt.encode_batch(TEXTS[:2]) == [theirs.encode(text) for text in TEXTS[:2]]
    assert [rebuilt.inner.token_to_id(token) for token in ["<|pad|>", *chat]] == [264, 265, 266]
    again, _ = tokenizer_from_form(json.loads(rebuilt.to_bytes()))
    assert again.to_bytes() == rebuilt.to_bytes()


def test_what_is_left_out_is_noted(form: Form) -> None:
    form["truncation"] = {"max_length": 5}
    form["post_processor"] = {"type": "TemplateProcessing", "special_tokens": {END_OF_TEXT: {}}}
    _, notes = tokenizer_from_form(form)
    assert ["truncation" in notes[0], "template" in notes[1]] == [True, True]


def added(content: str, token_id: Any = 264, **flags: Any) -> Form:
    return {"id": token_id, "content": content, "special": True, **flags}


def vocabulary(form: Form) -> dict[str, Any]:
    table: dict[str, Any] = form["model"]["vocab"]
    return table


BROKEN: list[tuple[str, Callable[[Form], Any]]] = [
    ("unknown key 'extra'", lambda f: f.update(extra=1)),
    ("unknown key 'dropouts'; did you mean 'dropout'", lambda f: f["model"].update(dropouts=1)),
    ("version '2.0'", lambda f: f.update(version="2.0")),
    ("normalises", lambda f: f.update(normalizer={"type": "NFC"})),
    ("pre_tokenizer has type 'Split'", lambda f: f.update(pre_tokenizer={"type": "Split"})),
    ("pre_tokenizer is None", lambda f: f.update(pre_tokenizer=None)),
    ("pre_tokenizer has add_prefix_space True", lambda f: f["pre_tokenizer"].update(add_prefix_space=True)),
    ("pre_tokenizer has use_regex False", lambda f: f["pre_tokenizer"].update(use_regex=False)),
    ("pre_tokenizer has no type", lambda f: f["pre_tokenizer"].pop("type")),
    ("unknown key 'pattern'", lambda f: f["pre_tokenizer"].update(pattern={"Regex": "(a+)+$"})),
    ("decoder is 'ByteLevel', not an object", lambda f: f.update(decoder="ByteLevel")),
    ("post_processor has type", lambda f: f.update(post_processor={"type": "RobertaProcessing"})),
    ("model has type 'Unigram'", lambda f: f["model"].update(type="Unigram")),
    ("model has dropout 0.5", lambda f: f["model"].update(dropout=0.5)),
    ("model has ignore_merges True", lambda f: f["model"].update(ignore_merges=True)),
    ("model has byte_fallback 0;", lambda f: f["model"].update(byte_fallback=0)),
    ("no special token", lambda f: f.update(added_tokens=[])),
    ("added_tokens are not a list", lambda f: f.update(added_tokens={})),
    ("no content", lambda f: f["added_tokens"].append({"id": 264})),
    ("not a special token", lambda f: f["added_tokens"].append(added("word", special=False))),
    ("has lstrip True", lambda f: f["added_tokens"].append(added("[X]", lstrip=True))),
    ("added twice", lambda f: f["added_tokens"].append(f["added_tokens"][0])),
    ("same id 0", lambda f: f["added_tokens"].append(added("[X]", 0))),
    ("the id of '[X]' is 265", lambda f: f["added_tokens"].append(added("[X]", 265))),
    ("the id of '[X]' is None", lambda f: f["added_tokens"].append(added("[X]", None))),
    ("cannot be a special token", lambda f: f["added_tokens"].append(added("a\n"))),
    ("one of the 256 byte entries", lambda f: f["added_tokens"].append(added("a", vocabulary(f)["a"]))),
    ("another id in the vocabulary", lambda f: f["added_tokens"].append(added("a"))),
    (
        "not an ordinary entry",
        lambda f: f["added_tokens"].append(added("th", vocabulary(f)["th"])),
    ),
    ("not a table", lambda f: f["model"].update(vocab=[])),
    ("the id of 'th' is -1", lambda f: vocabulary(f).update(th=-1)),
    ("the id of 'th' is True", lambda f: vocabulary(f).update(th=True)),
    ("the id of 'th' is 1.0", lambda f: vocabulary(f).update(th=1.0)),
    ("the id of 'th' is 1099511627776", lambda f: vocabulary(f).update(th=1 << 40)),
    ("same id", lambda f: vocabulary(f).update(th=1)),
    ("not spelt", lambda f: vocabulary(f).update({"日": 264})),
    ("1 to 1024 characters", lambda f: vocabulary(f).update({"a" * 1025: 264})),
    ("not a list", lambda f: f["model"].update(merges="t h")),
    ("not a pair", lambda f: f["model"]["merges"].append("t h e")),
    ("not a pair", lambda f: f["model"]["merges"].append(["t", ""])),
    ("not a pair", lambda f: f["model"]["merges"].append(7)),
    ("not an ordinary entry", lambda f: f["model"]["merges"].append(["q", "q"])),
    ("not an ordinary entry", lambda f: f["model"]["merges"].append([END_OF_TEXT, "a"])),
    ("appears twice", lambda f: f["model"]["merges"].append(f["model"]["merges"][0])),
]


@pytest.mark.parametrize(("rule", "damage"), BROKEN, ids=[rule for rule, _ in BROKEN])
def test_what_is_not_gpt2s_kind_is_refused(form: Form, rule: str, damage: Callable[[Form], Any]) -> None:
    broken = copy.deepcopy(form)
    damage(broken)
    with pytest.raises(DataError) as failure:
        tokenizer_from_form(broken)
    assert rule in str(failure.value)
    assert "\n" not in str(failure.value)
    assert len(str(failure.value)) < 400


def test_a_file_that_lacks_a_byte_is_refused(form: Form) -> None:
    table = vocabulary(form)
    owner = next(entry for entry, token_id in table.items() if token_id == 263)
    table["!"], table[owner] = table[owner], table["!"]  # keeps the ids 0, 1, ...
    del table["!"]
    form["model"]["merges"] = []
    with pytest.raises(DataError, match="lacks some of the 256"):
        tokenizer_from_form(form)


def test_too_much_is_refused(form: Form, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizer_file, "MAX_ENTRIES", 263)
    with pytest.raises(DataError, match="264 entries, over the limit of 263"):
        tokenizer_from_form(copy.deepcopy(form))
    monkeypatch.setattr(tokenizer_file, "MAX_ENTRIES", 264)
    form["model"]["merges"] *= 100
    with pytest.raises(DataError, match="merges, over the limit"):
        tokenizer_from_form(copy.deepcopy(form))
    monkeypatch.setattr(tokenizer_file, "MAX_SPECIAL", 0)
    with pytest.raises(DataError, match="1 special tokens, over the limit"):
        tokenizer_from_form(form)
