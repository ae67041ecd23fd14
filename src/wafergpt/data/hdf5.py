"""Model Zoo HDF5 data sets <-> prepared folders: samples (n, 3, T) or a corpus of ids, `data` in each file.

A sample holds input_ids, attention_mask (a mask of the loss, its name notwithstanding) and labels, already
shifted; files carry the attribute `n_examples`. Source: Model Zoo data/common/HDF5IterableDataset.py,
h5_map_dataset/readers.py, hdf5_preprocessing/README.md (Release_1.9.1).
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from wafergpt.config import require
from wafergpt.data.packing import n_windows
from wafergpt.data.publish import published, sync_file
from wafergpt.data.shards import Manifest, ShardSet, ShardWriter, Source
from wafergpt.errors import DataError
from wafergpt.hdf5.opened import OpenedHDF5, load_h5py
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.units import MIB

DATASET = "data"
COUNT_ATTRIBUTE = "n_examples"
PARAMS_NAME = "data_params.json"  # beside the files; the iterable loader takes the names of the rows from it
FEATURES = ("input_ids", "attention_mask", "labels")
SAMPLES_PER_FILE = 50_000  # the Zoo's own default
_BLOCK_BYTES = 8 * MIB

Samples = npt.NDArray[np.int32]  # [n, 3, T]
Ids = npt.NDArray[Any]  # [n]


@dataclass(frozen=True, kw_only=True)
class Imported:
    """What `import_folder` wrote, and one line for each thing it dropped or assumed."""

    folder: Path
    manifest: Manifest
    notes: tuple[str, ...]


def _refuse(reason: str) -> NoReturn:
    raise DataError(reason)


def data_files(path: Path) -> list[Path]:
    """The `.h5` files of a folder in the Zoo's order (by name), or one file. Raises DataError."""
    path = Path(path)
    if path.is_file():
        return [path]
    found = sorted(path.glob("*.h5")) if path.is_dir() else []
    if not found:
        raise DataError(f"'{path}' holds no .h5 files")
    return found


# -- reading


def read_samples(path: Path) -> Iterator[Samples]:
    """Blocks [n, 3, T] of the samples in `path` (a file or a folder), in the Zoo's order.

    Raises DataError naming the file: for another shape or type, five rows (variable sequence length), a
    count that is not `n_examples`, negative ids or a mask that is neither 0 nor 1.
    """
    seq_len: int | None = None
    for file_path in data_files(path):
        with OpenedHDF5(file_path, _refuse) as file:
            shape = _integer_shape(file)
            if len(shape) == 3 and shape[1] == 5:
                file.refuse("holds 5 rows a sample (variable sequence length), which is not supported")
            if len(shape) != 3 or shape[1] != len(FEATURES) or shape[2] < 1:
                file.refuse(f"'{DATASET}' has shape {list(shape)}, not [n, 3, T]")
            if seq_len not in (None, shape[2]):
                file.refuse(f"has sequences of {shape[2]} tokens, the files before it of {seq_len}")
            seq_len = shape[2]
            count = file.attribute(COUNT_ATTRIBUTE)
            if count is not None and int(count) != shape[0]:
                file.refuse(f"says {COUNT_ATTRIBUTE} = {count} and holds {shape[0]}")
            for rows in _row_blocks(file, shape):
                samples = rows.astype(np.int64)
                if samples.size and (int(samples.min()) < 0 or int(samples.max()) >= 2**31):
                    file.refuse("holds a negative id, or one of more than 31 bits")
                if samples[:, 1].size and int(samples[:, 1].max()) > 1:
                    file.refuse("has a loss mask that is neither 0 nor 1")
                yield samples.astype(np.int32)


def read_corpus(path: Path) -> Iterator[Ids]:
    """Blocks of ids, shape [n], of one-dimensional `data` sets. Raises DataError naming the file."""
    for file_path in data_files(path):
        with OpenedHDF5(file_path, _refuse) as file:
            shape = _integer_shape(file)
            if len(shape) != 1:
                file.refuse(f"'{DATASET}' has shape {list(shape)}, not that of a corpus, [n]")
            for ids in _row_blocks(file, shape):
                if len(ids) and int(ids.min()) < 0:
                    file.refuse("holds a negative id")
                yield ids


