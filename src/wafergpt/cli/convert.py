"""`wafergpt convert`: a checkpoint into another format, with proof; a Model Zoo YAML into our run configs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from wafergpt.config import from_dict, require


def convert(
    source: Annotated[
        str,
        typer.Argument(
            help="Run folder, Hugging Face folder (old .bin too), hub name, .gguf, .mdl; or a Zoo .yaml."
        ),
    ],
    target: Annotated[
        Path,
        typer.Argument(help="What to write: a new folder, a .gguf or .mdl file; a .yaml for a .yaml."),
    ],
    to: Annotated[
        str | None, typer.Option(help="huggingface, native, gguf or mdl.", show_default="by the suffix")
    ] = None,
    dtype: Annotated[str, typer.Option(help="f32, f16, bf16; for GGUF also q8_0, q4_0.")] = "f32",
    revision: Annotated[
        str | None, typer.Option(help="Branch, tag or commit of a hub name.", show_default="main")
    ] = None,
    mup_logit_scale: Annotated[
        str | None, typer.Option(help="For a muP config that leaves it open: config or recipe.")
    ] = None,
    accept_gelu: Annotated[
        bool,
        typer.Option("--accept-gelu", help="GGUF even if tanh GELU for erf changes the model noticeably."),
    ] = False,
    tokenizer: Annotated[
        str | None, typer.Option(help="For a source without one: gpt2, or a tokenizer.json or its folder.")
    ] = None,
    max_kl: Annotated[
        float | None, typer.Option(help="Bound in nats for rounded weights.", show_default="derived")
    ] = None,
    license: Annotated[str | None, typer.Option(help="For the model card, e.g. apache-2.0.")] = None,
    max_shard_gb: Annotated[float, typer.Option(help="Largest safetensors file, in 10^9 bytes.")] = 50.0,
    data: Annotated[Path | None, typer.Option(help="Prepared folder for the run configs of a .yaml.")] = None,
) -> None:
    """Write SOURCE as TARGET, read it back, compare it, and keep it only if it is the same model."""
    if Path(source).suffix in (".yaml", ".yml"):
        from wafergpt.conversion.run_configs import convert_yaml

        convert_yaml(Path(source), target, data, tell=print)
        return
    require(data is None, "--data goes with a Model Zoo .yaml only")
    from wafergpt.conversion.convert import Options
    from wafergpt.conversion.convert import convert as run

    chosen = {
        "to": to,
        "dtype": dtype,
        "mup_logit_scale": mup_logit_scale,
        "revision": revision,
        "accept_gelu": accept_gelu,
        "tokenizer": tokenizer,
        "card": {"license": license},
        "max_kl": max_kl,
        "max_shard_bytes": max_shard_gb * 1e9,
    }
    run(source, target, from_dict(Options, chosen), tell=print)
    print(f"wrote {target}")
