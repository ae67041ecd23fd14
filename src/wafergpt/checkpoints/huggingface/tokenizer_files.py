"""A tokenizer as the files that Transformers reads: of version 5 (tokenizer.json) and of older tools.

`vocab.json` and `merges.txt` are GPT-2's own two files (encoder.json, vocab.bpe) under Transformers' names.
"""

from __future__ import annotations

import json
from typing import Any

from wafergpt.tokenizer.bpe import END_OF_TEXT, FILE_NAME, Tokenizer


def tokenizer_files(tokenizer: Tokenizer, max_seq_len: int) -> dict[str, bytes]:
    """File name -> content. The end-of-text token is bos, eos and unk, as in GPT-2's own folder."""
    form = json.loads(tokenizer.to_bytes())["model"]
    merges = [pair if isinstance(pair, str) else " ".join(pair) for pair in form["merges"]]
    settings: dict[str, Any] = {
        "add_prefix_space": False,
        "bos_token": END_OF_TEXT,
        "clean_up_tokenization_spaces": False,  # decoding must give the text back
        "eos_token": END_OF_TEXT,
        "errors": "replace",
        "model_max_length": max_seq_len,
        "pad_token": None,
        "tokenizer_class": "GPT2Tokenizer",
        "unk_token": END_OF_TEXT,
    }
    return {
        FILE_NAME: tokenizer.to_bytes(),
        "tokenizer_config.json": json_bytes(settings),
        "vocab.json": json.dumps(form["vocab"], ensure_ascii=False).encode(),
        "merges.txt": "\n".join(["#version: 0.2", *merges, ""]).encode(),
    }


def json_bytes(document: dict[str, Any]) -> bytes:
    """Indented, keys sorted, as Transformers writes its JSON files."""
    return json.dumps(document, indent=2, sort_keys=True).encode() + b"\n"
