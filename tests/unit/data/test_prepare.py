"""From text to a published folder: what is in it, on any number of processes, and nothing after a failure."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wafergpt.data import encode_pool, publish, side_writer
from wafergpt.data import prepare as prepare_module
from wafergpt.data.config import HeldOut, HeldOutMode, PrepareConfig
from wafergpt.data.encode_pool import EncodePool
from wafergpt.data.prepare import Progress, prepare
from wafergpt.data.shards import ShardSet
from wafergpt.errors import ConfigError, DataError, StorageError, WaferGPTError
from wafergpt.tokenizer.bpe import Tokenizer

DOCUMENTS = HeldOut(mode=HeldOutMode.DOCUMENTS, every=4)
TEXTS = [f"The {i}. king of the land saw {'many ' * (i + 3)}days, and it's good.\n" for i in range(12)]


@pytest.fixture
def config(tmp_path: Path) -> PrepareConfig:
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in TEXTS))
    return PrepareConfig(
        sources=(str(path),), output=tmp_path / "data", tokenizer="train:280", held_out=DOCUMENTS, n_workers=1
    )


def documents_of(folder: Path) -> list[str]:
    """The documents that the shards of one side decode to."""
    shards = ShardSet.open(folder)
    tokenizer = Tokenizer.load(folder.parent)
    ids = shards.read(0, shards.n_tokens)
    ends = np.flatnonzero(ids == shards.manifest.end_of_text_id)
    assert ends[-1] == len(ids) - 1
    parts = np.split(ids, ends + 1)[:-1]
    return [tokenizer.decode(part[:-1]) for part in parts]


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_shards_hold_the_text_of_their_side_and_nothing_else(config: PrepareConfig) -> None:
    reports: list[Progress] = []
    prepared = prepare(config, reports.append)
    held_out = TEXTS[3::4]
    train = [text for text in TEXTS if text not in held_out]
    assert documents_of(prepared.folder / "train") == train
    assert documents_of(prepared.folder / "held_out") == held_out
    kept = (prepared.folder / "held_out" / "documents.jsonl").read_text().splitlines()
    assert [json.loads(line)["text"] for line in kept] == held_out
    assert prepared.train.n_text_bytes == sum(len(text.encode()) for text in train)
    assert prepared.train.n_documents == 9
    assert prepared.train.sources[0].name == "corpus.jsonl"
    assert prepared.train.sources[0].licence == "not stated"
    assert ShardSet.open(prepared.folder).manifest == prepared.train, (
        "a prepared folder opens as its train part"
    )
    assert [p.phase for p in reports[:: len(reports) - 1]] == ["learning the tokenizer", "tokenising"]
    assert reports[-1].read_bytes == reports[-1].total_bytes == Path(config.sources[0]).stat().st_size
    assert sorted(everything(prepared.folder)) == [
        "held_out/documents.jsonl",
        "held_out/manifest.json",
        "held_out/shard-00000.bin",
        "tokenizer.json",
        "train/manifest.json",
        "train/shard-00000.bin",
    ]


def test_the_tokenizer_learns_from_the_training_side_only(config: PrepareConfig) -> None:
    path = Path(config.sources[0])
    lines = path.read_text().splitlines(keepends=True)
    changed = [
        json.dumps({"text": "zyx " * 99}) + "\n" if n % 4 == 3 else line for n, line in enumerate(lines)
    ]
    first = prepare(config).train.tokenizer_sha256
    path.write_text("".join(changed))
    assert prepare(replace(config, overwrite=True)).train.tokenizer_sha256 == first


def test_repeated_and_empty_documents_are_counted(config: PrepareConfig) -> None:
    texts = [*TEXTS[:3], TEXTS[0], "", "é" * 9, "", TEXTS[5]]  # held out: positions 3 (a repetition) and 7
    Path(config.sources[0]).write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    prepared = prepare(replace(config, tokenizer="train:260"))
    assert prepared.held_out is not None
    assert prepared.train.counts == {"n_empty_documents": 2, "n_repeated_documents": 1}
    assert documents_of(prepared.folder / "train") == [*TEXTS[:3], "é" * 9]


@pytest.fixture
def processes_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """After the first batch, all is encoded by the processes; else small inputs would be done before."""
    start = EncodePool._start

    def start_and_wait(pool: EncodePool) -> None:
        start(pool)
        while pool._idle.empty():
            time.sleep(0.01)

    monkeypatch.setattr(EncodePool, "_start", start_and_wait)
    monkeypatch.setattr(encode_pool, "_INLINE_BYTES", 0)


@pytest.mark.usefixtures("processes_at_once")
def test_processes_and_batches_do_not_change_a_bit(
    config: PrepareConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = everything(prepare(config).folder)
    for n_workers, batch_bytes in ((2, 1), (3, 150)):
        monkeypatch.setattr(prepare_module, "_BATCH_BYTES", batch_bytes)
        output = tmp_path / f"workers-{n_workers}"
        assert everything(prepare(replace(config, output=output, n_workers=n_workers)).folder) == first


@pytest.mark.usefixtures("processes_at_once")
def test_long_documents_are_encoded_as_a_whole(config: PrepareConfig, tmp_path: Path) -> None:
    """Pieces are cut only where the ids do not notice."""
    text = " ".join(random.Random(0).choices(["king", "it's", "中文。字", "\n\n", "  12", "--"], k=600_000))
    (tmp_path / "long.txt").write_text(text)
    prepared = prepare(
        replace(config, sources=(str(tmp_path / "long.txt"),), held_out=HeldOut(), n_workers=2)
    )
    shards = ShardSet.open(prepared.folder)
    tokenizer = Tokenizer.load(prepared.folder)
    assert shards.read(0, shards.n_tokens).tolist() == [*tokenizer.encode(text), tokenizer.end_of_text_id]


def test_a_dead_worker_is_reported(config: PrepareConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encode_pool, "_INLINE_BYTES", 0)
    pool = EncodePool(Tokenizer.train(TEXTS, 280), 2)
    with pytest.raises(WaferGPTError, match=r"tokenising process \d+ ended with code -9"), pool:
        for _ in pool.encode(itertools.repeat([b"some text"])):
            for child in pool._children:
                child.kill()
    assert all(child.poll() is not None for child in pool._children)


FAULTS = [(side_writer.ShardWriter, "append"), (side_writer.SideWriter, "finish"), (publish, "_sync_folders")]


@pytest.mark.parametrize(("owner", "name"), FAULTS)
def test_a_full_disk_leaves_nothing(
    config: PrepareConfig, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(owner, name, full)
    with pytest.raises(StorageError, match="No space left on device; nothing was left behind"):
        prepare(config)
    assert [p.name for p in config.output.parent.iterdir()] == ["corpus.jsonl"]


def test_a_failed_overwrite_keeps_the_old_folder(config: PrepareConfig) -> None:
    before = everything(prepare(config).folder)
    with pytest.raises(ConfigError, match="exists already"):
        prepare(config)
    bad = replace(config, overwrite=True, tokenizer="gpt3")
    with pytest.raises(DataError, match="'gpt3' does not exist"):
        prepare(bad)
    assert everything(config.output) == before
    assert prepare(replace(config, overwrite=True, tokenizer="train:270")).train.vocab_size == 270
    assert sorted(p.name for p in config.output.parent.iterdir()) == ["corpus.jsonl", "data"]


def test_data_moved_aside_by_a_killed_overwrite_come_back(config: PrepareConfig) -> None:
    before = everything(prepare(config).folder)
    aside = config.output.with_name(
        f".{config.output.name}.partial-999999999.old"
    )  # no process has this number
    config.output.rename(aside)
    with pytest.raises(ConfigError, match="exists already"):
        prepare(config)
    assert everything(config.output) == before and not aside.exists()


def test_overwrite_replaces_prepared_data_only(config: PrepareConfig) -> None:
    corpus = Path(config.sources[0])
    before = corpus.read_bytes()
    with pytest.raises(ConfigError, match=r"corpus.jsonl' is a file"):
        prepare(replace(config, output=corpus, overwrite=True))
    with pytest.raises(ConfigError, match=r"holds 'corpus.jsonl', which is not prepared data"):
        prepare(replace(config, output=corpus.parent, overwrite=True))
    assert corpus.read_bytes() == before
    notes = prepare(config).folder / "train" / "notes.txt"
    notes.write_text("mine")
    with pytest.raises(ConfigError, match=r"holds 'train/notes.txt'"):
        prepare(replace(config, overwrite=True))
    assert notes.read_text() == "mine"


KILLED = """
import os, signal, sys
from pathlib import Path
from wafergpt.data import prepare, shards, side_writer, publish
from wafergpt.data.config import PrepareConfig
calls = 0
def dying(function):
    def wrapper(*arguments, **named):
        global calls
        calls += 1
        if calls == int(sys.argv[1]):
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **named)
    return wrapper
