"""Compare any two models: files of any readable format, hub names, or other engines running their files.

A side is written as a path or hub name (run by our reference), `transformers:PATH` or `llama.cpp:FILE.gguf`.
"""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass

from wafergpt.backends.packed_model import WEIGHTS_NAME, Precision
from wafergpt.checkpoints.huggingface.config import MissingScale
from wafergpt.conversion.formats import Format, detect, locate, read, sha256_of
from wafergpt.conversion.proof import (
    EXACT,
    NativeModel,
    OurModel,
    asked_for,
    engine_bounds,
    packed_bounds,
    tokenizer_problems,
    versions,
)
from wafergpt.engines import LlamaCppEngine, TransformersEngine
from wafergpt.errors import CheckpointError
from wafergpt.evaluation.certificate import Certificate, Subject
from wafergpt.evaluation.parity import Bounds, Comparison, LogitSource, answer, battery, compare
from wafergpt.model.config import GPTConfig
from wafergpt.tokenizer.bpe import FILE_NAME as TOKENIZER_NAME
from wafergpt.tokenizer.bpe import Tokenizer

_ENGINES = {"transformers": "transformers", "llama.cpp": "xllamacpp"}  # prefix -> the package that runs it


@dataclass(frozen=True, kw_only=True)
class Side:
    """One model ready to be asked, with what must be known of it afterwards."""

    source: LogitSource
    subject: Subject
    tokenizer: Tokenizer | None  # None for an engine too: it is compared by token ids
    packages: tuple[str, ...] = ()
    config: GPTConfig | None = None  # None for an engine
    packed: Precision | None = None  # of a quantized model


def split_engine(name: str) -> tuple[str, str]:
    """`transformers:PATH` -> ("transformers", "PATH"); a name without a known engine -> ("", name)."""
    engine, colon, rest = name.partition(":")
    return (engine, rest) if colon and engine in _ENGINES else ("", name)


def open_side(name: str, *, mup_logit_scale: MissingScale | str | None = None) -> Side:
    """Load what `name` says. Raises what `formats.read` raises, MissingDependencyError for an engine."""
    engine, rest = split_engine(name)
    path = locate(rest)
    if not engine and detect(path) is Format.PACKED:
        weights, tokenizer = path / WEIGHTS_NAME, path / TOKENIZER_NAME
        packed = NativeModel(weights, rest)
        subject = Subject(
            name=path.resolve().name,
            format=f"{Format.PACKED} {packed.precision}",
            sha256=sha256_of((weights, tokenizer)),
        )
        return Side(
            source=packed,
            subject=subject,
            tokenizer=Tokenizer.load(tokenizer),
            packed=packed.precision,
            config=packed.config,
        )
    if not engine:
        opened = read(path, mup_logit_scale=mup_logit_scale)
        subject = Subject(
            name=path.resolve().name, format=opened.format.value, sha256=sha256_of(opened.files)
        )
        return Side(
            source=OurModel(opened.model, rest),
            subject=subject,
            tokenizer=opened.model.tokenizer,
            config=opened.model.config,
        )
    files = tuple(sorted(path.glob("*.safetensors"))) if path.is_dir() else (path,)
    subject = Subject(name=path.resolve().name, format=engine, sha256=sha256_of(files))
    source = TransformersEngine(path) if engine == "transformers" else LlamaCppEngine(path)
    return Side(source=source, subject=subject, tokenizer=None, packages=(_ENGINES[engine],))


def _sizes(side: Side) -> dict[str, int]:
    return {"vocabularies": side.source.vocab_size, "context windows": side.source.max_seq_len}


def _bounds(
    configs: Sequence[GPTConfig | None], packed: Sequence[Precision | None], found: Comparison
) -> Bounds:
    config = next((config for config in configs if config is not None), None)
    quantized = [precision for precision in packed if precision is not None]
    if quantized:
        assert config is not None
        coarsest = max(quantized, key=list(Precision).index)
        return packed_bounds(coarsest, config, found)
    if found.compared == "logits":
        return EXACT
    return engine_bounds(None if config is None else config.n_layers, found)


def verify(
    a: str, b: str, *, max_kl: float | None = None, mup_logit_scale: MissingScale | str | None = None
) -> Certificate:
    """Ask both the same and compare; the certificate's verdict says whether they are the same model.

    The bound is float32's (`EXACT`), that of a quantized model (`packed_bounds`), that of an engine which
    rounds to float16 (`engine_bounds`) where logits are not to be had, or a mean KL of `max_kl` nats. Raises
    CheckpointError when vocabularies or windows are of different size, ConfigError for a bad `max_kl`; what
    `open_side` raises.
    """
    asked = None if max_kl is None else asked_for(max_kl)
    first = open_side(a, mup_logit_scale=mup_logit_scale)
    prompts = battery(first.tokenizer, first.source.vocab_size, first.source.max_seq_len)
    answers_a = answer(first.source, prompts)
    subject, tokenizer, packages = first.subject, first.tokenizer, first.packages
    config, packed, sizes = first.config, first.packed, _sizes(first)
    del first  # the second is loaded into the room the first leaves
    gc.collect()
    second = open_side(b, mup_logit_scale=mup_logit_scale)
    differing = [
        f"{what} of {x} and {y}"
        for (what, x), y in zip(sizes.items(), _sizes(second).values(), strict=True)
        if x != y
    ]
    if differing:
        raise CheckpointError(f"{a} and {b} are not the same model: {'; '.join(differing)}")
    found = compare(answers_a, answer(second.source, prompts))
    bounds = asked or _bounds((config, second.config), (packed, second.packed), found)
    problems = bounds.misses(found)
    if tokenizer is not None and second.tokenizer is not None:
        problems += tokenizer_problems(tokenizer, second.tokenizer)
    return Certificate(
        source=subject,
        target=second.subject,
        found=found,
        bounds=bounds,
        problems=tuple(problems),
        versions=versions(*packages, *second.packages),
    )