def import_folder(path: Path, out: Path, tokenizer: Tokenizer, *, overwrite: bool = False) -> Imported:
    """Turn Zoo data (samples or a corpus) into a folder that training reads; ids stay in the Zoo's order.

    Of samples, the windows are joined. Where each begins with the last label of the one before (stride T,
    Model Zoo 1.9.1), that token is written once. Where they do not (stride T + 1, the Zoo's older and newest
    tools, or shuffled samples), all tokens are kept, and a window of ours may span two of theirs: the notes
    say so. Raises DataError for ids outside the tokenizer, a sample with masked labels (a loss over a part of
    a window is not supported) or whose labels are not its inputs moved by one; ConfigError, StorageError.
    """
    notes: list[str] = []
    files = data_files(path)
    with OpenedHDF5(files[0], _refuse) as first:
        is_corpus = len(_integer_shape(first)) == 1
    blocks = read_corpus(path) if is_corpus else _joined(path, notes)
    with published(Path(out), overwrite=overwrite) as work:
        sync_file(tokenizer.save(work))
        writer = ShardWriter(work / "train", tokenizer.vocab_size, shard_tokens=100_000_000)
        n_tokens = n_documents = n_text_bytes = 0
        lengths = _text_lengths(tokenizer)
        for ids in blocks:
            if len(ids) and int(ids.max()) >= tokenizer.vocab_size:
                raise DataError(
                    f"'{path}' holds token id {int(ids.max())}, outside the tokenizer's vocabulary of"
                    f" {tokenizer.vocab_size}"
                )
            writer.append(ids)
            n_tokens += len(ids)
            n_documents += int((ids == tokenizer.end_of_text_id).sum())
            n_text_bytes += int(lengths[ids].sum())
        if n_tokens == 0:
            raise DataError(f"'{path}' holds no tokens")
        manifest = Manifest(
            vocab_size=tokenizer.vocab_size,
            end_of_text_id=tokenizer.end_of_text_id,
            tokenizer_sha256=tokenizer.sha256,
            n_tokens=n_tokens,
            n_documents=n_documents,
            n_text_bytes=n_text_bytes,
            shards=writer.finish(),
            sources=tuple(Source(name=file.name, size_bytes=file.stat().st_size) for file in files),
            settings={"format": "Model Zoo HDF5, " + ("corpus" if is_corpus else "samples")},
        )
        manifest.save(work / "train")
    return Imported(folder=Path(out), manifest=manifest, notes=tuple(notes))


def _joined(path: Path, notes: list[str]) -> Iterator[Ids]:
    """The windows of all samples end to end, a token that two of them share once."""
    overlaps: bool | None = None
    last: int | None = None
    n_apart = n_windows_read = 0
    for block in read_samples(path):
        if overlaps is None:  # decided on the first block: a single equal token may be chance
            overlaps = bool(np.array_equal(block[1:, 0, 0], block[:-1, 2, -1]))
        for inputs, mask, labels in block:
            if not mask.all():
                raise DataError(
                    f"'{path}' has a sample whose loss mask leaves out {int((mask == 0).sum())} of"
                    f" {len(mask)} tokens; only packed pre-training samples can be read"
                )
            if not np.array_equal(inputs[1:], labels[:-1]):
                raise DataError(f"'{path}' has a sample whose labels are not its inputs moved by one")
            joins = overlaps and last == inputs[0]
            n_apart += last is not None and not joins
            n_windows_read += 1
            yield inputs[1:] if joins else inputs
            yield labels[-1:]
            last = int(labels[-1])
    if n_apart:
        notes.append(
            f"{n_apart} of {n_windows_read} windows do not go on where the one before them ended (shuffled,"
            " or cut T + 1 tokens apart); put end to end, a training window may span two of them"
        )


def _integer_shape(file: OpenedHDF5) -> tuple[int, ...]:
    if DATASET not in file.names():
        file.refuse(f"has no data set '{DATASET}'")
    dtype = file.dtype(DATASET)
    if dtype.kind not in "iu":
        file.refuse(f"'{DATASET}' holds {dtype}, not whole numbers")
    return file.shape(DATASET)


