"""What the timed formats cost on really trained models: the demo's, and microformer-mgm (MIT, 8.9M).

The demo's loss is on its held-out text, in bits/byte. microformer-mgm writes genera of bacteria, and its
text is not published: its loss is on samples that it draws itself in float32, in nats/token.
"""

from __future__ import annotations

import math
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# wafergpt's int8 and int4 may raise the loss by so many percent: `wafergpt quantize` refuses more.
BARS_PERCENT = {"int8": 0.3, "int4": 3.0}
SAMPLES, SAMPLE_TOKENS, BEGIN = 16, 250, 2  # of microformer-mgm; 2 is its <bos>


def quality(cache: Path, precisions: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Both models in every precision; a model that cannot be had becomes `{"missing": reason}`.

    The demo's checkpoint is made by `wafergpt quickstart` (some eight minutes) where it is not there yet.
    """
    from wafergpt.errors import WaferGPTError

    found: dict[str, dict[str, Any]] = {}
    for name, measure in (("demo", _demo), ("microformer-mgm", _microformer)):
        try:
            losses = measure(cache, list(dict.fromkeys(["f32", *precisions])))
        except (WaferGPTError, subprocess.CalledProcessError) as error:
            found[name] = {"missing": str(error)}
            continue
        rises = {p: 100.0 * (loss / losses["f32"] - 1.0) for p, loss in losses.items()}
        found[name] = {"loss": losses, "rise_percent": rises, "unit": UNITS[name]}
        found[name]["met"] = {p: rises[p] <= bar for p, bar in BARS_PERCENT.items() if p in rises}
    return found


UNITS = {"demo": "bits/byte", "microformer-mgm": "nats/token"}


def lines(found: dict[str, dict[str, Any]]) -> list[str]:
    """Markdown: one row a model and precision."""
    rows = ["| trained model | precision | loss | rise |", "|---|---|---|---|"]
    missing = []
    for name, result in found.items():
        if "missing" in result:
            missing.append(f"- {name}: {result['missing']}")
            continue
        for precision, loss in result["loss"].items():
            bar = f" (bar {BARS_PERCENT[precision]:g} %)" if precision in BARS_PERCENT else ""
            rise = f"{result['rise_percent'][precision]:+.2f} %{bar}"
            rows.append(f"| {name} | {precision} | {loss:.4f} {result['unit']} | {rise} |")
    return [*rows, *missing]


def _demo(cache: Path, precisions: list[str]) -> dict[str, float]:
    from wafergpt.checkpoints.native_model import read_run
    from wafergpt.evaluation.held_out import HeldOut
    from wafergpt.evaluation.perplexity import evaluate

    folder = cache / "demo"
    if not (folder / "run").is_dir():
        command = Path(sys.executable).parent / "wafergpt"
        subprocess.run([str(command), "quickstart", "--out", str(folder)], check=True, stdout=sys.stderr)
    stored = read_run(folder / "run")
    assert stored.tokenizer is not None
    text = HeldOut.open([folder / "data"], stored.tokenizer)
    return {
        p: evaluate(
            _scorer(stored, p),
            text.tokens,
            n_text_bytes=text.n_text_bytes,
            end_of_text_id=stored.tokenizer.end_of_text_id,
        ).bits_per_byte
        for p in precisions
    }


def _microformer(cache: Path, precisions: list[str]) -> dict[str, float]:
    from wafergpt.assets.fetch import fetch
    from wafergpt.checkpoints.huggingface.folder import read_folder
    from wafergpt.checkpoints.torch_bin.convert import bin_to_safetensors
    from wafergpt.inference.request import Generate, Generated
    from wafergpt.inference.sampling import SamplingConfig

    folder = cache / "microformer-mgm"
    if not folder.is_dir():
        bin_to_safetensors(fetch("microformer-mgm"), folder)
    stored = read_folder(folder)
    drawn = _engine(stored, "f32").run(
        [
            Generate(prompt_ids=(BEGIN,), sampling=SamplingConfig(max_new_tokens=SAMPLE_TOKENS, seed=seed))
            for seed in range(SAMPLES)
        ]
    )
    texts = [(BEGIN, *r.samples[0].token_ids) for r in drawn if isinstance(r, Generated)]
    losses = {}
    for precision in precisions:
        rows = _scorer(stored, precision).score(texts, [1] * len(texts))
        losses[precision] = -math.fsum(float(x) for row in rows for x in row) / sum(map(len, rows))
    return losses


def _engine(stored: Any, precision: str) -> Any:
    from wafergpt.backends.native_cpu import NativeCPU
    from wafergpt.inference.engine import Engine

    return Engine(NativeCPU.from_stored(stored, precision=precision))


def _scorer(stored: Any, precision: str) -> Any:
    from wafergpt.evaluation.scoring import EngineScorer

    return EngineScorer(_engine(stored, precision))
