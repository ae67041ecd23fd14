"""One checkpoint into another format: written aside, read back, compared, and only then given its name.

At no time are source and result both in memory: the source answers the battery, its arrays are hashed and
written, it is let go, and the result is read back and asked the same.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from pathlib import Path

from wafergpt.checkpoints.files import OSFiles, storage_error, sync_directory, write_atomic
from wafergpt.checkpoints.gguf.layout import GGUFKind, TensorType
from wafergpt.checkpoints.gguf.names import tensor_names
from wafergpt.checkpoints.gguf.writer import check_exportable, tensor_plan, write_gguf
from wafergpt.checkpoints.huggingface.card import CardFacts
from wafergpt.checkpoints.huggingface.config import MissingScale
from wafergpt.checkpoints.huggingface.folder import write_folder
from wafergpt.checkpoints.modelzoo.mdl_writer import write_mdl
from wafergpt.checkpoints.mup_fold import fold
from wafergpt.checkpoints.native_model import write_run
from wafergpt.checkpoints.stored_model import StoredModel
from wafergpt.config import require
from wafergpt.conversion.formats import Format, Opened, locate, read, sha256_of
from wafergpt.conversion.proof import (
    TANH_FOR_ERF,
    Digests,
    answers_of,
    asked_for,
    check_digests,
    config_problems,
    digests,
    rounding_bounds,
    tokenizer_problems,
    versions,
)
from wafergpt.conversion.staging import staging_beside
from wafergpt.errors import CheckpointError
from wafergpt.evaluation.certificate import Certificate, Departure, Subject, certificate_path
from wafergpt.evaluation.parity import Answers, Comparison, Prompt, battery, compare
from wafergpt.model.config import Activation, GPTConfig
from wafergpt.tokenizer.bpe import Tokenizer

Tell = Callable[[str], None]


class DType(StrEnum):
    """How the target holds its matrices. Every format takes f32; q8_0 and q4_0 are GGUF's."""

    F32 = "f32"
    F16 = "f16"
    BF16 = "bf16"
    Q8_0 = "q8_0"
    Q4_0 = "q4_0"

    @property
    def tensor_type(self) -> TensorType:
        """The same as GGUF numbers it."""
        return TensorType[self.name]