shards.ShardWriter.append = dying(shards.ShardWriter.append)
shards.Manifest.save = dying(shards.Manifest.save)
publish._sync_folders = dying(publish._sync_folders)
publish._place = dying(publish._place)
output = Path(sys.argv[3])
prepare.prepare(PrepareConfig(sources=(sys.argv[2],), output=output, tokenizer=sys.argv[4], n_workers=1))
"""


@pytest.mark.parametrize("points", [(1, 25, 27), pytest.param(range(1, 28), marks=pytest.mark.long)])
def test_a_killed_run_leaves_no_folder_and_the_next_one_cleans_up(
    config: PrepareConfig, tmp_path: Path, points: Sequence[int]
) -> None:
    tokenizer = Tokenizer.train(TEXTS, 280).save(tmp_path)
    whole = replace(config, tokenizer=str(tokenizer), held_out=HeldOut())
    for point in points:  # two appends per document, one manifest, then publishing
        arguments = [str(point), config.sources[0], str(config.output), str(tokenizer)]
        done = subprocess.run([sys.executable, "-c", KILLED, *arguments], capture_output=True)
        assert done.returncode == -signal.SIGKILL, done.stderr.decode()
        assert not config.output.exists()
    assert documents_of(prepare(whole).folder / "train") == TEXTS
    assert sorted(p.name for p in tmp_path.iterdir()) == ["corpus.jsonl", "data", "tokenizer.json"]


def test_a_running_neighbour_is_left_alone(tmp_path: Path) -> None:
    with publish.published(tmp_path / "data") as first:
        os.rename(first, first.with_name(".data.partial-1"))  # as if it were of another process
        with publish.published(tmp_path / "data"):
            assert (tmp_path / ".data.partial-1").is_dir()
        os.rename(tmp_path / ".data.partial-1", first)
        (tmp_path / "data" / "theirs").touch()
        with pytest.raises(ConfigError, match="written by another run"):
            publish._place(first, tmp_path / "data", overwrite=False)
        os.rename(tmp_path / "data", tmp_path / "elsewhere")


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"tokenizer": "train:"}, ConfigError, "write train:SIZE"),
        ({"tokenizer": "train:100"}, ConfigError, "at least 257"),
        ({"tokenizer": "train:5000"}, DataError, "too small for 5000"),
        ({"tokenizer": "nowhere.json"}, DataError, r"nowhere\.json' does not exist"),
        ({"sources": ()}, ConfigError, "name at least one"),
        ({"n_workers": 0}, ConfigError, "n_workers = 0"),
        (
            {"held_out": HeldOut(mode=HeldOutMode.DOCUMENTS, every=13)},
            DataError,
            "too little text for a held-out",
        ),
    ],
)
def test_bad_settings(config: PrepareConfig, changes: dict[str, object], error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        prepare(replace(config, **changes))  # type: ignore[arg-type]
    assert not config.output.exists()


@pytest.mark.parametrize("tokenizer", ["train:300", "file"])
@pytest.mark.parametrize("held_out", [HeldOut(), DOCUMENTS])
def test_an_empty_corpus_says_so(
    config: PrepareConfig, tmp_path: Path, tokenizer: str, held_out: HeldOut
) -> None:
    if tokenizer == "file":
        tokenizer = str(Tokenizer.train(TEXTS, 280).save(tmp_path))
    Path(config.sources[0]).write_text('{"text": ""}\n' * 8)
    with pytest.raises(DataError, match=r"the corpus is empty: there is no text in '.*corpus\.jsonl'"):
        prepare(replace(config, tokenizer=tokenizer, held_out=held_out))


@pytest.mark.parametrize("tokenizer", ["train:280", "file"])
def test_invalid_text_is_named_whoever_reads_it(
    config: PrepareConfig, tmp_path: Path, tokenizer: str
) -> None:
    """Also when the tokenizer's training, in Rust, pulls the text."""
    if tokenizer == "file":
        tokenizer = str(Tokenizer.train(TEXTS, 280).save(tmp_path))
    (tmp_path / "bad.txt").write_bytes(b"good words " * 100 + b"\xff")
    with pytest.raises(DataError, match=r"bad\.txt' is not UTF-8: byte 1100 is 0xff"):
        prepare(replace(config, sources=(str(tmp_path / "bad.txt"),), tokenizer=tokenizer))
