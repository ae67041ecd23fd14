"""The engines of the inference benchmark behind one call; each imports its library only when it is opened.

Runs in each engine's own environment, so it needs nothing but the standard library at import.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Protocol

Prompts = Sequence[Sequence[int]]


class Engine(Protocol):
    """A loaded model."""

    version: str

    def generate(self, prompts: Prompts, n_new: int) -> list[list[int]]:
        """`n_new` greedy tokens after each prompt, all prompts at once, none ended early."""


class Ours:
    """The product's path: `NativeCPU` under `Engine`, greedy `Generate` requests."""

    def __init__(self, path: Path, precision: str, n_threads: int, n_slots: int) -> None:
        import wafergpt
        from wafergpt.backends.native_cpu import NativeCPU
        from wafergpt.inference.engine import Engine as Served
        from wafergpt.inference.sampling import SamplingConfig

        self.version = wafergpt.__version__
        self._sampling = SamplingConfig
        self._engine = Served(NativeCPU.from_packed(path, n_threads=n_threads))

    def generate(self, prompts: Prompts, n_new: int) -> list[list[int]]:
        """See `Engine.generate`."""
        from wafergpt.inference.request import Generate, Generated

        sampling = self._sampling(temperature=0.0, max_new_tokens=n_new)
        requests = [Generate(prompt_ids=tuple(prompt), sampling=sampling) for prompt in prompts]
        results = self._engine.run(requests)
        assert all(isinstance(result, Generated) for result in results), results
        return [list(result.samples[0].token_ids) for result in results if isinstance(result, Generated)]


class Transformers:
    """Eager, the model's own key-value cache, logits of the last position only."""

    def __init__(self, path: Path, precision: str, n_threads: int, n_slots: int) -> None:
        import torch
        import transformers

        torch.set_num_threads(n_threads)
        self.version = f"{transformers.__version__} (torch {torch.__version__})"
        dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[precision]
        self._torch = torch
        self._model = transformers.AutoModelForCausalLM.from_pretrained(path, dtype=dtype).eval()

    def generate(self, prompts: Prompts, n_new: int) -> list[list[int]]:
        """See `Engine.generate`; the loop without `generate`'s own bookkeeping."""
        torch, found, cache = self._torch, [], None
        ids = torch.tensor([list(prompt) for prompt in prompts])
        with torch.inference_mode():
            for _ in range(n_new):
                out = self._model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
                cache, ids = out.past_key_values, out.logits[:, -1].argmax(-1, keepdim=True)
                found.append(ids)
        return torch.cat(found, 1).tolist()


class CTranslate2:
    """The converted folder; int8 or float32."""

    def __init__(self, path: Path, precision: str, n_threads: int, n_slots: int) -> None:
        import ctranslate2

        self.version = ctranslate2.__version__
        kind = {"f32": "float32", "int8": "int8", "bf16": "bfloat16"}[precision]
        self._model = ctranslate2.Generator(
            str(path), device="cpu", compute_type=kind, inter_threads=1, intra_threads=n_threads
        )
        words = json.loads((path / "vocabulary.json").read_text(encoding="utf-8"))
        self._words, self._ids = words, {word: i for i, word in enumerate(words)}

    def generate(self, prompts: Prompts, n_new: int) -> list[list[int]]:
        """See `Engine.generate`."""
        results = self._model.generate_batch(
            [[self._words[i] for i in prompt] for prompt in prompts],
            max_length=n_new, min_length=n_new, include_prompt_in_result=False, sampling_topk=1, end_token=[],
        )  # fmt: skip
        return [list(result.sequences_ids[0]) for result in results]


