"""A trained model ready to use: any readable format, on the backend that was asked for. Layer: beside `api`.

What needs torch is imported inside the functions: on the native backend it never is.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from wafergpt.backends.backend import Backend
from wafergpt.backends.native_cpu import NativeCPU
from wafergpt.backends.packed_model import WEIGHTS_NAME, PackedModel, Precision, find_packed, open_packed
from wafergpt.checkpoints.checkpoint import Checkpoint, Skipped
from wafergpt.checkpoints.native import CHECKPOINTS_NAME, load_checkpoint
from wafergpt.checkpoints.native_model import MODEL_GROUP, from_checkpoint
from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.config import from_dict, require, to_dict
from wafergpt.conversion import formats
from wafergpt.errors import (
    CheckpointError,
    ConfigError,
    MissingDependencyError,
    StorageError,
    did_you_mean,
)
from wafergpt.inference import text
from wafergpt.inference.engine import Engine
from wafergpt.inference.sampling import SamplingConfig
from wafergpt.inference.text import Generation, Piece
from wafergpt.kernels import native
from wafergpt.model.config import GPTConfig
from wafergpt.tokenizer.bpe import FILE_NAME as TOKENIZER_NAME
from wafergpt.tokenizer.bpe import Tokenizer

if TYPE_CHECKING:
    from wafergpt.checkpoints.huggingface.config import MissingScale


class BackendName(StrEnum):
    """Where the forward pass runs. AUTO: the native library, else torch, and the user is told."""

    AUTO = "auto"
    NATIVE_CPU = "native_cpu"
    TORCH_EAGER = "torch_eager"
    TORCH_COMPILED = "torch_compiled"


_TORCH_PRECISIONS = (Precision.F32, Precision.BF16)


@dataclass(frozen=True, kw_only=True)
class Placement:
    """Backend, precision and device. Raises ConfigError naming what does not fit together."""

    backend: BackendName = BackendName.AUTO
    precision: Precision | None = None  # None: float32, or what a quantized model has
    device: str | None = None  # of torch; None: the CPU

    @classmethod
    def parse(cls, backend: str, precision: str | None, device: str | None) -> Placement:
        """From the words of the user."""
        known = [name.value for name in BackendName]
        if backend not in known:
            raise ConfigError(
                f"backend '{backend}' is not one of {', '.join(known)}{did_you_mean(backend, known)}"
            )
        return cls(
            backend=BackendName(backend),
            precision=None if precision is None else Precision.parse(precision),
            device=device,
        )

    def __post_init__(self) -> None:
        on_torch = self.backend in (BackendName.TORCH_EAGER, BackendName.TORCH_COMPILED)
        require(
            not on_torch or self.precision in (None, *_TORCH_PRECISIONS),
            f"{self.backend} computes in f32 or bf16; {self.precision} needs the backend native_cpu",
        )
        require(
            self.device in (None, "cpu") or self.backend is not BackendName.NATIVE_CPU,
            f"native_cpu runs on the CPU, not on '{self.device}'",
        )


@dataclass(frozen=True, kw_only=True)
class LoadedModel:
    """A trained model ready to use, with its tokenizer and where it came from."""

    config: GPTConfig
    tokenizer: Tokenizer
    backend: Backend
    checkpoint_path: Path
    step: int | None  # None: a format that does not say
    skipped: tuple[Skipped, ...] = ()  # newer checkpoints that did not verify, and why
    notes: tuple[str, ...] = ()  # what reading dropped or assumed, and a fallback of the backend

    @cached_property
    def engine(self) -> Engine:
        """The one engine of this model: everything that uses it shares its memory and its steps."""
        return Engine(self.backend)

    def generate(self, prompt: str, sampling: SamplingConfig | None = None, **options: Any) -> Generation:
        """Continue `prompt`. Give a `SamplingConfig`, or its fields as options. Raises ConfigError."""
        return text.generate(self.engine, self.tokenizer, prompt, sampling_of(sampling, options))

    def samples(
        self,
        prompt: str,
        sampling: SamplingConfig | None = None,
        *,
        n: int = 1,
        best_of: int | None = None,
        n_beams: int = 1,
        **options: Any,
    ) -> list[Generation]:
        """`n` continuations: the best of `best_of`, or of a greedy beam search, first. Raises ConfigError."""
        config = sampling_of(sampling, options)
        return text.generate_samples(
            self.engine, self.tokenizer, prompt, config, n=n, best_of=best_of, n_beams=n_beams
        )

    def next_tokens(self, prompt: str, *, n: int = 5) -> list[tuple[str, float]]:
        """The `n` likeliest next tokens as text, with their probabilities. Raises ConfigError."""
        return text.next_tokens(self.engine, self.tokenizer, prompt, n)

    def stream(self, prompt: str, sampling: SamplingConfig | None = None, **options: Any) -> Iterator[Piece]:
        """As `generate`, piece by piece while the model writes. Raises ConfigError."""
        return text.stream(self.engine, self.tokenizer, prompt, sampling_of(sampling, options))


def sampling_of(sampling: SamplingConfig | None, options: dict[str, Any]) -> SamplingConfig:
    """A config, or the config of these fields. Raises ConfigError for both, and for an unknown field."""
    require(sampling is None or not options, "give either a SamplingConfig or its fields, not both")
    return sampling or from_dict(SamplingConfig, options)


def load(
    model: Path | str,
    *,
    backend: str = "auto",
    precision: str | None = None,
    device: str | None = None,
    revision: str | None = None,
    mup_logit_scale: MissingScale | str | None = None,
) -> LoadedModel:
    """Load a model with its tokenizer.

    `model` is a run folder (its newest checkpoint that verifies), one checkpoint folder, a Hugging Face
    folder or hub name (at `revision`), a .gguf or a .mdl file, or a quantized folder. `backend` is a
    `BackendName`, `precision` one of f32 (the default), bf16, int8, int4; the last two are the native
    backend's. `device` is torch's.
    `mup_logit_scale` ("config" or "recipe") says what a muP config means that leaves its logit scale out.

    The native backend packs the weights once and keeps the packed file (see `packed_model.packed_path`).
    Raises CheckpointError, ConfigError, StorageError, DataError, MissingDependencyError.
    """
    wanted = Placement.parse(backend, precision, device)
    path = formats.locate(str(model), revision)
    kind = formats.detect(path)
    if kind is formats.Format.NATIVE:
        return _load_native(path, wanted)
    if kind is formats.Format.PACKED:
        return _load_packed(path, wanted)
    opened = formats.read(path, mup_logit_scale=mup_logit_scale)
    stored = opened.model
    if stored.tokenizer is None:
        raise CheckpointError(f"'{model}' holds no tokenizer")
    beside = path.is_dir() and Path(model).expanduser().exists()  # a hub name's folder is the hub's
    running, notes = _run(stored, wanted, folder=path if beside else None, source=_state_of(opened))
    return LoadedModel(
        config=stored.config,
        tokenizer=stored.tokenizer,
        backend=running,
        checkpoint_path=path,
        step=None,
        notes=(*stored.notes, *notes),
    )


def _load_native(directory: Path, wanted: Placement) -> LoadedModel:
    running: Backend
    notes: tuple[str, ...] = ()
    packed = _already_packed(directory, wanted)
    if packed is not None:
        checkpoint, found = packed
        running, config, tokenizer = NativeCPU(found), found.config, _tokenizer(checkpoint)
    else:
        checkpoint = load_checkpoint(directory, groups=[MODEL_GROUP])
        stored = from_checkpoint(checkpoint)
        config, tokenizer = stored.config, _tokenizer(checkpoint)
        running, notes = _run(
            stored, wanted, folder=_run_folder(checkpoint), source=checkpoint.manifest_sha256
        )
    return LoadedModel(
        config=config,
        tokenizer=tokenizer,
        backend=running,
        checkpoint_path=checkpoint.path,
        step=checkpoint.step,
        skipped=checkpoint.skipped,
        notes=notes,
    )


def _load_packed(folder: Path, wanted: Placement) -> LoadedModel:
    """What `wafergpt quantize` wrote: it has one precision, and the native backend alone runs it."""
    reason = _native_reason(wanted)
    if reason is not None:
        raise ConfigError(f"'{folder}' is quantized for native_cpu: {reason}")
    packed = open_packed(folder / WEIGHTS_NAME)
    require(
        wanted.precision in (None, packed.precision),
        f"'{folder}' is quantized to {packed.precision}, not to {wanted.precision}",
    )
    tokenizer = Tokenizer.load(folder / TOKENIZER_NAME)
    return LoadedModel(
        config=packed.config,
        tokenizer=tokenizer,
        backend=NativeCPU(packed),
        checkpoint_path=folder,
        step=None,
    )


def _already_packed(directory: Path, wanted: Placement) -> tuple[Checkpoint, PackedModel] | None:
    """The newest checkpoint, its weights unread, and what its verified weights were packed into."""
    if _native_reason(wanted) is not None:
        return None
    try:
        checkpoint = load_checkpoint(directory, groups=(), verify_all=False)
    except CheckpointError:
        return None  # the full reading says what is wrong
    precision = wanted.precision or Precision.F32
    found = find_packed(_run_folder(checkpoint), checkpoint.manifest_sha256, precision)
    return None if found is None else (checkpoint, found)


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    if TOKENIZER_NAME not in checkpoint.blobs:
        raise CheckpointError(f"checkpoint '{checkpoint.path}' holds no tokenizer")
    return Tokenizer.from_bytes(checkpoint.blobs[TOKENIZER_NAME])


def _run_folder(checkpoint: Checkpoint) -> Path | None:
    """Where the packed file of a run is kept; a checkpoint that lies alone has no such place."""
    root = checkpoint.path.parent
    return root.parent if root.name == CHECKPOINTS_NAME else None


def _state_of(opened: formats.Opened) -> str:
    """A hash of what names the weights' state without reading them: config, files, sizes, times of change."""
    files = []
    for path in opened.files:
        status = os.stat(path)
        files.append([path.name, status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns])
        files[-1].append(status.st_ctime_ns)
    state = json.dumps([to_dict(opened.model.config), files], sort_keys=True)
    return hashlib.sha256(state.encode()).hexdigest()


