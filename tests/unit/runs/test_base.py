"""The base run as data: what it withholds, how it is scheduled."""

from __future__ import annotations

from pathlib import Path

import pytest

from wafergpt.assets.corpora import JOINED, READERS, assets_of
from wafergpt.assets.labelled import DATASETS, TEST_BOOKS, VALIDATION_BOOKS
from wafergpt.errors import ConfigError
from wafergpt.runs import base as runs
from wafergpt.training.config import Precision


def test_every_data_set_is_withheld_and_every_corpus_is_known() -> None:
    assert tuple(DATASETS) == runs.TESTS
    assert set(runs.CORPORA) <= {*READERS, *JOINED}
    for dataset in DATASETS.values():
        if dataset.task == "writing":  # a whole author
            assert not set(dataset.assets) & {asset for name in runs.CORPORA for asset in assets_of(name)}


def test_a_book_of_the_bibles_is_held_out() -> None:
    """What `HELD_OUT_EVERY` relies on: they come first, and have as many books as it counts."""
    assert runs.CORPORA[0] == "bibles"
    assert 66 - len(TEST_BOOKS) - len(VALIDATION_BOOKS) == runs.HELD_OUT_EVERY


@pytest.mark.parametrize("config", [runs.base(), runs.smoke()], ids=["base", "smoke"])
def test_the_schedule_is_complete(config: runs.BaseConfig) -> None:
    run = runs.train_config(
        config, config.models[0], data=Path("data"), precision=Precision.BF16, total_steps=4000
    )
    assert run.total_tokens == 4000 * config.batch_size * config.seq_len
    assert 0 < run.schedule.warmup_steps < 4000
    assert run.schedule.total_steps // run.save_every == 20


def test_too_little_time_is_told() -> None:
    with pytest.raises(ConfigError, match=r"1 step\(s\) are too few"):
        runs.train_config(
            runs.smoke(), runs.smoke().models[0], data=Path("data"), precision=Precision.BF16, total_steps=1
        )
