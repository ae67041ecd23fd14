"""Do bfloat16 and int8 train as well as float32? 300 steps on real text from the same seed in the same order.

The speed of a precision counts only if its held-out loss ends within 0.35 % of float32's. The loss is
measured twice: in the precision itself, as a run reports it, and in float32 from the masters, as the
checkpoint will be used; both must pass. The last line printed is one JSON object.

    python benchmarks/train_quality.py                # Python's help texts: a small vocabulary, then GPT-2's
    python benchmarks/train_quality.py --data FOLDER  # a folder made by `wafergpt prepare`
    python benchmarks/train_quality.py --quick        # a few steps: does everything run?
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wafergpt.data.shards import Manifest, ShardSet, ShardWriter
from wafergpt.errors import WaferGPTError
from wafergpt.model.config import GPTConfig
from wafergpt.model.gpt import GPT
from wafergpt.ops import dispatch
from wafergpt.tokenizer.bpe import Tokenizer
from wafergpt.training import loop
from wafergpt.training.allocator import keep_freed_memory
from wafergpt.training.config import DataConfig, OptimConfig, Precision, ScheduleConfig, TrainConfig
from wafergpt.training.distributed import World
from wafergpt.training.held_out import open_held_out

BAR = 0.0035  # largest relative difference to float32's held-out loss
HELD_OUT_EVERY = 10  # every tenth help text is kept for evaluation


@dataclass(frozen=True, kw_only=True)
class Case:
    """A model and how long it trains."""

    n_layers: int
    d_model: int
    n_heads: int
    seq_len: int = 256
    batch_size: int = 8
    n_steps: int = 300
    peak_lr: float = 1e-3


CASES = {
    "small vocabulary": Case(n_layers=4, d_model=256, n_heads=4),
    "GPT-2 vocabulary": Case(n_layers=6, d_model=384, n_heads=6),  # shape (a) of train_step.py
}
QUICK = Case(n_layers=2, d_model=64, n_heads=2, seq_len=64, batch_size=4, n_steps=12)


def help_texts() -> list[str]:
    """What `help()` shows: about half a megabyte of English and code on every machine."""
    import pydoc_data.topics

    return [text.strip() + "\n" for _, text in sorted(pydoc_data.topics.topics.items())]


def write_part(folder: Path, tokenizer: Tokenizer, texts: Iterable[str]) -> None:
    """One shard set, documents separated by end-of-text."""
    texts = list(texts)
    writer = ShardWriter(folder, tokenizer.vocab_size, shard_tokens=1 << 24)
    ids = [i for document in tokenizer.encode_batch(texts) for i in (*document, tokenizer.end_of_text_id)]
    writer.append(np.array(ids, dtype=np.uint16))
    Manifest(
        vocab_size=tokenizer.vocab_size, end_of_text_id=tokenizer.end_of_text_id,
        tokenizer_sha256=tokenizer.sha256, n_tokens=len(ids), n_documents=len(texts),
        n_text_bytes=sum(len(t.encode()) for t in texts), shards=writer.finish(),
    ).save(folder)  # fmt: skip


def prepare_help_texts(folder: Path, tokenizer: Tokenizer) -> Path:
    """A prepared folder with a held-out part."""
    texts = help_texts()
    held_out = texts[::HELD_OUT_EVERY]
    write_part(folder / "held_out", tokenizer, held_out)
    write_part(folder / "train", tokenizer, (t for i, t in enumerate(texts) if i % HELD_OUT_EVERY))
    return folder


def train(case: Case, data: Path, precision: Precision, seed: int) -> dict[str, float]:
    """Held-out nats/token after the last step, in `precision` and in float32; tokens/s beside them."""
    vocab_size = ShardSet.open(data / "train").vocab_size
    config = TrainConfig(
        model=GPTConfig(
            n_layers=case.n_layers, d_model=case.d_model, n_heads=case.n_heads,
            vocab_size=vocab_size, max_seq_len=case.seq_len,
        ),
        data=DataConfig(path=data, seq_len=case.seq_len),
        optim=OptimConfig(peak_lr=case.peak_lr),
        schedule=ScheduleConfig(warmup_steps=case.n_steps // 10, total_steps=case.n_steps),
        batch_size=case.batch_size, micro_batch_size=case.batch_size, precision=precision, seed=seed,
    )  # fmt: skip
    trainer = loop.prepare(config)
    started = time.perf_counter()
    loss = float("nan")
    for report in loop.steps(config, trainer):
        loss = report.loss
    elapsed_s = time.perf_counter() - started
    held_out = open_held_out(config)
    assert held_out is not None, "main() refuses data without a held-out part"
    own = held_out.loss(trainer.model, World(), case.batch_size).nats_per_token
    masters = {name: tensor.numpy() for name, tensor in trainer.state.master.items()}
    exact = held_out.loss(GPT.from_arrays(masters, config.model), World(), case.batch_size).nats_per_token
    return {
        "held_out": own,
        "held_out_in_fp32": exact,
        "last_train_loss": loss,
        "n_skipped": trainer.state.n_skipped,
        "tokens_per_s": config.total_tokens / elapsed_s,
    }


def compare(name: str, case: Case, data: Path, seeds: int) -> dict[str, Any]:
    """Every precision this machine has, on every seed; relative differences are means over the seeds."""
    precisions = [p for p in Precision if p is not Precision.INT8 or dispatch.int8_supported()]
    runs: dict[str, list[dict[str, float]]] = {p.value: [] for p in precisions}
    for seed in range(seeds):
        for precision in precisions:
            run = train(case, data, precision, seed)
            runs[precision.value].append(run)
            shown = f"{run['held_out']:.4f} nats/token held out ({run['held_out_in_fp32']:.4f} in fp32)"
            print(
                f"{name}, seed {seed}, {precision.value}: {shown}, {run['tokens_per_s']:.0f} tokens/s",
                file=sys.stderr,
            )
    base = [run["held_out"] for run in runs["fp32"]]
    differences = {
        precision: {
            key: statistics.mean(run[key] / loss - 1 for run, loss in zip(found, base, strict=True))
            for key in ("held_out", "held_out_in_fp32")
        }
        for precision, found in runs.items()
        if precision != "fp32"
    }
    met = {p: all(abs(d) <= BAR for d in both.values()) for p, both in differences.items()}
    for precision, both in differences.items():
        verdict = "met" if met[precision] else "NOT met"
        shown = ", ".join(f"{value:+.3%} ({key})" for key, value in both.items())
        print(f"{name}, {precision} against fp32: {shown}; bar of {BAR:.2%} {verdict}", file=sys.stderr)
    return {
        "n_steps": case.n_steps,
        "tokens_per_step": case.batch_size * case.seq_len,
        "runs": runs,
        "relative_difference": differences,
        "bar_met": met,
    }


def prepared(name: str, data: Path | None, folder: Path, quick: bool) -> Path:
    """The data of a case. Raises WaferGPTError when GPT-2's vocabulary cannot be had."""
    if data is not None:
        return data
    if name == "GPT-2 vocabulary":
        return prepare_help_texts(folder / "gpt2", Tokenizer.gpt2())
    train_texts = (t for i, t in enumerate(help_texts()) if i % HELD_OUT_EVERY)
    return prepare_help_texts(folder / "small", Tokenizer.train(train_texts, 512 if quick else 2048))


