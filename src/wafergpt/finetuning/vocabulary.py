"""A base with a larger vocabulary: entries learned from what a task's answers say, a row of weights each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wafergpt.checkpoints.stored_model import LazyArrays, StoredModel
from wafergpt.config import require
from wafergpt.tasks.examples import usable
from wafergpt.tasks.task import Objective, Record, Task
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.tokenizer.extension import extended

EMBEDDING = "wte.weight"


def widened(
    base: StoredModel, tokenizer: Tokenizer, task: Task, records: Sequence[Record], n_new: int
) -> tuple[StoredModel, Tokenizer]:
    """`base` and its `tokenizer` with `n_new` entries from the targets of `records`.

    A new entry's row is the mean of the rows of the entries that spelled it before. Raises ConfigError for a
    task that writes nothing, DataError when the targets hold too few pairs.
    """
    require(
        task.objective is Objective.TOKENS,
        f"new_tokens = {n_new} are for a task that writes; {task.name} is learned by a head",
    )
    kept, _ = usable(task, records)
    wider = extended(tokenizer, [f" {task.target(record).strip()}" for record in kept], n_new)
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
    return replace(base, config=config, arrays=arrays, tokenizer=wider), wider
