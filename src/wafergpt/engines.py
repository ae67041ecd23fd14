"""Other engines as sources of logits for `wafergpt verify`: Transformers, and llama.cpp through xllamacpp.

They are asked as their own users would ask them, and take no part in anything else here.
"""

from __future__ import annotations

import http.client
import json
import os
import urllib.parse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from wafergpt.checkpoints.gguf.reader import read_gguf, read_header
from wafergpt.errors import CheckpointError, MissingDependencyError, shown
from wafergpt.evaluation.parity import Logits

_INSTALL = "pip install 'wafergpt[engines]'"
# Added to the logit of the token that is to be sampled, so that it is known; what is reported is unbiased.
_FORCED_BIAS = 1e6


class TransformersEngine:
    """A Hugging Face folder run by Transformers' own causal language model class, in float32 on the CPU."""

    normalized = False

    def __init__(self, path: Path) -> None:
        """Load `path`. Raises CheckpointError when Transformers refuses it, MissingDependencyError."""
        try:
            import transformers
        except ImportError:
            raise MissingDependencyError(f"'transformers:' needs Transformers: {_INSTALL}") from None
        self.name = f"transformers:{path}"
        try:
            self._model = transformers.AutoModelForCausalLM.from_pretrained(
                str(path), dtype=torch.float32, local_files_only=True, trust_remote_code=False
            ).eval()
        except (OSError, ValueError, RuntimeError) as error:
            reason = " ".join(str(error).split())[:300]
            raise CheckpointError(f"Transformers cannot load '{path}': {reason}") from None
        self.vocab_size = int(self._model.config.vocab_size)
        self.max_seq_len = int(self._model.config.max_position_embeddings)

    def logits(self, token_ids: Sequence[int], n_last: int) -> Logits:
        """See `LogitSource.logits`."""
        ids = torch.tensor([list(token_ids)], dtype=torch.int64)  # [1, T]
        with torch.no_grad():
            rows = self._model(input_ids=ids, logits_to_keep=n_last, use_cache=False).logits  # [1, n_last, V]
        return rows[0].float().numpy()  # type: ignore[no-any-return]


class LlamaCppEngine:
    """A GGUF file run by llama.cpp on the CPU, keys and values in float32. Rows are log-probabilities.

    The last row of a prompt is llama.cpp's own answer, head and all. It gives one such row per request, and
    half a second of JSON with it, so the others come from its hidden states after the final LayerNorm (one
    request for a whole prompt), times the file's embedding. So does the last row of a prompt that fills the
    window: llama.cpp predicts only where it has room to go on.
    """

    normalized = True

    def __init__(self, path: Path, *, n_threads: int | None = None) -> None:
        """Load `path` (`n_threads` None: all cores). Raises CheckpointError, MissingDependencyError.

        Our own reader checks the file before llama.cpp, which trusts it, sees it.
        """
        try:
            import xllamacpp
        except ImportError:
            raise MissingDependencyError(f"'llama.cpp:' needs xllamacpp: {_INSTALL}") from None
        model = read_gguf(path)
        vocabulary = read_header(path).metadata.get("tokenizer.ggml.model")
        if vocabulary is None or vocabulary.value in ("none", "no_vocab"):
            raise CheckpointError(f"'{path}' declares no vocabulary, on which llama.cpp's server aborts")
        self.name = f"llama.cpp:{path}"
        self.vocab_size, self.max_seq_len = model.config.vocab_size, model.config.max_seq_len
        self._head = model.arrays["wte.weight"]  # [V, D]
        # One whole character: llama.cpp withholds what was sampled while it is part of one.
        self._forced = 0 if model.tokenizer is None else model.tokenizer.encode("a")[0]
        parameters = xllamacpp.CommonParams()
        settings: dict[str, Any] = {
            "n_ctx": self.max_seq_len,
            "n_batch": self.max_seq_len,
            "n_ubatch": self.max_seq_len,  # hidden states are given for prompts of one batch only
            "n_parallel": 1,
            "n_gpu_layers": 0,
            "cache_type_k": xllamacpp.ggml_type.GGML_TYPE_F32,
            "cache_type_v": xllamacpp.ggml_type.GGML_TYPE_F32,
            "flash_attn_type": xllamacpp.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED,
            "embedding": True,
            "pooling_type": xllamacpp.llama_pooling_type.LLAMA_POOLING_TYPE_NONE,
            "warmup": False,
            "ui": False,
            "verbosity": -1,
        }
        for name, value in settings.items():
            setattr(parameters, name, value)
        parameters.model.path = str(path)
        n_threads = n_threads or len(os.sched_getaffinity(0))
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = n_threads
        try:
            self._server = xllamacpp.Server(parameters)
        except (RuntimeError, ValueError) as error:
            raise CheckpointError(f"llama.cpp cannot load '{path}': {error}") from None

    def logits(self, token_ids: Sequence[int], n_last: int) -> Logits:
        """Log-probabilities of what follows each of the last `n_last` ids; see `LogitSource.logits`."""
        ids = [int(token_id) for token_id in token_ids]
        hidden = self.hidden_states(ids)[-n_last:]  # [n_last, D]
        scores = (hidden @ self._head.T).astype(np.float64)  # [n_last, V]
        scores -= scores.max(axis=1, keepdims=True)
        scores -= np.log(np.exp(scores).sum(axis=1, keepdims=True))
        if len(ids) < self.max_seq_len:
            scores[-1] = self.next_log_probabilities(ids)
        return scores.astype(np.float32)

    def hidden_states(self, token_ids: Sequence[int]) -> NDArray[np.float32]:
        """After the final LayerNorm, [T, D]."""
        body = {"content": list(token_ids), "embd_normalize": -1}  # -1: as they are
        answer = self.request("/embedding", body)
        if not isinstance(answer, list):
            raise CheckpointError(f"{self.name}: no hidden states: {shown(answer)}")
        return np.array(answer[0]["embedding"], np.float32)

    def request(self, route: str, body: Mapping[str, Any]) -> Any:
        """What the server's HTTP face, on the loopback interface, answers: some routes exist only there."""
        url = urllib.parse.urlsplit(self._server.listening_address)
        connection = http.client.HTTPConnection(url.hostname or "", url.port)
        try:
            connection.request("POST", route, json.dumps(body), {"Content-Type": "application/json"})
            return json.loads(connection.getresponse().read())
        finally:
            connection.close()

    def next_log_probabilities(self, token_ids: Sequence[int]) -> Logits:
        """What follows `token_ids` (fewer than fill the window), from llama.cpp's own head, [V]."""
        answer: Mapping[str, Any] = self._server.handle_completions(
            {
                "prompt": list(token_ids),
                "n_predict": 1,
                "n_probs": self.vocab_size,  # all of them, from the logits before any sampling setting
                "temperature": 0,
                "logit_bias": [[self._forced, _FORCED_BIAS]],
            }
        )
        if "choices" not in answer or answer["choices"][0]["logprobs"] is None:
            raise CheckpointError(f"{self.name}: no log-probabilities: {shown(answer)}")
        row = np.full(self.vocab_size, np.nan, np.float32)
        for entry in answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]:
            row[entry["id"]] = entry["logprob"]
        return row