def main() -> None:
    """Parse, train, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, help="a prepared folder with a held-out part")
    parser.add_argument("--cases", nargs="+", choices=list(CASES), default=list(CASES))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--quick", action="store_true", help="a few steps; the figures mean nothing")
    parser.add_argument("--json-out", type=Path)
    arguments = parser.parse_args()
    quick = arguments.quick or os.environ.get("WAFERGPT_SMOKE") == "1"
    if arguments.data is not None and not (arguments.data / "held_out").is_dir():
        parser.error(f"'{arguments.data}' has no held-out part")
    keep_freed_memory()
    cases = {"small vocabulary": QUICK} if quick else {name: CASES[name] for name in arguments.cases}
    if arguments.data is not None:
        cases = {str(arguments.data): QUICK if quick else CASES["GPT-2 vocabulary"]}
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="train-quality-") as scratch:
        for name, case in cases.items():
            try:
                data = prepared(name, arguments.data, Path(scratch), quick)
            except WaferGPTError as error:
                print(f"{name}: skipped, {error}", file=sys.stderr)
                found[name] = {"skipped": str(error)}
                continue
            found[name] = compare(name, case, data, arguments.seeds)
    today = datetime.date.today().isoformat()
    line = json.dumps(
        {"benchmark": "train_quality", "date": today, "quick": quick, "bar": BAR, "cases": found}
    )
    if arguments.json_out is not None:
        arguments.json_out.write_text(line + "\n", encoding="utf-8")
    print(line)


if __name__ == "__main__":
    main()
