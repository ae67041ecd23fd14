"""The held-out text to evaluate on: a prepared folder's `held_out/`, or text files of any kind."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wafergpt.config import require
from wafergpt.data.corpus import read_documents
from wafergpt.data.shards import ShardSet
from wafergpt.errors import DataError
from wafergpt.evaluation.baselines import compressor_rows, ngram_rows
from wafergpt.evaluation.perplexity import InMemory, Scorer, TokenStream, evaluate
from wafergpt.evaluation.report import EvaluationReport, Row, model_row
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.tokenizer.encoder import Encoder

MAX_TRAIN_TOKENS = 5_000_000  # of the baselines: a 5-gram model of as many takes 4 s and 0.7 GB


@dataclass(frozen=True, kw_only=True)
class HeldOut:
    """Held-out tokens, with the training tokens of the same preparation where there are some."""

    corpus: str
    tokens: TokenStream
    n_text_bytes: int
    train: TokenStream | None = None

    @classmethod
    def open(cls, paths: Sequence[Path], tokenizer: Tokenizer) -> HeldOut:
        """A folder that `wafergpt prepare` wrote (its held_out part, verified), or text files and folders.

        Raises DataError when the folder holds no held-out part or was prepared with another tokenizer,
        and for whatever is wrong with a file; ConfigError without any path.
        """
        require(len(paths) > 0, "name a prepared folder or at least one text file to evaluate on")
        if len(paths) == 1 and ((paths[0] / "train").is_dir() or (paths[0] / "held_out").is_dir()):
            return cls._prepared(paths[0], tokenizer)
        return cls._from_text(paths, tokenizer)

    @classmethod
    def _prepared(cls, folder: Path, tokenizer: Tokenizer) -> HeldOut:
        if not (folder / "held_out").is_dir():
            raise DataError(f"'{folder}' was prepared without held-out text; prepare it again with some")
        held_out = ShardSet.open(folder / "held_out")
        if held_out.manifest.tokenizer_sha256 != tokenizer.sha256:
            raise DataError(
                f"'{folder}' was prepared with another tokenizer than the model's; give its text files"
            )
        train = ShardSet.open(folder / "train") if (folder / "train").is_dir() else None
        return cls(
            corpus=f"{folder}/held_out",
            tokens=held_out,
            n_text_bytes=held_out.n_text_bytes,
            train=train,
        )

    @classmethod
    def _from_text(cls, paths: Sequence[Path], tokenizer: Tokenizer) -> HeldOut:
        encoder = Encoder(tokenizer)
        stream = [np.empty(0, encoder.dtype)]
        end_of_text = np.array([tokenizer.end_of_text_id], encoder.dtype)
        n_text_bytes = 0
        for document in read_documents([str(path) for path in paths]):
            n_text_bytes += len(document.text.encode())
            stream += [encoder.encode(document.text), end_of_text]
        corpus = ", ".join(str(path) for path in paths)
        return cls(corpus=corpus, tokens=InMemory(np.concatenate(stream)), n_text_bytes=n_text_bytes)


def evaluate_text(
    scorer: Scorer,
    tokenizer: Tokenizer,
    held_out: HeldOut,
    *,
    name: str = "model",
    seq_len: int | None = None,
    stride: int | None = None,
    with_baselines: bool = False,
) -> EvaluationReport:
    """The model's row on `held_out`, and the baselines' on request; options as in `perplexity.evaluate`.

    Raises what `perplexity.evaluate` raises.
    """
    loss = evaluate(
        scorer,
        held_out.tokens,
        n_text_bytes=held_out.n_text_bytes,
        end_of_text_id=tokenizer.end_of_text_id,
        seq_len=seq_len,
        stride=stride,
    )
    rows = (model_row(name, loss), *(baseline_rows(held_out, tokenizer) if with_baselines else ()))
    return EvaluationReport(
        corpus=held_out.corpus, n_tokens=loss.n_tokens, n_text_bytes=loss.n_text_bytes, rows=rows
    )


def baseline_rows(
    held_out: HeldOut, tokenizer: Tokenizer, *, max_train_tokens: int = MAX_TRAIN_TOKENS
) -> tuple[Row, ...]:
    """gzip, and where there is a training text also xz and Kneser-Ney over its first `max_train_tokens`."""
    ids = held_out.tokens.read(0, held_out.tokens.n_tokens)
    text = _text_of(ids, tokenizer)
    if held_out.train is None:
        return compressor_rows(text)
    train_ids = held_out.train.read(0, min(held_out.train.n_tokens, max_train_tokens))
    ngrams = ngram_rows(
        train_ids,
        ids,
        n_text_bytes=held_out.n_text_bytes,
        vocab_size=tokenizer.vocab_size,
        end_of_text_id=tokenizer.end_of_text_id,
    )
    return (*compressor_rows(text, _text_of(train_ids, tokenizer)), *ngrams)


def _text_of(ids: NDArray[np.integer], tokenizer: Tokenizer) -> bytes:
    """The documents of a packed stream, one after another: byte-level BPE gives back every byte."""
    return tokenizer.decode_bytes(ids[ids != tokenizer.end_of_text_id].tolist())
