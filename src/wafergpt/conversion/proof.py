"""What makes two models the same: their arrays, their tokenizers, their answers, and the bounds on those."""

from __future__ import annotations

import gc
import hashlib
import math
import platform
from collections.abc import Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

import numpy as np
import torch

from wafergpt.backends.backend import Chunk
from wafergpt.backends.native_cpu import NativeCPU
from wafergpt.backends.packed_model import Precision
from wafergpt.checkpoints.files import CHUNK_BYTES
from wafergpt.checkpoints.gguf import blocks
from wafergpt.checkpoints.gguf.layout import TensorType
from wafergpt.checkpoints.stored_model import Array, StoredModel
from wafergpt.config import require_finite
from wafergpt.evaluation.certificate import ArrayCheck
from wafergpt.evaluation.parity import TEXTS, Answers, Bounds, Comparison, Logits, Prompt, answer
from wafergpt.model.config import GPTConfig
from wafergpt.model.gpt import GPT
from wafergpt.tokenizer.bpe import Tokenizer

# float32 keeps 2^-24 = 6e-8 of a value; sums of some thousand terms in another order, through some dozen
# layers, stay within a few hundred of these.
EXACT = Bounds(
    reason="within 2e-5 of the largest logit, as float32 sums in another order are",
    relative_logit_diff=2e-5,
)
# Two engines and no model of ours between them: no shape is known to derive a bound from.
ENGINE = Bounds(
    reason="another engine's log-probabilities: 1e-3 nats on every vocabulary entry",
    max_log_probability_diff=1e-3,
)
# KL is the rise of the loss on text that the model itself would write: at most 0.1 % in perplexity.
TANH_FOR_ERF = Bounds(
    reason="tanh GELU in place of erf may raise the perplexity by 0.1 %: mean KL 1e-3 nats", mean_kl=1e-3
)

# Root mean square of the error of a stored weight, relative to the weights' own root mean square. Rounding
# to n bits errs evenly up to 2^-n of a value: 2^-n / sqrt(3). A block of 32 with scale max / m errs evenly
# up to half a step: max / m / sqrt(12), where max is 2.4 sigma on average for normal values, taken as 2.5.
_WEIGHT_NOISE = {
    TensorType.F32: 0.0,
    TensorType.F16: 2.0**-11 / math.sqrt(3),
    TensorType.BF16: 2.0**-8 / math.sqrt(3),
    TensorType.Q8_0: 2.5 / 127 / math.sqrt(12),
    TensorType.Q4_0: 2.5 / 8 / math.sqrt(12),
}
# The same for (weights, inputs) of the native backend; an int8 step is largest / 127 of a row.
_PACKED_NOISE = {
    Precision.BF16: (2.0**-8 / math.sqrt(3), 2.0**-8 / math.sqrt(3)),
    Precision.INT8: (3.5 / 127 / math.sqrt(12), 6.0 / 127 / math.sqrt(12)),
    Precision.INT4: (2.5 / 8 / math.sqrt(12), 6.0 / 127 / math.sqrt(12)),
}
_MATRICES_PER_LAYER = 4
_MATRICES_BESIDE = 2  # embedding and head
# By how much attention's softmax may enlarge an error. Random models of 2 to 8 layers with weights of std
# 0.02 to 0.3 need 0.3 to 1.1; with std 1 they turn chaotic, and rounding does change what they say.
_GROWTH = 2.0


class OurModel:
    """A `StoredModel` behind the face of a `LogitSource`, run by the reference implementation in float32."""

    normalized = False

    def __init__(self, stored: StoredModel, name: str) -> None:
        self.name = name
        self.vocab_size = stored.config.vocab_size
        self.max_seq_len = stored.config.max_seq_len
        self._gpt = GPT.from_stored(stored).eval()

    def logits(self, token_ids: Sequence[int], n_last: int) -> Logits:
        """See `LogitSource.logits`."""
        ids = torch.tensor([list(token_ids)], dtype=torch.int64)  # [1, T]
        with torch.no_grad():
            rows = self._gpt(ids, n_logits=n_last).logits  # [1, n_last, V]
        return rows[0].numpy()  # type: ignore[no-any-return]