def _row_blocks(file: OpenedHDF5, shape: tuple[int, ...]) -> Iterator[Ids]:
    """Rows in blocks of about `_BLOCK_BYTES`."""
    row_bytes = 8 * math.prod(shape[1:])
    step = max(1, _BLOCK_BYTES // row_bytes)
    for start in range(0, shape[0], step):
        yield file.read(DATASET, start, start + step)


def _text_lengths(tokenizer: Tokenizer) -> npt.NDArray[np.int64]:
    """[V] bytes of text each id stands for; none for the end of text and for ids nobody uses."""
    lengths = np.zeros(tokenizer.vocab_size, np.int64)
    for token_id in range(tokenizer.vocab_size):
        if token_id != tokenizer.end_of_text_id:
            try:
                lengths[token_id] = len(tokenizer.token_bytes(token_id))
            except DataError:
                continue  # a gap in the vocabulary
    return lengths


# -- writing


def write_samples(
    shards: ShardSet, out: Path, seq_len: int, *, samples_per_file: int = SAMPLES_PER_FILE
) -> int:
    """Write the windows of a prepared part as Zoo samples (n, 3, T) into the new folder `out`; returns n.

    Windows of `seq_len` + 1 ids, `seq_len` apart: every id but the first is a label once, as in training here
    and in Model Zoo 1.9.1; a tail shorter than a window is left out. int32, gzip, chunks (1, 3, T), and a
    `data_params.json` beside them. Raises ConfigError, StorageError, DataError for too short a corpus.
    """
    require(seq_len >= 1, f"seq_len = {seq_len} must be at least 1")
    require(samples_per_file >= 1, f"samples_per_file = {samples_per_file} must be at least 1")
    h5py = load_h5py()
    n_samples = n_windows(shards.n_tokens, seq_len)
    if n_samples == 0:
        raise DataError(
            f"'{shards.folder}' has {shards.n_tokens} tokens, fewer than one window of {seq_len} + 1"
        )
    with published(Path(out)) as work:
        # Read in the order of their names: without leading zeros chunk 10 would come before chunk 2.
        n_digits = len(str((n_samples - 1) // samples_per_file))
        for number, first in enumerate(range(0, n_samples, samples_per_file)):
            n_here = min(samples_per_file, n_samples - first)
            file_path = work / f"output_chunk_{number:0{n_digits}d}.h5"
            with h5py.File(file_path, "x") as file:
                data = file.create_dataset(
                    DATASET, (n_here, len(FEATURES), seq_len), "<i4", chunks=(1, len(FEATURES), seq_len),
                    compression="gzip",
                )  # fmt: skip
                step = max(1, _BLOCK_BYTES // (12 * seq_len))
                for start in range(0, n_here, step):
                    block = _windows(shards, first + start, min(step, n_here - start), seq_len)
                    data[start : start + len(block)] = block
                file.attrs[COUNT_ATTRIBUTE] = n_here
            sync_file(file_path)
        _write_params(work, shards, n_samples, seq_len)
    return n_samples


def _windows(shards: ShardSet, first: int, n: int, seq_len: int) -> Samples:
    """[n, 3, T] of windows `first` to `first + n`."""
    ids = shards.read(first * seq_len, n * seq_len + 1).astype(np.int32)
    samples = np.ones((n, len(FEATURES), seq_len), np.int32)
    samples[:, 0] = ids[:-1].reshape(n, seq_len)
    samples[:, 2] = ids[1:].reshape(n, seq_len)
    return samples


def _write_params(work: Path, shards: ShardSet, n_samples: int, seq_len: int) -> None:
    params = {
        "features": list(FEATURES),
        "n_examples": n_samples,
        "max_seq_length": seq_len,
        "vocab_size": shards.vocab_size,
        "eos_id": shards.manifest.end_of_text_id,
        "pad_id": shards.manifest.end_of_text_id,
    }
    with open(work / PARAMS_NAME, "w", encoding="utf-8") as file:
        json.dump(params, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