WRITTEN = {
    Format.NATIVE: (DType.F32,),
    Format.HUGGING_FACE: (DType.F32, DType.F16, DType.BF16),
    Format.MODEL_ZOO: (DType.F32,),
    Format.GGUF: tuple(DType),
}
_HUGGING_FACE_DTYPES = {DType.F32: "float32", DType.F16: "float16", DType.BF16: "bfloat16"}
_SUFFIXES = {".gguf": Format.GGUF, ".mdl": Format.MODEL_ZOO}
_LIBRARIES = {Format.GGUF: ("gguf",), Format.MODEL_ZOO: ("h5py",)}


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a conversion may be told; the defaults lose nothing."""

    to: Format | None = None  # None: by the target's suffix, a folder without one being Hugging Face's
    dtype: DType = DType.F32
    mup_logit_scale: MissingScale | None = None  # for muP configs that leave it open
    revision: str | None = None  # of a hub name
    accept_gelu: bool = False  # go on when tanh in place of erf GELU costs more than `TANH_FOR_ERF`
    max_kl: float | None = None  # nats; in place of the derived bound for rounded weights
    tokenizer: str | None = None  # for a source that has none: "gpt2", or a tokenizer.json or its folder
    card: CardFacts = field(default_factory=CardFacts)  # for the model card of a Hugging Face folder
    max_shard_bytes: int = 50_000_000_000  # what Transformers 5 writes


@dataclass(frozen=True, kw_only=True)
class _Reference:
    """All that must be known of the source once its arrays are gone."""

    subject: Subject
    config: GPTConfig  # as the target computes it
    kept: StoredModel  # without arrays: tokenizer, template, notes
    prompts: tuple[Prompt, ...]
    answers: Answers
    departures: tuple[Departure, ...]
    digests: Digests


def target_format(target: Path, to: Format | None, dtype: DType) -> Format:
    """The format to write. Raises ConfigError for one that is only read, or that does not hold `dtype`."""
    suffix = target.suffix.lower()
    chosen = to or _SUFFIXES.get(suffix, Format.HUGGING_FACE)
    require(chosen in WRITTEN, f"'{chosen}' is read, not written; formats: {', '.join(WRITTEN)}")
    expected = next((end for end, form in _SUFFIXES.items() if form is chosen), None)
    require(
        expected is None or suffix == expected,
        f"'{target}' does not end in {expected}, as a file in the format '{chosen}' must",
    )
    allowed = WRITTEN[chosen]
    require(dtype in allowed, f"the format '{chosen}' is written in {', '.join(allowed)}, not in {dtype}")
    return chosen


def convert(
    source: str, target: Path, options: Options | None = None, tell: Tell = lambda line: None
) -> Certificate:
    """Write the model `source` (path or hub name) to `target` and prove that it is the same.

    `tell` gets one line for whatever was dropped, assumed or measured. The certificate lies beside the
    weights. Raises CheckpointError, leaving no target behind, when the proof fails; ConfigError for a target
    that exists or cannot hold the model; what `formats.read` and the writers raise.
    """
    options = options or Options()
    to = target_format(target, options.to, options.dtype)
    if options.max_kl is not None:
        asked_for(options.max_kl)  # a bad one is refused even where nothing is rounded
    beside = [target.with_suffix(".yaml")] if to is Format.MODEL_ZOO else []
    for path in (target, certificate_path(target), *beside):
        require(not os.path.lexists(path), f"'{path}' exists already; choose another name or remove it")
    with staging_beside(target) as staging:
        path = locate(source, options.revision, old_weights=True)
        workspace = staging / "safetensors"
        opened = read(path, mup_logit_scale=options.mup_logit_scale, workspace=workspace)
        opened = _with_tokenizer(opened, options.tokenizer)
        written = staging / target.name
        reference = _write(
            opened, path.resolve().name if Path(source).exists() else source, written, to, options, tell
        )
        del opened
        gc.collect()
        certificate = _prove(reference, written, to, options)
        for line in certificate.lines():
            tell(line)
        if not certificate.same:
            reasons = "; ".join(certificate.problems)
            raise CheckpointError(f"'{target}' would not be the same model and was not kept: {reasons}")
        _publish(written, target, certificate)
    return certificate


def _with_tokenizer(opened: Opened, name: str | None) -> Opened:
    if name is None:
        return opened
    require(opened.model.tokenizer is None, "the source has a tokenizer of its own; leave --tokenizer out")
    tokenizer = Tokenizer.gpt2() if name == "gpt2" else Tokenizer.load(name)
    rows = opened.model.config.vocab_size
    require(
        tokenizer.vocab_size <= rows,
        f"the tokenizer '{name}' has {tokenizer.vocab_size} entries, the model {rows}",
    )
    notes = tuple(note for note in opened.model.notes if "holds no tokenizer" not in note)
    return replace(opened, model=replace(opened.model, tokenizer=tokenizer, notes=notes))


def _write(opened: Opened, name: str, written: Path, to: Format, options: Options, tell: Tell) -> _Reference:
    """Ask the source all that the proof will need, then write it."""
    model = opened.model
    prompts = battery(model.tokenizer, model.config.vocab_size, model.config.max_seq_len)
    if to is Format.GGUF:
        check_exportable(model.config, GGUFKind(options.dtype))
    answers = answers_of(model, name, prompts)
    config, departures = model.config, []
    if to is Format.GGUF and config.activation is Activation.GELU:  # llama.cpp's graph has tanh GELU only
        config = replace(config, activation=Activation.GELU_TANH)
        exact, answers = answers, answers_of(replace(model, config=config), name, prompts)
        departures.append(_gelu_departure(compare(exact, answers), options, tell))
    stored = _as_held(replace(model, provenance={**model.provenance, "source": name}), to)
    for note in stored.notes:
        tell(note)
    reference = _Reference(
        subject=Subject(name=name, format=opened.format, sha256=sha256_of(opened.files)),
        config=config,
        kept=replace(stored, arrays={}),
        prompts=prompts,
        answers=answers,
        departures=tuple(departures),
        digests=digests(stored.arrays, _stored_types(stored.config, to, options.dtype)),
    )
    if to is Format.MODEL_ZOO:
        write_mdl(stored, written)
    elif to is Format.GGUF:
        write_gguf(stored, written, kind=GGUFKind(options.dtype))
    elif to is Format.NATIVE:
        write_run(stored, written)
    else:
        dtype, shard_bytes = _HUGGING_FACE_DTYPES[options.dtype], options.max_shard_bytes
        write_folder(stored, written, dtype=dtype, max_shard_bytes=shard_bytes, card=_card(stored, options))
    return reference


def _as_held(model: StoredModel, to: Format) -> StoredModel:
    """`model` as the format can say it: only ours and the Model Zoo's have muP."""
    return model if to in (Format.NATIVE, Format.MODEL_ZOO) else fold(model)


