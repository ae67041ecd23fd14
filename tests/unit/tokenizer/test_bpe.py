"""The tokenizer: special tokens as text, files, training, refusals."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from wafergpt.errors import ConfigError, DataError
from wafergpt.tokenizer.bpe import END_OF_TEXT, Tokenizer

TEXT = "the cat sat on the mat. the rat sat on the cat; the mat is flat, isn't it?\n" * 20


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train([TEXT], 275)


def test_training_gives_the_asked_size_and_is_deterministic(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocab_size == 275
    code = (
        "import sys; from wafergpt.tokenizer.bpe import Tokenizer; "
        f"print(Tokenizer.train([{TEXT!r}], 275).sha256)"
    )
    for threads in ("1", "2"):  # another process, other hash seeds, other thread counts
        environment = {"RAYON_NUM_THREADS": threads, "PATH": "/usr/bin"}
        found = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
        assert found.stdout.strip() == tokenizer.sha256


def test_training_refuses_what_it_cannot_give() -> None:
    with pytest.raises(ConfigError, match="at least 257"):
        Tokenizer.train([TEXT], 256)
    with pytest.raises(DataError, match=r"too small for 5000 tokenizer entries; it supports \d+"):
        Tokenizer.train([TEXT], 5000)


def test_end_of_text_in_user_text_stays_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode(f"a{END_OF_TEXT}b")
    assert tokenizer.end_of_text_id not in ids
    assert tokenizer.decode(ids) == f"a{END_OF_TEXT}b"
    assert tokenizer.decode([tokenizer.end_of_text_id]) == END_OF_TEXT


def test_save_and_load_keep_everything(tokenizer: Tokenizer, tmp_path: Path) -> None:
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        loaded = Tokenizer.load(path)
        assert loaded.sha256 == tokenizer.sha256
        assert loaded.encode(f"cat{END_OF_TEXT} 中 🦀") == tokenizer.encode(f"cat{END_OF_TEXT} 中 🦀")


def test_load_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"nowhere.*does not exist"):
        Tokenizer.load(tmp_path / "nowhere")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(DataError, match=r"tokenizer\.json: not a tokenizer\.json"):
        Tokenizer.load(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda form: form["pre_tokenizer"].update(add_prefix_space=True), "add_prefix_space"),
        (lambda form: form["pre_tokenizer"].update(use_regex=False), "use_regex"),
        (lambda form: form.update(pre_tokenizer={"type": "Whitespace"}), "Whitespace"),
        (lambda form: form.update(normalizer={"type": "NFC"}), "normalises"),
        (lambda form: form["model"].update(dropout=0.1), "dropout"),
        (lambda form: form["added_tokens"][0].update(special=False), "not special"),
    ],
)
def test_foreign_tokenizers_are_refused(tokenizer: Tokenizer, change: object, message: str) -> None:
    form = json.loads(tokenizer.to_bytes())
    change(form)  # type: ignore[operator]
    with pytest.raises(DataError, match=message):
        Tokenizer.from_bytes(json.dumps(form).encode())


@pytest.mark.parametrize("token_id", [-1, 275, 10**9])
def test_ids_outside_the_vocabulary_are_named(tokenizer: Tokenizer, token_id: int) -> None:
    with pytest.raises(DataError, match=f"token id {token_id} is outside the vocabulary of 275"):
        tokenizer.decode([token_id])


def test_lone_surrogate_is_a_data_error(tokenizer: Tokenizer) -> None:
    with pytest.raises(DataError, match="cannot be encoded: it is not UTF-8"):
        tokenizer.encode("a\ud800b")