class LlamaCpp:
    """llama.cpp's server object without HTTP, as many slots as asked for, prompts never reused."""

    def __init__(self, path: Path, precision: str, n_threads: int, n_slots: int) -> None:
        import xllamacpp

        self.version = xllamacpp.__version__
        parameters = xllamacpp.CommonParams()
        settings: dict[str, Any] = {
            "n_ctx": n_slots * 1024, "n_parallel": n_slots, "n_batch": 2048, "n_ubatch": 512,
            "n_gpu_layers": 0, "warmup": False, "ui": False, "verbosity": -1,
        }  # fmt: skip
        for name, value in settings.items():
            setattr(parameters, name, value)
        parameters.model.path = str(path)
        parameters.cpuparams.n_threads = parameters.cpuparams_batch.n_threads = n_threads
        self._server = xllamacpp.Server(parameters)

    def _one(self, prompt: Sequence[int], n_new: int) -> list[int]:
        answer = self._server.handle_completions(
            {
                "prompt": list(prompt), "n_predict": n_new, "temperature": 0, "ignore_eos": True,
                "cache_prompt": False, "return_tokens": True,
            }
        )  # fmt: skip
        count = answer.get("usage", {}).get("completion_tokens")
        assert count == n_new, f"{count} tokens instead of {n_new}: {str(answer)[:300]}"
        return [0] * n_new

    def generate(self, prompts: Prompts, n_new: int) -> list[list[int]]:
        """See `Engine.generate`; the token ids are not told, zeros stand for them."""
        with ThreadPoolExecutor(len(prompts)) as threads:
            return list(threads.map(lambda prompt: self._one(prompt, n_new), prompts))


class OpenVINO:
    """OpenVINO GenAI's pipeline on the exported graph; bf16 is a hint to its kernels, f32 forbids it."""

    def __init__(self, path: Path, precision: str, n_threads: int, n_slots: int) -> None:
        import openvino_genai

        self.version, self._genai = openvino_genai.__version__, openvino_genai
        hint = "f32" if precision == "f32" else "bf16"
        self._pipeline = openvino_genai.LLMPipeline(
            str(path),
            "CPU",
            INFERENCE_PRECISION_HINT=hint,
            INFERENCE_NUM_THREADS=n_threads,
            ATTENTION_BACKEND="SDPA",
        )

    def generate(self, prompts: Prompts, n_new: int) -> list[list[int]]:
        """See `Engine.generate`."""
        import numpy as np
        import openvino

        ids = np.array([list(prompt) for prompt in prompts], np.int64)
        inputs = self._genai.TokenizedInputs(openvino.Tensor(ids), openvino.Tensor(np.ones_like(ids)))
        settings = self._genai.GenerationConfig()
        settings.max_new_tokens, settings.ignore_eos, settings.do_sample = n_new, True, False
        return [list(tokens) for tokens in self._pipeline.generate(inputs, settings).tokens]


class VLLM:
    """vLLM's CPU build in this process, compiled as it is by default, a core for each thread."""

    def __init__(self, path: Path, precision: str, n_threads: int, n_slots: int) -> None:
        cores = sorted(os.sched_getaffinity(0))[:n_threads]
        os.environ |= {
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": ",".join(map(str, cores)),
        }  # fmt: skip
        import vllm

        self.version, self._vllm = vllm.__version__, vllm
        kind = {"bf16": "bfloat16"}[precision]
        self._model = vllm.LLM(
            model=str(path), dtype=kind, max_model_len=1024, max_num_seqs=n_slots,
            skip_tokenizer_init=True, enable_prefix_caching=False,
        )  # fmt: skip

    def generate(self, prompts: Prompts, n_new: int) -> list[list[int]]:
        """See `Engine.generate`."""
        sampling = self._vllm.SamplingParams(
            temperature=0, max_tokens=n_new, ignore_eos=True, detokenize=False
        )
        asked = [{"prompt_token_ids": list(prompt)} for prompt in prompts]
        found = self._model.generate(asked, sampling, use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in found]


ENGINES: dict[str, Any] = {
    "ours": Ours, "transformers": Transformers, "ctranslate2": CTranslate2, "llama.cpp": LlamaCpp,
    "openvino": OpenVINO, "vllm": VLLM,
}  # fmt: skip


def timed(engine: Engine, prompts: Prompts, n_new: int) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    found = engine.generate(prompts, n_new)
    seconds = time.perf_counter() - started
    assert [len(row) for row in found] == [n_new] * len(prompts), "an engine ended a text early"
    return seconds