def _card(stored: StoredModel, options: Options) -> CardFacts:
    """The publisher's facts, and the held-out loss that the run measured itself."""
    loss = stored.provenance.get("held_out_nats_per_token")
    if options.card.held_out_nats_per_token is not None or not isinstance(loss, float):
        return options.card
    return replace(options.card, held_out_nats_per_token=loss, held_out_data="the run's held-out text")


def _gelu_departure(found: Comparison, options: Options, tell: Tell) -> Departure:
    departure = Departure(what="tanh GELU in place of erf", found=found, bounds=TANH_FOR_ERF)
    misses = TANH_FOR_ERF.misses(found)
    figures = f"mean KL {found.mean_kl:.3g} nats, most likely token the same: {found.top1_agreement:.2%}"
    tell(f"llama.cpp computes GPT-2 with the tanh GELU, this model was trained with erf: {figures}")
    if misses and not options.accept_gelu:
        raise CheckpointError(
            f"llama.cpp's GELU changes this model too much: {'; '.join(misses)}; "
            "--accept-gelu exports it all the same"
        )
    return departure


def _stored_types(config: GPTConfig, to: Format, dtype: DType) -> dict[str, Sequence[TensorType]]:
    """{our name: how the target may hold it}."""
    if to is Format.GGUF:
        names = tensor_names(config)
        return {names[t.name]: (t.type,) for t in tensor_plan(config, GGUFKind(dtype))}
    return dict.fromkeys(config.parameter_shapes(), (dtype.tensor_type,))


def _prove(reference: _Reference, written: Path, to: Format, options: Options) -> Certificate:
    """Read the result back as a stranger would and hold it against the source."""
    opened = read(written)
    back, kept = opened.model, reference.kept
    if to is Format.GGUF:  # what llama.cpp will compute, whatever the file says of the training
        back = replace(back, config=replace(back.config, activation=Activation.GELU_TANH))
    checked = check_digests(reference.digests, back.arrays, options.dtype.tensor_type)
    found = compare(reference.answers, answers_of(back, written.name, reference.prompts))
    bounds = rounding_bounds(options.dtype.tensor_type, reference.config, found, options.max_kl)
    problems = [
        *config_problems(reference.config, back.config),
        *(f"weight '{name}' was read back changed" for name in checked.wrong[:3]),
        *bounds.misses(found),
        *tokenizer_problems(kept.tokenizer, back.tokenizer),
        *(["the chat template was read back changed"] if kept.chat_template != back.chat_template else []),
    ]
    return Certificate(
        source=reference.subject,
        target=Subject(name=written.name, format=to, sha256=sha256_of(opened.files)),
        found=found,
        bounds=bounds,
        arrays=checked,
        departures=reference.departures,
        problems=tuple(problems),
        notes=kept.notes,
        versions=versions(*_LIBRARIES.get(to, ())),
    )


def _publish(written: Path, target: Path, certificate: Certificate) -> None:
    """Give the proven result its name, and what lies beside it. Raises StorageError."""
    write_atomic(certificate_path(written), certificate.to_json().encode())
    beside = [written.with_suffix(".yaml")] if certificate.target.format == Format.MODEL_ZOO else []
    try:
        if not written.is_dir():  # the certificate first: weights are never there without it
            beside.append(certificate_path(written))
        for path in (*beside, written):
            os.rename(path, target.with_name(path.name))
        sync_directory(OSFiles(), target.parent.resolve())
    except OSError as error:
        raise storage_error(f"cannot write '{target}'", error, "nothing was kept") from error
