"""A base with a larger vocabulary: entries learned from what a task writes, a row of weights each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.checkpoints.stored_model import LazyArrays, StoredModel
from wafergpt.config import require
from wafergpt.tasks.examples import collect
from wafergpt.tasks.task import Objective, Record, Task
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.tokenizer.extension import extended

EMBEDDING = "wte.weight"
_NO_WINDOW = 1 << 40  # tokens: no text is too long to learn entries from


def widened(
    base: StoredModel, tokenizer: Tokenizer, task: Task, records: Sequence[Record], n_new: int
) -> StoredModel:
    """`base`, whose tokenizer is `tokenizer`, with `n_new` entries from what `records` teach to write.

    A new entry's row is the mean of the rows of the entries that spell it. Raises ConfigError for a task that
    writes nothing, DataError when there are too few pairs.
    """
    require(
        task.objective is Objective.TOKENS,
        f"new_tokens = {n_new} are for a task that writes; {task.name} is learned by a head",
    )
    wider = extended(tokenizer, taught(task, records, tokenizer), n_new)
    spelled = [
        tokenizer.encode_bytes(wider.token_bytes(i)) for i in range(tokenizer.vocab_size, wider.vocab_size)
    ]
    # A base may have more rows than its tokenizer has entries; those beyond are nobody's.
    config = replace(base.config, vocab_size=max(base.config.vocab_size, wider.vocab_size))

    def embedding() -> NDArray[np.float32]:
        rows = np.zeros((config.vocab_size, config.d_model), np.float32)
        rows[: base.config.vocab_size] = base.arrays[EMBEDDING]
        for i, ids in enumerate(spelled, tokenizer.vocab_size):
            rows[i] = rows[ids].mean(0)
        return rows

    def maker(name: str) -> Callable[[], NDArray[Any]]:
        return embedding if name == EMBEDDING else lambda: base.arrays[name]

    arrays = LazyArrays({name: maker(name) for name in base.arrays})
    return replace(base, config=config, arrays=arrays, tokenizer=wider)


def taught(task: Task, records: Sequence[Record], tokenizer: Tokenizer) -> Iterator[str]:
    """Every stretch of text that counts in the loss. Raises DataError when there is none."""
    for row in collect(task, records, tokenizer, _NO_WINDOW).rows:
        for counts, stretch in groupby(zip(row.ids, row.counted, strict=True), key=itemgetter(1)):
            if counts:
                yield tokenizer.decode(i for i, _ in stretch if i != tokenizer.end_of_text_id)
