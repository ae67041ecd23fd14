"""`wafergpt verify`: whether two checkpoints, or engines running them, are the same model."""

from __future__ import annotations

from typing import Annotated

import typer

from wafergpt.errors import CheckpointError


def verify(
    a: Annotated[
        str, typer.Argument(help="The reference: a path, a hub name, transformers:PATH or llama.cpp:FILE.")
    ],
    b: Annotated[str, typer.Argument(help="What is held against it, named in the same ways.")],
    max_kl: Annotated[
        float | None,
        typer.Option(
            help="Call them the same up to this mean KL in nats.", show_default="as exact as float32 can be"
        ),
    ] = None,
    mup_logit_scale: Annotated[
        str | None, typer.Option(help="For a muP config that leaves it open: config or recipe.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print the certificate as JSON.")] = False,
) -> None:
    """Ask A and B the same battery of prompts and compare every logit; exits with 5 when they differ."""
    from wafergpt.conversion.verify import verify as run

    certificate = run(a, b, max_kl=max_kl, mup_logit_scale=mup_logit_scale)
    print(certificate.to_json() if json else "\n".join(certificate.lines()), end="" if json else "\n")
    if not certificate.same:
        raise CheckpointError(f"{a} and {b} are not the same model: {'; '.join(certificate.problems)}")
