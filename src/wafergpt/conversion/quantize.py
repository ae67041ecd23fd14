"""A model packed for the native backend in a lower precision, with the proof of what that costs beside it.

The target is a folder: the packed weights, the tokenizer, the certificate. What is compared is the very file
that is kept, run by the backend that will run it, with the float32 model run by the reference.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from wafergpt.backends.native_cpu import NativeCPU
from wafergpt.backends.packed_model import WEIGHTS_NAME, Precision, pack_model, weights_hash
from wafergpt.backends.torch_eager import TorchEager
from wafergpt.checkpoints.files import OSFiles, storage_error, sync_directory, write_atomic
from wafergpt.checkpoints.task_files import copy_task
from wafergpt.config import require, require_finite
from wafergpt.conversion.convert import Tell
from wafergpt.conversion.formats import Format, Opened, locate, read, sha256_of
from wafergpt.conversion.proof import NativeModel, answers_of, asked_for, packed_bounds, versions
from wafergpt.conversion.staging import staging_beside
from wafergpt.errors import CheckpointError
from wafergpt.evaluation.certificate import Certificate, HeldOutRise, Subject, certificate_path
from wafergpt.evaluation.held_out import HeldOut
from wafergpt.evaluation.parity import answer, battery, compare
from wafergpt.evaluation.perplexity import evaluate
from wafergpt.evaluation.scoring import EngineScorer
from wafergpt.inference.engine import Engine
from wafergpt.kernels import native
from wafergpt.model.gpt import GPT
from wafergpt.tokenizer.bpe import FILE_NAME as TOKENIZER_NAME
from wafergpt.tokenizer.bpe import Tokenizer

# How many percent held-out bits/byte may rise, unless told otherwise; bf16 rounds 2^-9 of a value, int8 about
# as much of a row's largest, int4 a fifteenth of the largest of 32.
MAX_RISE_PERCENT = {Precision.F32: 0.01, Precision.BF16: 0.1, Precision.INT8: 0.3, Precision.INT4: 3.0}


def quantize(
    source: str,
    target: Path,
    precision: Precision | str,
    *,
    data: Sequence[Path] = (),
    max_kl: float | None = None,
    max_rise_percent: float | None = None,
    tell: Tell = lambda line: None,
) -> Certificate:
    """Write the model `source` (path or hub name) as the folder `target`, and prove what it still says.

    With `data` (a prepared folder, or text files) the loss of both on held-out text is compared too, and may
    rise by `max_rise_percent`. `max_kl` (nats) takes the place of the derived bound on the answers. Raises
    CheckpointError, leaving nothing behind, when a bound is missed; ConfigError for a target that exists or
    a bad bound; MissingDependencyError without the native library; what `formats.read` and `HeldOut.open`
    raise.
    """
    precision = Precision.parse(precision)
    if max_kl is not None:
        asked_for(max_kl)
    if max_rise_percent is not None:
        require_finite("max_rise_percent", max_rise_percent, minimum=0.0)
        require(len(data) > 0, "max_rise_percent needs data to measure it on")
    require(not os.path.lexists(target), f"'{target}' exists already; choose another name or remove it")
    native.choose_isa()
    with staging_beside(target) as staging:
        opened = read(locate(source))
        model = opened.model
        if model.tokenizer is None:
            raise CheckpointError(f"'{source}' holds no tokenizer; `wafergpt convert --tokenizer` adds one")
        for note in model.notes:
            tell(note)
        name = Path(source).resolve().name if Path(source).exists() else source
        written = staging / target.name
        certificate = _write(opened, name, written, precision, tell)
        bounds = packed_bounds(precision, model.config, certificate.found, max_kl)
        if data:
            held_out = HeldOut.open([Path(path) for path in data], model.tokenizer)
            limit = MAX_RISE_PERCENT[precision] if max_rise_percent is None else max_rise_percent
            rise = _rise(opened, written, held_out, limit)
            certificate = replace(certificate, held_out=rise)
        problems = [*bounds.misses(certificate.found), *_missed(certificate.held_out)]
        certificate = replace(certificate, bounds=bounds, problems=tuple(problems))
        for line in certificate.lines():
            tell(line)
        if not certificate.same:
            raise CheckpointError(f"'{target}' loses too much and was not kept: {'; '.join(problems)}")
        _publish(written, target, certificate)
    return certificate


def _write(opened: Opened, name: str, written: Path, precision: Precision, tell: Tell) -> Certificate:
    """Pack the model, ask both; the certificate without bounds yet."""
    model, tokenizer = opened.model, opened.model.tokenizer
    assert tokenizer is not None
    prompts = battery(tokenizer, model.config.vocab_size, model.config.max_seq_len)
    reference = answers_of(model, name, prompts)
    written.mkdir()
    weights = written / WEIGHTS_NAME
    n_threads = len(os.sched_getaffinity(0))
    pack_model(model, precision, weights, source=weights_hash(model), n_threads=n_threads)
    write_atomic(written / TOKENIZER_NAME, tokenizer.to_bytes())
    task = copy_task(opened.files[0].parent, written) if opened.format is Format.NATIVE else ()
    megabytes = [n / 1e6 for n in (4 * model.config.n_params, weights.stat().st_size)]
    tell(f"{megabytes[0]:,.1f} MB of float32 weights became {megabytes[1]:,.1f} MB")
    back = Tokenizer.load(written / TOKENIZER_NAME)
    if back.sha256 != tokenizer.sha256:
        raise CheckpointError("the tokenizer was read back changed")
    found = compare(reference, answer(NativeModel(weights, written.name), prompts))
    return Certificate(
        source=Subject(name=name, format=opened.format, sha256=sha256_of(opened.files)),
        target=Subject(
            name=written.name,
            format=f"{Format.PACKED} {precision}",
            sha256=sha256_of((weights, written / TOKENIZER_NAME, *task)),
        ),
        found=found,
        bounds=packed_bounds(precision, model.config, found, None),
        notes=model.notes,
        versions=versions(),
    )


def _rise(opened: Opened, written: Path, held_out: HeldOut, limit: float) -> HeldOutRise:
    tokenizer = opened.model.tokenizer
    assert tokenizer is not None
    found = []
    for make in (
        lambda: TorchEager(GPT.from_stored(opened.model)),
        lambda: NativeCPU.from_packed(written / WEIGHTS_NAME),
    ):
        loss = evaluate(
            EngineScorer(Engine(make())),
            held_out.tokens,
            n_text_bytes=held_out.n_text_bytes,
            end_of_text_id=tokenizer.end_of_text_id,
        )
        found.append(loss.bits_per_byte)
        gc.collect()
    return HeldOutRise(
        n_tokens=held_out.tokens.n_tokens,
        source_bits_per_byte=found[0],
        target_bits_per_byte=found[1],
        max_rise_percent=limit,
    )


def _missed(rise: HeldOutRise | None) -> list[str]:
    if rise is None or rise.percent <= rise.max_rise_percent:
        return []
    return [f"held-out bits/byte rise by {rise.percent:.3g} %, over the bound of {rise.max_rise_percent:g} %"]


def _publish(written: Path, target: Path, certificate: Certificate) -> None:
    write_atomic(certificate_path(written), certificate.to_json().encode())
    try:
        os.rename(written, target)
        sync_directory(OSFiles(), target.parent.resolve())
    except OSError as error:
        raise storage_error(f"cannot write '{target}'", error, "nothing was kept") from error
