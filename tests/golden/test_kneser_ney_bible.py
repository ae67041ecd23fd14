"""Kneser-Ney on a real corpus against a figure somebody else measured."""

from __future__ import annotations

import numpy as np
import pytest

from wafergpt.assets.corpora import documents
from wafergpt.errors import AssetError
from wafergpt.evaluation.baselines import ngram_rows
from wafergpt.tokenizer.bpe import Tokenizer

BLOCK_CHARS, EVERY, VOCAB_SIZE = 4000, 20, 4096


@pytest.mark.assets
def test_five_grams_reach_the_known_figure_on_the_bible_in_basic_english() -> None:
    """5-gram Kneser-Ney, 4,096-token BPE, every 20th block of 4,000 characters held out.

    Another implementation, on its own reading of the text, measured 1.21; 1.22 is the bound. Which residue of
    20 is held out moves the figure between 1.14 and 1.21 on this text; the last is taken here, 1.17.
    """
    try:
        text = "".join(document.text for document in documents("bible-bbe"))
    except AssetError as error:
        pytest.skip(f"needs the asset bible-bbe: {error}")
    blocks = [text[i : i + BLOCK_CHARS] for i in range(0, len(text), BLOCK_CHARS)]
    held_out = blocks[EVERY - 1 :: EVERY]
    train = ["".join(blocks[i : i + EVERY - 1]) for i in range(0, len(blocks), EVERY)]
    tokenizer = Tokenizer.train(train, VOCAB_SIZE)
    eot = tokenizer.end_of_text_id
    train_ids, held_out_ids = (
        np.concatenate([[*ids, eot] for ids in tokenizer.encode_batch(texts)]) for texts in (train, held_out)
    )
    one, three, five = ngram_rows(
        train_ids,
        held_out_ids,
        n_text_bytes=sum(len(block.encode()) for block in held_out),
        vocab_size=VOCAB_SIZE,
        end_of_text_id=eot,
    )
    assert 1.10 < five.bits_per_byte <= 1.22  # below 1.10: held-out text has leaked into training
    assert five.bits_per_byte < three.bits_per_byte < one.bits_per_byte
