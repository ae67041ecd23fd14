"""Our GGUF files as llama.cpp runs them, against our own model and against llama.cpp's arithmetic by name.

Two comparisons for every kind of file:

- with `llama_cpp_arithmetic`, which has llama.cpp's roundings in it. Where no value lies near a rounding
  edge the two differ by float32 sums only: CLEAN = 2e-5 of the largest log-probability, as between any two
  float32 programs (see gpt2_lab). A value near an edge may fall to the other side, so not every prompt is
  clean; but a mistake in the file (an order, a transpose, a constant) leaves none clean.
- with the exact model. llama.cpp's roundings are what its arithmetic costs; that is measured in
  float64 beside it, and llama.cpp may cost half as much again (other values fall over the edges). For f32
  only the GELU table rounds, and the issue's 1e-3 nats hold.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from gpt2_lab import random_model
from llama_cpp_arithmetic import log_probabilities
from varied_text import varied_texts
from wafergpt.assets.fetch import fetch
from wafergpt.checkpoints.gguf.layout import GGUFKind
from wafergpt.checkpoints.gguf.reader import read_gguf
from wafergpt.checkpoints.gguf.writer import write_gguf
from wafergpt.checkpoints.huggingface.folder import read_folder
from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.checkpoints.torch_bin.convert import bin_to_safetensors
from wafergpt.engines import LlamaCppEngine
from wafergpt.errors import AssetError, CheckpointError
from wafergpt.model.config import Activation, GPTConfig, MuPConfig, Parametrization
from wafergpt.model.gpt import GPT
from wafergpt.tokenizer.bpe import END_OF_TEXT, Tokenizer

pytest.importorskip("xllamacpp")

TINY = GPTConfig(
    d_model=64, n_layers=2, n_heads=4, vocab_size=330, max_seq_len=24, activation=Activation.GELU_TANH
)
CLEAN = 2e-5  # of the largest log-probability
N_PROMPTS = 24
ISSUE_BOUND = 1e-3  # nats, for f32

Rows = NDArray[np.float64]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(list(varied_texts(400, seed=7)), 300)


def stored(config: GPTConfig, tokenizer: Tokenizer | None = None) -> StoredModel:
    return StoredModel(
        config=config, arrays=random_model(config, torch.float32).to_arrays(), tokenizer=tokenizer
    )


def prompts(config: GPTConfig, n_prompts: int = N_PROMPTS) -> list[list[int]]:
    """Of 1, 2, 3, ... ids and back to 1 after 6: short ones are clean more often."""
    generator = torch.Generator().manual_seed(3)
    return [
        torch.randint(0, config.vocab_size, (1 + n % 6,), generator=generator).tolist()
        for n in range(n_prompts)
    ]


def exact(model: StoredModel, token_ids: list[int]) -> Rows:
    gpt = GPT.from_arrays(model.arrays, model.config).double()
    with torch.no_grad():
        return gpt(torch.tensor([token_ids])).logits[0].log_softmax(-1).numpy()  # [T, V]


def clean_share(engine: LlamaCppEngine, model: StoredModel, kind: GGUFKind) -> float:
    """Share of prompts on which llama.cpp and its arithmetic by name agree as float32 programs do."""
    n_clean = 0
    for token_ids in prompts(model.config):
        ours = log_probabilities(model, kind, token_ids)[-1]
        theirs = engine.next_log_probabilities(token_ids)
        n_clean += bool(np.abs(ours - theirs).max() <= CLEAN * np.abs(ours).max())
    return n_clean / N_PROMPTS


@pytest.mark.parametrize("kind", GGUFKind)
def test_every_kind_is_what_llama_cpp_runs(kind: GGUFKind, tokenizer: Tokenizer, tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    write_gguf(stored(TINY, tokenizer), path, kind=kind)
    engine, read_back = LlamaCppEngine(path, n_threads=1), read_gguf(path)
    assert clean_share(engine, read_back, kind) >= 0.25
    cost, found = [], []
    for token_ids in prompts(TINY):
        truth = exact(read_back, token_ids)[-1]
        cost.append(np.abs(log_probabilities(read_back, kind, token_ids)[-1] - truth).max())
        found.append(np.abs(engine.next_log_probabilities(token_ids) - truth).max())
    assert max(found) <= 1.5 * max(cost)


def test_planted_bugs_leave_nothing_clean(tokenizer: Tokenizer, tmp_path: Path) -> None:
    """The comparison can fail: another epsilon, heads in another order, the exact GELU."""
    model = stored(TINY, tokenizer)
    path = tmp_path / "model.gguf"
    write_gguf(model, path)
    engine, read_back = LlamaCppEngine(path, n_threads=1), read_gguf(path)
    assert clean_share(engine, read_back, GGUFKind.F32) >= 0.25
    assert (
        clean_share(engine, replace(read_back, config=replace(TINY, layer_norm_eps=1e-3)), GGUFKind.F32) == 0
    )
    assert clean_share(engine, replace(read_back, config=replace(TINY, n_heads=2)), GGUFKind.F32) <= 0.25
    assert clean_share(engine, read_back, GGUFKind.BF16) == 0


@pytest.mark.parametrize("name", ["gpt2", "mup", "one head", "long"])
def test_f32_equals_our_model_within_the_bound_of_the_issue(
    name: str, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    mup = MuPConfig(base_d_model=32, base_d_ffn=128, embedding_multiplier=3.0)
    config = {
        "gpt2": TINY,
        "mup": replace(TINY, parametrization=Parametrization.MUP, mup=mup),
        "one head": replace(TINY, n_heads=1, layer_norm_eps=1e-3),
        "long": replace(TINY, max_seq_len=300, n_layers=1, d_model=48, d_ffn=192),
    }[name]
    model = stored(config, tokenizer)
    halved = {key: array * np.float32(0.5 if array.ndim == 2 else 1) for key, array in model.arrays.items()}
    model = replace(model, arrays=halved)  # the table's cost grows with the weights
    path = tmp_path / "model.gguf"
    write_gguf(model, path)
    engine = LlamaCppEngine(path, n_threads=1)
    assert (engine.vocab_size, engine.max_seq_len) == (config.vocab_size, config.max_seq_len)
    token_ids = torch.randint(
        0, config.vocab_size, (config.max_seq_len,), generator=torch.Generator().manual_seed(5)
    ).tolist()
    ours = exact(model, token_ids)
    whole = engine.logits(token_ids, config.max_seq_len)
    assert np.abs(whole - ours).max() <= ISSUE_BOUND
    assert np.abs(engine.logits(token_ids[:7], 3) - ours[4:7]).max() <= ISSUE_BOUND
    assert np.mean(whole.argmax(-1) == ours.argmax(-1)) >= 0.99  # a near-tie may flip


def test_the_erf_gelu_becomes_the_tanh_form(tokenizer: Tokenizer, tmp_path: Path) -> None:
    model = stored(replace(TINY, activation=Activation.GELU), tokenizer)
    write_gguf(model, tmp_path / "model.gguf")
    read_back = read_gguf(tmp_path / "model.gguf")
    assert read_back.config.activation is Activation.GELU_TANH
    assert any("trained with 'gelu'" in note for note in read_back.notes)
    assert clean_share(LlamaCppEngine(tmp_path / "model.gguf", n_threads=1), read_back, GGUFKind.F32) >= 0.25


def test_a_model_without_tokenizer_runs_on_ids(tmp_path: Path) -> None:
    config = replace(TINY, vocab_size=40)
    write_gguf(stored(config), tmp_path / "model.gguf")
    engine = LlamaCppEngine(tmp_path / "model.gguf", n_threads=1)
    assert clean_share(engine, read_gguf(tmp_path / "model.gguf"), GGUFKind.F32) >= 0.25
    assert tokens_of(engine, "<17><5><39>") == [17, 5, 39]
    assert read_gguf(tmp_path / "model.gguf").tokenizer is None


# -- the tokenizer inside


def tokens_of(engine: LlamaCppEngine, text: str, *, special: bool = False) -> list[int]:
    answer = engine.request("/tokenize", {"content": text, "add_special": False, "parse_special": special})
    return answer["tokens"]  # type: ignore[no-any-return]


@pytest.fixture(params=["trained", pytest.param("gpt2", marks=pytest.mark.assets)], scope="module")
def any_tokenizer(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Iterator[Tokenizer]:
    if request.param == "trained":
        yield tokenizer
        return
    try:
        yield Tokenizer.gpt2()
    except AssetError as error:
        pytest.skip(str(error))


def test_llama_cpp_splits_text_as_we_do(any_tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = GPTConfig(
        d_model=8, n_layers=1, n_heads=1, vocab_size=any_tokenizer.vocab_size + 3, max_seq_len=8
    )
    write_gguf(stored(config, any_tokenizer), tmp_path / "model.gguf")
    engine = LlamaCppEngine(tmp_path / "model.gguf", n_threads=1)
    texts = [text for text in varied_texts(400) if text]
    wrong = [text for text in texts if tokens_of(engine, text) != any_tokenizer.encode(text)]
    assert len(texts) >= 390 and not wrong
    assert tokens_of(engine, END_OF_TEXT, special=True) == [any_tokenizer.end_of_text_id]
    read_back = read_gguf(tmp_path / "model.gguf").tokenizer
    assert read_back is not None and read_back.encode_batch(texts) == any_tokenizer.encode_batch(texts)


# -- a real checkpoint


@pytest.mark.assets
def test_microformer_equals_llama_cpp(tmp_path: Path) -> None:
    """A third-party GPT-2 that was really trained: 8.9 million parameters, tanh GELU."""
    try:
        folder = fetch("microformer-mgm")
    except AssetError as error:
        pytest.skip(str(error))
    bin_to_safetensors(folder, tmp_path / "converted")
    model = read_folder(tmp_path / "converted")
    write_gguf(model, tmp_path / "model.gguf")
    engine = LlamaCppEngine(tmp_path / "model.gguf", n_threads=1)
    rows = (folder / "phylogeny.csv").read_text(encoding="utf-8").splitlines()[1:]
    ids = {row.split(",")[0].removeprefix("g__"): n + 4 for n, row in enumerate(rows)}
    for names in (
        "Bacteroides",
        "Streptococcus Veillonella",
        "Bacteroides Faecalibacterium Blautia Roseburia",
    ):
        token_ids = [ids[name] for name in names.split()]
        ours = exact(model, token_ids)[-1]
        likely = ours.argsort()[-5:]
        assert np.abs(engine.next_log_probabilities(token_ids) - ours)[likely].max() <= ISSUE_BOUND
    generator = torch.Generator().manual_seed(4)
    for n_tokens in (1, 60, 200):  # distinct genera, as in the samples it was trained on
        token_ids = (torch.randperm(model.config.vocab_size - 4, generator=generator)[:n_tokens] + 4).tolist()
        ours, theirs = exact(model, token_ids), engine.logits(token_ids, n_tokens).astype(np.float64)
        far = np.abs(theirs - ours)  # [T, V]
        assert np.sqrt(np.square(far).mean()) <= ISSUE_BOUND
        assert (np.exp(ours) * far).sum(-1).mean() <= ISSUE_BOUND  # as the model's own text meets it
        # The farthest of two million entries is 5e-3 off; that is llama.cpp's GELU table, not the file.
        cost = np.abs(log_probabilities(model, GGUFKind.F32, token_ids) - ours)
        assert far.max() <= 1.5 * cost.max()


# -- the engine refuses what would bring llama.cpp down


def test_a_file_that_is_not_ours_to_run_is_refused_before_llama_cpp_sees_it(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    path.write_bytes(b"GGUF" + bytes(100))
    with pytest.raises(CheckpointError, match=r"GGUF version 0"):
        LlamaCppEngine(path)