def _native_reason(wanted: Placement) -> str | None:
    """Why the native backend is not the one to use; None if it is."""
    if wanted.backend in (BackendName.TORCH_EAGER, BackendName.TORCH_COMPILED):
        return f"{wanted.backend} was asked for"
    if wanted.device not in (None, "cpu"):
        return f"it runs on the CPU, not on '{wanted.device}'"
    try:
        native.choose_isa()
    except MissingDependencyError as error:
        if wanted.backend is BackendName.NATIVE_CPU:
            raise
        return str(error)
    return None


def _run(
    stored: StoredModel, wanted: Placement, *, folder: Path | None, source: str
) -> tuple[Backend, tuple[str, ...]]:
    """The model on a backend, and what the user should know of the choice."""
    reason = _native_reason(wanted)
    if reason is None:
        precision = wanted.precision or Precision.F32
        try:
            return NativeCPU.from_stored(stored, precision=precision, folder=folder, source=source), ()
        except StorageError as error:
            if wanted.backend is BackendName.NATIVE_CPU or precision not in _TORCH_PRECISIONS:
                raise
            reason = f"its packed weights cannot be kept: {error}"
    if wanted.precision not in (None, *_TORCH_PRECISIONS):
        raise MissingDependencyError(f"{wanted.precision} needs the native backend: {reason}")
    running = _on_torch(stored, wanted)
    asked = wanted.backend in (BackendName.TORCH_EAGER, BackendName.TORCH_COMPILED)
    return running, () if asked else (f"torch does the work, not the native backend: {reason}",)


def _on_torch(stored: StoredModel, wanted: Placement) -> Backend:
    import torch

    from wafergpt.backends.torch_eager import TorchEager
    from wafergpt.model.gpt import GPT

    model = GPT.from_stored(stored)
    if wanted.precision is Precision.BF16:
        model = model.to_compute_dtype(torch.bfloat16)
    if wanted.device is not None:
        try:
            model = model.to(wanted.device)
        except (RuntimeError, AssertionError) as error:
            what = str(error).splitlines()[0]
            raise ConfigError(f"device '{wanted.device}' cannot be used: {what}") from None
    if wanted.backend is BackendName.TORCH_COMPILED:
        from wafergpt.backends.torch_compiled import TorchCompiled

        return TorchCompiled(model)
    return TorchEager(model)