class NativeModel:
    """A packed file behind the face of a `LogitSource`, run by the native backend."""

    normalized = False

    def __init__(self, path: Path, name: str) -> None:
        """Raises CheckpointError, MissingDependencyError."""
        self.name = name
        self._backend = NativeCPU.from_packed(path)
        self.vocab_size = self._backend.vocab_size
        self.max_seq_len = self._backend.max_seq_len
        self.precision, self.config = self._backend.precision, self._backend.config

    def logits(self, token_ids: Sequence[int], n_last: int) -> Logits:
        """See `LogitSource.logits`."""
        sequence = self._backend.open()
        try:
            chunk = Chunk(sequence=sequence, token_ids=token_ids, n_logits=n_last)
            rows = self._backend.run([chunk])[0].logits
        finally:
            self._backend.release(sequence)
        assert rows is not None
        return rows.copy()


def answers_of(stored: StoredModel, name: str, prompts: Sequence[Prompt]) -> Answers:
    """What the model says to `prompts`; nothing of it stays in memory but the answers."""
    answers = answer(OurModel(stored, name), prompts)
    gc.collect()
    return answers


def rounding_bounds(
    kind: TensorType, config: GPTConfig, found: Comparison, max_kl: float | None = None
) -> Bounds:
    """The bound on the mean KL of a model whose matrices are stored as `kind`; `EXACT` for float32.

    Each of the 4 L + 2 matrices adds noise r, relative to what it computes, to the residual stream; these
    are independent, so the logits err by about r sqrt(4 L + 2) of their spread s, times `_GROWTH` g. To
    second order KL = error^2 / 2. That no branch is larger than the stream it adds to makes it a bound.
    `max_kl`, if given, takes its place.
    """
    noise = _WEIGHT_NOISE[kind]
    if noise == 0:
        return EXACT
    if max_kl is not None:
        return asked_for(max_kl)
    n_matrices = _MATRICES_PER_LAYER * config.n_layers + _MATRICES_BESIDE
    bound = 0.5 * (_GROWTH * noise * found.logit_spread) ** 2 * n_matrices
    return Bounds(
        reason=f"weights rounded to {kind.name.lower()}: mean KL (g r s)^2 (4 L + 2) / 2 = {bound:.2g} nats"
        f" for noise r = {noise:.2g}, spread of logits s = {found.logit_spread:.3g}, g = {_GROWTH:g}",
        mean_kl=bound,
    )


def packed_bounds(
    precision: Precision, config: GPTConfig, found: Comparison, max_kl: float | None = None
) -> Bounds:
    """The bound on the mean KL of a packed model: `rounding_bounds` with the noise of weights and inputs.

    Below f32 what a matrix is multiplied with is rounded too, and errs as if its weights did. A row of some
    hundred normal values has its largest at 3.5 sigma, inputs have heavier tails: 6. `EXACT` for f32.
    """
    if precision is Precision.F32 and max_kl is None:
        return EXACT
    if max_kl is not None:
        return asked_for(max_kl)
    noise = math.hypot(*_PACKED_NOISE[precision])
    n_matrices = _MATRICES_PER_LAYER * config.n_layers + _MATRICES_BESIDE
    bound = 0.5 * (_GROWTH * noise * found.logit_spread) ** 2 * n_matrices
    return Bounds(
        reason=f"weights and inputs rounded to {precision}: mean KL (g r s)^2 (4 L + 2) / 2 = {bound:.2g}"
        f" nats for noise r = {noise:.2g}, spread of logits s = {found.logit_spread:.3g}, g = {_GROWTH:g}",
        mean_kl=bound,
    )


def engine_bounds(n_layers: int | None, found: Comparison) -> Bounds:
    """The bound for an engine that rounds to float16 on its way, as llama.cpp does (GELU's table, the cache).

    `rounding_bounds` with float16's noise: what a matrix is multiplied with errs as if its weights did.
    `ENGINE` when the number of layers is not known.
    """
    if n_layers is None:
        return ENGINE
    noise = _WEIGHT_NOISE[TensorType.F16]
    n_matrices = _MATRICES_PER_LAYER * n_layers + _MATRICES_BESIDE
    bound = 0.5 * (_GROWTH * noise * found.logit_spread) ** 2 * n_matrices
    return Bounds(reason=f"an engine that rounds to float16: mean KL {bound:.2g} nats", mean_kl=bound)


def asked_for(max_kl: float) -> Bounds:
    """The bound a user set. Raises ConfigError unless it is finite and not negative."""
    require_finite("max_kl", max_kl, minimum=0.0)
    return Bounds(reason=f"as asked for: mean KL up to {max_kl:g} nats", mean_kl=max_kl)


# -- arrays


Digests = dict[str, dict[TensorType, str]]


def digests(arrays: Mapping[str, Array], kinds: Mapping[str, Sequence[TensorType]]) -> Digests:
    """SHA-256 of every array as float32, after a round trip through each of its `kinds`.

    Arrays are asked for one at a time, and one chunk of rows is held.
    """
    found: Digests = {}
    for name, candidates in kinds.items():
        array = arrays[name]
        hashes = {kind: hashlib.sha256() for kind in candidates}
        for rows in _chunks(array):
            for kind, sha256 in hashes.items():
                stored = rows if kind is TensorType.F32 else _round_trip(rows, kind, name)
                sha256.update(np.ascontiguousarray(stored, "<f4").view(np.uint8).data)
        found[name] = {kind: sha256.hexdigest() for kind, sha256 in hashes.items()}
    return found


def _chunks(array: Array) -> Iterator[Array]:
    """Rows of a matrix, or the whole vector, [n, width], about CHUNK_BYTES at a time."""
    rows = array.reshape(1, -1) if array.ndim == 1 else array
    step = max(1, CHUNK_BYTES // (4 * rows.shape[1]))
    for start in range(0, len(rows), step):
        yield np.ascontiguousarray(rows[start : start + step], np.float32)


def _round_trip(rows: Array, kind: TensorType, name: str) -> Array:
    return blocks.decode(blocks.encode(rows, kind, name), kind)


def check_digests(expected: Digests, read_back: Mapping[str, Array], kind: TensorType) -> ArrayCheck:
    """Whether every array read back is one of those expected; `kind` names the rounding asked for."""
    found = digests(read_back, {name: (TensorType.F32,) for name in expected if name in read_back})
    n_exact, wrong = 0, []
    for name, allowed in expected.items():
        digest = found[name][TensorType.F32] if name in found else None
        if digest == allowed.get(TensorType.F32):
            n_exact += 1
        elif digest not in allowed.values():
            wrong.append(name)
    n_rounded = len(expected) - n_exact - len(wrong)
    rounding = "float32" if kind is TensorType.F32 else kind.name.lower()
    return ArrayCheck(rounding=rounding, n_exact=n_exact, n_rounded=n_rounded, wrong=tuple(wrong))


# -- the rest


def config_problems(source: GPTConfig, target: GPTConfig) -> list[str]:
    """One phrase per fact of the computation that was lost on the way; muP, which may be folded, aside."""
    facts = ("d_model", "n_layers", "n_heads", "d_ffn", "vocab_size", "max_seq_len", "activation")
    pairs = [(name, getattr(source, name), getattr(target, name)) for name in facts]
    problems = [f"{name} is {now}, was {before}" for name, before, now in pairs if before != now]
    before, now = source.layer_norm_eps, target.layer_norm_eps
    if not math.isclose(before, now, rel_tol=2.0**-23):  # GGUF holds it as a float32
        problems.append(f"layer_norm_eps is {now}, was {before}")
    return problems


def tokenizer_problems(source: Tokenizer | None, target: Tokenizer | None) -> list[str]:
    """Why the two tokenizers are not the same; empty when they are, or when neither exists."""
    if source is None or target is None:
        return [] if source is target else ["only one of the two has a tokenizer"]
    if source.vocab_size != target.vocab_size:
        return [f"the tokenizers have {source.vocab_size} and {target.vocab_size} entries"]
    if source.encode_batch(TEXTS) != target.encode_batch(TEXTS):
        return ["the tokenizers split the battery's texts differently"]
    if source.end_of_text_id != target.end_of_text_id:
        return ["the tokenizers end texts with different ids"]
    return []


def versions(*packages: str) -> dict[str, str]:
    """Versions of Python, this package, NumPy, torch and what else took part."""
    names = ("wafergpt", "numpy", "torch", *packages)
    return {"python": platform.python_version()} | {name: metadata.version(name) for name in names}
